use super::{
    bridge::{Array, Kernel},
    simd::{exp, normal_cdf, sigmoid, vectorized},
};

/// Number of elements per task.
const PIECE: usize = 1 << 13;

/// Elementwise function.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) enum Pointwise {
    Relu,
    Silu,
    Gelu,
    GeluTanh,
}

impl Kernel<1> for Pointwise {
    type Saved = Array;

    fn forward(&self, [x]: [Array; 1]) -> (Array, Array) {
        (self.infer([x.clone()]), x)
    }

    fn infer(&self, [x]: [Array; 1]) -> Array {
        let apply = match self {
            Self::Relu => relu,
            Self::Silu => silu,
            Self::Gelu => gelu,
            Self::GeluTanh => gelu_tanh,
        };
        x.update(PIECE, |_, values| apply(values)).0
    }

    fn backward(&self, x: Array, grad: Array, _: [bool; 1]) -> [Option<Array>; 1] {
        let apply = match self {
            Self::Relu => relu_backward,
            Self::Silu => silu_backward,
            Self::Gelu => gelu_backward,
            Self::GeluTanh => gelu_tanh_backward,
        };
        let (out, _) = grad.update(PIECE, |piece, grad| apply(&x.values()[piece * PIECE..], grad));
        [Some(out)]
    }
}

/// Computes `silu'(x) = s (1 + x (1 - s))` with `s = sigmoid(x)`.
#[inline(always)]
pub(super) fn silu_slope<const FMA: bool>(x: f32) -> f32 {
    let s = sigmoid::<FMA>(x);
    s * (1.0 + x * (1.0 - s))
}

/// Computes the factor `sigmoid(2 u)` of GELU's tanh form, with one exponential: `1 + tanh(u) = 2 sigmoid(2 u)`.
#[inline(always)]
fn gelu_gate<const FMA: bool>(x: f32) -> f32 {
    sigmoid::<FMA>(GELU_SCALE * (x + GELU_CUBIC * x * x * x))
}

/// `1 / sqrt(2 pi)`.
const NORMAL_PEAK: f32 = 0.398_942_3;
/// `2 sqrt(2 / pi)`.
const GELU_SCALE: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.044_715;

vectorized! {
    fn relu(values: &mut [f32]) {
        for value in values {
            // NaN stays NaN.
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }

    fn relu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad = if x > 0.0 { *grad } else { 0.0 };
        }
    }

    fn silu(values: &mut [f32]) {
        for value in values {
            *value *= sigmoid::<FMA>(*value);
        }
    }

    fn silu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            *grad *= silu_slope::<FMA>(x);
        }
    }

    fn gelu(values: &mut [f32]) {
        for value in values {
            *value *= normal_cdf::<FMA>(*value);
        }
    }

    fn gelu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let density = NORMAL_PEAK * exp::<FMA>(-0.5 * x * x);
            *grad *= normal_cdf::<FMA>(x) + x * density;
        }
    }

    fn gelu_tanh(values: &mut [f32]) {
        for value in values {
            *value *= gelu_gate::<FMA>(*value);
        }
    }

    fn gelu_tanh_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, &x) in grad.iter_mut().zip(x) {
            let gate = gelu_gate::<FMA>(x);
            let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
            *grad *= gate + x * gate * (1.0 - gate) * inner;
        }
    }
}
