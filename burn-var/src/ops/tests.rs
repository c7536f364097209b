//! Compares every kernel with its generic form, forward and backward. The reference is the same public function on the
//! same numbers in `f64`, which has no kernels.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::*;

/// Returns pseudorandom numbers of about unit size from a multiplicative generator.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| 1.7 * (next() + next())).collect()
}

/// Returns the output of `op` and the gradients of `sum(output * noise)` with respect to its flat inputs.
fn run<const D: usize>(
    inputs: &[Vec<f32>],
    dtype: DType,
    device: &Device,
    op: impl Fn(Vec<Tensor<1>>) -> Tensor<D>,
) -> Vec<TensorData> {
    let leaf = |values: &Vec<f32>| {
        let data = TensorData::new(values.clone(), [values.len()]);
        Tensor::<1>::from_data(data, (device, dtype)).require_grad()
    };
    let leaves: Vec<_> = inputs.iter().map(leaf).collect();
    let output = op(leaves.clone());
    let weights = TensorData::new(noise(output.dims().iter().product(), 99), output.dims());
    let grads = (output.clone() * Tensor::from_data(weights, (device, dtype))).sum().backward();
    let grads = leaves.iter().map(|leaf| leaf.grad(&grads).expect("every input has a gradient").into_data());
    core::iter::once(output.into_data()).chain(grads).collect()
}

/// Compares kernel and generic form for inputs of the given lengths, with and without gradient checkpointing.
fn agree<const D: usize>(name: &str, lengths: &[usize], op: impl Fn(Vec<Tensor<1>>) -> Tensor<D>) {
    let inputs: Vec<_> = lengths.iter().zip(1..).map(|(&len, seed)| noise(len, seed)).collect();
    let device = Device::flex().autodiff();
    let exact = run(&inputs, DType::F64, &device, &op);
    for device in [device.clone(), device.gradient_checkpointing()] {
        let fast = run(&inputs, DType::F32, &device, &op);
        for (which, (fast, exact)) in fast.iter().zip(&exact).enumerate() {
            assert_eq!(fast.shape(), exact.shape(), "{name}: shape of result {which} (0 output, then gradients)");
            let pairs = || fast.iter::<f64>().zip(exact.iter::<f64>());
            let size = pairs().map(|(_, exact)| exact.abs()).fold(0.0, f64::max);
            let error = pairs().map(|(fast, exact)| (fast - exact).abs()).fold(0.0, f64::max);
            assert!(
                error <= 1e-5 * size,
                "{name}: result {which} (0 output, then gradients) is off by {error:e} of {size}"
            );
        }
    }
}

fn next<const D: usize>(inputs: &mut impl Iterator<Item = Tensor<1>>, shape: [usize; D]) -> Tensor<D> {
    inputs.next().expect("one tensor per length").reshape(shape)
}

#[test]
fn pointwise_functions() {
    agree("relu", &[33_001], |x| relu(x[0].clone()));
    agree("silu", &[33_001], |x| silu(x[0].clone() * 4.0));
    agree("gelu", &[33_001], |x| gelu(x[0].clone() * 2.0));
    agree("gelu_tanh", &[33_001], |x| gelu_tanh(x[0].clone() * 2.0));
}

#[test]
fn softmax_rows_of_odd_lengths() {
    for len in [1, 5, 16, 33, 130] {
        agree(&format!("softmax of {len}"), &[19 * len], |x| softmax(x[0].clone().mul_scalar(3.0).reshape([19, len])));
    }
}

#[test]
fn softmax_of_infinities_and_nan() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [[-inf, 0.0, 0.0], [-inf, -inf, -inf], [1.0, nan, 2.0], [inf, 0.0, 1.0]];
    let y: Vec<f32> = softmax(Tensor::<2>::from_floats(rows, &Device::flex())).into_data().try_to_vec().expect("f32");
    assert_eq!(&y[..3], [0.0, 0.5, 0.5], "masked entries have no weight");
    assert!(y[3..].iter().all(|y| y.is_nan()), "a row of -inf, or with NaN or +inf, is NaN: {:?}", &y[3..]);
}

#[test]
fn pointwise_functions_keep_nan() {
    let x = || Tensor::<1>::from_floats([f32::NAN, 0.0, f32::INFINITY, -200.0], &Device::flex());
    for (name, y) in [("silu", silu(x())), ("gelu", gelu(x())), ("gelu_tanh", gelu_tanh(x()))] {
        let y: Vec<f32> = y.into_data().try_to_vec().expect("f32");
        assert!(y[0].is_nan(), "{name} does not keep NaN");
        assert_eq!(y[1..], [0.0, f32::INFINITY, 0.0], "{name} at 0, inf, -200");
    }
}

#[test]
fn group_norms() {
    for (groups, [height, width]) in [(1, [5, 7]), (3, [1, 1]), (3, [9, 4]), (6, [13, 11])] {
        let shape = [3, 6, height, width];
        let lengths = [shape.iter().product(), 6, 6];
        agree(&format!("group_norm, {groups} groups of {shape:?}"), &lengths, |inputs| {
            let mut inputs = inputs.into_iter();
            group_norm(next(&mut inputs, shape), next(&mut inputs, [6]), next(&mut inputs, [6]), groups, 1e-3)
        });
        agree(&format!("group_norm_silu, {groups} groups of {shape:?}"), &lengths, |inputs| {
            let mut inputs = inputs.into_iter();
            group_norm_silu(next(&mut inputs, shape), next(&mut inputs, [6]), next(&mut inputs, [6]), groups, 1e-3)
        });
    }
}

#[test]
fn rms_norms() {
    for [batch, length, channels] in [[1, 1, 3], [3, 70, 37], [2, 130, 192]] {
        agree(
            &format!("rms_norm of {batch} x {length} x {channels}"),
            &[batch * length * channels, channels],
            |inputs| rms_norm(inputs[0].clone().reshape([batch, length, channels]), inputs[1].clone(), 1e-5),
        );
    }
}

#[test]
fn gated_activations() {
    agree("swiglu", &[20_001, 20_001], |inputs| swiglu(inputs[0].clone() * 4.0, inputs[1].clone()));
}

#[test]
fn modulated_layer_norm() {
    for [batch, length, channels] in [[1, 1, 3], [3, 5, 37], [2, 130, 192]] {
        let lengths = [batch * length * channels, batch * channels, batch * channels];
        agree(&format!("layer_norm_modulate of {batch} x {length} x {channels}"), &lengths, |inputs| {
            let mut inputs = inputs.into_iter();
            let x = next(&mut inputs, [batch, length, channels]);
            let [scale, shift] = [(); 2].map(|()| next(&mut inputs, [batch, 1, channels]));
            layer_norm_modulate(x, scale, shift, 1e-6)
        });
    }
}

#[test]
fn layer_norm_with_weights() {
    for [batch, length, channels] in [[1, 1, 3], [3, 70, 37]] {
        agree(
            &format!("layer_norm of {batch} x {length} x {channels}"),
            &[batch * length * channels, channels, channels],
            |inputs| {
                let mut inputs = inputs.into_iter();
                let x = next(&mut inputs, [batch, length, channels]);
                layer_norm(x, next(&mut inputs, [channels]), next(&mut inputs, [channels]), 1e-6)
            },
        );
    }
}

#[test]
fn self_attention_without_biases() {
    agree("self_attention without biases", &[2 * 9 * 3 * 12], |inputs| {
        self_attention(inputs[0].clone().reshape([2, 9, 36]), None, 3, QueryKeys::Scaled(0.5), None)
    });
}

/// `[channels_in, channels_out, kernel_height, kernel_width, height, width]` and geometry of convolutions.
const CONVOLUTIONS: [([usize; 6], ConvSpec); 12] = [
    ([3, 5, 3, 3, 7, 9], ConvSpec::same(3)),
    ([3, 5, 3, 3, 1, 1], ConvSpec::same(3)),
    ([2, 3, 3, 3, 37, 41], ConvSpec::same(3)),
    ([16, 17, 3, 3, 8, 4], ConvSpec::same(3)),
    ([33, 19, 3, 3, 7, 10], ConvSpec::same(3)),
    ([16, 16, 3, 3, 30, 61], ConvSpec::same(3)),
    ([3, 4, 1, 1, 5, 6], ConvSpec::same(1)),
    ([4, 3, 1, 1, 31, 33], ConvSpec::same(1)),
    ([3, 5, 3, 3, 8, 10], ConvSpec::halve()),
    ([2, 3, 3, 3, 65, 34], ConvSpec::halve()),
    ([2, 3, 4, 2, 11, 9], ConvSpec { stride: 3, padding: [2, 0, 1, 3] }),
    ([2, 3, 2, 3, 5, 4], ConvSpec { stride: 1, padding: [3, 3, 0, 4] }),
];

fn convolve(inputs: Vec<Tensor<1>>, batch: usize, size: [usize; 6], spec: ConvSpec, bias: bool) -> Tensor<4> {
    let [channels_in, channels_out, kernel_height, kernel_width, height, width] = size;
    let mut inputs = inputs.into_iter();
    let x = next(&mut inputs, [batch, channels_in, height, width]);
    let weight = next(&mut inputs, [channels_out, channels_in, kernel_height, kernel_width]);
    conv2d(x, weight, bias.then(|| next(&mut inputs, [channels_out])), spec)
}

#[test]
fn convolutions() {
    for (size, spec) in CONVOLUTIONS {
        for bias in [true, false] {
            let [channels_in, channels_out, kernel_height, kernel_width, height, width] = size;
            let weight = channels_out * channels_in * kernel_height * kernel_width;
            let mut lengths = vec![5 * channels_in * height * width, weight];
            lengths.extend(bias.then_some(channels_out));
            agree(&format!("conv2d {size:?} {spec:?}"), &lengths, |inputs| convolve(inputs, 5, size, spec, bias));
        }
    }
}

#[test]
fn attention_with_every_kind_of_bias() {
    let ([batch, heads], channels, value_channels) = ([2, 3], 5, 7);
    for (queries, keys) in [(1, 1), (7, 11), (70, 13), (130, 131)] {
        for bias in [None, Some([1, 1, 1]), Some([1, 1, queries]), Some([1, heads, 1]), Some([batch, heads, queries])] {
            let scores = batch * heads;
            let mut lengths =
                vec![scores * queries * channels, scores * keys * channels, scores * keys * value_channels];
            lengths.extend(bias.map(|bias| bias.iter().product::<usize>() * keys));
            agree(&format!("attention of {queries} queries and {keys} keys, bias {bias:?}"), &lengths, |inputs| {
                let mut inputs = inputs.into_iter();
                let query = next(&mut inputs, [batch, heads, queries, channels]);
                let key = next(&mut inputs, [batch, heads, keys, channels]);
                let value = next(&mut inputs, [batch, heads, keys, value_channels]);
                let bias = bias.map(|[batch, heads, queries]| next(&mut inputs, [batch, heads, queries, keys]));
                attention(query, key, value, bias, 0.37)
            });
        }
    }
}

#[test]
fn linear_layers() {
    for [rows, inputs, outputs] in [[1, 3, 5], [2, 130, 257], [700, 37, 70]] {
        for bias in [true, false] {
            let mut lengths = vec![3 * rows * inputs, inputs * outputs];
            lengths.extend(bias.then_some(outputs));
            agree(&format!("linear of {rows} x {inputs} x {outputs}, bias {bias}"), &lengths, |inputs_of| {
                let mut inputs_of = inputs_of.into_iter();
                let x = next(&mut inputs_of, [3, rows, inputs]);
                let weight = next(&mut inputs_of, [inputs, outputs]);
                linear(x, weight, bias.then(|| next(&mut inputs_of, [outputs])))
            });
        }
    }
}

#[test]
fn gated_residuals() {
    for [batch, length, channels] in [[1, 1, 3], [3, 70, 37]] {
        let len = batch * length * channels;
        agree(&format!("gated_residual of {batch} x {length} x {channels}"), &[len, len, batch * channels], |inputs| {
            let mut inputs = inputs.into_iter();
            let [x, branch] = [(); 2].map(|()| next(&mut inputs, [batch, length, channels]));
            gated_residual(x, branch, next(&mut inputs, [batch, 1, channels]))
        });
    }
}

#[test]
fn cross_entropies() {
    for (smoothing, classes) in [(0.0, 2), (0.1, 37), (1.0, 130)] {
        let targets: Vec<i64> = (0..21).map(|i| i * i % classes as i64).collect();
        agree(&format!("cross_entropy, {classes} classes, smoothing {smoothing}"), &[21 * classes], |inputs| {
            let device = inputs[0].device().inner();
            let targets = Tensor::<2, Int>::from_data(TensorData::new(targets.clone(), [3, 7]), &device);
            cross_entropy(inputs[0].clone().reshape([3, 7, classes]), targets, smoothing)
        });
    }
}

#[test]
fn self_attention_of_packed_heads() {
    for ([batch, tokens, heads, channels], masked) in
        [([1, 1, 1, 3], false), ([2, 9, 3, 5], true), ([1, 140, 2, 16], true)]
    {
        let width = heads * channels;
        for unit in [true, false] {
            let mut lengths = vec![batch * tokens * 3 * width, width, width];
            lengths.extend(unit.then_some(heads));
            agree(&format!("self_attention of {tokens} tokens, {heads} heads, unit {unit}"), &lengths, |inputs| {
                let mut inputs = inputs.into_iter();
                let qkv = next(&mut inputs, [batch, tokens, 3 * width]);
                let [q_bias, v_bias] = [(); 2].map(|()| next(&mut inputs, [width]));
                let query_keys = match unit {
                    true => QueryKeys::Unit((next(&mut inputs, [heads]) * 0.3).exp()),
                    false => QueryKeys::Scaled(0.3),
                };
                let mask = masked.then(|| {
                    let causal =
                        (0..tokens * tokens).map(|at| if at % tokens <= at / tokens { 0.0 } else { f32::NEG_INFINITY });
                    let mask = TensorData::new(causal.collect::<Vec<f32>>(), [1, 1, tokens, tokens]);
                    Tensor::<4>::from_data(mask, (&qkv.device().inner(), qkv.dtype()))
                });
                self_attention(qkv, Some([q_bias, v_bias]), heads, query_keys, mask)
            });
        }
    }
}

/// Cosines and sines for `tokens` tokens; all zero for the first, as LlamaGen has it.
fn angles(tokens: usize, channels: usize) -> Vec<f32> {
    let pair = |i: usize| match i {
        i if i < channels / 2 => [0.0; 2],
        i => [(i as f32).cos(), (i as f32).sin()],
    };
    (0..tokens * channels / 2).flat_map(pair).collect()
}

#[test]
fn self_attention_with_rotary_positions() {
    for ([batch, tokens, heads, channels], key_heads) in [([2, 9, 3, 6], 3), ([1, 140, 2, 16], 2), ([2, 5, 4, 2], 2)] {
        let packed = (heads + 2 * key_heads) * channels;
        let name = format!("self_attention of {tokens} tokens, {heads} rotary heads, {key_heads} of keys");
        agree(&name, &[batch * tokens * packed], |inputs| {
            let qkv = inputs[0].clone().reshape([batch, tokens, packed]);
            let place = (&qkv.device(), qkv.dtype());
            let table = Tensor::from_data(TensorData::new(angles(tokens, channels), [tokens, channels]), place);
            let causal =
                (0..tokens * tokens).map(|at| if at % tokens <= at / tokens { 0.0 } else { f32::NEG_INFINITY });
            let mask = TensorData::new(causal.collect::<Vec<f32>>(), [1, 1, tokens, tokens]);
            let mask = Tensor::<4>::from_data(mask, place);
            self_attention(qkv, None, heads, QueryKeys::Rotary { scale: 0.3, table }, Some(mask))
        });
    }
}

/// Heads that share keys and values are heads with copies of them.
#[test]
fn grouped_heads_share_keys_and_values() {
    let device = Device::flex();
    let (heads, channels, tokens) = (4, 6, 7);
    let part = |count: usize, seed: u64| {
        let values = noise(2 * tokens * count * channels, seed);
        Tensor::<4>::from_data(TensorData::new(values, [2, tokens, count, channels]), &device)
    };
    let (query, key, value) = (part(heads, 1), part(2, 2), part(2, 3));
    let twice = |part: &Tensor<4>| {
        let halves = [0, 1].map(|i| part.clone().narrow(2, i, 1));
        Tensor::cat(vec![halves[0].clone(), halves[0].clone(), halves[1].clone(), halves[1].clone()], 2)
    };
    let table = Tensor::<2>::from_data(TensorData::new(angles(tokens, channels), [tokens, channels]), &device);
    let mixed = |parts: [Tensor<4>; 3]| {
        let qkv = Tensor::cat(parts.map(|part| part.flatten::<3>(2, 3)).into(), 2);
        let mut cache = KvCache::new(tokens);
        let steps = (0..tokens).map(|at| {
            let query_keys = QueryKeys::Rotary { scale: 0.3, table: table.clone().narrow(0, at, 1) };
            cached_attention(qkv.clone().narrow(1, at, 1), None, heads, query_keys, &mut cache)
        });
        Tensor::cat(steps.collect(), 1)
    };
    let grouped = mixed([query.clone(), key.clone(), value.clone()]);
    let copied = mixed([query, twice(&key), twice(&value)]);
    let error = (grouped - copied).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5, "grouped and copied heads differ by {error:e}");
}

#[test]
fn cached_rotary_attention_equals_masked_attention() {
    let device = Device::flex();
    let (heads, channels, tokens) = (3, 6, 9);
    let values = noise(2 * tokens * 3 * heads * channels, 5);
    let qkv = Tensor::<3>::from_data(TensorData::new(values, [2, tokens, 3 * heads * channels]), &device);
    let table = Tensor::<2>::from_data(TensorData::new(angles(tokens, channels), [tokens, channels]), &device);
    let causal = (0..tokens * tokens).map(|at| if at % tokens <= at / tokens { 0.0 } else { f32::NEG_INFINITY });
    let mask = TensorData::new(causal.collect::<Vec<f32>>(), [1, 1, tokens, tokens]);
    let query_keys = QueryKeys::Rotary { scale: 0.3, table: table.clone() };
    let whole = self_attention(qkv.clone(), None, heads, query_keys, Some(Tensor::from_data(mask, &device)));
    let mut cache = KvCache::new(tokens);
    let steps = (0..tokens).map(|at| {
        let query_keys = QueryKeys::Rotary { scale: 0.3, table: table.clone().narrow(0, at, 1) };
        cached_attention(qkv.clone().narrow(1, at, 1), None, heads, query_keys, &mut cache)
    });
    let error = (Tensor::cat(steps.collect(), 1) - whole).abs().max().into_scalar::<f32>();
    assert!(error <= 1e-5, "cached and masked attention differ by {error:e}");
}

/// Compares with the same rounded weights in single precision; few rows take another code path than many.
#[test]
fn linear_layers_with_weights_in_half_precision() {
    let device = Device::flex();
    let tensor = |len, seed| Tensor::<1>::from_data(TensorData::new(noise(len, seed), [len]), &device);
    for (rows, inputs, outputs) in [(1, 5, 3), (3, 300, 1000), (63, 70, 33), (64, 70, 33), (200, 513, 65)] {
        for half in [DType::F16, DType::BF16] {
            for bias in [None, Some(tensor(outputs, 3))] {
                let (x, weight) = (tensor(rows * inputs, 1), tensor(inputs * outputs, 2));
                let (x, weight) = (x.reshape([rows, 1, inputs]), weight.reshape([inputs, outputs]).cast(half));
                let expected = linear(x.clone(), weight.clone().cast(DType::F32), bias.clone());
                let size = expected.clone().abs().max().into_scalar::<f32>();
                let tracked = linear(x.clone().autodiff(), weight.clone(), bias.clone()).inner();
                for found in [linear(x.clone(), weight, bias), tracked] {
                    let error = (found - expected.clone()).abs().max().into_scalar::<f32>();
                    assert!(error <= 1e-6 * size, "{rows} x {inputs} x {outputs}, {half:?}: off by {error:e}");
                }
            }
        }
    }
}

#[test]
fn inputs_that_are_views() {
    let device = Device::flex();
    let x = Tensor::<4>::from_data(TensorData::new(noise(2 * 6 * 5 * 4, 7), [2, 6, 5, 4]), &device);
    let view = swap(x, 1, 3).slice([0..2, 1..4, 1..5, 0..6]);
    let copy = Tensor::from_data(view.to_data(), &device);
    silu(view.clone()).into_data().assert_eq(&silu(copy.clone()).into_data(), true);
    softmax(view.clone()).into_data().assert_eq(&softmax(copy.clone()).into_data(), true);
    let weight = Tensor::<4>::from_data(TensorData::new(noise(27, 8), [1, 3, 3, 3]), &device);
    let spec = ConvSpec::same(3);
    let flipped = conv2d(view, weight.clone(), None, spec).into_data();
    flipped.assert_eq(&conv2d(copy, weight, None, spec).into_data(), true);
}

#[test]
fn only_tracked_inputs_get_a_gradient() {
    let device = Device::flex();
    let x = Tensor::<4>::from_data(TensorData::new(noise(2 * 3 * 4 * 5, 1), [2, 3, 4, 5]), &device);
    let weight = Tensor::<4>::from_data(TensorData::new(noise(27, 2), [1, 3, 3, 3]), &device);
    let tracked = Tensor::from_inner(weight.clone()).require_grad();
    let grads = conv2d(x.clone(), tracked.clone(), None, ConvSpec::same(3)).sum().backward();
    assert!(tracked.grad(&grads).is_some(), "the weight has a gradient though the images are not tracked");
    let constant = Tensor::from_inner(weight);
    let leaf = Tensor::from_inner(x).require_grad();
    let grads = conv2d(leaf.clone(), constant.clone(), None, ConvSpec::same(3)).sum().backward();
    assert!(leaf.grad(&grads).is_some(), "the images have a gradient though the weight is constant");
    assert!(constant.grad(&grads).is_none(), "a constant has no gradient");
}

/// Compares blocks of tokens that attend to a cache with attention under a mask: on the graph (in `f64`, without a
/// kernel), off it, and switching between the two.
#[test]
fn cached_attention_equals_masked_attention() {
    let (heads, blocks) = (3, [1, 4, 7]);
    let (tokens, width) = (blocks.iter().sum::<usize>(), heads * 5);
    let numbers = |shape: &[usize], seed| TensorData::new(noise(shape.iter().product(), seed), shape.to_vec());
    let (qkv, biases) = (numbers(&[2, tokens, 3 * width], 1), [2, 3].map(|seed| numbers(&[width], seed)));
    let mix = |device: &Device, dtype, capacity, tracked: [bool; 3]| -> Vec<f64> {
        let biases = biases.each_ref().map(|bias| Tensor::<1>::from_data(bias.clone(), (device, dtype)));
        let sharpness = Tensor::<1>::from_data([1.0, 2.0, 0.5], (device, dtype));
        let qkv = Tensor::<3>::from_data(qkv.clone(), (device, dtype));
        let mut cache = KvCache::new(capacity);
        let mut first = 0;
        let outputs = blocks.iter().zip(tracked).map(|(&count, tracked)| {
            let block = qkv.clone().narrow(1, first, count);
            let block = if tracked { block.autodiff() } else { block };
            first += count;
            let query_keys = QueryKeys::Unit(sharpness.clone());
            let mixed = cached_attention(block, Some(biases.clone()), heads, query_keys, &mut cache);
            if tracked { mixed.inner() } else { mixed }
        });
        let outputs = Tensor::cat(outputs.collect(), 1);
        assert_eq!(cache.tokens(), tokens, "all tokens are in the cache");
        outputs.into_data().iter().collect()
    };
    let device = Device::flex();
    let exact = {
        let levels: Vec<usize> = blocks.iter().enumerate().flat_map(|(level, &count)| vec![level; count]).collect();
        let hidden = |at: usize| levels[at / tokens] < levels[at % tokens];
        let mask: Vec<f32> = (0..tokens * tokens).map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 }).collect();
        let place = (&device, DType::F64);
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, tokens, tokens]), place);
        let biases = biases.each_ref().map(|bias| Tensor::<1>::from_data(bias.clone(), place));
        let query_keys = QueryKeys::Unit(Tensor::from_data([1.0, 2.0, 0.5], place));
        let qkv = Tensor::<3>::from_data(qkv.clone(), place);
        let mixed = self_attention(qkv, Some(biases), heads, query_keys, Some(mask));
        mixed.into_data().iter::<f64>().collect::<Vec<_>>()
    };
    let plain = [false; 3];
    for (name, dtype, capacity, tracked) in [
        ("in double precision", DType::F64, tokens, plain),
        ("with room for all", DType::F32, tokens, plain),
        ("with room for some", DType::F32, 2, plain),
        ("off and on the graph", DType::F32, tokens, [false, true, true]),
    ] {
        let found = mix(&device, dtype, capacity, tracked);
        let error = found.iter().zip(&exact).map(|(found, exact)| (found - exact).abs()).fold(0.0, f64::max);
        assert!(error < 1e-5, "{name}: off by {error:e}");
    }
}

#[test]
fn a_clone_of_a_cache_is_independent() {
    let device = Device::flex();
    let block = |seed| Tensor::<3>::from_data(TensorData::new(noise(2 * 18, seed), [1, 2, 18]), &device);
    let mix = |seed, cache: &mut KvCache| {
        cached_attention(block(seed), None, 2, QueryKeys::Scaled(0.3), cache).into_data().try_into_vec::<f32>().unwrap()
    };
    let mut one = KvCache::new(8);
    mix(1, &mut one);
    let mut other = one.clone();
    let (a, b) = (mix(2, &mut one), mix(3, &mut other));
    assert_ne!(a, b, "they hold different tokens");
    let mut alone = KvCache::new(8);
    mix(1, &mut alone);
    mix(2, &mut alone);
    assert_eq!(mix(4, &mut one), mix(4, &mut alone), "changing one leaves the other as it is");
}

#[test]
fn cached_attention_keeps_the_gradient_of_a_bias_alone() {
    let device = Device::flex();
    let qkv = Tensor::<3>::from_data(TensorData::new(noise(2 * 4 * 18, 1), [2, 4, 18]), &device);
    let bias = |seed| Tensor::<1>::from_data(TensorData::new(noise(6, seed), [6]), &device.clone().autodiff());
    let q_bias = bias(2).require_grad();
    let biases = Some([q_bias.clone(), bias(3)]);
    let mixed = cached_attention(qkv, biases, 2, QueryKeys::Scaled(0.3), &mut KvCache::new(4));
    assert!(
        q_bias.grad(&mixed.sum().backward()).is_some(),
        "the bias has a gradient though the projection is not tracked"
    );
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let size = [16, 24, 3, 3, 24, 24];
    let inputs = [noise(9 * 16 * 24 * 24, 1), noise(24 * 16 * 9, 2), noise(24, 3), noise(24, 4), noise(24, 5)];
    let network = |mut inputs: Vec<Tensor<1>>| {
        let (bias, weight) = (inputs.pop().expect("bias"), inputs.pop().expect("weight"));
        let y = group_norm_silu(convolve(inputs, 9, size, ConvSpec::same(3), true), weight, bias, 4, 1e-6);
        softmax(gelu_tanh(y))
    };
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| run(&inputs, DType::F32, &Device::flex().autodiff(), network))
    };
    let one = with_threads(1);
    for threads in [2, 3, 5] {
        for (which, (some, one)) in with_threads(threads).iter().zip(&one).enumerate() {
            assert_eq!(some.as_bytes(), one.as_bytes(), "result {which} with {threads} threads");
        }
    }
}

#[test]
fn pools() {
    let device = Device::flex();
    for [height, width] in [[3, 3], [5, 8], [35, 35], [17, 18]] {
        let images = TensorData::new(noise(2 * 3 * height * width, 1), [2, 3, height, width]);
        let both = |pool: &dyn Fn(Tensor<4>) -> Tensor<4>, name: &str| {
            let [fast, exact] =
                [DType::F32, DType::F64].map(|dtype| pool(Tensor::from_data(images.clone(), (&device, dtype))));
            assert_eq!(fast.dims(), exact.dims(), "{name} of {height}x{width}");
            let pairs = fast.into_data().iter::<f64>().zip(exact.into_data().iter::<f64>()).collect::<Vec<_>>();
            let error = pairs.iter().map(|(fast, exact)| (fast - exact).abs()).fold(0.0, f64::max);
            assert!(error < 1e-6, "{name} of {height}x{width}: off by {error:e}");
        };
        both(&|x| max_pool_3x3(x, 1, 1), "max, padded");
        both(&|x| max_pool_3x3(x, 2, 0), "max, stride 2");
        both(&|x| mean_pool_3x3(x), "mean");
    }
    let x = Tensor::<4>::from_data([[[[1.0, f32::NAN, 0.0], [0.0; 3], [0.0; 3]]]], &device);
    assert!(max_pool_3x3(x.clone(), 2, 0).into_scalar::<f32>().is_nan(), "NaN is kept");
    assert!(mean_pool_3x3(x).into_data().iter::<f32>().take(3).all(f32::is_nan));
}

#[test]
fn steps_of_adamw() {
    let device = Device::flex();
    let len = 40_001;
    let run = |dtype: DType| {
        let tensor = |seed| Tensor::<1>::from_data(TensorData::new(noise(len, seed), [len]), (&device, dtype));
        let (mut weights, mut moments) = (tensor(1), None);
        for time in 1..4 {
            let (learning_rate, weight_decay) = (0.01, 0.3);
            let step = AdamWStep { learning_rate, weight_decay, betas: [0.9, 0.95], epsilon: 1e-8, time };
            let (after, both) = adamw(weights, tensor(time as u64 + 1), moments, step);
            (weights, moments) = (after, Some(both));
        }
        let [first, second] = moments.expect("three steps");
        [weights, first, second].map(Tensor::into_data)
    };
    let (fast, exact) = (run(DType::F32), run(DType::F64));
    for (fast, exact) in fast.iter().zip(&exact) {
        let error = fast.iter::<f64>().zip(exact.iter::<f64>()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-6, "off by {error:e}");
    }
}

/// The precisions that round.
const ROUNDING: [Precision; 3] = [Precision::Tf32, Precision::F16, Precision::Bf16];

/// Returns the output of `op` in a precision, and the gradients of its inputs, which are computed by a thread that knows
/// nothing of it.
fn in_precision<const D: usize>(
    precision: Precision,
    lengths: &[usize],
    device: &Device,
    op: impl Fn(Vec<Tensor<1>>) -> Tensor<D>,
) -> Vec<TensorData> {
    let inputs = lengths.iter().zip(1..).map(|(&len, seed)| noise(len, seed));
    let leaf = |values: Vec<f32>| {
        let len = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [len]), device).require_grad()
    };
    let leaves: Vec<_> = inputs.map(leaf).collect();
    let output = precision.scope(|| op(leaves.clone()));
    let weights = TensorData::new(noise(output.dims().iter().product(), 99), output.dims());
    let loss = (output.clone() * Tensor::from_data(weights, device)).sum();
    let grads = std::thread::scope(|scope| scope.spawn(|| loss.backward()).join().expect("a thread"));
    let grads = leaves.iter().map(|leaf| leaf.grad(&grads).expect("every input has a gradient").into_data());
    core::iter::once(output.into_data()).chain(grads).collect()
}

/// Rounds the numbers of a tensor, which becomes a constant.
fn rounded<const D: usize>(precision: Precision, x: &Tensor<D>) -> Tensor<D> {
    let values: Vec<f32> = x.clone().into_data().iter::<f32>().map(|x| precision.round(x)).collect();
    Tensor::from_data(TensorData::new(values, x.dims()), &x.device().inner())
}

/// A linear layer in a precision is the exact one of rounded inputs; its gradients are those of rounded inputs by a rounded
/// gradient of the output, and that of the bias is exact.
#[test]
fn a_product_rounds_its_inputs_and_the_gradient_of_its_output() {
    let (rows, inputs, outputs) = (7, 20, 9);
    let device = Device::flex().autodiff();
    for device in [device.clone(), device.gradient_checkpointing()] {
        for precision in ROUNDING {
            let found = in_precision(precision, &[rows * inputs, inputs * outputs, outputs], &device, |leaves| {
                let [x, weight, bias] = <[_; 3]>::try_from(leaves).expect("three");
                linear(x.reshape([rows, inputs]), weight.reshape([inputs, outputs]), Some(bias))
            });
            let plain = Device::flex();
            let tensor = |len, seed, dims: [usize; 2]| {
                Tensor::<1>::from_data(TensorData::new(noise(len, seed), [len]), &plain).reshape(dims)
            };
            let x = rounded(precision, &tensor(rows * inputs, 1, [rows, inputs]));
            let weight = rounded(precision, &tensor(inputs * outputs, 2, [inputs, outputs]));
            let upstream = tensor(rows * outputs, 99, [rows, outputs]);
            let rounded_upstream = rounded(precision, &upstream);
            let expected = [
                linear(x.clone(), weight.clone(), None) + tensor(outputs, 3, [1, outputs]),
                linear(rounded_upstream.clone(), transpose(weight), None),
                linear(transpose(x), rounded_upstream, None),
                upstream.sum_dim(0),
            ];
            for (which, (found, expected)) in found.iter().zip(expected).enumerate() {
                let size = expected.clone().abs().max().into_scalar::<f32>();
                let expected = expected.into_data();
                let error = found.iter::<f32>().zip(expected.iter::<f32>()).map(|(a, b)| (a - b).abs());
                let error = error.fold(0.0, f32::max);
                assert!(error <= 1e-6 * size, "{precision}, result {which}: off by {error:e} of {size}");
            }
        }
    }
}

/// Operations in a precision are near the exact ones, forward and backward, and not equal to them.
#[test]
fn every_product_reads_the_precision() {
    let (tokens, heads, channels) = (9, 2, 6);
    let width = heads * channels;
    let attend = |qkv: Tensor<1>, query_keys: QueryKeys| {
        self_attention(qkv.reshape([2, tokens, 3 * width]), None, heads, query_keys, None)
    };
    let size = [3, 4, 3, 3, 6, 5];
    for precision in ROUNDING {
        let unit = if precision == Precision::Bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        let near = |name: &str, lengths: &[usize], op: &dyn Fn(Vec<Tensor<1>>) -> Tensor<4>| {
            let device = Device::flex().autodiff();
            let [exact, found] =
                [Precision::Exact, precision].map(|precision| in_precision(precision, lengths, &device, op));
            for (which, (exact, found)) in exact.iter().zip(&found).enumerate() {
                let size = exact.iter::<f64>().map(f64::abs).fold(0.0, f64::max);
                let error = exact.iter::<f64>().zip(found.iter::<f64>()).map(|(a, b)| (a - b).abs());
                let error = error.fold(0.0, f64::max) / size / unit;
                assert!(error > 0.0, "{precision}, {name}: result {which} is exact");
                assert!(error < 8.0, "{precision}, {name}: result {which} is off by {error} roundings");
            }
        };
        near("scaled attention", &[2 * tokens * 3 * width], &|leaves| {
            attend(leaves[0].clone(), QueryKeys::Scaled(0.3)).unsqueeze()
        });
        near("unit attention", &[2 * tokens * 3 * width, heads], &|leaves| {
            attend(leaves[0].clone(), QueryKeys::Unit(leaves[1].clone())).unsqueeze()
        });
        near("convolution", &[2 * 3 * 30, 4 * 3 * 9], &|leaves| convolve(leaves, 2, size, ConvSpec::same(3), false));
        near("product", &[2 * 12, 2 * 20], &|leaves| {
            matmul(leaves[0].clone().reshape([1, 2, 3, 4]), leaves[1].clone().reshape([1, 2, 4, 5]))
        });
    }
}

#[test]
fn a_cache_is_read_in_the_precision() {
    let device = Device::flex();
    let (tokens, heads, width) = (6, 2, 8);
    let mix = |precision: Precision| {
        let mut cache = KvCache::new(tokens);
        let values = noise(tokens * 3 * width, 1);
        let qkv = Tensor::<3>::from_data(TensorData::new(values, [1, tokens, 3 * width]), &device);
        let steps = [(0, 2), (2, 4)].map(|(first, count)| {
            let block = qkv.clone().narrow(1, first, count);
            precision.scope(|| cached_attention(block, None, heads, QueryKeys::Scaled(0.3), &mut cache))
        });
        Tensor::cat(steps.into(), 1)
    };
    let exact = mix(Precision::Exact);
    for (precision, most) in [(Precision::Tf32, 0.004), (Precision::F16, 0.004), (Precision::Bf16, 0.03)] {
        let off = (mix(precision) - exact.clone()).abs().max().into_scalar::<f32>();
        assert!(off > 0.0 && off < most, "{precision}: off by {off}");
    }
}

#[test]
fn what_must_be_exact_is_exact_in_each_precision() {
    let device = Device::flex();
    let tensor = |len, seed| Tensor::<1>::from_data(TensorData::new(noise(len, seed), [len]), &device);
    let (a, b) = (tensor(12, 1).reshape([3, 4]), tensor(20, 2).reshape([4, 5]));
    let (map, weight) = (tensor(2 * 3 * 20, 3).reshape([2, 3, 4, 5]), tensor(81, 4).reshape([3, 3, 3, 3]));
    let compute = || {
        let product = exact_matmul(a.clone(), b.clone()).into_data();
        let mixture = mixed(map.clone(), weight.clone(), tensor(3, 5), 0.5).into_data();
        let resized = crate::math::Resize::Bicubic.apply(map.clone(), crate::MapSize { height: 7, width: 3 });
        [product, mixture, resized.into_data()]
    };
    let expected = compute();
    for precision in ROUNDING {
        assert_eq!(precision.scope(compute), expected, "{precision}");
    }
}

/// A weight that is stored in half precision is not rounded again.
#[test]
fn stored_weights_are_multiplied_by_rounded_inputs() {
    let device = Device::flex();
    let tensor = |len, seed| Tensor::<1>::from_data(TensorData::new(noise(len, seed), [len]), &device);
    let (x, weight) = (tensor(3 * 40, 1).reshape([3, 40]), tensor(40 * 20, 2).reshape([40, 20]));
    for (precision, dtype) in [(Precision::F16, DType::F16), (Precision::Bf16, DType::BF16)] {
        let stored = weight.clone().cast(dtype);
        let [found, expected] =
            [stored, weight.clone()].map(|weight| precision.scope(|| linear(x.clone(), weight, Some(tensor(20, 3)))));
        let off = (found - expected).abs().max().into_scalar::<f32>();
        assert!(off < 1e-5, "{precision}: off by {off:e}");
    }
}
