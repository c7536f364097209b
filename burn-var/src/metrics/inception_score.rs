use serde::Serialize;

use crate::{Error, Result};

/// Splits of the images, each of which gets a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Splits {
    /// This number of splits, with borders at `i * N / count` rounded down (improved-gan; 10 in the literature).
    Count(usize),
    /// Splits of this many rows, the last one shorter if needed (the guided-diffusion evaluator; 5,000).
    Size(usize),
}

/// Inception Score of each split, in the order of the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionScore {
    /// One score per split, each between 1 and the number of classes.
    pub scores: Vec<f64>,
}

impl InceptionScore {
    /// Computes `exp(mean over x of KL(p(y|x) || p(y)))` (Salimans et al. 2016), with `p(y)` the mean over a split's
    /// rows.
    ///
    /// `logits` are scores before softmax, `[n, classes]`. Rows are split in the given order: shuffle images that are
    /// sorted by class first, or every split sees few classes and its score is far too low.
    ///
    /// # Errors
    /// [`Error::Shape`] for a partial row, no rows, or fewer rows than splits; [`Error::NonFinite`] for NaN or infinity;
    /// [`Error::Config`] for 0 splits, or splits of 0 rows.
    pub fn of(logits: &[f32], classes: usize, splits: Splits) -> Result<Self> {
        super::rows::check_rows("logits", logits, classes, 0)?;
        Self::of_probabilities(&logits.chunks_exact(classes).flat_map(softmax).collect::<Vec<f64>>(), classes, splits)
    }

    /// Computes [`InceptionScore::of`] from probabilities, `[n, classes]`; `0 log 0` is 0.
    ///
    /// # Errors
    /// The errors of [`InceptionScore::of`]; [`Error::Distribution`] for a row that is not a distribution.
    pub fn of_probabilities(probabilities: &[f64], classes: usize, splits: Splits) -> Result<Self> {
        if classes == 0 || probabilities.is_empty() || !probabilities.len().is_multiple_of(classes) {
            let expected = format!("rows of {classes} numbers, at least one");
            return Err(Error::shape("class probabilities", expected, [probabilities.len()]));
        }
        let is_distribution =
            |row: &&[f64]| row.iter().all(|p| *p >= 0.0) && (row.iter().sum::<f64>() - 1.0).abs() < 1e-3;
        if let Some(row) = probabilities.chunks_exact(classes).position(|row| !is_distribution(&row)) {
            return Err(Error::Distribution { row });
        }
        let count = probabilities.len() / classes;
        let borders: Vec<usize> = match splits {
            Splits::Count(0) => return Err(Error::config("number of splits", 0, "at least 1")),
            Splits::Count(parts) if parts > count => {
                let expected = format!("{parts} rows or more, one for each split");
                return Err(Error::shape("class probabilities", expected, [count, classes]));
            }
            Splits::Size(0) => return Err(Error::config("size of a split", 0, "at least 1")),
            Splits::Count(parts) => (0..=parts).map(|i| i * count / parts).collect(),
            Splits::Size(size) => (0..count).step_by(size).chain([count]).collect(),
        };
        let part = |ends: &[usize]| score(&probabilities[ends[0] * classes..ends[1] * classes], classes);
        Ok(Self { scores: borders.windows(2).map(part).collect() })
    }

    /// Returns the mean over splits: the published number.
    pub fn mean(&self) -> f64 {
        self.scores.iter().sum::<f64>() / self.scores.len() as f64
    }

    /// Returns the population standard deviation over splits.
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        (self.scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / self.scores.len() as f64).sqrt()
    }
}

fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let exps: Vec<f64> = row.iter().map(|x| (f64::from(*x) - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|x| x / sum).collect()
}

fn score(rows: &[f64], classes: usize) -> f64 {
    let count = (rows.len() / classes) as f64;
    let mut mean = vec![0.0; classes];
    rows.chunks_exact(classes).for_each(|row| mean.iter_mut().zip(row).for_each(|(mean, p)| *mean += p / count));
    let divergence = |row: &[f64]| -> f64 {
        row.iter().zip(&mean).filter(|(p, _)| **p > 0.0).map(|(p, mean)| p * (p.ln() - mean.ln())).sum()
    };
    (rows.chunks_exact(classes).map(divergence).sum::<f64>() / count).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_between_one_and_the_number_of_classes() {
        let certain: Vec<f64> = (0..40).map(|i| f64::from(i % 8 == i / 8 % 8)).collect();
        let whole = |rows: &[f64], classes| InceptionScore::of_probabilities(rows, classes, Splits::Count(1)).unwrap();
        assert!((whole(&certain, 8).mean() - 5.0).abs() < 1e-12, "five classes, each certain");
        let unsure = vec![0.125; 64];
        assert_eq!(whole(&unsure, 8).mean(), 1.0, "nothing is recognized");
    }

    #[test]
    fn splits_have_the_documented_borders() {
        let logits: Vec<f32> = (0..23 * 3).map(|i| (i * i % 7) as f32).collect();
        let parts = |splits| InceptionScore::of(&logits, 3, splits).unwrap().scores;
        let one = |rows: std::ops::Range<usize>| {
            InceptionScore::of(&logits[rows.start * 3..rows.end * 3], 3, Splits::Count(1)).unwrap().mean()
        };
        assert_eq!(parts(Splits::Count(3)), [one(0..7), one(7..15), one(15..23)]);
        assert_eq!(parts(Splits::Size(10)), [one(0..10), one(10..20), one(20..23)]);
    }

    #[test]
    fn errors_name_the_input() {
        let error = |logits: &[f32], splits| InceptionScore::of(logits, 3, splits).unwrap_err().to_string();
        assert!(error(&[0.0; 6], Splits::Count(0)).contains("number of splits"));
        assert!(error(&[0.0; 6], Splits::Count(3)).contains("3 rows or more"));
        assert!(error(&[0.0; 6], Splits::Size(0)).contains("size of a split"));
        assert!(error(&[0.0; 5], Splits::Count(1)).contains("rows of 3"));
        assert!(error(&[0.0, f32::NAN, 0.0], Splits::Count(1)).contains("not finite"));
        assert!(error(&[], Splits::Count(1)).contains("at least one"));
        let few = InceptionScore::of(&[0.0; 6], 3, Splits::Count(3)).unwrap_err();
        assert!(matches!(few, Error::Shape { ref found, .. } if *found == [2, 3]), "{few}");
        let rows = [0.5, 0.3, 0.2, 0.5, 0.6, 0.2];
        let wrong = InceptionScore::of_probabilities(&rows, 3, Splits::Count(1)).unwrap_err();
        assert!(matches!(wrong, Error::Distribution { row: 1 }), "the sum is 1.3: {wrong}");
    }
}
