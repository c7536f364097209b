//! Adaptive layer norm: scales, shifts and gates projected from the condition.

use burn::tensor::Tensor;

use crate::ops::{self, Rows};

/// Scales, shifts and gates of one block.
#[derive(Debug, Clone)]
pub struct BlockModulation {
    /// Gate of the attention branch.
    pub gamma1: Rows,
    /// Gate of the feed-forward branch.
    pub gamma2: Rows,
    /// Norm before attention.
    pub norm1: NormModulation,
    /// Norm before the feed-forward.
    pub norm2: NormModulation,
}

impl BlockModulation {
    /// Splits `[batch, 6 * width]` in the checkpoints' order: two gates, two scales, two shifts.
    pub fn from_packed(packed: Tensor<2>) -> Self {
        let [gamma1, gamma2, scale1, scale2, shift1, shift2] = Rows::split(packed);
        let norm = |scale, shift| NormModulation { scale, shift };
        Self { gamma1, gamma2, norm1: norm(scale1, shift1), norm2: norm(scale2, shift2) }
    }

    pub(super) fn keep_first(self, batch: usize) -> Self {
        Self {
            gamma1: self.gamma1.keep_first(batch),
            gamma2: self.gamma2.keep_first(batch),
            norm1: self.norm1.keep_first(batch),
            norm2: self.norm2.keep_first(batch),
        }
    }
}

/// Scale and shift of a norm, before a branch of a block or before the head.
#[derive(Debug, Clone)]
pub struct NormModulation {
    scale: Rows,
    shift: Rows,
}

impl NormModulation {
    /// Splits `[batch, 2 * width]`: scale, shift.
    pub fn from_packed(packed: Tensor<2>) -> Self {
        let [scale, shift] = Rows::split(packed);
        Self { scale, shift }
    }

    /// Normalizes `[batch, tokens, width]` without learned parameters, then scales and shifts by the condition.
    pub fn norm(&self, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
        ops::modulated_norm(x, [&self.scale, &self.shift], epsilon)
    }

    /// Adds a gated branch to `x`, and normalizes the sum; returns the sum and the norm.
    pub fn after(&self, x: Tensor<3>, branch: ops::Branch, gate: &Rows, epsilon: f64) -> (Tensor<3>, Tensor<3>) {
        ops::residual_norm(x, branch, gate, [&self.scale, &self.shift], epsilon)
    }

    pub(super) fn keep_first(self, batch: usize) -> Self {
        Self { scale: self.scale.keep_first(batch), shift: self.shift.keep_first(batch) }
    }
}
