//! Fused kernels for the Flex backend in `f32`, with their backward passes.
//!
//! A kernel is a value that implements [`bridge::Kernel`]; [`run`] puts it into Burn's graph. Work is cut into pieces by
//! the shapes alone and partial sums are added in the order of the pieces, never in the order in which threads finish.

mod attention;
mod bridge;
mod columns;
mod conv;
mod group_norm;
mod layer_norm;
mod matrix;
mod moments;
mod pointwise;
mod scratch;
mod simd;
mod softmax;
mod winograd;

pub(super) use attention::Attention;
pub(super) use bridge::{run, supports};
pub(super) use conv::Conv2d;
pub(super) use group_norm::GroupNorm;
pub(super) use layer_norm::LayerNormModulate;
pub(super) use pointwise::Pointwise;
pub(super) use softmax::Softmax;
