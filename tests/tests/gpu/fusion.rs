//! Defects of Burn's fusion, and that the code here avoids them. Where a defect no longer shows, its test says so: then what
//! avoids it may go.

use burn::tensor::{Device, Int, Tensor};
use burn_var::ops;

/// Numbers that are all different.
fn numbers<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D> {
    let count = dims.iter().product::<usize>() as i64;
    Tensor::<1, Int>::arange(0..count, device).float().reshape(dims) + 1.0
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().expect("f32")
}

/// Applies two operations to what `swap` returns, in one kernel.
fn used_twice<const D: usize>(x: Tensor<D>, swap: impl Fn(Tensor<D>) -> Tensor<D>) -> [Vec<f32>; 2] {
    let swapped = swap(x);
    [swapped.clone() * 2.0, swapped + 1.0].map(values)
}

/// Axes of length 1 are where fusion reads wrong values after a swap.
#[test]
fn swapped_axes_of_length_one_are_right() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    for dims in [[6, 4, 1], [6, 5, 1], [1, 4, 6], [4, 1, 6], [6, 1, 1], [2, 8, 1]] {
        let found = used_twice(numbers(dims, &device), ops::transpose);
        // Read back between the operations, nothing is fused.
        let swapped = ops::transpose(numbers(dims, &device)).into_data();
        let apart = || Tensor::<3>::from_data(swapped.clone(), &device);
        assert_eq!(found, [values(apart() * 2.0), values(apart() + 1.0)], "{dims:?}");
    }
}

#[test]
fn the_gradient_through_a_swap_is_right() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default()).autodiff();
    let x = numbers([6, 4, 1], &device).require_grad();
    let swapped = ops::transpose(x.clone());
    let loss = (swapped.clone() * 2.0).square().sum() + (swapped + 1.0).square().sum();
    let gradient = x.grad(&loss.backward()).expect("a gradient");
    let expected: Vec<f32> = values(x.inner()).into_iter().map(|x| 8.0 * x + 2.0 * (x + 1.0)).collect();
    assert_eq!(values(gradient), expected);
}

/// Fails as soon as Burn has mended its swap: then `ops::swap` may become Burn's own, and docs/upstream may go.
#[test]
#[allow(clippy::disallowed_methods, reason = "the defect itself")]
fn the_defect_of_burns_swap_is_still_there() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let right = used_twice(numbers([6, 4, 1], &device), ops::transpose);
    assert_ne!(used_twice(numbers([6, 4, 1], &device), |x| x.swap_dims(1, 2)), right, "swap_dims is mended");
    assert_ne!(used_twice(numbers([6, 4, 1], &device), |x| x.permute([0, 2, 1])), right, "permute is mended");
}
