//! What a classifier's scores say of pictures that should show known classes.

use serde::{Deserialize, Serialize};

use super::FeatureTable;
use crate::{Error, Result};

/// Whether pictures show what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recognition {
    /// Share of pictures in which the classifier sees the class they should show.
    pub share: f64,
    /// The same class by class; classes without a picture are left out.
    pub classes: Vec<ClassRecognition>,
}

/// One class of a [`Recognition`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRecognition {
    /// The class.
    pub label: usize,
    /// How many pictures should show it.
    pub pictures: usize,
    /// Share of them in which the classifier sees it.
    pub share: f64,
    /// Probability that the classifier gives it, on average over them.
    pub confidence: f64,
}

impl Recognition {
    /// Compares the scores in `table` with `labels`, one a picture.
    ///
    /// # Errors
    /// [`Error::Config`] if there are more or fewer labels than pictures, or a label that has no score.
    pub fn of(table: &FeatureTable, labels: &[usize]) -> Result<Self> {
        let confidences = confidences(table, labels)?;
        let right: Vec<bool> = (0..table.count).map(|i| seen(table.logits(i)) == labels[i]).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let share = |right: &[f64]| mean(right);
        let class = |label: usize| {
            let mine: Vec<usize> = (0..table.count).filter(|i| labels[*i] == label).collect();
            let of = |value: &dyn Fn(usize) -> f64| mine.iter().map(|i| value(*i)).collect::<Vec<f64>>();
            (!mine.is_empty()).then(|| ClassRecognition {
                label,
                pictures: mine.len(),
                share: share(&of(&|i| f64::from(right[i]))),
                confidence: mean(&of(&|i| confidences[i])),
            })
        };
        let all: Vec<f64> = right.iter().map(|right| f64::from(*right)).collect();
        Ok(Self { share: mean(&all), classes: (0..table.dims[2]).filter_map(class).collect() })
    }
}

/// The probability that the classifier gives to each picture's own class.
///
/// # Errors
/// As [`Recognition::of`].
pub fn confidences(table: &FeatureTable, labels: &[usize]) -> Result<Vec<f64>> {
    if labels.len() != table.count {
        return Err(Error::config("number of labels", labels.len(), format!("{}, one a picture", table.count)));
    }
    let classes = table.dims[2];
    if let Some(label) = labels.iter().find(|label| **label >= classes) {
        return Err(Error::config("label of a picture", label, format!("a class of the classifier, below {classes}")));
    }
    let confidence = |i: usize| {
        let logits = table.logits(i);
        let largest = f64::from(logits[seen(logits)]);
        let exp = |x: f32| (f64::from(x) - largest).exp();
        exp(logits[labels[i]]) / logits.iter().map(|x| exp(*x)).sum::<f64>()
    };
    Ok((0..table.count).map(confidence).collect())
}

/// The class with the highest score.
fn seen(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Features;

    #[test]
    fn counts_by_class() {
        let logits = vec![2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 1.0, 1.0 + 2_f32.ln(), 1.0];
        let features = Features { features: vec![0.0; 3], spatial: Vec::new(), logits };
        let table = FeatureTable { count: 3, dims: [1, 0, 3], features };
        let found = Recognition::of(&table, &[0, 1, 0]).unwrap();
        assert!((found.share - 2.0 / 3.0).abs() < 1e-12, "two of three: {found:?}");
        let [zero, one] = &found.classes[..] else { panic!("two classes have pictures: {found:?}") };
        assert_eq!((zero.label, zero.pictures, zero.share), (0, 2, 0.5));
        assert_eq!((one.label, one.pictures, one.share), (1, 1, 1.0));
        assert!((confidences(&table, &[0, 1, 0]).unwrap()[2] - 0.25).abs() < 1e-6, "one of 1 + 2 + 1");
        assert!(Recognition::of(&table, &[0, 1]).is_err(), "a label is missing");
        assert!(Recognition::of(&table, &[0, 1, 3]).unwrap_err().to_string().contains("below 3"));
    }
}
