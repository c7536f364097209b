//! Kernel that filters logits and draws tokens, a cube per row.
//!
//! Each unit holds its share of a row. Shared memory would not do: the 16 KB that WebGPU promises are 4,096 entries, and
//! nothing would be left for sums. The limits of top-k and top-p are found bit by bit, as integers that sort like the
//! numbers, since a sort has far more steps. All loops around barriers have a fixed number of rounds, which WebGPU demands.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::parallel::{dims, like, plain, typed_like};
use crate::ops::draw::{Draw, Mass, Values};

/// Units of a cube.
const UNITS: usize = 256;
/// Units that add up the numbers of all: first one number of each group, then the groups.
const GROUPS: usize = 16;
/// Numbers that a reduction needs in shared memory.
const ROOM: usize = UNITS + GROUPS;
/// Entries whose noise is computed together.
const BLOCK: usize = 4;
/// Most blocks per unit whose loops are unrolled, so that the entries are in registers.
const UNROLLED: usize = 4;
/// Most entries of a row. Beyond, the share of a unit is more than WebGPU lets it hold.
const VOCABULARY: usize = 1 << 18;

/// Integers for the numbers: of the smallest that is above minus infinity, and of zero.
const LOWEST: u32 = 0x0080_0000;
const ZERO: u32 = 0x8000_0000;
/// Distance of the bits of 1 from those of the root of 1/2.
const FROM_ROOT: u32 = 0x3F80_0000 - 0x3F35_04F3;
/// Stands for a number below all logits.
const NONE: f32 = f32::MIN;

/// Coefficients of `atanh t = t + t^3 / 3 + t^5 / 5 + ..`.
const THIRD: f32 = 1.0 / 3.0;
const FIFTH: f32 = 1.0 / 5.0;
const SEVENTH: f32 = 1.0 / 7.0;
const NINTH: f32 = 1.0 / 9.0;
const ELEVENTH: f32 = 1.0 / 11.0;
const THIRTEENTH: f32 = 1.0 / 13.0;
const FIFTEENTH: f32 = 1.0 / 15.0;
/// ln 2 in two parts: a number of few digits, and how far it is above.
const LN_2: f32 = 355.0 / 512.0;
const LN_2_EXCESS: f32 = 2.121_944_4e-4;
/// Distance of two numbers of a word that follow each other.
const WORD: f32 = 1.0 / 4_294_967_296.0;

/// Returns true if the kernel takes rows of a length.
pub(super) fn fits(vocabulary: usize) -> bool {
    (1..=VOCABULARY).contains(&vocabulary)
}

/// Maps a number that is not NaN to an integer that sorts as it does, minus zero before zero.
#[cube]
fn ascending(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let mut key = bits | 0x8000_0000;
    if bits >= 0x8000_0000 {
        key = bits ^ 0xFFFF_FFFF;
    }
    key
}

/// Reverses [`ascending`].
#[cube]
fn number(key: u32) -> f32 {
    let mut bits = key ^ 0xFFFF_FFFF;
    if key >= 0x8000_0000 {
        bits = key ^ 0x8000_0000;
    }
    f32::reinterpret(bits)
}

/// Adds the numbers of all units of a cube, in an order that does not depend on the device. `room` has [`ROOM`] numbers.
#[cube]
fn add_up<N: Numeric>(room: &mut Shared<[N]>, value: N) -> N {
    let unit = UNIT_POS as usize;
    room[unit] = value;
    sync_cube();
    if unit < GROUPS {
        let mut sum = room[unit];
        for i in 1..GROUPS {
            sum += room[i * GROUPS + unit];
        }
        room[UNITS + unit] = sum;
    }
    sync_cube();
    let mut sum = room[UNITS];
    for i in 1..GROUPS {
        sum += room[UNITS + i];
    }
    sum
}

/// Returns the largest of the numbers of all units of a cube, as [`add_up`].
#[cube]
fn largest(room: &mut Shared<[u32]>, value: u32) -> u32 {
    let unit = UNIT_POS as usize;
    room[unit] = value;
    sync_cube();
    if unit < GROUPS {
        let mut most = room[unit];
        for i in 1..GROUPS {
            most = max(most, room[i * GROUPS + unit]);
        }
        room[UNITS + unit] = most;
    }
    sync_cube();
    let mut most = room[UNITS];
    for i in 1..GROUPS {
        most = max(most, room[UNITS + i]);
    }
    most
}

/// Computes Philox 4x32-10 of a counter, in place.
#[cube]
fn philox(words: &mut Array<u32>, first: u32, second: u32) {
    let mut keys = Array::<u32>::new(2usize);
    keys[0] = first;
    keys[1] = second;
    for _ in 0..10 {
        let (a, c) = (words[0], words[2]);
        let a_high = a.mul_hi(0xD251_1F53u32);
        let c_high = c.mul_hi(0xCD9E_8D57u32);
        words[0] = c_high ^ words[1] ^ keys[0];
        words[1] = c * 0xCD9E_8D57u32;
        words[2] = a_high ^ words[3] ^ keys[1];
        words[3] = a * 0xD251_1F53u32;
        keys[0] += 0x9E37_79B9u32;
        keys[1] += 0xBB67_AE85u32;
    }
}

/// Computes the words of a block of entries, for the draw (0) or the mixture of codes (1): see `sampling::noise`.
#[cube]
fn noise(words: &mut Array<u32>, block: u32, token: u32, scale: u32, purpose: u32, first: u32, second: u32) {
    words[0] = block;
    words[1] = token;
    words[2] = scale;
    words[3] = purpose;
    philox(words, first, second);
}

/// Computes the natural logarithm of a positive normal number from its bits, with the operations that are equal on all
/// devices: WebGPU's own may be off by `2^-21`.
#[cube]
fn logarithm(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    // The mantissa is taken from the root of 1/2 to that of 2, so that the series is short.
    let exponent = (bits + FROM_ROOT) >> 23;
    let mantissa = f32::reinterpret(bits - (exponent << 23) + 0x3F80_0000);
    let power = f32::cast_from(exponent) - 127.0;
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let square = t * t;
    let series = (((square * NINTH + SEVENTH) * square + FIFTH) * square + THIRD) * square;
    power * LN_2 + (t * 2.0 + (t * 2.0 * series - power * LN_2_EXCESS))
}

/// Computes the number of the standard Gumbel distribution of a word, see `sampling::noise`.
#[cube]
fn gumbel(word: u32) -> f32 {
    let mut exponential = 0.0f32;
    if word < 0x8000_0000 {
        exponential -= logarithm((f32::cast_from(word) + 0.5) * WORD);
    } else {
        // Close to 1 a uniform number has too few digits: the logarithm is that of 1 less its distance to 1.
        let rest = (f32::cast_from(word ^ 0xFFFF_FFFF) + 0.5) * WORD;
        let t = rest / (2.0 - rest);
        let s = t * t;
        let tail = ((s * FIFTEENTH + THIRTEENTH) * s + ELEVENTH) * s + NINTH;
        let series = (((tail * s + SEVENTH) * s + FIFTH) * s + THIRD) * s;
        exponential += t * 2.0 + t * 2.0 * series;
    }
    -logarithm(exponential)
}

/// A cube per row. Cubes behind the last row compute it once more.
#[cube(launch)]
fn draw_kernel<I: Int>(
    logits: &Tensor<f32>,
    keys: &Tensor<i32>,
    fault: &mut Tensor<I>,
    ids: &mut Tensor<I>,
    values: &mut Tensor<f32>,
    rows: u32,
    tokens: u32,
    scale: u32,
    temperature: f32,
    top_k: u32,
    share: f32,
    ratio: f32,
    tau: f32,
    dropped: f32,
    #[comptime] vocabulary: usize,
    #[comptime] is_scaled: bool,
    #[comptime] has_top_k: bool,
    #[comptime] mass: Mass,
    #[comptime] is_filtered: bool,
    #[comptime] is_mixed: bool,
) {
    let unit = UNIT_POS as usize;
    let row = min(CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X, rows - 1);
    let (image, token) = ((row / tokens) as usize, row % tokens);
    let (first_key, second_key) = (u32::reinterpret(keys[image * 2]), u32::reinterpret(keys[image * 2 + 1]));
    let start = row as usize * vocabulary;
    let blocks = comptime!(vocabulary.div_ceil(BLOCK * UNITS));
    let unrolled = comptime!(blocks <= UNROLLED);
    let mut integers = Shared::<[u32]>::new_slice(ROOM);
    let mut numbers = Shared::<[f32]>::new_slice(ROOM);

    // Integers that sort like the logits. 0 is below all of them, and stands for what is not there.
    let mut held = Array::<u32>::new(comptime!(blocks * BLOCK));
    let mut highest = 0u32;
    let mut faulty = 0u32;
    #[unroll(unrolled)]
    for block in 0..blocks {
        #[unroll]
        for place in 0..BLOCK {
            let entry = (block * UNITS + unit) * BLOCK + place;
            let mut key = 0u32;
            if entry < vocabulary {
                let mut logit = logits[start + entry];
                // By its bits: a shader may assume that there is no NaN.
                if (u32::reinterpret(logit) & 0x7FFF_FFFF) > 0x7F80_0000 {
                    faulty = max(faulty, (vocabulary - entry) as u32);
                } else {
                    if is_scaled {
                        logit /= temperature;
                    }
                    key = ascending(logit);
                }
            }
            highest = max(highest, key);
            held[block * BLOCK + place] = key;
        }
    }
    let highest = largest(&mut integers, highest);
    let faulty = largest(&mut integers, faulty);
    if unit == 0 && faulty > 0 {
        fault[0] = I::cast_from(vocabulary as u32 - faulty + 1);
    }

    // The smallest that stays.
    let mut lowest = LOWEST.runtime();
    if has_top_k {
        let mut kth = 0u32;
        for bit in 0..32u32 {
            let candidate = kth | (ZERO >> bit);
            let mut count = 0u32;
            #[unroll(unrolled)]
            for i in 0..comptime!(blocks * BLOCK) {
                if held[i] >= candidate {
                    count += 1;
                }
            }
            if add_up(&mut integers, count) >= top_k {
                kth = candidate;
            }
        }
        if kth == ZERO {
            // Minus zero equals zero.
            kth = ZERO - 1;
        }
        lowest = max(lowest, kth);
    }

    // The entry at which top-p ends.
    let mut limit = 0u32;
    let mut last = 0u32;
    if comptime!(mass != Mass::All) {
        let mut weights = Array::<f32>::new(comptime!(blocks * BLOCK));
        let top = number(highest);
        let mut sum = 0.0f32;
        let mut behind = 0u32;
        #[unroll(unrolled)]
        for block in 0..blocks {
            #[unroll]
            for place in 0..BLOCK {
                let key = held[block * BLOCK + place];
                let mut weight = 0.0f32;
                if key >= lowest {
                    if key == highest {
                        weight = 1.0f32;
                        behind = ((block * UNITS + unit) * BLOCK + place) as u32;
                    } else {
                        weight = (number(key) - top).exp();
                    }
                }
                weights[block * BLOCK + place] = weight;
                sum += weight;
            }
        }
        let budget = add_up(&mut numbers, sum) * share;
        for bit in 0..32u32 {
            let candidate = limit | (ZERO >> bit);
            let mut sum = 0.0f32;
            #[unroll(unrolled)]
            for i in 0..comptime!(blocks * BLOCK) {
                if comptime!(mass == Mass::Ascending) {
                    if held[i] < candidate {
                        sum += weights[i];
                    }
                } else if held[i] >= candidate {
                    sum += weights[i];
                }
            }
            let sum = add_up(&mut numbers, sum);
            if comptime!(mass == Mass::Ascending) {
                if sum <= budget {
                    limit = candidate;
                }
            } else if sum > budget {
                limit = candidate;
            }
        }
        let end = largest(&mut integers, behind);
        let is_all = limit >= highest;
        if is_all {
            limit = highest;
        }
        // Of equal ones, those with smaller numbers come first.
        for bit in 0..comptime!(vocabulary.ilog2() + 1) {
            let candidate = last | (comptime!(1u32 << vocabulary.ilog2()) >> bit);
            let mut sum = 0.0f32;
            #[unroll(unrolled)]
            for block in 0..blocks {
                #[unroll]
                for place in 0..BLOCK {
                    let i = block * BLOCK + place;
                    let is_before = (((block * UNITS + unit) * BLOCK + place) as u32) < candidate;
                    if comptime!(mass == Mass::Ascending) {
                        if held[i] < limit || (held[i] == limit && is_before) {
                            sum += weights[i];
                        }
                    } else if held[i] > limit || (held[i] == limit && is_before) {
                        sum += weights[i];
                    }
                }
            }
            if add_up(&mut numbers, sum) <= budget {
                last = candidate;
            }
        }
        if comptime!(mass == Mass::Ascending) {
            // The most likely one always stays.
            if is_all {
                last = min(last, end);
            }
        }
    }

    let mut best = f32::new(NONE);
    let mut drawn = 0u32;
    #[unroll(unrolled)]
    for block in 0..blocks {
        let mut count = 0u32;
        #[unroll]
        for place in 0..BLOCK {
            let key = held[block * BLOCK + place];
            let mut stays = key >= lowest;
            if comptime!(mass != Mass::All) {
                let entry = ((block * UNITS + unit) * BLOCK + place) as u32;
                if comptime!(mass == Mass::Ascending) {
                    stays = stays && (key > limit || (key == limit && entry >= last));
                } else {
                    stays = stays && (key > limit || (key == limit && entry <= last));
                }
            }
            if stays {
                count += 1;
            } else {
                held[block * BLOCK + place] = 0u32;
            }
        }
        if count > 0 {
            let mut words = Array::<u32>::new(BLOCK);
            noise(&mut words, (block * UNITS + unit) as u32, token, scale, 0u32, first_key, second_key);
            #[unroll]
            for place in 0..BLOCK {
                let key = held[block * BLOCK + place];
                if key > 0 {
                    let sum = number(key) + gumbel(words[place]);
                    if sum > best {
                        best = sum;
                        drawn = ((block * UNITS + unit) * BLOCK + place) as u32;
                    }
                }
            }
        }
        if is_filtered {
            #[unroll]
            for place in 0..BLOCK {
                let entry = (block * UNITS + unit) * BLOCK + place;
                let key = held[block * BLOCK + place];
                if entry < vocabulary {
                    let mut value = dropped;
                    if key > 0 {
                        value = number(key);
                    }
                    values[start + entry] = value;
                }
            }
        }
        if is_mixed {
            let mut words = Array::<u32>::new(BLOCK);
            noise(&mut words, (block * UNITS + unit) as u32, token, scale, 1u32, first_key, second_key);
            #[unroll]
            for place in 0..BLOCK {
                let entry = (block * UNITS + unit) * BLOCK + place;
                let key = held[block * BLOCK + place];
                if entry < vocabulary {
                    let mut value = dropped;
                    if key > 0 {
                        value = (number(key) * (1.0 + ratio) + gumbel(words[place])) / tau;
                    }
                    values[start + entry] = value;
                }
            }
        }
    }

    // Of equal sums, the one with the smaller number.
    numbers[unit] = best;
    integers[unit] = drawn;
    sync_cube();
    if unit < GROUPS {
        for i in 1..GROUPS {
            let (sum, entry) = (numbers[i * GROUPS + unit], integers[i * GROUPS + unit]);
            if sum > best || (sum == best && entry < drawn) {
                best = sum;
                drawn = entry;
            }
        }
        numbers[UNITS + unit] = best;
        integers[UNITS + unit] = drawn;
    }
    sync_cube();
    if unit == 0 {
        for i in 1..GROUPS {
            let (sum, entry) = (numbers[UNITS + i], integers[UNITS + i]);
            if sum > best || (sum == best && entry < drawn) {
                best = sum;
                drawn = entry;
            }
        }
        ids[row as usize] = I::cast_from(drawn);
    }
}

/// Returns the shape of the values that [`draw`] returns for rows.
pub(super) fn values_shape(logits: &Shape, draw: &Draw) -> Shape {
    match draw.values {
        // A tensor of no numbers has no buffer.
        Values::None => Shape::new([1, 1]),
        Values::Filtered | Values::Mixture { .. } => logits.clone(),
    }
}

pub(super) fn draw(
    logits: CubeTensor,
    keys: CubeTensor,
    fault: CubeTensor,
    draw: Draw,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [logits, keys] = [logits, keys].map(plain);
    let fault = if fault.can_mut() { plain(fault) } else { plain(fault.copy()) };
    let [rows, vocabulary] = dims(&logits);
    let ids = typed_like(&logits, [rows], fault.dtype);
    let values = like(&logits, values_shape(logits.meta.shape(), &draw));
    let [ratio, tau] = match draw.values {
        Values::Mixture { ratio, tau } => [ratio, tau],
        Values::None | Values::Filtered => [0.0, 1.0],
    };
    // Each axis of a grid has at most 65,535 cubes on WebGPU.
    let across = rows.min(32_768);
    let launch = match fault.dtype {
        DType::I64 => draw_kernel::launch::<i64>,
        _ => draw_kernel::launch::<i32>,
    };
    launch(
        &logits.client.clone(),
        CubeCount::Static(across as u32, rows.div_ceil(across) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        logits.into_tensor_arg(),
        keys.into_tensor_arg(),
        fault.clone().into_tensor_arg(),
        ids.clone().into_tensor_arg(),
        values.clone().into_tensor_arg(),
        rows as u32,
        draw.tokens as u32,
        draw.scale,
        draw.temperature,
        draw.top_k as u32,
        draw.share,
        ratio,
        tau,
        f32::NEG_INFINITY,
        vocabulary,
        draw.temperature != 1.0,
        draw.top_k > 0 && draw.top_k < vocabulary,
        draw.mass,
        matches!(draw.values, Values::Filtered),
        matches!(draw.values, Values::Mixture { .. }),
    );
    (ids, fault, values)
}
