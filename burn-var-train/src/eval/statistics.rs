//! Reference statistics, in the files that evaluation tools exchange.

use std::path::Path;

use burn_var::metrics::{FeatureStats, Gaussian};

use super::{FeatureTable, NetworkIdentity, NpzBuilder, NpzFile};
use crate::{Error, Result};

/// The array of a file that holds the identity of the network: JSON, as bytes.
const NETWORK: &str = "network";

/// Mean and covariance of a set's features, for the Frechet distances. The names in a file are those of the
/// guided-diffusion evaluator (`mu`, `sigma`, `mu_s`, `sigma_s`) and of pytorch-fid (`mu`, `sigma`).
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// The network that computed the features. `None` if the file does not record it, as published files and those of
    /// older versions; see [`NetworkIdentity::check_statistics`].
    pub network: Option<NetworkIdentity>,
    /// Statistics of the features, for FID.
    pub features: Gaussian,
    /// Statistics of the spatial features, for sFID.
    pub spatial: Option<Gaussian>,
    /// Number of images; files of other tools do not record it.
    pub count: Option<u64>,
}

impl Statistics {
    /// Computes the statistics of all images in a table.
    ///
    /// # Errors
    /// With fewer than 2 images, or if a feature is not finite.
    pub fn of(table: &FeatureTable) -> Result<Self> {
        let [dim, spatial_dim, _] = table.dims;
        let gaussian = |rows: &[f32], dim: usize| {
            let mut stats = FeatureStats::new(dim);
            stats.push(rows)?;
            stats.gaussian()
        };
        let features = gaussian(&table.features.features, dim)?;
        let spatial = (spatial_dim > 0).then(|| gaussian(&table.features.spatial, spatial_dim)).transpose()?;
        Ok(Self { network: Some(table.network.clone()), features, spatial, count: Some(table.count as u64) })
    }

    /// Returns `true` if a file holds statistics.
    pub fn are_in(file: &NpzFile) -> bool {
        file.contains("mu")
    }

    /// Reads statistics from a file.
    ///
    /// # Errors
    /// [`Error::Format`] if the file holds no statistics, or arrays of other shapes.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut file = NpzFile::open(path)?;
        let features = gaussian(&mut file, path, "mu", "sigma")?;
        let spatial = file.contains("mu_s").then(|| gaussian(&mut file, path, "mu_s", "sigma_s")).transpose()?;
        let count = match file.contains("count") {
            true => file.integers("count")?.first().map(|count| *count as u64),
            false => None,
        };
        let network = file.contains(NETWORK).then(|| identity(&mut file, path)).transpose()?;
        Ok(Self { network, features, spatial, count })
    }

    /// Writes the statistics for this and other tools, in double precision.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
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
        if let Some(network) = &self.network {
            let json = serde_json::to_vec(network).map_err(|error| Error::format(path, error.to_string()))?;
            file.array(NETWORK, &[json.len()], &json)?;
        }
        file.finish()
    }
}

fn identity(file: &mut NpzFile, path: &Path) -> Result<NetworkIdentity> {
    let bytes: Vec<u8> = file.integers(NETWORK)?.into_iter().map(|byte| byte as u8).collect();
    serde_json::from_slice(&bytes).map_err(|error| {
        let reason =
            format!("array `{NETWORK}`: it is not the identity of a network ({error}); compute the file again");
        Error::format(path, reason)
    })
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
    use crate::eval::Features;

    fn table(spatial_dim: usize) -> FeatureTable {
        let features = vec![1.0, 2.0, 4.0, 3.0, 0.5, 9.0];
        let spatial = [1.0, 2.0, 7.0][..3 * spatial_dim].to_vec();
        let features = Features { features, spatial, logits: Vec::new() };
        let network = NetworkIdentity::new("ViT", "01", "mean [0.5]");
        FeatureTable { network, count: 3, dims: [2, spatial_dim, 0], features }
    }

    #[test]
    fn files_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        for spatial_dim in [0, 1] {
            let statistics = Statistics::of(&table(spatial_dim)).unwrap();
            assert_eq!(statistics.network, Some(table(0).network), "the identity comes from the features");
            statistics.write(&path).unwrap();
            assert_eq!(Statistics::read(&path).unwrap(), statistics);
        }
    }

    #[test]
    fn files_of_other_tools_have_no_identity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let mut file = NpzBuilder::create(&path).unwrap();
        file.array("mu", &[1], &[0.5_f64]).unwrap();
        file.array("sigma", &[1, 1], &[1.0_f64]).unwrap();
        file.finish().unwrap();
        let statistics = Statistics::read(&path).unwrap();
        assert_eq!((&statistics.network, statistics.count), (&None, None));
        statistics.write(&path).unwrap();
        assert_eq!(Statistics::read(&path).unwrap(), statistics, "an unknown network stays unknown");
    }

    #[test]
    fn wrong_arrays_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let error = |mu: &[f32], shape: &[usize], sigma: &[f32], network: Option<&[u8]>| {
            let mut file = NpzBuilder::create(&path).unwrap();
            file.array("mu", &[mu.len()], mu).unwrap();
            file.array("sigma", shape, sigma).unwrap();
            if let Some(network) = network {
                file.array(NETWORK, &[network.len()], network).unwrap();
            }
            file.finish().unwrap();
            Statistics::read(&path).unwrap_err().to_string()
        };
        assert!(error(&[1.0], &[1], &[1.0], None).contains("expected [n] and [n, n]"));
        assert!(error(&[f32::NAN], &[1, 1], &[1.0], None).contains("`mu`, `sigma`"));
        assert!(error(&[0.0, 0.0], &[2, 2], &[1.0, 0.5, 0.0, 1.0], None).contains("entry (1, 0) is 0, but (0, 1) is 0.5"));
        assert!(error(&[1.0], &[1, 1], &[1.0], Some(b"{}")).contains("not the identity of a network"));
    }
}
