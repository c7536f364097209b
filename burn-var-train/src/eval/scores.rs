//! Figures of a set of pictures against a reference.

use burn::tensor::Device;
use burn_var::metrics::{Coverage, FeatureStats, Gaussian, InceptionScore, Kid, Splits, Subsets, frechet_distance};
use burn_var::rng::Rng;
use serde::{Deserialize, Serialize};

use super::{FeatureTable, Statistics};
use crate::{Error, Result};

/// What pictures are compared with.
#[derive(Debug, Clone)]
pub struct Reference {
    /// For the Frechet distances.
    pub statistics: Statistics,
    /// For what needs single pictures: precision and the like, and the kernel distance. A published file of statistics
    /// alone has none.
    pub table: Option<FeatureTable>,
}

impl Reference {
    /// From pictures.
    ///
    /// # Errors
    /// With fewer than 2 pictures.
    pub fn of(table: FeatureTable) -> Result<Self> {
        Ok(Self { statistics: statistics(&table)?, table: Some(table) })
    }
}

/// Mean and covariance of all features.
///
/// # Errors
/// With fewer than 2 pictures.
pub fn statistics(table: &FeatureTable) -> Result<Statistics> {
    let [dim, spatial_dim, _] = table.dims;
    let collect = |rows: &[f32], dim: usize| {
        let mut stats = FeatureStats::new(dim);
        stats.push(rows).map(|()| stats)
    };
    let features = collect(&table.features.features, dim)?;
    let spatial = (spatial_dim > 0).then(|| collect(&table.features.spatial, spatial_dim)).transpose()?;
    Statistics::of(&features, spatial.as_ref())
}

/// How to score. The defaults are those of the guided-diffusion evaluator and of the KID paper.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Options {
    /// Neighbours for precision, recall, density and coverage.
    pub neighbours: usize,
    /// How pictures are parted for the Inception Score.
    pub splits: Splits,
    /// What the kernel distance is taken over; smaller subsets where there are fewer pictures.
    pub kid: Subsets,
    /// How often pictures are drawn again for the intervals; 0 for none. Each costs as much as a Frechet distance.
    pub resamples: usize,
    /// Draws subsets and resamples.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            neighbours: Coverage::NEIGHBOURS,
            splits: Splits::Count(10),
            kid: Subsets::default(),
            resamples: 0,
            seed: 0,
        }
    }
}

/// A figure with the bounds between which it lies for 95 in 100 sets that are drawn again from the same pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The 2.5th percentile.
    pub low: f64,
    /// The 97.5th percentile.
    pub high: f64,
}

/// All figures that make sense for the network and the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// How many pictures.
    pub count: usize,
    /// How many the reference is of, where that is known.
    pub reference_count: Option<u64>,
    /// Frechet distance of the features: FID, with FID's network.
    pub frechet: f64,
    /// Its interval, if pictures were drawn again.
    pub frechet_interval: Option<Interval>,
    /// Frechet distance of the spatial features: sFID.
    pub spatial_frechet: Option<f64>,
    /// Inception Score: mean over the parts, and their standard deviation.
    pub inception_score: Option<[f64; 2]>,
    /// Precision.
    pub precision: Option<f64>,
    /// Recall.
    pub recall: Option<f64>,
    /// Density.
    pub density: Option<f64>,
    /// Coverage.
    pub coverage: Option<f64>,
    /// Kernel distance: mean over the subsets, and their standard deviation.
    pub kid: Option<[f64; 2]>,
}

/// Scores `made` against `reference`; matrix products run on `device`.
///
/// # Errors
/// If the two were seen by different networks, there are too few pictures, or a feature is not finite.
pub fn score(made: &FeatureTable, reference: &Reference, options: &Options, device: &Device) -> Result<Scores> {
    let [dim, _, classes] = made.dims;
    let Statistics { features, spatial, count } = &reference.statistics;
    let own = statistics(made)?;
    let spatial_frechet = match (&own.spatial, spatial) {
        (Some(own), Some(reference)) => Some(frechet_distance(own, reference)?),
        _ => None,
    };
    let inception_score = (classes > 0).then(|| InceptionScore::of(&made.features.logits, classes, options.splits));
    let rows = reference.table.as_ref().map(|table| {
        same_network(table, made)?;
        Ok::<_, Error>(&table.features.features)
    });
    let rows = rows.transpose()?;
    let coverage = rows.map(|rows| Coverage::of(rows, &made.features.features, dim, options.neighbours, device));
    let coverage = coverage.transpose()?;
    let kid = rows.map(|rows| {
        let size = options.kid.size.min(made.count).min(rows.len() / dim);
        Kid::of(&made.features.features, rows, dim, Subsets { size, ..options.kid }, device)
    });
    let frechet_interval = match options.resamples {
        0 => None,
        resamples => Some(interval(resampled_frechet(made, features, resamples, options.seed)?)),
    };
    Ok(Scores {
        count: made.count,
        reference_count: *count,
        frechet: frechet_distance(&own.features, features)?,
        frechet_interval,
        spatial_frechet,
        inception_score: inception_score.transpose()?.map(|score| [score.mean(), score.deviation()]),
        precision: coverage.map(|coverage| coverage.precision),
        recall: coverage.map(|coverage| coverage.recall),
        density: coverage.map(|coverage| coverage.density),
        coverage: coverage.map(|coverage| coverage.coverage),
        kid: kid.transpose()?.map(|kid| [kid.mean, kid.deviation]),
    })
}

/// Frechet distances of the pictures of each class to the real ones of the same class, by class; none where either side
/// has fewer than 2 pictures.
///
/// # Errors
/// As [`score`]; [`Error::Config`] if there is not a label for each picture.
pub fn frechet_by_class(
    (made, made_labels): (&FeatureTable, &[usize]),
    (real, real_labels): (&FeatureTable, &[usize]),
) -> Result<Vec<Option<f64>>> {
    same_network(real, made)?;
    for (table, labels) in [(made, made_labels), (real, real_labels)] {
        if table.count != labels.len() {
            return Err(Error::config("number of labels", labels.len(), format!("{}, one a picture", table.count)));
        }
    }
    let classes = made_labels.iter().chain(real_labels).max().map_or(0, |last| last + 1);
    let of_class = |(table, labels): (&FeatureTable, &[usize]), class: usize| {
        let mine: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == class).collect();
        (mine.len() > 1).then(|| statistics(&table.chosen(&mine))).transpose()
    };
    let distance = |class: usize| match (of_class((made, made_labels), class)?, of_class((real, real_labels), class)?) {
        (Some(made), Some(real)) => Ok(Some(frechet_distance(&made.features, &real.features)?)),
        _ => Ok(None),
    };
    (0..classes).map(distance).collect()
}

fn same_network(a: &FeatureTable, b: &FeatureTable) -> Result<()> {
    match a.dims[0] == b.dims[0] {
        true => Ok(()),
        false => Err(burn_var::Error::shape(
            "features of the reference",
            format!("{} a picture, as of the pictures", b.dims[0]),
            [a.dims[0]],
        )
        .into()),
    }
}

/// Frechet distances of sets of as many pictures, drawn from `table` with replacement.
///
/// # Errors
/// As [`score`].
pub fn resampled_frechet(table: &FeatureTable, reference: &Gaussian, resamples: usize, seed: u64) -> Result<Vec<f64>> {
    let draw = |resample: usize| {
        let mut rng = Rng::new(seed, "bootstrap", resample as u64);
        let rows: Vec<f32> = (0..table.count).flat_map(|_| table.row(rng.below(table.count))).copied().collect();
        let mut stats = FeatureStats::new(table.dims[0]);
        stats.push(&rows)?;
        Ok(frechet_distance(&stats.gaussian()?, reference)?)
    };
    (0..resamples).map(draw).collect()
}

/// The middle 95 of 100.
fn interval(mut values: Vec<f64>) -> Interval {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    Interval { low: at(0.025), high: at(0.975) }
}

/// Whether two sets of pictures differ in their Frechet distance to one reference beyond what chance explains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// Distance of the second less that of the first: below 0 the second is nearer.
    pub difference: f64,
    /// Where the difference lies when both sets are drawn again.
    pub interval: Interval,
}

impl Comparison {
    /// Compares two sets.
    ///
    /// # Errors
    /// As [`score`]; [`Error::Config`] with fewer than 20 resamples, which have no 2.5th percentile.
    pub fn of(a: &FeatureTable, b: &FeatureTable, reference: &Gaussian, resamples: usize, seed: u64) -> Result<Self> {
        same_network(a, b)?;
        if resamples < 20 {
            return Err(Error::config("number of resamples", resamples, "20 or more"));
        }
        let distance =
            |table: &FeatureTable| -> Result<f64> { Ok(frechet_distance(&statistics(table)?.features, reference)?) };
        let a_drawn = resampled_frechet(a, reference, resamples, seed)?;
        // Another stream: the same draws would make the two sets depend on each other.
        let b_drawn = resampled_frechet(b, reference, resamples, seed.wrapping_add(1))?;
        let differences = a_drawn.iter().zip(&b_drawn).map(|(a, b)| b - a).collect();
        Ok(Self { difference: distance(b)? - distance(a)?, interval: interval(differences) })
    }

    /// Whether the interval leaves out 0.
    pub fn is_outside_chance(&self) -> bool {
        self.interval.low > 0.0 || self.interval.high < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Features;

    const DIM: usize = 3;

    fn table(count: usize, purpose: &str, shift: f64) -> FeatureTable {
        let mut rng = Rng::new(1, purpose, 0);
        let features = (0..count * DIM).map(|_| (rng.normal() + shift) as f32).collect();
        let logits = (0..count * 4).map(|_| (3.0 * rng.normal()) as f32).collect();
        FeatureTable { count, dims: [DIM, 0, 4], features: Features { features, spatial: Vec::new(), logits } }
    }

    #[test]
    fn a_set_against_itself_is_perfect() {
        let made = table(200, "made", 0.0);
        let reference = Reference::of(made.clone()).unwrap();
        let found = score(&made, &reference, &Options::default(), &Device::default()).unwrap();
        assert!(found.frechet < 1e-9, "{found:?}");
        assert_eq!((found.precision, found.recall, found.coverage), (Some(1.0), Some(1.0), Some(1.0)));
        assert_eq!((found.count, found.reference_count, found.spatial_frechet), (200, Some(200), None));
        let [score, _] = found.inception_score.unwrap();
        assert!((1.0..=4.0).contains(&score), "{score}");
    }

    #[test]
    fn statistics_alone_give_the_frechet_distance_alone() {
        let made = table(200, "made", 0.0);
        let whole = Reference::of(table(300, "real", 0.5)).unwrap();
        let alone = Reference { table: None, ..whole.clone() };
        let options = Options::default();
        let [whole, alone] =
            [whole, alone].map(|reference| score(&made, &reference, &options, &Device::default()).unwrap());
        assert_eq!(whole.frechet, alone.frechet);
        assert!(whole.precision.is_some() && alone.precision.is_none() && alone.kid.is_none());
    }

    #[test]
    fn the_interval_holds_the_figure_and_narrows_with_more_pictures() {
        let reference = Reference::of(table(400, "real", 0.0)).unwrap();
        let width = |count: usize| {
            let options = Options { resamples: 100, ..Default::default() };
            let made = table(count, "made", 1.0);
            let found = score(&made, &reference, &options, &Device::default()).unwrap();
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
            FeatureTable { count: a.count + b.count, dims: a.dims, features }
        };
        // Class 0 is the same on both sides, class 1 of another kind, of class 2 there is one, class 3 is real alone.
        let (made, real) = (join(&near, &near), join(&far, &near));
        let (made_labels, real_labels) = ([[0; 50], [1; 50]].concat(), [&[1; 40][..], &[0; 50]].concat());
        let found = frechet_by_class((&made, &made_labels), (&real, &real_labels)).unwrap();
        let [Some(same), Some(other)] = found[..] else { panic!("two classes: {found:?}") };
        assert!(same < 1e-9, "the same pictures: {same}");
        let alone = frechet_distance(&statistics(&near).unwrap().features, &statistics(&far).unwrap().features);
        assert_eq!(other, alone.unwrap(), "that of the class alone");
        let lonely = frechet_by_class((&near, &[&[0; 49][..], &[2]].concat()), (&near, &[2; 50])).unwrap();
        assert_eq!(lonely, [None; 3], "one picture has no spread");
        assert!(frechet_by_class((&near, &[0]), (&near, &[0; 50])).is_err(), "a label a picture");
    }

    #[test]
    fn chance_is_told_from_difference() {
        let reference = statistics(&table(500, "real", 0.0)).unwrap().features;
        let compare = |shift: f64| {
            let (a, b) = (table(300, "a", 0.3), table(300, "b", shift));
            Comparison::of(&a, &b, &reference, 100, 0).unwrap()
        };
        assert!(!compare(0.3).is_outside_chance(), "the same distribution: {:?}", compare(0.3));
        let worse = compare(0.8);
        assert!(worse.is_outside_chance() && worse.difference > 0.0, "{worse:?}");
        let a = table(50, "a", 0.0);
        assert!(Comparison::of(&a, &a, &reference, 5, 0).is_err(), "too few resamples");
        let other = FeatureTable { dims: [1, 0, 4], count: 150, ..a.clone() };
        assert!(Comparison::of(&a, &other, &reference, 50, 0).is_err(), "another network");
    }
}
