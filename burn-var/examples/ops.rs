//! Times the operations of `burn_var::ops` against those of Burn, at the sizes of training a small VQ-VAE and a small
//! VAR with 64 images a step, on the default device: `cargo run --release -p burn-var --example ops`.

use std::time::{Duration, Instant};

use burn::{
    nn::{GroupNormConfig, LayerNormConfig},
    tensor::{Device, Distribution, Tensor, activation, module, ops::ConvOptions},
};
use burn_var::ops::{self, ConvSpec};

type Inputs = Vec<Tensor<4>>;

fn main() {
    println!("milliseconds{:27}forward{:21}forward and backward", "", "");
    println!("{:28}{:>8} {:>8} {:>7}   {:>8} {:>8} {:>7}", "", "burn", "ours", "ratio", "burn", "ours", "ratio");
    for [channels, size] in [[64, 32], [64, 16], [128, 8]] {
        let x = [64, channels, size, size];
        let row = |name: &str, weight, stock: fn(Inputs) -> Tensor<4>, ours: fn(Inputs) -> Tensor<4>| {
            compare(&format!("{name} {channels} @ {size}"), &[x, weight], stock, ours);
        };
        row("conv 3x3", [channels, channels, 3, 3], |i| conv(i, 1, 1), |i| our_conv(i, ConvSpec::same(3)));
        row("conv 3x3 / 2", [channels, channels, 3, 3], conv_half, |i| our_conv(i, ConvSpec::halve()));
        row("conv 1x1", [channels, channels, 1, 1], |i| conv(i, 1, 0), |i| our_conv(i, ConvSpec::same(1)));
        row("group norm + silu", [1, 1, 1, channels], |i| activation::silu(group_norm(i)), our_group_norm_silu);
    }
    let hidden = [1, 64, 130, 768];
    compare("silu 64 x 130 x 768", &[hidden], |i| activation::silu(i[0].clone()), |i| ops::silu(i[0].clone()));
    let gelu = |i: Inputs| activation::gelu_approximate(i[0].clone());
    compare("gelu tanh 64 x 130 x 768", &[hidden], gelu, |i| ops::gelu_tanh(i[0].clone()));
    let scores = [64, 3, 130, 130];
    compare(
        "softmax 64 x 3 x 130 x 130",
        &[scores],
        |i| activation::softmax(i[0].clone(), 3),
        |i| ops::softmax(i[0].clone()),
    );
    let heads = [64, 3, 130, 64];
    compare("attention 64 x 3 x 130 x 64", &[heads, heads, heads, [1, 1, 130, 130]], attention, our_attention);
    let modulation = [1, 64, 1, 192];
    compare("layer norm, modulated", &[[1, 64, 130, 192], modulation, modulation], layer_norm, our_layer_norm);
}

/// Prints the best time of both, for the output alone and with the gradients of all inputs.
fn compare(name: &str, shapes: &[[usize; 4]], stock: fn(Inputs) -> Tensor<4>, ours: fn(Inputs) -> Tensor<4>) {
    let device = Device::default();
    let inputs: Inputs = shapes.iter().map(|&shape| Tensor::random(shape, Distribution::Default, &device)).collect();
    let forward = [stock, ours].map(|op| best_time(&device, || drop(op(inputs.clone()))));
    let backward = [stock, ours].map(|op| {
        best_time(&device, || {
            let inputs: Inputs = inputs.iter().map(|input| Tensor::from_inner(input.clone()).require_grad()).collect();
            drop(op(inputs).sum().backward());
        })
    });
    let columns = |[stock, ours]: [f64; 2]| format!("{stock:8.2} {ours:8.2} {:6.1}x", stock / ours);
    println!("{name:28}{}   {}", columns(forward), columns(backward));
}

fn best_time(device: &Device, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = Duration::MAX;
    for round in 0..20 {
        if round >= 3 && start.elapsed() > Duration::from_millis(500) {
            break;
        }
        let begin = Instant::now();
        run();
        device.sync().expect("the device works");
        best = best.min(begin.elapsed());
    }
    best.as_secs_f64() * 1e3
}

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

fn layer_norm(inputs: Inputs) -> Tensor<4> {
    let norm = LayerNormConfig::new(inputs[0].dims()[3]).init(&inputs[0].device());
    norm.forward(inputs[0].clone()) * (inputs[1].clone() + 1.0) + inputs[2].clone()
}

fn our_layer_norm(inputs: Inputs) -> Tensor<4> {
    let [x, scale, shift] = [0, 1, 2].map(|index: usize| inputs[index].clone().squeeze_dim(0));
    ops::layer_norm_modulate(x, scale, shift, 1e-6).unsqueeze()
}

fn attention(inputs: Inputs) -> Tensor<4> {
    let [query, key, value, bias] = [0, 1, 2, 3].map(|index: usize| inputs[index].clone());
    module::attention(query, key, value, None, Some(bias), Default::default())
}

fn our_attention(inputs: Inputs) -> Tensor<4> {
    let [query, key, value, bias] = [0, 1, 2, 3].map(|index: usize| inputs[index].clone());
    ops::attention(query, key, value, Some(bias), 0.125).unsqueeze()
}
