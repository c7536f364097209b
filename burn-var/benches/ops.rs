//! Times the operations of `burn_var::ops` against those of Burn, at the sizes of training a small VQ-VAE and a small
//! VAR with 64 images per step, on the default device.
//!
//! `cargo bench -p burn-var --bench ops` runs all of them, `cargo bench -p burn-var --bench ops -- conv` those with
//! `conv` in their name. Each is timed for the output alone and together with the gradients of all inputs.

#![allow(clippy::disallowed_methods, reason = "Burn's own operations, to compare with")]

use burn::nn::{GroupNormConfig, LayerNormConfig};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Tensor, activation, module};
use burn_var::ops::{self, ConvSpec};
use divan::Bencher;

fn main() {
    divan::main();
}

type Inputs = Vec<Tensor<4>>;
type Operation = fn(Inputs) -> Tensor<4>;

/// Times `operation` on random inputs of the given shapes.
fn forward(bencher: Bencher<'_, '_>, shapes: &[[usize; 4]], operation: Operation) {
    let (device, inputs) = inputs(shapes);
    bencher.bench_local(|| {
        let output = operation(inputs.clone());
        device.sync().expect("the device works");
        output
    });
}

/// Times `operation` together with the gradients of all inputs.
fn backward(bencher: Bencher<'_, '_>, shapes: &[[usize; 4]], operation: Operation) {
    let (device, inputs) = inputs(shapes);
    bencher.bench_local(|| {
        let inputs = inputs.iter().map(|input| Tensor::from_inner(input.clone()).require_grad()).collect();
        let gradients = operation(inputs).sum().backward();
        device.sync().expect("the device works");
        gradients
    });
}

fn inputs(shapes: &[[usize; 4]]) -> (Device, Inputs) {
    let device = Device::default();
    let inputs = shapes.iter().map(|&shape| Tensor::random(shape, Distribution::Default, &device)).collect();
    (device, inputs)
}

/// Declares the four benches of one operation: Burn's and this crate's, forward and backward.
macro_rules! compare {
    ($name:ident, args = $args:expr, |$arg:ident| $shapes:expr, burn = $burn:expr, ours = $ours:expr) => {
        mod $name {
            use super::*;

            #[divan::bench(args = $args)]
            fn forward_burn(bencher: Bencher<'_, '_>, $arg: [usize; 2]) {
                forward(bencher, &$shapes, $burn);
            }

            #[divan::bench(args = $args)]
            fn forward_ours(bencher: Bencher<'_, '_>, $arg: [usize; 2]) {
                forward(bencher, &$shapes, $ours);
            }

            #[divan::bench(args = $args)]
            fn backward_burn(bencher: Bencher<'_, '_>, $arg: [usize; 2]) {
                backward(bencher, &$shapes, $burn);
            }

            #[divan::bench(args = $args)]
            fn backward_ours(bencher: Bencher<'_, '_>, $arg: [usize; 2]) {
                backward(bencher, &$shapes, $ours);
            }
        }
    };
    ($name:ident, $shapes:expr, burn = $burn:expr, ours = $ours:expr) => {
        mod $name {
            use super::*;

            #[divan::bench]
            fn forward_burn(bencher: Bencher<'_, '_>) {
                forward(bencher, &$shapes, $burn);
            }

            #[divan::bench]
            fn forward_ours(bencher: Bencher<'_, '_>) {
                forward(bencher, &$shapes, $ours);
            }

            #[divan::bench]
            fn backward_burn(bencher: Bencher<'_, '_>) {
                backward(bencher, &$shapes, $burn);
            }

            #[divan::bench]
            fn backward_ours(bencher: Bencher<'_, '_>) {
                backward(bencher, &$shapes, $ours);
            }
        }
    };
}

/// Channels and sides of the maps in the VQ-VAE.
const MAPS: [[usize; 2]; 3] = [[64, 32], [64, 16], [128, 8]];

fn maps([channels, side]: [usize; 2]) -> [usize; 4] {
    [64, channels, side, side]
}

fn kernel([channels, _]: [usize; 2], side: usize) -> [usize; 4] {
    [channels, channels, side, side]
}

compare!(
    conv_3x3,
    args = MAPS,
    |size| [maps(size), kernel(size, 3)],
    burn = |i| conv(i, 1, 1),
    ours = |i| our_conv(i, ConvSpec::same(3))
);
compare!(
    conv_3x3_halving,
    args = MAPS,
    |size| [maps(size), kernel(size, 3)],
    burn = conv_half,
    ours = |i| our_conv(i, ConvSpec::halve())
);
compare!(
    conv_1x1,
    args = MAPS,
    |size| [maps(size), kernel(size, 1)],
    burn = |i| conv(i, 1, 0),
    ours = |i| our_conv(i, ConvSpec::same(1))
);
compare!(
    group_norm_silu,
    args = MAPS,
    |size| [maps(size), [1, 1, 1, size[0]]],
    burn = |i| activation::silu(group_norm(i)),
    ours = our_group_norm_silu
);

const HIDDEN: [usize; 4] = [1, 64, 130, 768];
const HEADS: [usize; 4] = [64, 3, 130, 64];
const MODULATION: [usize; 4] = [1, 64, 1, 192];

compare!(silu, [HIDDEN], burn = |i| activation::silu(i[0].clone()), ours = |i| ops::silu(i[0].clone()));
compare!(
    gelu_tanh,
    [HIDDEN],
    burn = |i| activation::gelu_approximate(i[0].clone()),
    ours = |i| ops::gelu_tanh(i[0].clone())
);
compare!(
    softmax,
    [[64, 3, 130, 130]],
    burn = |i| activation::softmax(i[0].clone(), 3),
    ours = |i| ops::softmax(i[0].clone())
);
compare!(attention, [HEADS, HEADS, HEADS, [1, 1, 130, 130]], burn = stock_attention, ours = our_attention);
compare!(layer_norm, [[1, 64, 130, 192], MODULATION, MODULATION], burn = stock_layer_norm, ours = our_layer_norm);

fn conv(inputs: Inputs, stride: usize, padding: usize) -> Tensor<4> {
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
    module::conv2d(inputs[0].clone(), inputs[1].clone(), None, options)
}

fn conv_half(inputs: Inputs) -> Tensor<4> {
    let options = ConvOptions::new_with_padding([2, 2], [(0, 1), (0, 1)], [1, 1], 1);
    module::conv2d(inputs[0].clone(), inputs[1].clone(), None, options)
}

fn our_conv(inputs: Inputs, spec: ConvSpec) -> Tensor<4> {
    ops::conv2d(inputs[0].clone(), inputs[1].clone(), None, spec)
}

fn group_norm(inputs: Inputs) -> Tensor<4> {
    let channels = inputs[0].dims()[1];
    GroupNormConfig::new(32, channels).init(&inputs[0].device()).forward(inputs[0].clone())
}

fn our_group_norm_silu(inputs: Inputs) -> Tensor<4> {
    let affine = || inputs[1].clone().flatten(0, 3);
    ops::group_norm_silu(inputs[0].clone(), affine(), affine(), 32, 1e-6)
}

fn stock_layer_norm(inputs: Inputs) -> Tensor<4> {
    let norm = LayerNormConfig::new(inputs[0].dims()[3]).init(&inputs[0].device());
    norm.forward(inputs[0].clone()) * (inputs[1].clone() + 1.0) + inputs[2].clone()
}

fn our_layer_norm(inputs: Inputs) -> Tensor<4> {
    let [x, scale, shift] = [0, 1, 2].map(|index: usize| inputs[index].clone().squeeze_dim(0));
    ops::layer_norm_modulate(x, scale, shift, 1e-6).unsqueeze()
}

fn stock_attention(inputs: Inputs) -> Tensor<4> {
    let [query, key, value, bias] = [0, 1, 2, 3].map(|index: usize| inputs[index].clone());
    module::attention(query, key, value, None, Some(bias), Default::default())
}

fn our_attention(inputs: Inputs) -> Tensor<4> {
    let [query, key, value, bias] = [0, 1, 2, 3].map(|index: usize| inputs[index].clone());
    ops::attention(query, key, value, Some(bias), 0.125).unsqueeze()
}
