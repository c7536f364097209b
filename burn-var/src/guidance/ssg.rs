//! Scaled Spatial Guidance with its frequency-domain prior (arXiv 2602.05534).

use std::fmt;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{BatchInfo, Guidance, Logits, Schedule};
use crate::math::{Constants, Resize, dct_matrix};
use crate::ops::{exact_matmul, extrapolate};
use crate::scales::ScaleAt;
use crate::{Error, MapSize, Result};

/// Fill for the frequencies that the coarse map lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DseFill {
    /// Frequencies of the interpolated map: the paper's DSE.
    #[default]
    Interpolated,
    /// Zeros: the paper's variant with zero padding.
    Zero,
    /// No frequency domain at all: the interpolated map is the prior, as in the paper's spatial variants.
    Spatial,
}

/// Scale of the coarse map's frequencies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DseScale {
    /// Times `sqrt(h w / (h_prev w_prev))`, which preserves amplitudes: a constant map stays constant.
    #[default]
    Amplitude,
    /// No factor, as algorithm 1 is printed, which shrinks the coarse map's values.
    Literal,
}

/// Discrete spatial enhancement (algorithm 1): enlarges a map of logits in the frequency domain. All of it is linear
/// and the same for every channel, so it is one constant matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dse {
    /// Fill for the missing frequencies.
    pub fill: DseFill,
    /// Scale of the coarse frequencies.
    pub scale: DseScale,
    /// Interpolation of the coarse map; the paper does not name one.
    pub resize: Resize,
}

impl Default for Dse {
    fn default() -> Self {
        Self { fill: DseFill::default(), scale: DseScale::default(), resize: Resize::Bilinear }
    }
}

impl Dse {
    /// Returns the matrix that enlarges a map of size `from` to size `to`, `[to.area(), from.area()]`, row-major.
    ///
    /// # Errors
    /// [`Error::Config`] if `to` is smaller in either direction, which leaves no room for the frequencies.
    pub fn matrix(self, from: MapSize, to: MapSize) -> Result<Vec<f32>> {
        Self::check(from, to)?;
        if from == to {
            let area = to.area();
            return Ok((0..area * area).map(|i| if i % (area + 1) == 0 { 1.0 } else { 0.0 }).collect());
        }
        let (rows, columns) = (self.axis(from.height, to.height), self.axis(from.width, to.width));
        let mut matrix = vec![0.0f64; to.area() * from.area()];
        // Each term is a product of one matrix per axis: the Kronecker product over the flattened maps.
        let mut add = |factor: f64, rows: &[f64], columns: &[f64]| {
            for (target, line) in matrix.chunks_exact_mut(from.area()).enumerate() {
                let (y, x) = (target / to.width, target % to.width);
                let row = &rows[y * from.height..][..from.height];
                let column = &columns[x * from.width..][..from.width];
                for (line, a) in line.chunks_exact_mut(from.width).zip(row) {
                    line.iter_mut().zip(column).for_each(|(value, b)| *value += factor * a * b);
                }
            }
        };
        if self.fill != DseFill::Spatial {
            add(1.0, &rows.coarse, &columns.coarse);
        }
        if self.fill != DseFill::Zero {
            add(1.0, &rows.interpolated, &columns.interpolated);
        }
        if self.fill == DseFill::Interpolated {
            add(-1.0, &rows.replaced, &columns.replaced);
        }
        Ok(matrix.into_iter().map(|value| value as f32).collect())
    }

    fn check(from: MapSize, to: MapSize) -> Result<()> {
        if to.height < from.height || to.width < from.width {
            let expected = format!("at least {from}, the size before: SSG needs maps that grow");
            return Err(Error::config("size of a token map", to, expected));
        }
        Ok(())
    }

    /// Returns the matrix on a device, `[1, to.area(), from.area()]`.
    fn constant(self, from: MapSize, to: MapSize, device: &Device) -> Result<Tensor<3>> {
        static MATRICES: Constants<(Dse, MapSize, MapSize), 3> = Constants::new();
        let shape = [1, to.area(), from.area()];
        MATRICES.try_get((self, from, to), device, || Ok((self.matrix(from, to)?, shape)))
    }

    fn axis(self, from: usize, to: usize) -> Axis {
        let factor = match self.scale {
            DseScale::Amplitude => (to as f64 / from as f64).sqrt(),
            DseScale::Literal => 1.0,
        };
        let (small, large) = (dct_matrix(from), dct_matrix(to));
        let interpolated: Vec<f64> = self.resize.matrix(from, to).into_iter().map(f64::from).collect();
        let low = &large[..from * to]; // the first `from` frequencies
        Axis {
            coarse: product_of_transposed(low, &small, [from, to, from]).iter().map(|x| factor * x).collect(),
            replaced: product_of_transposed(low, &product(low, &interpolated, [from, to, from]), [from, to, from]),
            interpolated,
        }
    }
}

/// Matrices of one axis, `[to, from]` each.
struct Axis {
    /// Enlargement through the frequencies of the coarse map.
    coarse: Vec<f64>,
    /// Enlargement by interpolation.
    interpolated: Vec<f64>,
    /// Part of the interpolated map that the coarse frequencies replace.
    replaced: Vec<f64>,
}

/// Computes `a b` of `a: [m, k]` and `b: [k, n]`.
fn product(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let entry = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum();
    (0..m * n).map(entry).collect()
}

/// Computes `aT b` of `a: [k, m]` and `b: [k, n]`.
fn product_of_transposed(a: &[f64], b: &[f64], [k, m, n]: [usize; 3]) -> Vec<f64> {
    let entry = |i: usize| (0..k).map(|j| a[j * m + i / n] * b[j * n + i % n]).sum();
    (0..m * n).map(entry).collect()
}

/// Place of [`Ssg`] relative to classifier-free guidance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SsgOrder {
    /// After it, on the guided logits, as the paper reads.
    #[default]
    PostCfg,
    /// Before it, on both branches.
    PerBranch,
    /// Before it, on the conditional branch.
    CondOnly,
}

impl fmt::Display for SsgOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PostCfg => "post-cfg",
            Self::PerBranch => "per-branch",
            Self::CondOnly => "cond-only",
        })
    }
}

/// Settings of [`Ssg`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SsgConfig {
    /// Strengths. The default is the paper's decay; constant strengths are its ablation, which overguides.
    pub schedule: Schedule,
    /// Computation of the prior.
    #[serde(default)]
    pub dse: Dse,
    /// Place in the chain, which [`GuidanceConfig::chain`](super::GuidanceConfig::chain) gives it.
    #[serde(default)]
    pub order: SsgOrder,
    /// Takes the prior from logits after this guidance, unlike the paper.
    #[serde(default)]
    pub recursive: bool,
}

impl SsgConfig {
    /// Returns the paper's guidance. The paper does not state its strength; 0.3 is a place to start.
    pub fn paper(beta: f64) -> Self {
        Self { schedule: Schedule::Decay(beta), dse: Dse::default(), order: SsgOrder::default(), recursive: false }
    }
}

/// Scaled Spatial Guidance: `l_k + beta_k (l_k - DSE(l_(k-1)))` with the logits of the scale before as the prior.
#[derive(Debug, Clone)]
pub struct Ssg {
    config: SsgConfig,
    /// Logits of the scale before.
    before: Option<Logits>,
}

impl Ssg {
    /// Creates guidance with the given settings.
    pub fn new(config: SsgConfig) -> Self {
        Self { config, before: None }
    }

    /// Guides logits by those of the scale before.
    fn guided(&self, logits: Tensor<3>, before: Tensor<3>, beta: f64, [from, to]: [MapSize; 2]) -> Result<Tensor<3>> {
        let matrix = self.config.dse.constant(from, to, &logits.device())?;
        let prior = exact_matmul(matrix.repeat_dim(0, before.dims()[0]), before);
        Ok(extrapolate(logits, prior, beta))
    }
}

impl Guidance for Ssg {
    fn name(&self) -> &'static str {
        "ssg"
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.before = None;
        self.config.schedule.check(self.name(), batch.scales)?;
        if batch.scales.raster_size().is_some() {
            let hint = "it compares maps of growing size, and a next-token model has none: use VAR or FlexVAR, or leave it out";
            return Err(Error::unsupported("Scaled Spatial Guidance over a raster", hint));
        }
        batch.scales.sizes().windows(2).try_for_each(|sizes| Dse::check(sizes[0], sizes[1]))
    }

    fn logits(&mut self, at: ScaleAt<'_>, mut logits: Logits) -> Result<Logits> {
        let corrupted = logits.corrupted.take();
        let beta = self.config.schedule.at(at);
        let mut guided = logits.clone();
        if let (Some(before), Some(scale_before)) = (self.before.take(), at.before())
            && beta != 0.0
        {
            let sizes = [scale_before.size(), at.size()];
            guided.cond = self.guided(guided.cond, before.cond, beta, sizes)?;
            if self.config.order == SsgOrder::PerBranch
                && let (Some(null), Some(before)) = (logits.null.clone(), before.null)
            {
                guided.null = Some(self.guided(null, before, beta, sizes)?);
            }
        }
        self.before = Some(if self.config.recursive { guided.clone() } else { logits });
        Ok(Logits { corrupted, ..guided })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scales;

    const RESIZES: [Resize; 3] = [Resize::Nearest, Resize::Bilinear, Resize::Bicubic];

    fn size(height: usize, width: usize) -> MapSize {
        MapSize { height, width }
    }

    #[test]
    fn constant_maps_stay_constant_unless_taken_literally() {
        for (from, to) in [(size(1, 1), size(2, 2)), (size(2, 3), size(3, 5)), (size(13, 13), size(16, 16))] {
            let shrunk = (from.area() as f64 / to.area() as f64).sqrt();
            for fill in [DseFill::Interpolated, DseFill::Zero, DseFill::Spatial] {
                for (resize, scale) in RESIZES
                    .into_iter()
                    .flat_map(|resize| [DseScale::Amplitude, DseScale::Literal].map(|scale| (resize, scale)))
                {
                    let dse = Dse { fill, scale, resize };
                    let literal = scale == DseScale::Literal && fill != DseFill::Spatial;
                    let expected = if literal { shrunk } else { 1.0 };
                    for row in dse.matrix(from, to).unwrap().chunks(from.area()) {
                        let sum: f64 = row.iter().copied().map(f64::from).sum();
                        assert!((sum - expected).abs() < 1e-5, "{dse:?}, {from} to {to}: {sum}, expected {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn maps_of_one_size_are_their_own_prior_and_shrinking_ones_are_refused() {
        let matrix = Dse::default().matrix(size(2, 2), size(2, 2)).unwrap();
        assert_eq!(matrix, [1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 1.]);
        let error = Dse::default().matrix(size(3, 2), size(2, 4)).unwrap_err().to_string();
        assert!(error.contains("maps that grow"), "{error}");
    }

    #[test]
    fn the_last_scale_is_guided_and_batches_are_independent() {
        let scales = Scales::square(&[1, 2]).unwrap();
        let device = burn::tensor::Device::default();
        let logits = |tokens: usize, value: f32| Logits::cond(Tensor::full([1, tokens, 3], value, &device));
        let mut ssg = Ssg::new(SsgConfig::paper(1.0));
        let info = BatchInfo { scales: &scales, images: 1, seed: 0, first: 0, device: &device };
        let mut at = |k: usize, logits: Logits| -> f32 {
            if k == 0 {
                ssg.begin(&info).unwrap();
            }
            let guided = ssg.logits(scales.at(k), logits).unwrap();
            guided.cond.max().into_scalar()
        };
        assert_eq!(at(0, logits(1, 2.0)), 2.0, "nothing before the first scale");
        assert_eq!(at(1, logits(4, 5.0)), 5.0 * 1.5 - 2.0 * 0.5, "beta is a half here");
        assert_eq!(at(0, logits(1, 7.0)), 7.0, "another batch");
        assert_eq!(at(1, logits(4, 5.0)), 5.0 * 1.5 - 7.0 * 0.5, "its own prior");
    }
}
