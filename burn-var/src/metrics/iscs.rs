//! The inter-scale consistency score of AID-VAR.

use serde::Serialize;

use super::frechet::{FeatureStats, frechet_distance};
use crate::{Error, Result};

/// Inter-Scale Consistency Score (AID-VAR, equations 8 to 10): compares how generated and real images change from scale
/// to scale.
///
/// An image's features at scales `k - 1` and `k`, concatenated, form one joint vector `J_k`. The score of a transition
/// is `1 / FD(real J_k, generated J_k)`, and the total is the mean of these with weights that double from scale to
/// scale. Higher is more consistent. Like every Frechet distance it depends on the number of images.
///
/// Table 2 of the papers cannot follow from these equations: it has a row for scale 0, where there is no transition,
/// and no single weighting gives both of its totals.
#[derive(Debug, Clone)]
pub struct Iscs {
    dim: usize,
    real: Vec<FeatureStats>,
    generated: Vec<FeatureStats>,
}

/// Side of the comparison to which features are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Real images, encoded and decoded scale by scale.
    Real,
    /// Generated images.
    Generated,
}

/// One transition of an [`IscsScore`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Transition {
    /// Index of the target scale, from 1.
    pub to: usize,
    /// Frechet distance of the joint features.
    pub distance: f64,
    /// Score, `1 / distance`.
    pub score: f64,
    /// Weight in the total.
    pub weight: f64,
}

/// Score of a set of images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IscsScore {
    /// One entry per transition.
    pub transitions: Vec<Transition>,
    /// Weighted mean of the scores.
    pub total: f64,
}

impl Iscs {
    /// Creates an empty score for schedules of `scales` scales and features of `dim` numbers.
    ///
    /// # Errors
    /// [`Error::Config`] with fewer than two scales, which have no transition.
    pub fn new(scales: usize, dim: usize) -> Result<Self> {
        if scales < 2 {
            return Err(Error::config("number of scales", scales, "2 or more: consistency is between two"));
        }
        let empty = || vec![FeatureStats::new(2 * dim); scales - 1];
        Ok(Self { dim, real: empty(), generated: empty() })
    }

    /// Adds images: for every scale their features, `[images, dim]`, with the images in the same order.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of scales, or if features do not fit; [`Error::NonFinite`].
    pub fn push(&mut self, side: Side, features: &[Vec<f32>]) -> Result<()> {
        let dim = self.dim;
        let stats = match side {
            Side::Real => &mut self.real,
            Side::Generated => &mut self.generated,
        };
        let lengths: Vec<usize> = features.iter().map(Vec::len).collect();
        if lengths.len() != stats.len() + 1 || lengths.iter().any(|length| *length != lengths[0]) {
            let expected = format!("{} scales of the same images", stats.len() + 1);
            return Err(Error::shape("features by scale", expected, lengths));
        }
        for (stats, pair) in stats.iter_mut().zip(features.windows(2)) {
            let [before, after] = pair else { unreachable!("windows of two") };
            let joint: Vec<f32> =
                before.chunks(dim).zip(after.chunks(dim)).flat_map(|(a, b)| a.iter().chain(b)).copied().collect();
            stats.push(&joint)?;
        }
        Ok(())
    }

    /// Merges another score of the same sizes into this one.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes differ.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.real.len() != self.real.len() {
            return Err(Error::shape("scales", (self.real.len() + 1).to_string(), [other.real.len() + 1]));
        }
        let sides = self.real.iter_mut().zip(&other.real).chain(self.generated.iter_mut().zip(&other.generated));
        sides.into_iter().try_for_each(|(own, other)| own.merge(other))
    }

    /// Computes the score of all images so far. Sides that are equal to the last digit give infinity.
    ///
    /// # Errors
    /// [`Error::Shape`] with fewer than two images on a side.
    pub fn score(&self) -> Result<IscsScore> {
        let sum: f64 = (1..=self.real.len()).map(weight).sum();
        let transition = |(i, (real, generated)): (usize, (&FeatureStats, &FeatureStats))| {
            let distance = frechet_distance(&real.gaussian()?, &generated.gaussian()?)?;
            let to = i + 1;
            Ok(Transition { to, distance, score: 1.0 / distance, weight: weight(to) / sum })
        };
        let transitions =
            self.real.iter().zip(&self.generated).enumerate().map(transition).collect::<Result<Vec<_>>>()?;
        let total = transitions.iter().map(|transition| transition.weight * transition.score).sum();
        Ok(IscsScore { transitions, total })
    }
}

/// Returns the weights before they are normalized to a sum of one.
fn weight(to: usize) -> f64 {
    (to as f64).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    const DIM: usize = 3;

    fn features(purpose: &str, images: usize, shift: f64) -> Vec<Vec<f32>> {
        let mut rng = Rng::new(3, purpose, 0);
        (0..3).map(|_| (0..images * DIM).map(|_| (rng.normal() + shift) as f32).collect()).collect()
    }

    fn score(real: &[Vec<f32>], generated: &[Vec<f32>]) -> IscsScore {
        let mut iscs = Iscs::new(3, DIM).unwrap();
        iscs.push(Side::Real, real).unwrap();
        iscs.push(Side::Generated, generated).unwrap();
        iscs.score().unwrap()
    }

    #[test]
    fn a_shift_of_all_features_counts_at_both_scales() {
        let real = features("real", 50, 0.0);
        let shifted: Vec<Vec<f32>> = real.iter().map(|scale| scale.iter().map(|x| x + 2.0).collect()).collect();
        let found = score(&real, &shifted);
        for transition in &found.transitions {
            assert!((transition.distance - (2 * DIM * 4) as f64).abs() < 1e-5, "{transition:?}");
        }
        assert!((found.total - 1.0 / 24.0).abs() < 1e-6, "{found:?}");
        assert_eq!(
            found.transitions.iter().map(|transition| transition.weight).collect::<Vec<_>>(),
            [1.0 / 3.0, 2.0 / 3.0]
        );
    }

    #[test]
    fn closer_images_score_higher_and_parts_merge() {
        let real = features("real", 200, 0.0);
        let [near, far] = [0.2, 1.0].map(|shift| score(&real, &features("made", 200, shift)).total);
        assert!(near > far, "{near} and {far}");
        let fake = features("made", 200, 0.2);
        let cut = |features: &[Vec<f32>], range: std::ops::Range<usize>| -> Vec<Vec<f32>> {
            features.iter().map(|scale| scale[range.start * DIM..range.end * DIM].to_vec()).collect()
        };
        let part = |range: std::ops::Range<usize>| {
            let mut iscs = Iscs::new(3, DIM).unwrap();
            iscs.push(Side::Real, &cut(&real, range.clone())).unwrap();
            iscs.push(Side::Generated, &cut(&fake, range)).unwrap();
            iscs
        };
        let mut parts = part(0..70);
        parts.merge(&part(70..200)).unwrap();
        assert!((parts.score().unwrap().total - near).abs() < 1e-9 * near);
    }

    #[test]
    fn errors_name_the_input() {
        assert!(Iscs::new(1, DIM).unwrap_err().to_string().contains("2 or more"));
        let mut iscs = Iscs::new(3, DIM).unwrap();
        assert!(iscs.push(Side::Real, &features("a", 2, 0.0)[..2]).unwrap_err().to_string().contains("3 scales"));
        assert!(iscs.score().unwrap_err().to_string().contains("feature rows"));
        let mut broken = features("a", 2, 0.0);
        broken[1][4] = f32::NAN;
        assert!(iscs.push(Side::Real, &broken).unwrap_err().to_string().contains("not finite"));
        assert!(iscs.merge(&Iscs::new(2, DIM).unwrap()).is_err());
    }
}
