//! Frechet distances of methods through several judges, compared with those of a baseline.

use burn_var::metrics::frechet_distance;
use burn_var::rng::Rng;
use serde::{Deserialize, Serialize};

use super::scores::{interval, resampled_by_class};
use super::{FeatureTable, Interval, Statistics};
use crate::{Error, Result};

/// The Frechet distance of a set of images through one judge, and those of bootstrap resamples of the same images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distance {
    /// The distance.
    pub frechet: f64,
    /// The distances of the resamples.
    pub resampled: Vec<f64>,
}

impl Distance {
    /// Measures images with these class labels against a reference. A resample has as many images of each class as the set,
    /// and with the same seed the same images through every judge.
    ///
    /// # Errors
    /// The errors of [`score`](super::score); [`burn_var::Error::Shape`] if there is not one label per image.
    pub fn of(
        images: &FeatureTable,
        labels: &[usize],
        reference: &Statistics,
        resamples: usize,
        seed: u64,
    ) -> Result<Self> {
        let resampled = resampled_by_class(images, labels, reference, resamples, seed)?;
        let frechet = frechet_distance(&Statistics::of(images)?.features, &reference.features)?;
        Ok(Self { frechet, resampled })
    }

    /// Returns the distances of the resamples, moved so that their mean is the distance itself.
    ///
    /// A resample has fewer different images than the set, so its distance is larger on average. Uncorrected, this brings
    /// ratios nearer to 1 than they are. A distance is positive, so what would fall below a hundredth of the distance is
    /// set to that.
    fn centered(&self) -> Vec<f64> {
        let mean = self.resampled.iter().sum::<f64>() / self.resampled.len() as f64;
        self.resampled.iter().map(|found| (found - mean + self.frechet).max(0.01 * self.frechet)).collect()
    }
}

/// The distances of one method: of every training, sampling seed and judge.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodDistances {
    /// By training, then sampling seed, then judge. A method that is not trained several times has one training.
    trainings: Vec<Vec<Vec<Distance>>>,
    judges: usize,
}

/// A method compared with a baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// Mean distance of the method, divided by that of the baseline, for each judge.
    pub by_judge: Vec<f64>,
    /// Geometric mean of these ratios.
    pub mean: f64,
    /// 95% bootstrap interval of the geometric mean; `None` without resamples, and for the baseline itself.
    pub interval: Option<Interval>,
    /// The geometric mean of every training alone.
    pub trainings: Vec<f64>,
}

impl MethodDistances {
    /// Creates the distances of a method, by training, then sampling seed, then judge.
    ///
    /// # Errors
    /// [`Error::Config`] if there are none, or not as many judges or resamples everywhere.
    pub fn new(trainings: Vec<Vec<Vec<Distance>>>) -> Result<Self> {
        let mut runs = trainings.iter().flatten();
        let first = runs.next().filter(|run| !run.is_empty() && trainings.iter().all(|seeds| !seeds.is_empty()));
        let Some(first) = first else {
            return Err(Error::config("distances of a method", "empty", "a training, a seed and a judge at least"));
        };
        let (judges, resamples) = (first.len(), first[0].resampled.len());
        let alike = |run: &Vec<Distance>| {
            run.len() == judges && run.iter().all(|distance| distance.resampled.len() == resamples)
        };
        match trainings.iter().flatten().all(alike) {
            true => Ok(Self { trainings, judges }),
            false => Err(Error::config("distances of a method", "uneven", "as many judges and resamples everywhere")),
        }
    }

    /// Returns the distance of each training through a judge: the mean over the sampling seeds.
    ///
    /// # Panics
    /// If there is no such judge.
    pub fn by_training(&self, judge: usize) -> Vec<f64> {
        let mean = |seeds: &Vec<Vec<Distance>>| mean(seeds.iter().map(|run| run[judge].frechet));
        self.trainings.iter().map(mean).collect()
    }

    /// Returns the distances whose spread counts: those of the trainings if there are several, else those of the sampling
    /// seeds.
    ///
    /// # Panics
    /// If there is no such judge.
    pub fn spread(&self, judge: usize) -> Vec<f64> {
        match &self.trainings[..] {
            [seeds] => seeds.iter().map(|run| run[judge].frechet).collect(),
            _ => self.by_training(judge),
        }
    }

    /// Compares the method with `baseline`. In each resample the trainings are drawn with replacement, and the images of
    /// every set; sampling seeds and real images stay. `seed` seeds the draw of the trainings.
    ///
    /// # Errors
    /// [`Error::Config`] if the two have not as many judges and resamples.
    pub fn ratios(&self, baseline: &Self, seed: u64) -> Result<Ratios> {
        if self.shape() != baseline.shape() {
            let found = format!("{:?}", self.shape());
            let expected = format!("{:?}, those of the baseline", baseline.shape());
            return Err(Error::config("judges and resamples", found, expected));
        }
        let [_, resamples] = self.shape();
        let judges = 0..self.judges;
        let base: Vec<f64> = judges.clone().map(|judge| mean(baseline.by_training(judge))).collect();
        let own: Vec<Vec<f64>> = judges.clone().map(|judge| self.by_training(judge)).collect();
        let by_judge: Vec<f64> = own.iter().zip(&base).map(|(own, base)| mean(own.iter().copied()) / base).collect();
        let of_training =
            |training: usize| geometric_mean(own.iter().zip(&base).map(|(own, base)| own[training] / base));
        let interval = (resamples > 0 && self != baseline).then(|| {
            let [own, base] = [self, baseline].map(Self::centered);
            let ratio = |resample: usize| {
                let draw = |sets: &[Vec<Vec<f64>>], purpose: &str| {
                    let mut rng = Rng::new(seed, purpose, resample as u64);
                    let drawn: Vec<usize> = sets.iter().map(|_| rng.below(sets.len())).collect();
                    judges
                        .clone()
                        .map(|judge| mean(drawn.iter().map(|i| sets[*i][judge][resample])))
                        .collect::<Vec<_>>()
                };
                let (own, base) = (draw(&own, "trainings"), draw(&base, "trainings of the baseline"));
                geometric_mean(own.iter().zip(&base).map(|(own, base)| own / base))
            };
            interval((0..resamples).map(ratio).collect())
        });
        let trainings = (0..self.trainings.len()).map(of_training).collect();
        Ok(Ratios { mean: geometric_mean(by_judge.iter().copied()), by_judge, interval, trainings })
    }

    /// Returns the numbers of judges and of resamples.
    fn shape(&self) -> [usize; 2] {
        [self.judges, self.trainings[0][0][0].resampled.len()]
    }

    /// Returns the centered resamples by training, judge and resample: means over the sampling seeds.
    fn centered(&self) -> Vec<Vec<Vec<f64>>> {
        let [judges, resamples] = self.shape();
        let of_training = |seeds: &Vec<Vec<Distance>>| {
            let of_judge = |judge: usize| {
                let centered: Vec<Vec<f64>> = seeds.iter().map(|run| run[judge].centered()).collect();
                (0..resamples).map(|resample| mean(centered.iter().map(|run| run[resample]))).collect()
            };
            (0..judges).map(of_judge).collect()
        };
        self.trainings.iter().map(of_training).collect()
    }
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Returns the geometric mean of positive numbers.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> f64 {
    mean(values.into_iter().map(f64::ln)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Features, NetworkIdentity, resampled_frechet};

    fn distance(frechet: f64, resampled: &[f64]) -> Distance {
        Distance { frechet, resampled: resampled.to_vec() }
    }

    fn plain(trainings: &[&[&[f64]]]) -> MethodDistances {
        let judges = |run: &&[f64]| run.iter().map(|frechet| distance(*frechet, &[])).collect();
        let seeds = |seeds: &&[&[f64]]| seeds.iter().map(judges).collect();
        MethodDistances::new(trainings.iter().map(seeds).collect()).unwrap()
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
    }

    #[test]
    fn ratios_are_of_means_over_seeds_and_trainings() {
        // Two judges; the baseline has one training of two seeds, the method two trainings of two seeds.
        let baseline = plain(&[&[&[1.0, 4.0], &[3.0, 12.0]]]);
        let method = plain(&[&[&[1.0, 1.0], &[2.0, 3.0]], &[&[0.5, 5.0], &[0.5, 9.0]]]);
        assert_eq!((method.by_training(0), method.by_training(1)), (vec![1.5, 0.5], vec![2.0, 7.0]));
        assert_eq!(method.spread(1), [2.0, 7.0], "over the trainings");
        assert_eq!(baseline.spread(1), [4.0, 12.0], "over the seeds");
        let found = method.ratios(&baseline, 0).unwrap();
        // Means are 1 and 4.5, those of the baseline 2 and 8.
        assert_eq!(found.by_judge, [0.5, 0.5625]);
        near(found.mean, (0.5_f64 * 0.5625).sqrt());
        near(found.trainings[0], (0.75_f64 * 0.25).sqrt());
        near(found.trainings[1], (0.25_f64 * 0.875).sqrt());
        assert_eq!(found.interval, None, "without resamples");
        let itself = baseline.ratios(&baseline, 0).unwrap();
        assert_eq!((itself.by_judge, itself.mean), (vec![1.0, 1.0], 1.0), "exactly");
    }

    #[test]
    fn intervals_come_from_centered_resamples() {
        // The mean of the resamples is 6, 2 above the distance of 4: centered they are 2, 4 and 6.
        let method = MethodDistances::new(vec![vec![vec![distance(4.0, &[4.0, 6.0, 8.0])]]]).unwrap();
        assert_eq!(method.centered(), [[[2.0, 4.0, 6.0]]]);
        let baseline = MethodDistances::new(vec![vec![vec![distance(8.0, &[8.0, 8.0, 8.0])]]]).unwrap();
        let found = method.ratios(&baseline, 0).unwrap();
        near(found.mean, 0.5);
        let interval = found.interval.unwrap();
        near(interval.low, 0.25);
        near(interval.high, 0.75);
        assert_eq!(baseline.ratios(&baseline, 0).unwrap().interval, None, "the baseline itself is 1");
        assert_eq!(distance(1.0, &[0.0, 10.0]).centered(), [0.01, 6.0], "never below a hundredth of the distance");
    }

    #[test]
    fn trainings_are_drawn_with_replacement() {
        let resampled = |value: f64| vec![vec![distance(value, &vec![value; 400])]];
        let method = MethodDistances::new(vec![resampled(1.0), resampled(3.0)]).unwrap();
        let baseline = MethodDistances::new(vec![resampled(2.0)]).unwrap();
        let interval = method.ratios(&baseline, 0).unwrap().interval.unwrap();
        // Drawn are twice the first, both, or twice the second.
        near(interval.low, 0.5);
        near(interval.high, 1.5);
        assert_eq!(method.ratios(&baseline, 0).unwrap(), method.ratios(&baseline, 0).unwrap(), "the same seed");
    }

    #[test]
    fn resamples_are_those_of_the_table() {
        let network = NetworkIdentity::new("test", "01", "none");
        let table = |count: usize, purpose: &str| {
            let mut rng = Rng::new(1, purpose, 0);
            let features = (0..count * 2).map(|_| rng.normal() as f32).collect();
            let features = Features { features, spatial: Vec::new(), logits: Vec::new() };
            FeatureTable { network: network.clone(), count, dims: [2, 0, 0], features }
        };
        let reference = Statistics::of(&table(50, "real")).unwrap();
        let images = table(20, "generated");
        let one_class = [3; 20];
        let found = Distance::of(&images, &one_class, &reference, 5, 7).unwrap();
        assert_eq!(found.resampled, resampled_frechet(&images, &reference, 5, 7).unwrap());
        let own = Statistics::of(&images).unwrap();
        assert_eq!(found.frechet, frechet_distance(&own.features, &reference.features).unwrap());
        assert_eq!(Distance::of(&images, &one_class, &reference, 0, 7).unwrap().frechet, found.frechet);
        assert!(Distance::of(&images, &one_class[1..], &reference, 0, 7).is_err(), "a label is missing");
    }

    #[test]
    fn resamples_keep_the_classes() {
        // The images of a class are equal: only their number in a resample could change the distance.
        let network = NetworkIdentity::new("test", "01", "none");
        let labels: Vec<usize> = (0..12).map(|i| i % 3).collect();
        let features = labels.iter().flat_map(|label| [*label as f32, (label * label) as f32]).collect();
        let features = Features { features, spatial: Vec::new(), logits: Vec::new() };
        let images = FeatureTable { network, count: 12, dims: [2, 0, 0], features };
        let reference = Statistics::of(&images.chosen(&[0, 1, 2, 2, 5])).unwrap();
        let found = Distance::of(&images, &labels, &reference, 8, 1).unwrap();
        assert!(found.resampled.iter().all(|other| (other - found.frechet).abs() < 1e-9), "{found:?}");
        let any = resampled_frechet(&images, &reference, 8, 1).unwrap();
        assert!(any.iter().any(|other| (other - found.frechet).abs() > 1e-3), "{any:?}");
    }

    #[test]
    fn uneven_distances_are_refused() {
        let two = vec![distance(1.0, &[1.0]), distance(1.0, &[1.0])];
        assert!(MethodDistances::new(Vec::new()).is_err(), "no training");
        assert!(MethodDistances::new(vec![Vec::new()]).is_err(), "no seed");
        assert!(MethodDistances::new(vec![vec![two.clone()], Vec::new()]).is_err(), "no seed of one");
        assert!(MethodDistances::new(vec![vec![two.clone(), two[..1].to_vec()]]).is_err(), "one judge is missing");
        assert!(MethodDistances::new(vec![vec![vec![distance(1.0, &[]), distance(1.0, &[1.0])]]]).is_err());
        let method = MethodDistances::new(vec![vec![two.clone()]]).unwrap();
        let other = MethodDistances::new(vec![vec![two[..1].to_vec()]]).unwrap();
        assert!(method.ratios(&other, 0).unwrap_err().to_string().contains("[2, 1]"));
    }
}
