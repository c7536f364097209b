//! Kernels of the optimizer, each for as many parameters as a GPU binds.

use burn::backend::fusion::custom::{CustomOpIr, HandleContainer, OperationFn, OperationIr, StreamId, TensorIr};
use burn::backend::fusion::{FusionBackend, FusionRuntime};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, DispatchTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

use super::bridge::{cube, off_graph};
use super::parallel::{UNITS, like, plain, sum_over_units};
use crate::ops::AdamWStep;
use crate::ops::joint::Clipping;

/// Numbers of a parameter that a unit updates.
const PER_UNIT: usize = 8;
/// Most parameters of a launch. A kernel for more takes long to compile.
const PARAMETERS: usize = 24;
/// Cubes that share a gradient in [`squares_kernel`].
const SHARES: usize = 64;
/// Numbers of the norm's tensor, see [`Clipping::before`].
pub(in crate::ops) const NORM: usize = 3;

/// Cubes: x by shares, y by tensors.
#[cube(launch)]
fn squares_kernel(tensors: &Sequence<Box<[f32]>>, sums: &mut [f32], row: u32) {
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..tensors.len() {
        if CUBE_POS_Y as usize == i {
            let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
            while at < tensors[i].len() {
                let value = tensors[i][at];
                sum += value * value;
                at += comptime!(SHARES * UNITS);
            }
        }
    }
    let sum = sum_over_units(&mut partial, sum);
    if UNIT_POS == 0 {
        sums[(row + CUBE_POS_Y) as usize * SHARES + CUBE_POS_X as usize] = sum;
    }
}

/// One cube.
#[cube(launch)]
fn norm_kernel(sums: &[f32], before: &[f32], norm: &mut [f32], share: f32, step: f32, largest: f32) {
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < sums.len() {
        sum += sums[at];
        at += UNITS;
    }
    let sum = sum_over_units(&mut partial, sum);
    if UNIT_POS == 0 {
        let found = sum.sqrt() * share;
        norm[0] = found;
        norm[1] = before[1];
        norm[2] = before[2];
        // Neither NaN nor infinity is at most the largest number.
        let finite = found <= largest;
        if before[1] < 0.0 && !finite {
            norm[1] = step;
            norm[2] = found;
        }
    }
}

/// The cubes of a parameter follow those of the one before.
#[cube(launch)]
fn update_kernel(
    norm: &[f32],
    weights: &Sequence<Box<[f32]>>,
    grads: &Sequence<Box<[f32]>>,
    updated: &mut Sequence<Box<[f32]>>,
    firsts: &mut Sequence<Box<[f32]>>,
    seconds: &mut Sequence<Box<[f32]>>,
    averages: &mut Sequence<Box<[f32]>>,
    starts: &Sequence<u32>,
    ends: &Sequence<u32>,
    share: f32,
    max: f32,
    keep: f32,
    beta_1: f32,
    beta_2: f32,
    new_1: f32,
    new_2: f32,
    rate: f32,
    bias: f32,
    epsilon: f32,
    follow: f32,
    #[comptime] averaged: bool,
) {
    let cube = CUBE_POS as u32;
    // The same small number as in PyTorch.
    let clipped = max / (norm[0] + 1e-6);
    let mut factor = share;
    if clipped < 1.0 {
        factor = share * clipped;
    }
    let finite = norm[1] < 0.0;
    #[unroll]
    for i in 0..weights.len() {
        if cube >= starts[i] && cube < ends[i] {
            let from = (cube - starts[i]) as usize * comptime!(UNITS * PER_UNIT) + UNIT_POS as usize;
            for k in 0..PER_UNIT {
                let at = from + k * UNITS;
                if at < weights[i].len() {
                    let mut weight = weights[i][at];
                    if finite {
                        let grad = grads[i][at] * factor;
                        let first = firsts.index(i)[at] * beta_1 + grad * new_1;
                        let second = seconds.index(i)[at] * beta_2 + grad * grad * new_2;
                        weight = weight * keep - rate * first / ((second * bias).sqrt() + epsilon);
                        firsts.index_mut(i)[at] = first;
                        seconds.index_mut(i)[at] = second;
                        if averaged {
                            let average = averages.index(i)[at];
                            averages.index_mut(i)[at] = average + (weight - average) * follow;
                        }
                    }
                    updated.index_mut(i)[at] = weight;
                }
            }
        }
    }
}

/// Parameter of a [`JointUpdate`](crate::ops::JointUpdate), or what it becomes.
pub(in crate::ops) struct Part {
    pub(in crate::ops) weights: DispatchTensor,
    pub(in crate::ops) moments: [DispatchTensor; 2],
    pub(in crate::ops) average: Option<DispatchTensor>,
}

/// Parameters that one kernel can update: their tensors, gradients and places in the whole.
struct Group {
    step: AdamWStep,
    averaged: bool,
    parts: Vec<Part>,
    grads: Vec<DispatchTensor>,
    places: Vec<usize>,
}

/// Computes the norm of all gradients, and updates the parameters by it. Returns them in their order, and the norm.
pub(in crate::ops) fn update(
    parts: Vec<(Part, DispatchTensor, AdamWStep)>,
    clipping: &Clipping,
) -> (Vec<Part>, Tensor<1>) {
    let norm = norm(parts.iter().map(|(_, grad, _)| grad.clone()).collect(), clipping);
    let mut groups: Vec<Group> = Vec::new();
    for (place, (part, grad, step)) in parts.into_iter().enumerate() {
        let averaged = part.average.is_some();
        let at = groups.iter().position(|group| group.step == step && group.averaged == averaged);
        let at = at.unwrap_or_else(|| {
            groups.push(Group { step, averaged, parts: Vec::new(), grads: Vec::new(), places: Vec::new() });
            groups.len() - 1
        });
        groups[at].parts.push(part);
        groups[at].grads.push(grad);
        groups[at].places.push(place);
    }
    let mut updated = Vec::new();
    for group in groups {
        let places = group.places.clone();
        updated.extend(places.into_iter().zip(update_group(group, norm.clone(), clipping)));
    }
    updated.sort_by_key(|(place, _)| *place);
    (updated.into_iter().map(|(_, part)| part).collect(), norm)
}

fn norm(grads: Vec<DispatchTensor>, clipping: &Clipping) -> Tensor<1> {
    let (share, step) = (clipping.share as f32, clipping.step as f32);
    let mut inputs = grads;
    inputs.push(clipping.before.clone().into_dispatch());
    let outputs = deferred("gradient_norm", inputs, vec![Shape::new([NORM])], move |inputs| {
        let mut grads: Vec<CubeTensor> = inputs.into_iter().map(plain).collect();
        let before = grads.pop().expect("the norm before comes last");
        let client = before.client.clone();
        let sums = like(&before, [grads.len() * SHARES]);
        let mut row = 0;
        for chunk in chunks(grads, per_launch(&before, 1, 1)) {
            let count = chunk.len() as u32;
            squares_kernel::launch(
                &client,
                CubeCount::Static(SHARES as u32, count, 1),
                CubeDim::new_1d(UNITS as u32),
                chunk.into_iter().map(CubeTensor::into_buffer_arg).collect(),
                sums.clone().into_buffer_arg(),
                row,
            );
            row += count;
        }
        let norm = like(&before, [NORM]);
        norm_kernel::launch(
            &client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            sums.into_buffer_arg(),
            before.into_buffer_arg(),
            norm.clone().into_buffer_arg(),
            share,
            step,
            f32::MAX,
        );
        vec![norm]
    });
    let [norm] = <[DispatchTensor; 1]>::try_from(outputs).expect("one norm");
    Tensor::from_dispatch(norm)
}

fn update_group(group: Group, norm: Tensor<1>, clipping: &Clipping) -> Vec<Part> {
    let Group { step, averaged, parts, grads, .. } = group;
    let rates = Rates::new(step, clipping);
    let shapes: Vec<Shape> = grads.iter().map(|grad| shape(grad.clone())).collect();
    // Weights, both moments and averages, each of all parameters.
    let kinds = if averaged { 4 } else { 3 };
    let mut inputs: Vec<Vec<DispatchTensor>> = (0..kinds).map(|_| Vec::with_capacity(parts.len())).collect();
    for Part { weights, moments: [first, second], average } in parts {
        for (kind, tensor) in inputs.iter_mut().zip([weights, first, second].into_iter().chain(average)) {
            kind.push(tensor);
        }
    }
    let count = grads.len();
    let outputs: Vec<Shape> = (0..kinds).flat_map(|_| shapes.clone()).collect();
    let mut inputs: Vec<DispatchTensor> = inputs.into_iter().flatten().collect();
    inputs.extend(grads);
    inputs.push(norm.into_dispatch());
    let outputs = deferred("adamw", inputs, outputs, move |inputs| launch_update(inputs, count, averaged, &rates));
    let mut kinds: Vec<_> = chunks(outputs, count).into_iter().map(Vec::into_iter).collect();
    let mut next = |kind: usize| kinds.get_mut(kind).and_then(Iterator::next);
    let part = |_| {
        let (weights, first, second) = (next(0)?, next(1)?, next(2)?);
        Some(Part { weights, moments: [first, second], average: next(3) })
    };
    (0..count).map_while(part).collect()
}

/// Constants of an update, as the kernel takes them.
#[derive(Clone, Copy)]
struct Rates {
    share: f32,
    max: f32,
    keep: f32,
    betas: [f32; 2],
    new: [f32; 2],
    rate: f32,
    bias: f32,
    epsilon: f32,
    follow: f32,
}

impl Rates {
    fn new(step: AdamWStep, clipping: &Clipping) -> Self {
        let [bias_1, bias_2] = step.betas.map(|beta| 1.0 - beta.powi(step.time as i32));
        Self {
            share: clipping.share as f32,
            max: clipping.max.unwrap_or(f64::INFINITY) as f32,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            betas: step.betas.map(|beta| beta as f32),
            new: step.betas.map(|beta| (1.0 - beta) as f32),
            rate: (step.learning_rate / bias_1) as f32,
            bias: (1.0 / bias_2) as f32,
            epsilon: step.epsilon as f32,
            follow: clipping.follow as f32,
        }
    }
}

/// Updates `count` parameters; `inputs` and the result are as in [`update_group`].
fn launch_update(mut inputs: Vec<CubeTensor>, count: usize, averaged: bool, rates: &Rates) -> Vec<CubeTensor> {
    let norm = plain(inputs.pop().expect("the norm comes last"));
    let grads = inputs.split_off(inputs.len() - count).into_iter().map(plain);
    let mut kinds = chunks(inputs, count).into_iter();
    let mut kind = || kinds.next().unwrap_or_default().into_iter();
    let weights: Vec<CubeTensor> = kind().map(plain).collect();
    let mut in_place = || -> Vec<CubeTensor> { kind().map(to_be_changed).collect() };
    let [firsts, seconds, averages] = [in_place(), in_place(), in_place()];
    // The weights from before the step stay with who else has them: the module that is being updated.
    let updated: Vec<CubeTensor> = weights.iter().map(|weight| like(weight, weight.meta.shape().clone())).collect();
    let parameters = per_launch(&norm, if averaged { 6 } else { 5 }, 1);
    let mut weights = weights.into_iter();
    let mut grads = grads.into_iter();
    for from in (0..count).step_by(parameters) {
        let to = count.min(from + parameters);
        let (mut starts, mut ends) = (SequenceArg::<u32>::new(), SequenceArg::<u32>::new());
        let mut cubes = 0;
        for tensor in &updated[from..to] {
            starts.push(cubes);
            cubes += tensor.meta.shape().num_elements().div_ceil(UNITS * PER_UNIT) as u32;
            ends.push(cubes);
        }
        let x = cubes.clamp(1, 32_768);
        let buffers = |tensors: &[CubeTensor]| -> SequenceArg<Box<[f32]>> {
            tensors.iter().map(|tensor| tensor.clone().into_buffer_arg()).collect()
        };
        update_kernel::launch(
            &norm.client,
            CubeCount::Static(x, cubes.div_ceil(x), 1),
            CubeDim::new_1d(UNITS as u32),
            norm.clone().into_buffer_arg(),
            weights.by_ref().take(to - from).map(CubeTensor::into_buffer_arg).collect(),
            grads.by_ref().take(to - from).map(CubeTensor::into_buffer_arg).collect(),
            buffers(&updated[from..to]),
            buffers(&firsts[from..to]),
            buffers(&seconds[from..to]),
            buffers(if averaged { &averages[from..to] } else { &[] }),
            starts,
            ends,
            rates.share,
            rates.max,
            rates.keep,
            rates.betas[0],
            rates.betas[1],
            rates.new[0],
            rates.new[1],
            rates.rate,
            rates.bias,
            rates.epsilon,
            rates.follow,
            averaged,
        );
    }
    [updated, firsts, seconds, averages].concat()
}

/// Returns a tensor that a kernel may change: a copy if something else uses it.
fn to_be_changed(tensor: CubeTensor) -> CubeTensor {
    if tensor.can_mut() { plain(tensor) } else { plain(tensor.copy()) }
}

/// Returns how many parameters of so many `buffers` a launch takes, beside `others`.
fn per_launch(tensor: &CubeTensor, buffers: usize, others: usize) -> usize {
    // One more holds shapes and numbers.
    let bound = tensor.client.properties().hardware.max_bindings as usize;
    (bound.saturating_sub(others + 1) / buffers).clamp(1, PARAMETERS)
}

/// Cuts a list to pieces of `len`, the last of which may be shorter.
fn chunks<T>(list: Vec<T>, len: usize) -> Vec<Vec<T>> {
    let mut list = list.into_iter().peekable();
    let mut pieces = Vec::new();
    while list.peek().is_some() {
        pieces.push(list.by_ref().take(len).collect());
    }
    pieces
}

fn shape(tensor: DispatchTensor) -> Shape {
    fused(tensor).shape.clone()
}

fn fused(tensor: DispatchTensor) -> FloatTensor<Cube> {
    cube(tensor).float()
}

/// Handles of tensors in the queue of operations.
type Handles = HandleContainer<<<CubeBackend as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

/// Queues an operation on any number of tensors in `f32`, as Burn's extensions do for a fixed number.
fn deferred(
    name: &str,
    inputs: Vec<DispatchTensor>,
    shapes: Vec<Shape>,
    compute: impl Fn(Vec<CubeTensor>) -> Vec<CubeTensor> + Send + Sync + 'static,
) -> Vec<DispatchTensor> {
    let inputs: Vec<FloatTensor<Cube>> = inputs.into_iter().map(fused).collect();
    let Some(client) = inputs.first().map(|tensor| tensor.client.clone()) else { return Vec::new() };
    let inputs: Vec<TensorIr> = inputs.into_iter().map(|tensor| tensor.into_ir()).collect();
    let output = |shape: Shape| TensorIr::uninit(client.create_empty_handle(), shape, DType::F32);
    let outputs: Vec<TensorIr> = shapes.into_iter().map(output).collect();
    let described =
        CustomOpIr { id: name.into(), inputs: inputs.clone(), outputs: outputs.clone(), scalars: Vec::new() };
    let operation = OperationFn(move |handles: &mut Handles| {
        let read = |input: &TensorIr| handles.get_float_tensor::<CubeBackend>(input);
        let results = compute(inputs.iter().map(read).collect());
        for (output, result) in outputs.iter().zip(results) {
            handles.register_float_tensor::<CubeBackend>(&output.id, result);
        }
        Ok(())
    });
    let outputs = client.register(StreamId::current(), OperationIr::Custom(described), operation);
    outputs.into_iter().map(off_graph).collect()
}
