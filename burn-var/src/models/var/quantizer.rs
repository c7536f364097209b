//! The multi-scale residual quantizer of VAR (`models/quant.py`).

use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};

use super::tokenizer::VqVaeConfig;
use crate::Scales;
use crate::math::Resize;
use crate::nn::{self, Conv2d};
use crate::ops::{self, exact_matmul, permute, transpose};

/// Codebook, and the small convolutions (phi) that smooth each scale's contribution.
#[derive(Module, Debug)]
pub struct Quantizer {
    /// `[vocab_size, z_channels]`.
    pub embedding: Embedding,
    /// Phi convolutions: one per scale, or fewer that scales share.
    pub quant_resi: Vec<Conv2d>,
    /// Residual ratio `r` of phi: `phi(h) = (1 - r) h + r conv(h)`.
    ratio: f64,
    using_znorm: bool,
    beta: f64,
}

/// Result of a forward pass in training.
#[derive(Debug)]
pub struct Quantized {
    /// Quantized latent with straight-through gradients, `[batch, z_channels, height, width]`.
    pub canvas: Tensor<4>,
    /// Codebook and commitment loss, mean over scales: `[1]`.
    pub loss: Tensor<1>,
    /// Ids of every scale, `[batch, tokens]` each, off the autodiff graph.
    pub tokens: Vec<Tensor<2, Int>>,
    /// Residuals that were quantized, `[batch * tokens, z_channels]` per scale, off the graph.
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

    /// Returns the ids of the codes nearest to `residual`, `[positions, z_channels]`: `[positions]`. The first one
    /// wins.
    pub fn nearest(&self, residual: Tensor<2>) -> Tensor<1, Int> {
        let codes = self.embedding.weight.val().inner();
        let [positions, _] = residual.dims();
        let found = if self.using_znorm {
            exact_matmul(nn::unit_rows(residual), transpose(nn::unit_rows(codes))).argmax(1)
        } else {
            let own = residual.clone().square().sum_dim(1); // [positions, 1]
            let theirs = transpose(codes.clone().square().sum_dim(1)); // [1, vocab]
            (own + theirs - exact_matmul(residual, transpose(codes)) * 2.0).argmin(1)
        };
        found.reshape([positions])
    }

    /// Computes the contribution of scale `k` to a canvas of the finest size, from `codes`, `[batch, tokens,
    /// z_channels]`.
    pub fn contribution(&self, codes: Tensor<3>, k: usize, scales: &Scales) -> Tensor<4> {
        let map = Self::full_size(codes, k, scales);
        match self.phi(k, scales) {
            Some(phi) => ops::mixed(map, phi.weight.val(), phi.bias.val(), self.ratio),
            None => map,
        }
    }

    /// Adds [`Quantizer::contribution`] to a canvas.
    pub fn paint(&self, canvas: Tensor<4>, codes: Tensor<3>, k: usize, scales: &Scales) -> Tensor<4> {
        let map = Self::full_size(codes, k, scales);
        match self.phi(k, scales) {
            Some(phi) => ops::add_mixed(canvas, map, phi.weight.val(), phi.bias.val(), self.ratio),
            None => canvas + map,
        }
    }

    /// Resizes the code vectors of scale `k` to a map of the finest size.
    fn full_size(codes: Tensor<3>, k: usize, scales: &Scales) -> Tensor<4> {
        let map = ops::map_of_codes(codes, scales.size(k));
        // The original skips the resize of the last scale, which has the latent's size here in any case.
        if k + 1 == scales.len() { map } else { Resize::Bicubic.apply(map, scales.finest()) }
    }

    /// Returns the convolution of scale `k`, if there is one.
    fn phi(&self, k: usize, scales: &Scales) -> Option<&Conv2d> {
        self.quant_resi.get(phi_index(self.quant_resi.len(), k, scales.len()))
    }

    /// Resizes a latent, `[batch, z_channels, height, width]`, to scale `k` as rows: `[batch * tokens, z_channels]`.
    fn rows(latent: &Tensor<4>, k: usize, scales: &Scales) -> Tensor<2> {
        let map =
            if k + 1 == scales.len() { latent.clone() } else { Resize::Area.apply(latent.clone(), scales.size(k)) };
        let [batch, channels, height, width] = map.dims();
        permute(map, [0, 2, 3, 1]).reshape([batch * height * width, channels])
    }

    /// Quantizes a latent, `[batch, z_channels, height, width]` of the finest size, to the ids of every scale.
    pub fn quantize(&self, latent: Tensor<4>, scales: &Scales) -> Vec<Tensor<2, Int>> {
        let mut rest = latent.inner();
        (0..scales.len())
            .map(|k| {
                let ids = self.quantize_scale(&rest, k, scales);
                rest = rest.clone() - self.contribution(self.embedding.forward(ids.clone()), k, scales).inner();
                ids
            })
            .collect()
    }

    /// Quantizes what is left of a latent, `[batch, z_channels, height, width]` of the finest size and off the autodiff graph,
    /// at scale `k`: ids `[batch, tokens]`.
    pub fn quantize_scale(&self, rest: &Tensor<4>, k: usize, scales: &Scales) -> Tensor<2, Int> {
        self.ids(Self::rows(rest, k, scales), rest.dims()[0])
    }

    fn ids(&self, rows: Tensor<2>, batch: usize) -> Tensor<2, Int> {
        let tokens = rows.dims()[0] / batch;
        self.nearest(rows).reshape([batch, tokens])
    }

    /// Quantizes with gradients: those of the image pass straight through to the latent, those of the loss reach codes,
    /// phi and encoder. The loss of a scale compares the canvas so far, so it also trains earlier scales: `mean_k [
    /// beta * |sg(f_hat_k) - f|^2 + |f_hat_k - sg(f)|^2 ]`.
    pub fn forward_train(&self, latent: Tensor<4>, scales: &Scales) -> Quantized {
        let target = latent.clone().inner();
        let constant = Tensor::from_inner(target.clone());
        let batch = target.dims()[0];
        let mut rest = target.clone();
        // Zeros, to which the first sum adds nothing.
        let mut canvas = constant.zeros_like();
        let mut loss = Tensor::<1>::zeros([1], &latent.device());
        let (mut tokens, mut residuals) = (Vec::new(), Vec::new());
        for k in 0..scales.len() {
            let rows = Self::rows(&rest, k, scales);
            let ids = self.ids(rows.clone(), batch);
            let added = self.contribution(self.embedding.forward(ids.clone()), k, scales);
            rest = rest - added.clone().inner();
            canvas = canvas + added;
            let commitment = (Tensor::from_inner(canvas.clone().inner()) - latent.clone()).square().mean() * self.beta;
            loss = loss + commitment + (canvas.clone() - constant.clone()).square().mean();
            tokens.push(ids);
            residuals.push(rows);
        }
        let straight = latent + Tensor::from_inner(canvas.inner() - target);
        Quantized { canvas: straight, loss: loss / scales.len() as f64, tokens, residuals }
    }
}

/// Returns the index of the convolution, of `phis`, that serves scale `k` of `scales`: the one whose tick is nearest to
/// `k / (scales - 1)`, the first in a tie.
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
