use burn::tensor::{Tensor, kind::Basic};

/// Swaps two axes.
///
/// All code here swaps axes by this function and by [`permute`], never by those of [`Tensor`]. Burn 0.22 fuses a swap into
/// the operations that follow it, and reads wrong values where the last axis before the swap has length 1: silently, in
/// gradients too. Axes of length 1 are moved by reshaping instead, which is the same without the error.
///
/// # Panics
/// If there are not so many axes.
pub fn swap<const D: usize, K: Basic>(x: Tensor<D, K>, a: usize, b: usize) -> Tensor<D, K> {
    let mut axes = core::array::from_fn(|axis| axis);
    axes.swap(a, b);
    permute(x, axes)
}

/// Swaps the last two axes.
///
/// # Panics
/// If there are fewer than two.
pub fn transpose<const D: usize, K: Basic>(x: Tensor<D, K>) -> Tensor<D, K> {
    swap(x, D - 2, D - 1)
}

/// Puts axes in another order: axis `i` of the result is axis `axes[i]` of `x`. See [`swap`].
///
/// # Panics
/// If `axes` does not name each axis once.
#[allow(clippy::disallowed_methods, reason = "the one place where no axis that it moves has length 1")]
pub fn permute<const D: usize, K: Basic>(x: Tensor<D, K>, axes: [usize; D]) -> Tensor<D, K> {
    let dims = x.dims();
    if !dims.contains(&1) {
        return x.permute(axes);
    }
    let out = axes.map(|axis| dims[axis]);
    // Axes of length 1 come first, where they stay; the others follow in their old and in their new order.
    let longer = |axes: &[usize]| -> Vec<usize> { axes.iter().copied().filter(|axis| dims[*axis] != 1).collect() };
    let before = longer(&core::array::from_fn::<_, D, _>(|axis| axis));
    let after = longer(&axes);
    if before == after {
        return x.reshape(out);
    }
    let ones = D - before.len();
    let shape = core::array::from_fn::<_, D, _>(|i| if i < ones { 1 } else { dims[before[i - ones]] });
    let order = core::array::from_fn::<_, D, _>(|i| match i.checked_sub(ones) {
        None => i,
        Some(i) => ones + before.iter().position(|axis| *axis == after[i]).expect("each axis is named once"),
    });
    x.reshape(shape).permute(order).reshape(out)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int};

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "what it is compared with")]
    fn equals_the_plain_permutation_for_every_shape_and_order() {
        let device = Device::default();
        let orders = (0..256).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]);
        let orders = orders.filter(|order| (0..4).all(|axis| order.contains(&axis)));
        for order in orders {
            for lengths in 0..16 {
                let dims: [usize; 4] = core::array::from_fn(|axis| if lengths >> axis & 1 == 0 { 1 } else { axis + 2 });
                let count = dims.iter().product::<usize>() as i64;
                let x = Tensor::<1, Int>::arange(0..count, &device).float().reshape(dims);
                let [found, expected] = [permute(x.clone(), order), x.permute(order)];
                assert_eq!(found.dims(), expected.dims(), "{dims:?} by {order:?}");
                assert_eq!(found.into_data(), expected.into_data(), "{dims:?} by {order:?}");
            }
        }
    }
}
