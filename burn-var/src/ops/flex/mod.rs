//! Fused kernels for the Flex backend in `f32`, with their backward passes.
//!
//! A kernel is a value that implements [`bridge::Kernel`]; [`run`] adds it to Burn's graph. Work is split into pieces
//! by the shapes alone, and partial sums are added in the order of the pieces, never in the order in which threads
//! finish.

#[cfg(feature = "training")]
mod adamw;
mod attention;
mod block;
mod bridge;
mod columns;
mod conv;
#[cfg(feature = "training")]
mod cross_entropy;
mod group_norm;
mod half_linear;
mod layer_norm;
mod linear;
mod matrix;
mod moments;
mod packed;
mod pointwise;
mod pool;
mod residual;
mod rms_norm;
mod round;
mod scratch;
mod self_attention;
mod simd;
mod softmax;
mod swiglu;
mod winograd;

#[cfg(feature = "training")]
pub(super) use adamw::adamw;
pub(super) use attention::Attention;
pub(super) use bridge::{absent, is_plain, run, supports};
pub(super) use conv::Conv2d;
#[cfg(feature = "training")]
pub(super) use cross_entropy::CrossEntropy;
pub(super) use group_norm::GroupNorm;
pub(super) use half_linear::{half_linear, is_half};
pub(super) use layer_norm::LayerNorm;
pub(super) use linear::Linear;
pub(super) use pointwise::Pointwise;
pub(super) use pool::{Pool, pool};
pub(super) use residual::GatedResidual;
pub(super) use rms_norm::RmsNorm;
pub(super) use self_attention::SelfAttention;
pub(super) use softmax::Softmax;
pub(super) use swiglu::SwiGlu;
