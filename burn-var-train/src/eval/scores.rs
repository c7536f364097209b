//! Measures of a set of images against a reference.

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn_var::metrics::{FeatureStats, InceptionScore, Kid, PrecisionRecall, Splits, Subsets, frechet_distance};
use burn_var::rng::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{FeatureTable, NetworkIdentity, Statistics};
use crate::{Error, Result};

/// The names of the two sides in messages.
const IMAGES: &str = "the evaluated images";
const REFERENCE: &str = "the reference";

/// The images that others are compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// For the Frechet distances.
    pub statistics: Statistics,
    /// For measures that need single images: precision, recall, density, coverage and the kernel distance. A published
    /// file of statistics has none.
    pub table: Option<FeatureTable>,
}

impl Reference {
    /// Creates a reference from the features of images.
    ///
    /// # Errors
    /// With fewer than 2 images, or if a feature is not finite.
    pub fn of(table: FeatureTable) -> Result<Self> {
        Ok(Self { statistics: Statistics::of(&table)?, table: Some(table) })
    }
}

/// The settings of [`score`]. The defaults are those of the guided-diffusion evaluator and of the KID paper.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Options {
    /// Neighbors for precision, recall, density and coverage.
    #[serde(rename = "neighbours")]
    pub neighbors: usize,
    /// Splits of the images for the Inception Score.
    pub splits: Splits,
    /// Subsets of the kernel distance; they are smaller where there are fewer images.
    pub kid: Subsets,
    /// Bootstrap resamples for the intervals; 0 for none. Each costs as much as a Frechet distance.
    pub resamples: usize,
    /// Seeds the subsets and resamples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            neighbors: PrecisionRecall::NEIGHBORS,
            splits: Splits::Count(10),
            kid: Subsets::default(),
            resamples: 0,
            seed: 0,
        }
    }
}

/// A 95% bootstrap interval: the measure lies in it for 95 in 100 resamples of the same images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// All measures that the network and the reference allow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Number of evaluated images.
    pub count: usize,
    /// Number of reference images, where it is known.
    pub reference_count: Option<u64>,
    /// Frechet distance of the features: FID, with FID's network.
    pub frechet: f64,
    /// Bootstrap interval of the Frechet distance, with resamples.
    pub frechet_interval: Option<Interval>,
    /// Frechet distance of the spatial features: sFID.
    pub spatial_frechet: Option<f64>,
    /// Inception Score: mean over the splits, and their standard deviation.
    pub inception_score: Option<[f64; 2]>,
    /// Precision.
    pub precision: Option<f64>,
    /// Recall.
    pub recall: Option<f64>,
    /// Density.
    pub density: Option<f64>,
    /// PrecisionRecall.
    pub coverage: Option<f64>,
    /// Kernel distance: mean over the subsets, and their standard deviation.
    pub kid: Option<[f64; 2]>,
}

/// Scores `images` against `reference`; matrix products run on `device`.
///
/// # Errors
/// [`Error::Network`] if the two come from different networks. If there are too few images, or a feature is not finite.
pub fn score(images: &FeatureTable, reference: &Reference, options: &Options, device: &Device) -> Result<Scores> {
    let [dim, _, classes] = images.dims;
    check_statistics(images, &reference.statistics)?;
    if let Some(table) = &reference.table {
        NetworkIdentity::check_same((IMAGES, &images.network), (REFERENCE, &table.network))?;
    }
    let Statistics { features, spatial, count, .. } = &reference.statistics;
    let own = Statistics::of(images)?;
    let spatial_frechet = match (&own.spatial, spatial) {
        (Some(own), Some(reference)) => Some(frechet_distance(own, reference)?),
        _ => None,
    };
    let inception_score = (classes > 0).then(|| InceptionScore::of(&images.features.logits, classes, options.splits));
    let (mut coverage, mut kid) = (None, None);
    if let Some(FeatureTable { count, features: real, .. }) = &reference.table {
        let (real, generated) = (&real.features, &images.features.features);
        coverage = Some(PrecisionRecall::of(real, generated, dim, options.neighbors, device)?);
        let size = options.kid.size.min(images.count).min(*count);
        kid = Some(Kid::of(generated, real, dim, Subsets { size, ..options.kid }, device)?);
    }
    let frechet_interval = match options.resamples {
        0 => None,
        resamples => Some(interval(resampled_frechet(images, &reference.statistics, resamples, options.seed)?)),
    };
    Ok(Scores {
        count: images.count,
        reference_count: *count,
        frechet: frechet_distance(&own.features, features)?,
        frechet_interval,
        spatial_frechet,
        inception_score: inception_score.transpose()?.map(|score| [score.mean(), score.std()]),
        precision: coverage.map(|coverage| coverage.precision),
        recall: coverage.map(|coverage| coverage.recall),
        density: coverage.map(|coverage| coverage.density),
        coverage: coverage.map(|coverage| coverage.coverage),
        kid: kid.map(|kid| [kid.mean, kid.std]),
    })
}

/// Computes the Frechet distance between evaluated and real images of each class; `None` for a class with fewer than 2
/// images on either side.
///
/// # Errors
/// The errors of [`score`]; [`burn_var::Error::Shape`] if there is not one label per image.
pub fn frechet_by_class(
    (images, labels): (&FeatureTable, &[usize]),
    (real, real_labels): (&FeatureTable, &[usize]),
) -> Result<Vec<Option<f64>>> {
    NetworkIdentity::check_same((IMAGES, &images.network), (REFERENCE, &real.network))?;
    check_labels(images, labels)?;
    check_labels(real, real_labels)?;
    let classes = labels.iter().chain(real_labels).max().map_or(0, |last| last + 1);
    let of_class = |table: &FeatureTable, labels: &[usize], class: usize| {
        let numbers: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
        (numbers.len() > 1).then(|| Statistics::of(&table.chosen(&numbers))).transpose()
    };
    let distance = |class: usize| match (of_class(images, labels, class)?, of_class(real, real_labels, class)?) {
        (Some(images), Some(real)) => Ok(Some(frechet_distance(&images.features, &real.features)?)),
        _ => Ok(None),
    };
    (0..classes).map(distance).collect()
}

/// Checks that there is one label per image.
pub(super) fn check_labels(table: &FeatureTable, labels: &[usize]) -> Result<()> {
    match labels.len() == table.count {
        true => Ok(()),
        false => {
            let expected = format!("[{}]: one label per image", table.count);
            Err(burn_var::Error::shape("labels", expected, [labels.len()]).into())
        }
    }
}

fn check_statistics(images: &FeatureTable, statistics: &Statistics) -> Result<()> {
    NetworkIdentity::check_statistics((IMAGES, &images.network), (REFERENCE, statistics.network.as_ref()))
}

/// Computes the Frechet distances of bootstrap resamples: sets of the same size, drawn from `images` with replacement.
///
/// # Errors
/// The errors of [`score`].
pub fn resampled_frechet(
    images: &FeatureTable,
    reference: &Statistics,
    resamples: usize,
    seed: u64,
) -> Result<Vec<f64>> {
    resampled_by_class(images, &vec![0; images.count], reference, resamples, seed)
}

/// Computes [`resampled_frechet`] with as many images of each class as there are: every image is replaced by one with the
/// same label.
pub(super) fn resampled_by_class(
    images: &FeatureTable,
    labels: &[usize],
    reference: &Statistics,
    resamples: usize,
    seed: u64,
) -> Result<Vec<f64>> {
    check_statistics(images, reference)?;
    check_labels(images, labels)?;
    let mut classes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (image, label) in labels.iter().enumerate() {
        classes.entry(*label).or_default().push(image);
    }
    let draw = |resample: usize| {
        let mut rng = Rng::new(seed, "bootstrap", resample as u64);
        let alike = labels.iter().map(|label| &classes[label]);
        let rows: Vec<f32> =
            alike.flat_map(|images_of| images.row(images_of[rng.below(images_of.len())])).copied().collect();
        let mut stats = FeatureStats::new(images.dims[0]);
        stats.push(&rows)?;
        Ok(frechet_distance(&stats.gaussian()?, &reference.features)?)
    };
    (0..resamples).into_par_iter().map(draw).collect()
}

/// Returns the interval that holds the middle 95 of 100 values.
pub(super) fn interval(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    Interval { low: at(0.025), high: at(0.975) }
}

/// The difference between the Frechet distances of two sets of images to one reference, with its bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Distance of the second set minus that of the first: below 0 the second is nearer to the reference.
    pub difference: f64,
    /// Bootstrap interval of the difference; both sets are resampled.
    pub interval: Interval,
}

impl Comparison {
    /// Compares two sets.
    ///
    /// # Errors
    /// The errors of [`score`]; [`Error::Config`] with fewer than 20 resamples, which have no 2.5th percentile.
    pub fn of(a: &FeatureTable, b: &FeatureTable, reference: &Statistics, resamples: usize, seed: u64) -> Result<Self> {
        NetworkIdentity::check_same(("the first set", &a.network), ("the second set", &b.network))?;
        check_statistics(a, reference)?;
        if resamples < 20 {
            return Err(Error::config("number of resamples", resamples, "20 or more"));
        }
        let distance = |table: &FeatureTable| -> Result<f64> {
            Ok(frechet_distance(&Statistics::of(table)?.features, &reference.features)?)
        };
        let a_drawn = resampled_frechet(a, reference, resamples, seed)?;
        // Another seed: with the same draws the two sets would depend on each other.
        let b_drawn = resampled_frechet(b, reference, resamples, seed.wrapping_add(1))?;
        let differences = a_drawn.iter().zip(&b_drawn).map(|(a, b)| b - a).collect();
        Ok(Self { difference: distance(b)? - distance(a)?, interval: interval(differences) })
    }

    /// Returns `true` if the interval excludes 0.
    pub fn is_outside_chance(&self) -> bool {
        self.interval.low > 0.0 || self.interval.high < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Features;

    const DIM: usize = 3;

    fn network(weights: &str) -> NetworkIdentity {
        NetworkIdentity::new("test", weights, "none")
    }

    fn table(count: usize, purpose: &str, shift: f64) -> FeatureTable {
        let mut rng = Rng::new(1, purpose, 0);
        let features = (0..count * DIM).map(|_| (rng.normal() + shift) as f32).collect();
        let logits = (0..count * 4).map(|_| (3.0 * rng.normal()) as f32).collect();
        let features = Features { features, spatial: Vec::new(), logits };
        FeatureTable { network: network("01"), count, dims: [DIM, 0, 4], features }
    }

    #[test]
    fn a_set_against_itself_is_perfect() {
        let images = table(200, "images", 0.0);
        let reference = Reference::of(images.clone()).unwrap();
        let found = score(&images, &reference, &Options::default(), &Device::default()).unwrap();
        assert!(found.frechet < 1e-9, "{found:?}");
        assert_eq!((found.precision, found.recall, found.coverage), (Some(1.0), Some(1.0), Some(1.0)));
        assert_eq!((found.count, found.reference_count, found.spatial_frechet), (200, Some(200), None));
        let [score, _] = found.inception_score.unwrap();
        assert!((1.0..=4.0).contains(&score), "{score}");
    }

    #[test]
    fn statistics_alone_give_the_frechet_distance_alone() {
        let images = table(200, "images", 0.0);
        let whole = Reference::of(table(300, "real", 0.5)).unwrap();
        let alone = Reference { table: None, ..whole.clone() };
        let options = Options::default();
        let [whole, alone] =
            [whole, alone].map(|reference| score(&images, &reference, &options, &Device::default()).unwrap());
        assert_eq!(whole.frechet, alone.frechet);
        assert!(whole.precision.is_some() && alone.precision.is_none() && alone.kid.is_none());
    }

    #[test]
    fn the_interval_holds_the_measure_and_narrows_with_more_images() {
        let reference = Reference::of(table(400, "real", 0.0)).unwrap();
        let width = |count: usize| {
            let options = Options { resamples: 100, ..Default::default() };
            let images = table(count, "images", 1.0);
            let found = score(&images, &reference, &options, &Device::default()).unwrap();
            let Interval { low, high } = found.frechet_interval.unwrap();
            assert!(low < found.frechet && found.frechet < high, "{found:?}");
            high - low
        };
        assert!(width(1600) < 0.75 * width(200), "four times narrower with 16 times as many, in the mean");
    }

    #[test]
    fn classes_are_measured_apart() {
        let (near, far) = (table(50, "real", 0.0), table(40, "far", 4.0));
        let join = |a: &FeatureTable, b: &FeatureTable| {
            let both = |a: &[f32], b: &[f32]| [a, b].concat();
            let features = Features {
                features: both(&a.features.features, &b.features.features),
                spatial: Vec::new(),
                logits: both(&a.features.logits, &b.features.logits),
            };
            FeatureTable { count: a.count + b.count, features, ..a.clone() }
        };
        // Class 0 has the same images on both sides, class 1 others.
        let (images, real) = (join(&near, &near), join(&far, &near));
        let (labels, real_labels) = ([[0; 50], [1; 50]].concat(), [&[1; 40][..], &[0; 50]].concat());
        let found = frechet_by_class((&images, &labels), (&real, &real_labels)).unwrap();
        let [Some(same), Some(other)] = found[..] else { panic!("two classes: {found:?}") };
        assert!(same < 1e-9, "the same images: {same}");
        let alone = frechet_distance(&Statistics::of(&near).unwrap().features, &Statistics::of(&far).unwrap().features);
        assert_eq!(other, alone.unwrap(), "that of the class alone");
        let lonely = frechet_by_class((&near, &[&[0; 49][..], &[2]].concat()), (&near, &[2; 50])).unwrap();
        assert_eq!(lonely, [None; 3], "one image has no spread");
        let error = frechet_by_class((&near, &[0]), (&near, &[0; 50])).unwrap_err().to_string();
        assert!(error.contains("one label per image"), "{error}");
    }

    #[test]
    fn chance_is_told_from_difference() {
        let reference = Statistics::of(&table(500, "real", 0.0)).unwrap();
        let compare = |shift: f64| {
            let (a, b) = (table(300, "a", 0.3), table(300, "b", shift));
            Comparison::of(&a, &b, &reference, 100, 0).unwrap()
        };
        assert!(!compare(0.3).is_outside_chance(), "the same distribution: {:?}", compare(0.3));
        let worse = compare(0.8);
        assert!(worse.is_outside_chance() && worse.difference > 0.0, "{worse:?}");
        let a = table(50, "a", 0.0);
        assert!(Comparison::of(&a, &a, &reference, 5, 0).is_err(), "too few resamples");
    }

    #[test]
    fn networks_of_one_width_are_never_mixed() {
        let (a, real) = (table(60, "a", 0.3), table(80, "real", 0.0));
        let other = |table: &FeatureTable| FeatureTable { network: network("02"), ..table.clone() };
        let reference = |table: &FeatureTable| Reference::of(table.clone()).unwrap();
        let score = |images: &FeatureTable, reference: &Reference| {
            score(images, reference, &Options::default(), &Device::default()).err()
        };
        let compare = |a: &FeatureTable, b: &FeatureTable, reference: &Reference| {
            Comparison::of(a, b, &reference.statistics, 20, 0).err()
        };
        let (known, foreign) = (reference(&real), reference(&other(&real)));
        let table_alone = Reference { statistics: known.statistics.clone(), table: foreign.table.clone() };
        let statistics_alone = Reference { statistics: foreign.statistics.clone(), table: None };
        let refused = [
            ("reference", score(&a, &foreign)),
            ("table of the reference", score(&a, &table_alone)),
            ("statistics of the reference", score(&a, &statistics_alone)),
            ("second set", compare(&a, &other(&a), &known)),
            ("statistics of a comparison", compare(&a, &a, &foreign)),
            ("resamples", resampled_frechet(&a, &foreign.statistics, 1, 0).err()),
            ("classes", frechet_by_class((&a, &[0; 60]), (&other(&real), &[0; 80])).err()),
        ];
        for (case, error) in refused {
            let Some(error @ Error::Network { .. }) = error else { panic!("{case}: {error:?}") };
            let message = error.to_string();
            assert!(message.contains("weights 01") && message.contains("weights 02"), "{case}: {message}");
        }
        assert!(score(&a, &known).is_none() && compare(&a, &a, &known).is_none(), "one network");
    }

    #[test]
    fn published_statistics_serve_inception_alone() {
        let mut reference = Reference::of(table(80, "real", 0.0)).unwrap();
        reference.table = None;
        let known = score(&table(60, "a", 0.3), &reference, &Options::default(), &Device::default()).unwrap();
        reference.statistics.network = None;
        let kind = NetworkIdentity::INCEPTION.to_owned();
        let inception = NetworkIdentity { kind, ..network("01") };
        let images = FeatureTable { network: inception, ..table(60, "a", 0.3) };
        let found = score(&images, &reference, &Options::default(), &Device::default()).unwrap();
        assert_eq!(found.frechet, known.frechet);
        let error = score(&table(60, "a", 0.3), &reference, &Options::default(), &Device::default()).unwrap_err();
        assert!(error.to_string().contains("unknown network"), "{error}");
    }
}
