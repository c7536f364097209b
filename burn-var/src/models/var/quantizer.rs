//! The multi-scale residual quantizer of VAR (`models/quant.py`).

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};

use super::VqVaeConfig;
use crate::nn::{self, Conv2d};
use crate::resize::Resize;
use crate::{MapSize, Scales};

/// Codebook, and the small convolutions (phi) that smooth what each scale adds.
#[derive(Module, Debug)]
pub struct Quantizer {
    /// `[vocab_size, z_channels]`.
    pub embedding: Embedding,
    /// The phi convolutions: one a scale, or fewer that scales share.
    pub quant_resi: Vec<Conv2d>,
    /// Share of the convolution in phi: `phi(h) = (1 - r) h + r conv(h)`.
    ratio: f64,
    using_znorm: bool,
    beta: f64,
}

/// What a training pass through the quantizer yields.
#[derive(Debug)]
pub struct Quantized {
    /// The quantised latent with gradients passed straight through, `[batch, z_channels, height, width]`.
    pub canvas: Tensor<4>,
    /// Codebook and commitment loss, mean over scales: `[1]`.
    pub loss: Tensor<1>,
    /// Ids of every scale, `[batch, tokens]` each, off the autodiff graph.
    pub tokens: Vec<Tensor<2, Int>>,
    /// What the codes of every scale were chosen for, `[batch * tokens, z_channels]`, off the graph.
    pub residuals: Vec<Tensor<2>>,
}

impl Quantizer {
    pub(super) fn new(config: &VqVaeConfig, device: &Device) -> Self {
        let channels = config.z_channels;
        Self {
            embedding: nn::embedding(config.vocab_size, channels, device),
            quant_resi: (0..config.phis()).map(|_| Conv2d::same([channels; 2], 3, device)).collect(),
            ratio: config.quant_resi.abs(),
            using_znorm: config.using_znorm,
            beta: config.beta,
        }
    }

    /// The ids of the codes nearest to `residual`, `[positions, z_channels]`: `[positions]`. Ties go to the first.
    pub fn nearest(&self, residual: Tensor<2>) -> Tensor<1, Int> {
        let codes = self.embedding.weight.val().inner();
        let [positions, _] = residual.dims();
        let found = if self.using_znorm {
            normalise(residual).matmul(normalise(codes).transpose()).argmax(1)
        } else {
            let own = residual.clone().square().sum_dim(1); // [positions, 1]
            let theirs = codes.clone().square().sum_dim(1).transpose(); // [1, vocab]
            (own + theirs - residual.matmul(codes.transpose()) * 2.0).argmin(1)
        };
        found.reshape([positions])
    }

    /// What `codes`, `[batch, tokens, z_channels]`, of scale `k` add to a canvas of the ladder's finest size.
    pub fn contribution(&self, codes: Tensor<3>, k: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.size(k);
        let [batch, _, channels] = codes.dims();
        let map = codes.swap_dims(1, 2).reshape([batch, channels, height, width]);
        // The original skips the last scale even where its size differs from the latent's; it never does here.
        let map = if k + 1 == scales.len() { map } else { Resize::Bicubic.apply(map, scales.finest()) };
        if self.quant_resi.is_empty() {
            return map;
        }
        let phi = &self.quant_resi[phi_index(self.quant_resi.len(), k, scales.len())];
        map.clone() * (1.0 - self.ratio) + phi.forward(map) * self.ratio
    }

    /// Scale `k`'s view of a latent, `[batch, z_channels, height, width]`, as rows: `[batch * tokens, z_channels]`.
    fn rows(latent: &Tensor<4>, k: usize, scales: &Scales) -> Tensor<2> {
        let map =
            if k + 1 == scales.len() { latent.clone() } else { Resize::Area.apply(latent.clone(), scales.size(k)) };
        let [batch, channels, height, width] = map.dims();
        map.permute([0, 2, 3, 1]).reshape([batch * height * width, channels])
    }

    /// The ids of every scale of a latent, `[batch, z_channels, height, width]` of the ladder's finest size.
    pub fn quantize(&self, latent: Tensor<4>, scales: &Scales) -> Vec<Tensor<2, Int>> {
        let mut rest = latent.inner();
        (0..scales.len())
            .map(|k| {
                let ids = self.ids(Self::rows(&rest, k, scales), rest.dims()[0]);
                rest = rest.clone() - self.contribution(self.embedding.forward(ids.clone()), k, scales).inner();
                ids
            })
            .collect()
    }

    fn ids(&self, rows: Tensor<2>, batch: usize) -> Tensor<2, Int> {
        let tokens = rows.dims()[0] / batch;
        self.nearest(rows).reshape([batch, tokens])
    }

    /// Quantizes with gradients: those of the picture pass straight through to the latent, those of the loss reach
    /// codes, phi and encoder. The loss of a scale compares the canvas so far, so it trains earlier scales too:
    /// `mean_k [ beta * |sg(f_hat_k) - f|^2 + |f_hat_k - sg(f)|^2 ]`.
    pub fn forward_train(&self, latent: Tensor<4>, scales: &Scales) -> Quantized {
        let target = latent.clone().inner();
        let constant = Tensor::from_inner(target.clone());
        let batch = target.dims()[0];
        let mut rest = target.clone();
        let mut canvas: Option<Tensor<4>> = None;
        let mut loss: Option<Tensor<1>> = None;
        let (mut tokens, mut residuals) = (Vec::new(), Vec::new());
        for k in 0..scales.len() {
            let rows = Self::rows(&rest, k, scales);
            let ids = self.ids(rows.clone(), batch);
            let added = self.contribution(self.embedding.forward(ids.clone()), k, scales);
            rest = rest - added.clone().inner();
            let painted = match canvas {
                Some(canvas) => canvas + added,
                None => added,
            };
            let commitment = (Tensor::from_inner(painted.clone().inner()) - latent.clone()).square().mean() * self.beta;
            let term = commitment + (painted.clone() - constant.clone()).square().mean();
            loss = Some(match loss {
                Some(loss) => loss + term,
                None => term,
            });
            canvas = Some(painted);
            tokens.push(ids);
            residuals.push(rows);
        }
        // A ladder has at least one scale, so both are there.
        let canvas = canvas.map_or_else(|| latent.clone(), |canvas| canvas.inner());
        let straight = latent.clone() + Tensor::from_inner(canvas.inner() - target);
        let loss = loss.unwrap_or_else(|| Tensor::zeros([1], &latent.device())) / scales.len() as f64;
        Quantized { canvas: straight, loss, tokens, residuals }
    }
}

/// Rows of length one; a zero row stays zero (epsilon 1e-12, as PyTorch's `normalize`).
fn normalise(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    rows / length
}

/// Which of `phis` convolutions serves scale `k` of `scales`: the one whose tick lies nearest to `k / (scales - 1)`,
/// the first of two.
///
/// In float64 and in the original's order of operations: with four convolutions and ten scales, exact ties at scales 2
/// and 7 are decided by rounding, and the public checkpoints need what came out: 0, 0, 1, 1, 1, 2, 2, 3, 3, 3.
pub fn phi_index(phis: usize, k: usize, scales: usize) -> usize {
    if phis <= 1 || scales <= 1 {
        return 0;
    }
    let n = phis as f64;
    let edge = if phis == 4 { 1.0 / 3.0 / n } else { 1.0 / 2.0 / n };
    let (first, last) = (edge, 1.0 - edge);
    let step = (last - first) / (n - 1.0);
    let at = k as f64 / (scales - 1) as f64;
    let distance = |i: usize| {
        let tick = if i + 1 == phis { last } else { i as f64 * step + first };
        (tick - at).abs()
    };
    (0..phis).fold(0, |best, i| if distance(i) < distance(best) { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_checkpoints_share_phi_as_float64_rounds() {
        let found: Vec<usize> = (0..10).map(|k| phi_index(4, k, 10)).collect();
        assert_eq!(found, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
    }
}
