use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::attention::HIGHEST_SHARPNESS;
use super::parallel::{UNITS, dims, like, plain};

/// Queries of a cube.
const QUERIES: usize = 16;
/// Most keys that a cube reads at a time.
const KEYS: usize = 32;
/// Stands for minus infinity, which WebGPU has no literal for.
const LOWEST: f32 = -1e30;
/// Largest sharpness.
const HIGHEST: f32 = HIGHEST_SHARPNESS as f32;

/// Returns `true` if [`attend`] serves: the work is small enough that launches decide the time, not products, for which matrix
/// units are faster; and a tile of keys fits the memory that the units of every GPU share, 16 KB.
pub(in crate::ops) fn fits([batch, heads, queries, channels]: [usize; 4], keys: usize) -> bool {
    /// Most multiplications of queries and keys: those of the finest scale of one or two images of VAR-d16.
    const PRODUCTS: usize = 1 << 29;
    batch * heads * queries * channels * keys <= PRODUCTS && (QUERIES + KEYS) * (channels + 1) <= 3328
}

/// A cube per token and part: x by tokens, y by query, key and value, z by images.
#[cube(launch)]
fn append_kernel(
    qkv: &Tensor<f32>,
    q_bias: &Tensor<f32>,
    v_bias: &Tensor<f32>,
    sharpness: &Tensor<f32>,
    query: &mut Tensor<f32>,
    keys: &mut Tensor<f32>,
    values: &mut Tensor<f32>,
    start: u32,
    capacity: u32,
    #[comptime] heads: usize,
    #[comptime] width: usize,
    #[comptime] biased: bool,
    #[comptime] unit_length: bool,
    #[comptime] log: bool,
) {
    let (token, part, image) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let tokens = CUBE_COUNT_X as usize;
    let unit = UNIT_POS as usize;
    let channels = comptime!(heads * width);
    let row = ((image * tokens + token) * 3 + part) * channels;
    let mut inputs = Shared::<[f32]>::new_slice(channels);
    let mut factors = Shared::<[f32]>::new_slice(heads);
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let mut value = qkv[row + channel];
            if biased {
                if part == 0 {
                    value += q_bias[channel];
                } else if part == 2 {
                    value += v_bias[channel];
                }
            }
            inputs[channel] = value;
        }
    }
    sync_cube();
    for step in 0..comptime!(heads.div_ceil(UNITS)) {
        let head = step * UNITS + unit;
        if head < heads {
            let mut factor = 1.0f32;
            if unit_length {
                if part < 2 {
                    let mut squares = 0.0f32;
                    for i in 0..width {
                        // Units start at different channels, so that they read different banks of memory.
                        let value = inputs[head * width + (i + head) % width];
                        squares += value * value;
                    }
                    let mut length = squares.sqrt();
                    if length < 1e-12 {
                        length = f32::new(1e-12);
                    }
                    factor = 1.0 / length;
                }
                if part == 0 {
                    let mut sharp = sharpness[head];
                    if log {
                        sharp = sharp.exp();
                        if sharp > HIGHEST {
                            sharp = f32::new(HIGHEST);
                        }
                    }
                    factor *= sharp;
                }
            }
            factors[head] = factor;
        }
    }
    sync_cube();
    for step in 0..comptime!(channels.div_ceil(UNITS)) {
        let channel = step * UNITS + unit;
        if channel < channels {
            let (head, within) = (channel / width, channel % width);
            let value = inputs[channel] * factors[head];
            let of_head = image * heads + head;
            let cached = (of_head * capacity as usize + start as usize + token) * width + within;
            if part == 0 {
                query[(of_head * tokens + token) * width + within] = value;
            } else if part == 1 {
                keys[cached] = value;
            } else {
                values[cached] = value;
            }
        }
    }
}

/// Reads [`KEYS`] rows from row `first` on into a tile, whose rows are one number longer; those from `count` on are zeros.
#[cube]
fn read_rows(from: &Tensor<f32>, tile: &mut Shared<[f32]>, first: usize, count: usize, #[comptime] width: usize) {
    for step in 0..comptime!((KEYS * width).div_ceil(UNITS)) {
        let at = step * UNITS + UNIT_POS as usize;
        let (row, channel) = (at / width, at % width);
        if row < KEYS {
            let mut value = 0.0f32;
            if row < count {
                value = from[(first + row) * width + channel];
            }
            tile[row * comptime!(width + 1) + channel] = value;
        }
    }
}

/// A cube per tile of queries: x by tiles, y by heads, z by images. The softmax is computed while keys pass, as in
/// FlashAttention (Dao et al. 2022): scores never leave the cube.
#[cube(launch)]
fn attend_kernel(
    query: &Tensor<f32>,
    keys: &Tensor<f32>,
    values: &Tensor<f32>,
    out: &mut Tensor<f32>,
    queries: u32,
    tokens: u32,
    capacity: u32,
    scale: f32,
    #[comptime] width: usize,
) {
    let unit = UNIT_POS as usize;
    let (queries, tokens, capacity) = (queries as usize, tokens as usize, capacity as usize);
    let first = CUBE_POS_X as usize * QUERIES;
    let (head, image, heads) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize, CUBE_COUNT_Y as usize);
    let of_head = image * heads + head;
    // One number more than a row, so that units read different banks of memory.
    let pitch = comptime!(width + 1);
    let mut tile = Shared::<[f32]>::new_slice(comptime!(QUERIES * (width + 1)));
    let mut other = Shared::<[f32]>::new_slice(comptime!(KEYS * (width + 1)));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(QUERIES * KEYS));
    let mut highest = Shared::<[f32]>::new_slice(QUERIES);
    let mut totals = Shared::<[f32]>::new_slice(QUERIES);
    let mut factors = Shared::<[f32]>::new_slice(QUERIES);
    let mut sums = Array::<f32>::new(comptime!((QUERIES * width).div_ceil(UNITS)));

    for step in 0..comptime!((QUERIES * width).div_ceil(UNITS)) {
        let at = step * UNITS + unit;
        let (row, channel) = (at / width, at % width);
        sums[step] = 0.0f32;
        if row < QUERIES {
            let mut value = 0.0f32;
            if first + row < queries {
                value = query[(of_head * queries + first + row) * width + channel] * scale;
            }
            tile[row * pitch + channel] = value;
        }
    }
    if unit < QUERIES {
        highest[unit] = f32::new(LOWEST);
        totals[unit] = 0.0f32;
    }

    for block in 0..tokens.div_ceil(KEYS) {
        let start = block * KEYS;
        sync_cube();
        read_rows(keys, &mut other, of_head * capacity + start, tokens - start, width);
        sync_cube();
        for step in 0..comptime!((QUERIES * KEYS).div_ceil(UNITS)) {
            let at = step * UNITS + unit;
            let (row, key) = (at / KEYS, at % KEYS);
            let mut score = f32::new(LOWEST);
            if start + key < tokens {
                score = 0.0f32;
                for channel in 0..width {
                    score += tile[row * pitch + channel] * other[key * pitch + channel];
                }
            }
            scores[at] = score;
        }
        sync_cube();
        if unit < QUERIES {
            let before = highest[unit];
            let mut now = before;
            for i in 0..KEYS {
                let score = scores[unit * KEYS + (i + unit) % KEYS];
                if score > now {
                    now = score;
                }
            }
            highest[unit] = now;
            factors[unit] = (before - now).exp();
        }
        sync_cube();
        for step in 0..comptime!((QUERIES * KEYS).div_ceil(UNITS)) {
            let at = step * UNITS + unit;
            let score = scores[at];
            scores[at] = (score - highest[at / KEYS]).exp();
        }
        read_rows(values, &mut other, of_head * capacity + start, tokens - start, width);
        sync_cube();
        if unit < QUERIES {
            let mut total = totals[unit] * factors[unit];
            for i in 0..KEYS {
                total += scores[unit * KEYS + (i + unit) % KEYS];
            }
            totals[unit] = total;
        }
        for step in 0..comptime!((QUERIES * width).div_ceil(UNITS)) {
            let at = step * UNITS + unit;
            let (row, channel) = (at / width, at % width);
            if row < QUERIES {
                let mut sum = sums[step] * factors[row];
                for key in 0..KEYS {
                    sum += scores[row * KEYS + key] * other[key * pitch + channel];
                }
                sums[step] = sum;
            }
        }
    }
    sync_cube();
    for step in 0..comptime!((QUERIES * width).div_ceil(UNITS)) {
        let at = step * UNITS + unit;
        let (row, channel) = (at / width, at % width);
        if row < QUERIES && first + row < queries {
            let to = ((image * queries + first + row) * heads + head) * width + channel;
            out[to] = sums[step] / totals[row];
        }
    }
}

pub(super) fn append(
    inputs: [CubeTensor; 4],
    memory: [CubeTensor; 2],
    start: usize,
    [unit_length, log]: [bool; 2],
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [qkv, q_bias, v_bias, sharpness] = inputs.map(plain);
    // A cache that something else uses, another branch of the same images for instance, is copied.
    let [keys, values] = memory.map(|part| match part.can_mut() && part.is_contiguous() {
        true => part,
        false => plain(part.copy()),
    });
    let ([batch, heads, capacity, width], [_, tokens, _]) = (dims(&keys), dims(&qkv));
    let [biased] = dims(&q_bias);
    let query = like(&qkv, [batch, heads, tokens, width]);
    // A binding of no bytes is not allowed: anything stands for what is not read.
    let stand_in = |part: CubeTensor| if part.meta.shape().num_elements() == 0 { qkv.clone() } else { part };
    let [q_bias, v_bias, sharpness] = [q_bias, v_bias, sharpness].map(stand_in);
    append_kernel::launch(
        &qkv.client.clone(),
        CubeCount::Static(tokens as u32, 3, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        qkv.into_tensor_arg(),
        q_bias.into_tensor_arg(),
        v_bias.into_tensor_arg(),
        sharpness.into_tensor_arg(),
        query.clone().into_tensor_arg(),
        keys.clone().into_tensor_arg(),
        values.clone().into_tensor_arg(),
        start as u32,
        capacity as u32,
        heads,
        width,
        biased != 0,
        unit_length,
        log,
    );
    (query, keys, values)
}

pub(super) fn attend(query: CubeTensor, keys: CubeTensor, values: CubeTensor, tokens: usize, scale: f32) -> CubeTensor {
    let [query, keys, values] = [query, keys, values].map(plain);
    let ([batch, heads, queries, width], [_, _, capacity, _]) = (dims(&query), dims(&keys));
    let out = like(&query, [batch, queries, heads * width]);
    attend_kernel::launch(
        &query.client.clone(),
        CubeCount::Static(queries.div_ceil(QUERIES) as u32, heads as u32, batch as u32),
        CubeDim::new_1d(UNITS as u32),
        query.into_tensor_arg(),
        keys.into_tensor_arg(),
        values.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        queries as u32,
        tokens as u32,
        capacity as u32,
        scale,
        width,
    );
    out
}
