//! Kernels for Burn's GPU backends in `f32`, off the autodiff graph.
//!
//! The arithmetic for one image takes a GPU microseconds, so launches of kernels decide the time. Each kernel here stands for
//! several that Burn would launch, also where it fuses operations. They are written once, in CubeCL, and run on CUDA, Vulkan
//! and WebGPU.

#![allow(clippy::too_many_arguments, reason = "buffers and sizes of kernels")]

mod attention;
mod backward;
mod block;
mod bridge;
mod draw;
mod map;
mod norm;
#[cfg(feature = "training")]
pub(super) mod optimizer;
mod parallel;
mod product;

use std::sync::{LazyLock, Mutex, PoisonError};

use burn::backend::fusion::custom::TensorSpec;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Int, Shape, Tensor, activation};
use burn_cubecl::{CubeBackend, CubeDevice, tensor::CubeTensor};
use cubecl::prelude::Scalar;
use cubecl::{MemoryScope, tf32};

use super::draw::Draw;
use super::modulation::{Branch, Rows};
pub(super) use attention::fits;
pub(crate) use block::{BlockWeights, block};
pub(super) use product::{product, rounded};

/// Offsets of rows in the projections that hold them, see [`Rows`].
type Offset = usize;

/// The kernels as Burn dispatches and defers them.
#[backend_extension(Cube, Fusion)]
trait Kernels: Backend {
    #[fusion(dtype = x, shape = x)]
    fn modulated_norm(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        shifts: FloatTensor<Self>,
        scale: Offset,
        shift: Offset,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    #[fusion(meta = |x, _, _, _, _, _, _, _, _, _| (x.clone(), x.clone()))]
    fn residual_norm(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        shifts: FloatTensor<Self>,
        gate: Offset,
        scale: Offset,
        shift: Offset,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |qkv, _, _, _, keys, values, _, _, _| (query(qkv, keys), keys.clone(), values.clone()))]
    fn append(
        qkv: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        v_bias: FloatTensor<Self>,
        sharpness: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        tokens: usize,
        unit: bool,
        log: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = x, shape = x)]
    fn gelu(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |x, _, _| (x.clone(), x.clone()))]
    fn gelu_backward(
        x: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = scores, shape = scores)]
    fn masked_softmax(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = shares, shape = shares)]
    fn softmax_backward(shares: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |grad, _, _, _, _| (grad.clone(), per_image(grad), per_image(grad)))]
    fn gate_backward(
        grad: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        gates: FloatTensor<Self>,
        gate: Offset,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |x, _, _, _, _, _| (x.clone(), moments(x)))]
    fn norm_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        added: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        scale: Offset,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |x, _, _| (per_image(x), per_image(x)))]
    fn norm_columns(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moments: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(meta = |joint, _, _, query, _, _| (joint.clone(), per_head(joint, query)))]
    fn split_backward(
        joint: FloatTensor<Self>,
        q_bias: FloatTensor<Self>,
        sharpness: FloatTensor<Self>,
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = x, shape = resized(x, rows, columns))]
    fn resize(x: FloatTensor<Self>, rows: FloatTensor<Self>, columns: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = map, shape = map)]
    fn add_mixed(
        canvas: FloatTensor<Self>,
        map: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        ratio: f32,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = toward, shape = toward)]
    fn extrapolate(toward: FloatTensor<Self>, away: FloatTensor<Self>, strength: f32) -> FloatTensor<Self>;

    #[fusion(meta = |logits, _, fault, settings| drawn(logits, fault, settings))]
    fn draw(
        logits: FloatTensor<Self>,
        keys: IntTensor<Self>,
        fault: IntTensor<Self>,
        settings: Draw,
    ) -> (IntTensor<Self>, IntTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = query, shape = joined(query))]
    fn attend(
        query: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        tokens: usize,
        scale: f32,
    ) -> FloatTensor<Self>;

    #[fusion(dtype = a, shape = multiplied(a, b))]
    fn exact(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(meta = |a, b| TensorSpec::new(multiplied(&a.shape, &b.shape), DType::F32))]
    fn widened(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;

    #[fusion(dtype = x, shape = x)]
    fn round(x: FloatTensor<Self>, dropped: usize) -> FloatTensor<Self>;
}

/// Returns the shape of a product of matrices whose other axes are equal.
fn multiplied(a: &Shape, b: &Shape) -> Shape {
    let mut shape = a.clone();
    let last = a.num_dims() - 1;
    shape[last] = b[last];
    shape
}

/// Returns the shapes of drawn ids, of the number of a faulty entry, and of the values of a draw.
fn drawn(logits: &TensorSpec, fault: &TensorSpec, settings: &Draw) -> (TensorSpec, TensorSpec, TensorSpec) {
    let ids = TensorSpec::new(Shape::new([logits.shape[0]]), fault.dtype);
    let values = TensorSpec::new(draw::values_shape(&logits.shape, settings), logits.dtype);
    (ids, fault.clone(), values)
}

/// Returns the shape of the queries in a joint projection, `[batch, tokens, 3 * width]`, for a cache `[batch, heads, capacity,
/// head_width]`.
fn query(qkv: &TensorSpec, keys: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([keys.shape[0], keys.shape[1], qkv.shape[1], keys.shape[3]]), qkv.dtype)
}

/// Returns the shape of the output of attention, `[batch, tokens, heads * channels]`.
fn joined(query: &Shape) -> Shape {
    Shape::new([query[0], query[2], query[1] * query[3]])
}

/// Returns the shape of a number per image and channel of `[batch, tokens, channels]`.
fn per_image(x: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([x.shape[0], x.shape[2]]), x.dtype)
}

/// Returns the shape of mean and deviation of each token of `[batch, tokens, channels]`.
fn moments(x: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([x.shape[0] * x.shape[1], 2]), x.dtype)
}

/// Returns the shape of a number per token and head.
fn per_head(joint: &TensorSpec, query: &TensorSpec) -> TensorSpec {
    TensorSpec::new(Shape::new([joint.shape[0], query.shape[1]]), joint.dtype)
}

/// Returns the shape of a resized map.
fn resized(x: &Shape, rows: &Shape, columns: &Shape) -> Shape {
    Shape::new([x[0], x[1], rows[0], columns[0]])
}

impl Kernels for CubeBackend {
    fn modulated_norm(
        x: CubeTensor,
        scales: CubeTensor,
        shifts: CubeTensor,
        scale: Offset,
        shift: Offset,
        epsilon: f32,
    ) -> CubeTensor {
        norm::modulated([x, scales, shifts], [scale, shift], epsilon)
    }

    fn residual_norm(
        x: CubeTensor,
        branch: CubeTensor,
        bias: CubeTensor,
        gates: CubeTensor,
        scales: CubeTensor,
        shifts: CubeTensor,
        gate: Offset,
        scale: Offset,
        shift: Offset,
        epsilon: f32,
    ) -> (CubeTensor, CubeTensor) {
        norm::residual([x, branch, bias, gates, scales, shifts], [gate, scale, shift], epsilon)
    }

    fn append(
        qkv: CubeTensor,
        q_bias: CubeTensor,
        v_bias: CubeTensor,
        sharpness: CubeTensor,
        keys: CubeTensor,
        values: CubeTensor,
        tokens: usize,
        unit: bool,
        log: bool,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        attention::append([qkv, q_bias, v_bias, sharpness], [keys, values], tokens, [unit, log])
    }

    fn gelu(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
        map::gelu(x, bias)
    }

    fn gelu_backward(x: CubeTensor, bias: CubeTensor, grad: CubeTensor) -> (CubeTensor, CubeTensor) {
        map::gelu_backward(x, bias, grad)
    }

    fn masked_softmax(scores: CubeTensor, mask: CubeTensor) -> CubeTensor {
        backward::softmax(scores, mask)
    }

    fn softmax_backward(shares: CubeTensor, grad: CubeTensor) -> CubeTensor {
        backward::softmax_backward(shares, grad)
    }

    fn gate_backward(
        grad: CubeTensor,
        branch: CubeTensor,
        bias: CubeTensor,
        gates: CubeTensor,
        gate: Offset,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        backward::gate_backward([grad, branch, bias, gates], gate)
    }

    fn norm_backward(
        x: CubeTensor,
        grad: CubeTensor,
        added: CubeTensor,
        scales: CubeTensor,
        scale: Offset,
        epsilon: f32,
    ) -> (CubeTensor, CubeTensor) {
        backward::norm_backward([x, grad, added, scales], scale, epsilon)
    }

    fn norm_columns(x: CubeTensor, grad: CubeTensor, moments: CubeTensor) -> (CubeTensor, CubeTensor) {
        backward::norm_columns(x, grad, moments)
    }

    fn split_backward(
        joint: CubeTensor,
        q_bias: CubeTensor,
        sharpness: CubeTensor,
        query: CubeTensor,
        key: CubeTensor,
        value: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        backward::split_backward([joint, q_bias, sharpness, query, key, value])
    }

    fn resize(x: CubeTensor, rows: CubeTensor, columns: CubeTensor) -> CubeTensor {
        map::resize(x, rows, columns)
    }

    fn add_mixed(canvas: CubeTensor, map: CubeTensor, weight: CubeTensor, bias: CubeTensor, ratio: f32) -> CubeTensor {
        map::add_mixed([canvas, map, weight, bias], ratio)
    }

    fn extrapolate(toward: CubeTensor, away: CubeTensor, strength: f32) -> CubeTensor {
        map::extrapolate(toward, away, strength)
    }

    fn draw(
        logits: CubeTensor,
        keys: CubeTensor,
        fault: CubeTensor,
        settings: Draw,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        draw::draw(logits, keys, fault, settings)
    }

    fn attend(query: CubeTensor, keys: CubeTensor, values: CubeTensor, tokens: usize, scale: f32) -> CubeTensor {
        attention::attend(query, keys, values, tokens, scale)
    }

    fn exact(a: CubeTensor, b: CubeTensor) -> CubeTensor {
        product::exact(a, b)
    }

    fn widened(a: CubeTensor, b: CubeTensor) -> CubeTensor {
        product::widened(a, b)
    }

    fn round(x: CubeTensor, dropped: usize) -> CubeTensor {
        map::round(x, dropped)
    }
}

/// Enables the kernels; see [`super`].
static ENABLED: LazyLock<bool> = LazyLock::new(|| !kernels_are("generic"));
/// Treats each GPU as one that rounds products to TF32, so that any can test what exact products do there.
static AS_TF32: LazyLock<bool> = LazyLock::new(|| kernels_are("exact"));

fn kernels_are(name: &str) -> bool {
    std::env::var_os("BURN_VAR_KERNELS").is_some_and(|kernels| kernels == name)
}

/// Returns `true` if a tensor can be the input of a kernel: in `f32`, off the autodiff graph, on a GPU that binds enough.
pub(super) fn is_plain<const D: usize>(tensor: &Tensor<D>) -> bool {
    !tensor.device().is_autodiff() && has_kernels(tensor)
}

/// Returns `true` if a tensor can be the input of [`block`]: as [`is_plain`], but on the autodiff graph.
pub(crate) fn is_tracked<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.device().is_autodiff() && has_kernels(tensor)
}

/// Returns `true` if a tensor can be the input of a kernel that is recorded on the autodiff graph if the tensor is on it.
pub(super) fn has_kernels<const D: usize>(tensor: &Tensor<D>) -> bool {
    /// Nine, and one for shapes.
    const BINDINGS: u32 = 10;
    tensor.dtype() == DType::F32 && *ENABLED && binds(&tensor.device(), BINDINGS)
}

/// Computes [`super::draw::draws`].
pub(super) fn draws(device: &Device, vocabulary: usize) -> bool {
    /// Five, and one for shapes: what every browser has.
    const BINDINGS: u32 = 6;
    *ENABLED && draw::fits(vocabulary) && binds(device, BINDINGS)
}

fn binds(device: &Device, count: u32) -> bool {
    abilities_of(device).is_some_and(|abilities| abilities.bindings >= count)
}

/// Returns `true` if a tensor is on a GPU, on the autodiff graph or off it.
pub(super) fn is_gpu<const D: usize>(tensor: &Tensor<D>) -> bool {
    gpu_of(&tensor.device()).is_some()
}

/// Returns the bytes of a GPU that this process holds; `None` if the device is none.
pub(crate) fn memory_held(device: &Device) -> Option<u64> {
    gpu_of(device).map(|gpu| gpu.client().memory_report(MemoryScope::Device).usage().bytes_reserved)
}

/// Returns the GPU behind a device.
fn gpu_of(device: &Device) -> Option<CubeDevice> {
    match device.as_dispatch() {
        DispatchDevice::Cube(gpu) => Some(gpu.clone()),
        DispatchDevice::Autodiff(inner) => match &**inner {
            DispatchDevice::Cube(gpu) => Some(gpu.clone()),
            #[allow(unreachable_patterns, reason = "with a single backend enabled there is no other")]
            _ => None,
        },
        #[allow(unreachable_patterns, reason = "with a single backend enabled there is no other")]
        _ => None,
    }
}

/// Abilities of a GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    /// Buffers that a kernel can have. WebGPU promises 8, and browsers often give no more.
    bindings: u32,
    /// Products of `f32` are rounded to TF32 where Burn chooses a kernel with tensor cores.
    pub(super) tf32: bool,
    /// Products of `f16`.
    pub(super) f16: bool,
    /// Products of `bf16`.
    pub(super) bf16: bool,
}

/// Returns the abilities of a device; `None` if it is no GPU.
pub(super) fn abilities_of(device: &Device) -> Option<Abilities> {
    static KNOWN: Mutex<Vec<(CubeDevice, Abilities)>> = Mutex::new(Vec::new());
    let gpu = gpu_of(device)?;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, abilities)) = known.iter().find(|(other, _)| *other == gpu) {
        return Some(*abilities);
    }
    let client = gpu.client();
    let multiplies = |dtype| <CubeBackend as Backend>::supports_dtype(&gpu, dtype);
    let abilities = Abilities {
        bindings: client.properties().hardware.max_bindings,
        tf32: *AS_TF32 || client.properties().supports_type(tf32::elem_type_native()),
        f16: multiplies(DType::F16),
        bf16: multiplies(DType::BF16),
    };
    known.push((gpu, abilities));
    Some(abilities)
}

/// Computes [`super::modulated_norm`].
pub(super) fn modulated_norm(x: Tensor<3>, [scale, shift]: [&Rows; 2], epsilon: f64) -> Tensor<3> {
    let scales = scale.packed().into_dispatch();
    let shifts = shift.packed().into_dispatch();
    let offsets = [scale, shift].map(Rows::offset);
    let out = Dispatch::modulated_norm(x.into_dispatch(), scales, shifts, offsets[0], offsets[1], epsilon as f32);
    Tensor::from_dispatch(out)
}

/// Computes [`super::residual_norm`].
pub(super) fn residual_norm(
    x: Tensor<3>,
    Branch { value, bias }: Branch,
    gate: &Rows,
    [scale, shift]: [&Rows; 2],
    epsilon: f64,
) -> (Tensor<3>, Tensor<3>) {
    let bias = bias.unwrap_or_else(|| Tensor::empty([0], &x.device()));
    let [gates, scales, shifts] = [gate, scale, shift].map(|rows| rows.packed().into_dispatch());
    let [gate, scale, shift] = [gate, scale, shift].map(Rows::offset);
    let (x, normed) = Dispatch::residual_norm(
        x.into_dispatch(),
        value.into_dispatch(),
        bias.into_dispatch(),
        gates,
        scales,
        shifts,
        gate,
        scale,
        shift,
        epsilon as f32,
    );
    (Tensor::from_dispatch(x), Tensor::from_dispatch(normed))
}

/// Writes the keys and values of new tokens, `[batch, tokens, 3 * width]`, to a cache behind its first `tokens` ones, in place
/// where nothing else uses the cache. Returns the queries, `[batch, heads, tokens, head_width]`, and the cache.
///
/// With a `sharpness`, `[heads]`, queries and keys are normalized, see [`super::QueryKeys`]; it is a logarithm if the flag
/// beside it is set.
pub(super) fn append(
    qkv: Tensor<3>,
    biases: Option<[Tensor<1>; 2]>,
    sharpness: Option<(Tensor<1>, bool)>,
    [keys, values]: [Tensor<4>; 2],
    tokens: usize,
) -> (Tensor<4>, [Tensor<4>; 2]) {
    let empty = || Tensor::<1>::empty([0], &qkv.device());
    let unit = sharpness.is_some();
    let [q_bias, v_bias] = biases.unwrap_or_else(|| [empty(), empty()]).map(Tensor::into_dispatch);
    let (sharpness, log) = sharpness.unwrap_or_else(|| (empty(), false));
    let (query, keys, values) = Dispatch::append(
        qkv.into_dispatch(),
        q_bias,
        v_bias,
        sharpness.into_dispatch(),
        keys.into_dispatch(),
        values.into_dispatch(),
        tokens,
        unit,
        log,
    );
    (Tensor::from_dispatch(query), [keys, values].map(Tensor::from_dispatch))
}

/// Computes [`super::attention`] of queries over the first `tokens` ones of a cache, whose work [`fits`].
pub(super) fn attend(query: Tensor<4>, [keys, values]: [Tensor<4>; 2], tokens: usize, scale: f64) -> Tensor<3> {
    let [query, keys, values] = [query, keys, values].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attend(query, keys, values, tokens, scale as f32))
}

/// Computes [`super::draw::draw`].
pub(super) fn draw(
    logits: Tensor<2>,
    keys: &Tensor<2, Int>,
    fault: Tensor<1, Int>,
    settings: Draw,
) -> (Tensor<1, Int>, Tensor<1, Int>, Tensor<2>) {
    let (keys, fault) = (keys.clone().into_dispatch(), fault.into_dispatch());
    let (ids, fault, values) = Dispatch::draw(logits.into_dispatch(), keys, fault, settings);
    (Tensor::from_dispatch(ids), Tensor::from_dispatch(fault), Tensor::from_dispatch(values))
}

/// Resizes maps, `[batch, channels, height, width]`, by a matrix for each axis, `[to, from]`: exactly, whereas a product of
/// matrices may round its inputs on a GPU.
pub(super) fn resize(x: Tensor<4>, rows: Tensor<2>, columns: Tensor<2>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::resize(x.into_dispatch(), rows.into_dispatch(), columns.into_dispatch()))
}

/// Computes [`super::add_mixed`].
pub(super) fn add_mixed(
    canvas: Tensor<4>,
    map: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    ratio: f64,
) -> Tensor<4> {
    let [canvas, map, weight] = [canvas, map, weight].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::add_mixed(canvas, map, weight, bias.into_dispatch(), ratio as f32))
}

/// Computes [`super::extrapolate`].
pub(super) fn extrapolate(toward: Tensor<3>, away: Tensor<3>, strength: f64) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::extrapolate(toward.into_dispatch(), away.into_dispatch(), strength as f32))
}

/// Computes the softmax of scores, `[batch, heads, queries, keys]`, plus a bias, any of whose first three axes may be 1.
pub(super) fn softmax(scores: Tensor<4>, bias: Option<Tensor<4>>) -> Tensor<4> {
    let [_, _, queries, keys] = scores.dims();
    let fits = bias.as_ref().is_none_or(|bias| is_plain(bias) && bias.dims() == [1, 1, queries, keys]);
    if is_plain(&scores) && fits && keys <= ROW {
        return masked_softmax(scores, bias);
    }
    let scores = match bias {
        Some(bias) => scores + bias,
        None => scores,
    };
    activation::softmax(scores, 3)
}

/// Most numbers of a row of scores that a kernel takes: they must fit what units share on every GPU, 16 KB.
pub(crate) const ROW: usize = 3584;

/// Computes the softmax of scores, `[batch, heads, queries, keys]`, plus a mask, `[1, 1, queries, keys]`.
fn masked_softmax(scores: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<4> {
    let mask = mask.unwrap_or_else(|| Tensor::empty([0; 4], &scores.device()));
    Tensor::from_dispatch(Dispatch::masked_softmax(scores.into_dispatch(), mask.into_dispatch()))
}

/// Computes the gradient of scores from their softmax and its gradient.
fn softmax_backward(shares: Tensor<4>, grad: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::softmax_backward(shares.into_dispatch(), grad.into_dispatch()))
}

/// Computes the gradients of a branch, of its gate and, image by image, of its bias, from that of [`super::gated_residual`].
fn gate_backward(
    grad: Tensor<3>,
    branch: Tensor<3>,
    bias: Tensor<1>,
    gate: &Rows,
) -> (Tensor<3>, Tensor<2>, Tensor<2>) {
    let [grad, branch] = [grad, branch].map(Tensor::into_dispatch);
    let gates = gate.packed().into_dispatch();
    let (grad, gate, bias) = Dispatch::gate_backward(grad, branch, bias.into_dispatch(), gates, gate.offset());
    (Tensor::from_dispatch(grad), Tensor::from_dispatch(gate), Tensor::from_dispatch(bias))
}

/// Computes the gradient of the input of a norm from that of its output, and adds `added`; returns the moments of each token
/// beside it.
fn norm_backward(
    x: Tensor<3>,
    grad: Tensor<3>,
    added: Tensor<3>,
    scale: &Rows,
    epsilon: f64,
) -> (Tensor<3>, Tensor<2>) {
    let [x, grad, added] = [x, grad, added].map(Tensor::into_dispatch);
    let scales = scale.packed().into_dispatch();
    let (grad, moments) = Dispatch::norm_backward(x, grad, added, scales, scale.offset(), epsilon as f32);
    (Tensor::from_dispatch(grad), Tensor::from_dispatch(moments))
}

/// Computes the gradients of scale and shift of a norm, `[batch, channels]`.
fn norm_columns(x: Tensor<3>, grad: Tensor<3>, moments: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (scale, shift) = Dispatch::norm_columns(x.into_dispatch(), grad.into_dispatch(), moments.into_dispatch());
    (Tensor::from_dispatch(scale), Tensor::from_dispatch(shift))
}

/// Computes the gradients of a joint projection and, token by token, of the logarithm of the sharpness, from those of queries,
/// keys and values.
fn split_backward(
    joint: Tensor<2>,
    q_bias: Tensor<1>,
    sharpness: Tensor<1>,
    grads: [Tensor<4>; 3],
) -> (Tensor<2>, Tensor<2>) {
    let [query, key, value] = grads.map(Tensor::into_dispatch);
    let [q_bias, sharpness] = [q_bias, sharpness].map(Tensor::into_dispatch);
    let (joint, log) = Dispatch::split_backward(joint.into_dispatch(), q_bias, sharpness, query, key, value);
    (Tensor::from_dispatch(joint), Tensor::from_dispatch(log))
}

/// Computes [`super::gelu_tanh`] of a sum with a bias of the last axis.
pub(super) fn gelu<const D: usize>(x: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::gelu(x.into_dispatch(), bias.into_dispatch()))
}

/// Computes the gradient of the input of [`gelu`], and the output once more.
fn gelu_backward(x: Tensor<2>, bias: Tensor<1>, grad: Tensor<2>) -> [Tensor<2>; 2] {
    let (grad, value) = Dispatch::gelu_backward(x.into_dispatch(), bias.into_dispatch(), grad.into_dispatch());
    [grad, value].map(Tensor::from_dispatch)
}
