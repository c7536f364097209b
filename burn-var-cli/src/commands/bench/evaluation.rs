//! The costly parts of an evaluation.

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use burn_var::metrics::{FeatureStats, PrecisionRecall, frechet_distance};
use burn_var::models::inception::Inception;
use burn_var::rng::Rng;

use super::Bench;

/// Features of FID's network.
const FEATURES: usize = 2048;
/// Images behind the statistics: more than features, so that the covariances have full rank.
const IMAGES: usize = 2 * FEATURES;
/// Images on either side for precision and recall.
const COMPARED: usize = 10_000;

impl Bench<'_> {
    /// Measures the features of prepared images. The time does not depend on the weights.
    pub(super) fn inception(&mut self, batch: usize) -> Result<()> {
        let network = Inception::init_zeros(self.device);
        let images = Tensor::<4>::random([batch, 3, 299, 299], Distribution::Uniform(-1.0, 1.0), self.device);
        self.rate("Inception", "images/s", batch as f64, batch, |_| Ok(network.features(images.clone())?))
    }

    pub(super) fn frechet(&mut self) -> Result<()> {
        let gaussian = |stream: u64| {
            let mut stats = FeatureStats::new(FEATURES);
            stats.push(&features(IMAGES, stream))?;
            stats.gaussian()
        };
        let (a, b) = (gaussian(0)?, gaussian(1)?);
        self.seconds("Frechet distance", 1, |_| Ok(frechet_distance(&a, &b)?))
    }

    pub(super) fn coverage(&mut self) -> Result<()> {
        let [real, fake] = [0, 1].map(|stream| features(COMPARED, stream));
        let device = self.device.clone();
        self.seconds("precision and recall", COMPARED, |_| {
            Ok(PrecisionRecall::of(&real, &fake, FEATURES, PrecisionRecall::NEIGHBORS, &device)?)
        })
    }
}

fn features(count: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(1, "bench features", stream);
    (0..count * FEATURES).map(|_| rng.normal() as f32).collect()
}
