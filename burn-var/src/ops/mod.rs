//! Operations that decide the speed of training and sampling.
//!
//! Each is a plain composition of tensor operations on every backend. On Flex in `f32` it runs a fused, threaded kernel
//! with its own backward pass instead: the same formula with different rounding. The kernels add in a fixed order that
//! does not depend on the number of threads, so runs are reproducible to the bit. Some also have a kernel for GPUs in
//! `f32`, off the autodiff graph. With `BURN_VAR_KERNELS=generic` in the environment all devices use the plain
//! compositions.
//!
//! Like Burn's tensor operations, they panic on shapes that do not fit together.

mod activation;
#[cfg(feature = "training")]
mod adamw;
mod attention;
mod axes;
mod conv;
#[cfg(feature = "gpu")]
mod cube;
mod draw;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "training")]
mod joint;
mod linear;
#[cfg(feature = "training")]
mod loss;
mod map;
mod modulation;
mod norm;
mod pool;
mod precision;
mod residual;
mod softmax;
#[cfg(all(test, feature = "flex", feature = "training"))]
mod tests;

pub use activation::{gelu, gelu_tanh, relu, silu, swiglu};
#[cfg(feature = "training")]
pub use adamw::{AdamWStep, adamw};
pub use attention::{KvCache, QueryKeys, Sight, attention, cached_attention, scale_mask, self_attention};
pub use axes::{permute, swap, transpose};
pub use conv::{ConvSpec, conv2d};
#[cfg(feature = "gpu")]
pub(crate) use cube::{BlockWeights, ROW as LONGEST_ROW, block, is_tracked, memory_held};
pub(crate) use draw::{Draw, Mass, Values, draw, draws};
#[cfg(feature = "training")]
pub use joint::{Clipping, JointUpdate, UpdatedParameter, UpdatedParameters};
#[cfg(feature = "metrics")]
pub(crate) use linear::generic_linear;
pub use linear::linear;
#[cfg(feature = "training")]
pub use loss::cross_entropy;
pub(crate) use map::resize;
pub use map::{add_mixed, extrapolate, map_of_codes, mixed};
pub(crate) use modulation::adds_bias;
pub use modulation::{Branch, Rows, modulated_norm, residual_norm};
pub use norm::{group_norm, group_norm_silu, layer_norm, layer_norm_modulate, rms_norm};
pub use pool::{max_pool_3x3, mean_pool_3x3};
pub use precision::{Precision, exact_matmul, matmul};
pub use residual::gated_residual;
pub use softmax::softmax;
