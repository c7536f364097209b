//! Reference statistics as the evaluators exchange them.

use std::path::Path;

use burn_var::metrics::{FeatureStats, Gaussian};

use super::{NpzBuilder, NpzFile};
use crate::{Error, Result};

/// Mean and covariance of a set's features, for the Frechet distances. The names in a file are those of the
/// guided-diffusion evaluator (`mu`, `sigma`, `mu_s`, `sigma_s`) and of pytorch-fid (`mu`, `sigma`).
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Of the features, for FID.
    pub features: Gaussian,
    /// Of the spatial features, for sFID.
    pub spatial: Option<Gaussian>,
    /// How many pictures they are of; files of others do not say.
    pub count: Option<u64>,
}

impl Statistics {
    /// From all that was seen.
    ///
    /// # Errors
    /// With fewer than 2 pictures.
    pub fn of(features: &FeatureStats, spatial: Option<&FeatureStats>) -> Result<Self> {
        Ok(Self {
            features: features.gaussian()?,
            spatial: spatial.map(FeatureStats::gaussian).transpose()?,
            count: Some(features.count()),
        })
    }

    /// Whether a file holds statistics.
    pub fn are_in(file: &NpzFile) -> bool {
        file.contains("mu")
    }

    /// Reads them from a file.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not there, or are no statistics.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = NpzFile::open(path)?;
        let features = gaussian(&mut file, path, "mu", "sigma")?;
        let spatial = file.contains("mu_s").then(|| gaussian(&mut file, path, "mu_s", "sigma_s")).transpose()?;
        let count = match file.contains("count") {
            true => file.integers("count")?.first().map(|count| *count as u64),
            false => None,
        };
        Ok(Self { features, spatial, count })
    }

    /// Writes them for this and other tools, in double precision.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = NpzBuilder::create(path)?;
        let parts = [("mu", "sigma", Some(&self.features)), ("mu_s", "sigma_s", self.spatial.as_ref())];
        for (mean, covariance, gaussian) in parts {
            let Some(gaussian) = gaussian else { continue };
            let dim = gaussian.mean().len();
            file.array(mean, &[dim], gaussian.mean())?;
            file.array(covariance, &[dim, dim], gaussian.covariance())?;
        }
        if let Some(count) = self.count {
            file.array("count", &[1], &[count as i64])?;
        }
        file.finish()
    }
}

fn gaussian(file: &mut NpzFile, path: &Path, mean: &str, covariance: &str) -> Result<Gaussian> {
    let (shape, mu) = file.floats(mean)?;
    let (square, sigma) = file.floats(covariance)?;
    let dim = mu.len();
    if shape != [dim] || square != [dim, dim] {
        let reason = format!("`{mean}` has shape {shape:?} and `{covariance}` {square:?}, expected [n] and [n, n]");
        return Err(Error::format(path, reason));
    }
    Gaussian::new(mu, sigma).map_err(|error| Error::format(path, format!("`{mean}`, `{covariance}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut features = FeatureStats::new(2);
        features.push(&[1.0, 2.0, 4.0, 3.0, 0.5, 9.0]).unwrap();
        let mut spatial = FeatureStats::new(1);
        spatial.push(&[1.0, 2.0, 7.0]).unwrap();
        for spatial in [None, Some(&spatial)] {
            let statistics = Statistics::of(&features, spatial).unwrap();
            statistics.write(&path).unwrap();
            assert_eq!(Statistics::read(&path).unwrap(), statistics);
        }
    }

    #[test]
    fn what_is_no_statistics_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let error = |mu: &[f32], shape: &[usize], sigma: &[f32]| {
            let mut file = NpzBuilder::create(&path).unwrap();
            file.array("mu", &[mu.len()], mu).unwrap();
            file.array("sigma", shape, sigma).unwrap();
            file.finish().unwrap();
            Statistics::read(&path).unwrap_err().to_string()
        };
        assert!(error(&[1.0], &[1], &[1.0]).contains("expected [n] and [n, n]"));
        assert!(error(&[f32::NAN], &[1, 1], &[1.0]).contains("`mu`, `sigma`"));
        assert!(error(&[0.0, 0.0], &[2, 2], &[1.0, 0.5, 0.0, 1.0]).contains("covariance entry"));
    }
}
