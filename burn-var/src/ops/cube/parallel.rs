//! Helpers of all kernels: sums over a cube, and tensors that kernels can index.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube: what every GPU has, WebGPU included.
pub(super) const UNITS: usize = 128;

/// Adds the values of all units of a cube. `partial` has room for [`UNITS`] numbers.
///
/// The order of the sum does not depend on the device.
#[cube]
pub(super) fn sum_over_units(partial: &mut Shared<[f32]>, value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    partial[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2() as usize) {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let other = partial[unit + half];
            partial[unit] += other;
        }
        sync_cube();
    }
    let sum = partial[0];
    // The next sum overwrites what others have yet to read.
    sync_cube();
    sum
}

/// Returns the largest of the values of all units of a cube, as [`sum_over_units`].
#[cube]
pub(super) fn largest_over_units(partial: &mut Shared<[f32]>, value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    partial[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2() as usize) {
        let half = comptime!(UNITS >> (step + 1));
        if unit < half {
            let other = partial[unit + half];
            if other > partial[unit] {
                partial[unit] = other;
            }
        }
        sync_cube();
    }
    let largest = partial[0];
    // The next reduction overwrites what others have yet to read.
    sync_cube();
    largest
}

/// Returns an empty tensor on the device of another.
pub(super) fn like(tensor: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    typed_like(tensor, shape, tensor.dtype)
}

/// Returns an empty tensor of a type on the device of another.
pub(super) fn typed_like(tensor: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape.into(), dtype)
}

/// Returns a tensor that kernels can index by themselves.
pub(super) fn plain(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// Returns the lengths of the axes.
pub(super) fn dims<const D: usize>(tensor: &CubeTensor) -> [usize; D] {
    tensor.meta.shape().dims()
}
