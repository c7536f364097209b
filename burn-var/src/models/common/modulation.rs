//! Adaptive layer norm: scales, shifts and gates projected from the condition.

use burn::tensor::Tensor;

use crate::ops;

/// Scales, shifts and gates of one block, `[batch, 1, width]` each.
#[derive(Debug, Clone)]
pub struct BlockModulation {
    /// Gate of the attention branch.
    pub gamma1: Tensor<3>,
    /// Gate of the feed-forward branch.
    pub gamma2: Tensor<3>,
    /// Scale before attention.
    pub scale1: Tensor<3>,
    /// Scale before the feed-forward.
    pub scale2: Tensor<3>,
    /// Shift before attention.
    pub shift1: Tensor<3>,
    /// Shift before the feed-forward.
    pub shift2: Tensor<3>,
}

impl BlockModulation {
    /// Splits `[batch, 6 * width]` in the checkpoints' order: two gates, two scales, two shifts.
    pub fn from_packed(packed: Tensor<2>) -> Self {
        let part = parts(packed, 6);
        Self { gamma1: part(0), gamma2: part(1), scale1: part(2), scale2: part(3), shift1: part(4), shift2: part(5) }
    }

    pub(super) fn keep_first(self, batch: usize) -> Self {
        let first = |x: Tensor<3>| x.narrow(0, 0, batch);
        Self {
            gamma1: first(self.gamma1),
            gamma2: first(self.gamma2),
            scale1: first(self.scale1),
            scale2: first(self.scale2),
            shift1: first(self.shift1),
            shift2: first(self.shift2),
        }
    }
}

/// Scale and shift before the head, `[batch, 1, width]` each.
#[derive(Debug, Clone)]
pub struct HeadModulation {
    scale: Tensor<3>,
    shift: Tensor<3>,
}

impl HeadModulation {
    /// Splits `[batch, 2 * width]`: scale, shift.
    pub fn from_packed(packed: Tensor<2>) -> Self {
        let part = parts(packed, 2);
        Self { scale: part(0), shift: part(1) }
    }

    /// Normalizes `[batch, tokens, width]` without learned parameters, then scales and shifts by the condition.
    pub fn norm(&self, x: Tensor<3>, epsilon: f64) -> Tensor<3> {
        ops::layer_norm_modulate(x, self.scale.clone(), self.shift.clone(), epsilon)
    }

    pub(super) fn keep_first(self, batch: usize) -> Self {
        Self { scale: self.scale.narrow(0, 0, batch), shift: self.shift.narrow(0, 0, batch) }
    }
}

/// Returns part `i` of `[batch, count * width]` as `[batch, 1, width]`.
fn parts(packed: Tensor<2>, count: usize) -> impl Fn(usize) -> Tensor<3> {
    let width = packed.dims()[1] / count;
    move |i| packed.clone().narrow(1, i * width, width).unsqueeze_dim(1)
}
