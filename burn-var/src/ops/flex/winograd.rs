//! 3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2016).
//!
//! A tile of 4x4 output pixels needs 6x6 inputs `d` and the 3x3 weights `g`:
//! `Y = At [(G g Gt) * (Bt d B)] A`, where `*` multiplies element by element; summed over channels, that is one matrix
//! product for each of the 36 elements.
//!
//! The transforms evaluate polynomials at 0, the square roots of 1/2 and of 2 with either sign, and infinity. With the
//! paper's points 0, 1, 2 they lose twice as much precision: more than one decimal digit against a direct sum.

use core::f32::consts::{FRAC_1_SQRT_2, SQRT_2};
use core::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    block::{Blocks, LANES, ROWS, dispatch, height},
    columns::Geometry,
    matrix::{Shared, View, transpose},
    scratch::Scratch,
    simd::{add, has_fma, vectorized},
};

/// Side of an output tile, side of its inputs, and number of inputs.
const OUT: usize = 4;
const IN: usize = 6;
const POINTS: usize = IN * IN;
/// Minimum number of channels on both sides for which the products outweigh the transforms.
const MIN_CHANNELS: usize = 16;
/// Maximum number of channel pairs whose transformed weights, four times as large, stay in the cache, and minimum
/// number of pixels per image that make up for more pairs.
const MANY_WEIGHTS: usize = 1 << 15;
const MIN_PIXELS: usize = 1 << 10;
/// Approximate number of tiles per band: the columns of its products.
const BAND: usize = 4 * LANES;
/// Number of channel blocks that are transformed back together, while their products are in the cache.
const BLOCKS: usize = 8;
/// Minimum number of channel blocks per task, each of which transforms all inputs.
const MIN_BLOCKS: usize = 4;
/// Approximate number of tasks per thread.
const TASKS: usize = 4;
/// Approximate number of values per partial weight gradient, which stays in the L2 cache.
const PART_VALUES: usize = 1 << 18;
/// Maximum number of values in all partial weight gradients, and of partial gradients for the same weights.
const MAX_PART_VALUES: usize = 1 << 24;
const MAX_PARTS: usize = 16;

/// Returns `true` if tiles pay for this convolution: 3x3, stride 1, same size, many channels, few wasted pixels, and
/// enough pixels to make up for the transform of the weights.
pub(super) fn pays(g: &Geometry) -> bool {
    let tiles = Tiles::new(g);
    let few_weights = g.channels_in * g.channels_out <= MANY_WEIGHTS;
    has_fma()
        && g.is_same_3x3()
        && g.channels_in.min(g.channels_out) >= MIN_CHANNELS
        && tiles.per_image() * OUT * OUT <= 2 * g.pixels_out()
        && (few_weights || g.pixels_out() >= MIN_PIXELS)
}

/// Computes the convolution of `x` with `weight`, plus `bias`.
pub(super) fn convolve(g: &Geometry, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let channels = [g.channels_in, g.channels_out];
    let kernel = |output, input| (output * g.channels_in + input) * 9;
    run(g, x, &transformed_weights(channels, weight, kernel, false), bias)
}

/// Computes `d loss / d x`: the convolution of the gradient with the flipped kernels.
pub(super) fn input_gradient(g: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let channels = [g.channels_out, g.channels_in];
    let kernel = |input, output| (output * g.channels_in + input) * 9;
    run(&g.swapped(), grad, &transformed_weights(channels, weight, kernel, true), &vec![0.0; g.channels_in])
}

/// Computes `d loss / d weight`: the transposes of all three transforms around products over the tiles, as partial sums
/// over runs of bands, which are added in order at the end.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let [inputs, outputs] = [g.channels_in, g.channels_out];
    let bands = Tiles::new(g).bands();
    // Split by the shapes alone, so that sums do not depend on the number of threads.
    let width =
        (PART_VALUES / (POINTS * inputs)).max(BAND).next_multiple_of(LANES).min(outputs.next_multiple_of(LANES));
    let across = outputs.div_ceil(width);
    let most = (MAX_PART_VALUES / (POINTS * inputs * width * across)).clamp(1, MAX_PARTS);
    let runs = bands.chunks(bands.len().div_ceil(most).max(1)).collect::<Vec<_>>();
    let parts = (0..runs.len() * across).into_par_iter().map(|part| {
        let range = part % across * width..outputs.min((part % across + 1) * width);
        let mut sums = vec![0.0; POINTS * inputs * width];
        for band in runs[part / across] {
            band.add_products(g, x, grad, range.clone(), &mut sums);
        }
        sums
    });
    let parts = parts.collect::<Vec<_>>();
    let mut total = vec![vec![0.0; POINTS * inputs * width]; across];
    for (index, part) in parts.iter().enumerate() {
        add(part, &mut total[index % across]);
    }
    let mut out = vec![0.0; outputs * inputs * 9];
    out.par_chunks_mut(inputs * 9).enumerate().for_each(|(output, kernels)| {
        let sums = &total[output / width];
        for (input, kernel) in kernels.chunks_exact_mut(9).enumerate() {
            let u = core::array::from_fn(|point| sums[(point * inputs + input) * width + output % width]);
            kernel.copy_from_slice(&weights_transposed(u));
        }
    });
    out
}

/// Convolves with transformed weights: each task transforms the inputs of a band of tiles, multiplies them with the
/// weights of some outputs and transforms the products back, all in its core's cache.
fn run(g: &Geometry, x: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let [inputs, outputs] = [g.channels_in, g.channels_out];
    assert_eq!(bias.len(), outputs, "conv2d: length of the bias");
    let bands = Tiles::new(g).bands();
    let blocks = outputs.div_ceil(ROWS);
    let parts = (TASKS * rayon::current_num_threads()).div_ceil(bands.len().max(1));
    let step = ROWS * blocks.div_ceil(parts.clamp(1, (blocks / MIN_BLOCKS).max(1)));
    let parts = outputs.div_ceil(step);
    let mut out: Vec<f32> = Vec::with_capacity(g.batch * outputs * g.pixels_out());
    let shared = Shared::new(out.as_mut_ptr());
    (0..bands.len() * parts).into_par_iter().for_each(|task| {
        let (band, part) = (&bands[task / parts], task % parts);
        let columns = band.columns();
        let mut v = Scratch::new(POINTS * inputs * columns);
        band.transform::<IN>(x, inputs, 0..inputs, &mut v);
        let mut m = Scratch::new(POINTS * BLOCKS * ROWS * columns);
        let mut rows = Scratch::new(IN * OUT * columns);
        let mut dealt = Scratch::new(OUT * columns);
        let places = band.rows::<OUT>(outputs);
        let end = outputs.min((part + 1) * step);
        for first in (part * step..end).step_by(BLOCKS * ROWS) {
            let outputs_here = first..end.min(first + BLOCKS * ROWS);
            dispatch(Products { weights, v: &v, m: &mut m, inputs, outputs: outputs_here.clone(), columns });
            for (channel, m) in outputs_here.zip(m.chunks_exact(POINTS * columns)) {
                let plane = shared.at(channel * g.pixels_out());
                // SAFETY: the rows of `band` in the planes of this channel, which belong to no other task.
                let to = unsafe { Destination::new(plane, &places) };
                write(m, bias[channel], &mut rows, &mut dealt, band.width, to);
            }
        }
    });
    // SAFETY: the bands cover the images, and the parts their channels.
    unsafe { out.set_len(g.batch * outputs * g.pixels_out()) };
    out
}

/// Products of all points for the tiles of a band, per output.
struct Products<'a> {
    weights: &'a [f32],
    v: &'a [f32],
    m: &'a mut [f32],
    inputs: usize,
    outputs: Range<usize>,
    columns: usize,
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { weights, v, m, inputs, outputs, columns } = self;
        assert!(m.len() >= POINTS * outputs.len() * columns, "room for the products");
        for (point, v) in v.chunks_exact(inputs * columns).enumerate() {
            let mut output = outputs.start;
            while output < outputs.end {
                let rows = height(outputs.end - output);
                let a = &weights[(output * POINTS + point) * inputs..];
                assert!(a.len() >= ((rows - 1) * POINTS + 1) * inputs, "weights of all outputs");
                let block = Blocks {
                    rows,
                    depth: inputs,
                    columns,
                    a: a.as_ptr(),
                    a_strides: [POINTS * inputs, 1],
                    b: v.as_ptr(),
                    b_stride: columns,
                    out: m[((output - outputs.start) * POINTS + point) * columns..].as_mut_ptr(),
                    out_stride: POINTS * columns,
                    accumulate: false,
                };
                // SAFETY: the operands are slices of the sizes of the product, and so is the output, as asserted above.
                unsafe { block.multiply(simd) };
                output += rows;
            }
        }
    }
}

/// Adds, for every point, the products of a band's inputs and gradients to the sums `[POINTS, inputs, width]`.
struct Correlations<'a> {
    v: &'a [f32],
    gradients: &'a [f32],
    sums: &'a mut [f32],
    inputs: usize,
    tiles: usize,
    columns: usize,
    width: usize,
}

impl WithSimd for Correlations<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { v, gradients, sums, inputs, tiles, columns, width } = self;
        let v = v.chunks_exact(inputs * columns);
        let sums = sums.chunks_exact_mut(inputs * width);
        for ((v, gradients), sums) in v.zip(gradients.chunks_exact(tiles * width)).zip(sums) {
            let block = Blocks {
                rows: inputs,
                depth: tiles,
                columns: width,
                a: v.as_ptr(),
                a_strides: [columns, 1],
                b: gradients.as_ptr(),
                b_stride: width,
                out: sums.as_mut_ptr(),
                out_stride: width,
                accumulate: true,
            };
            // SAFETY: the slices have the sizes of the product.
            unsafe { block.multiply(simd) };
        }
    }
}

/// Transforms the weights to the domain of the products, `[outputs, POINTS, inputs]`; `kernel(output, input)` is the
/// offset of the first of nine kernel values, in reverse order if `flipped`.
fn transformed_weights(
    [inputs, outputs]: [usize; 2],
    weight: &[f32],
    kernel: impl Fn(usize, usize) -> usize + Sync,
    flipped: bool,
) -> Vec<f32> {
    let mut all: Vec<f32> = Vec::with_capacity(POINTS * outputs * inputs);
    let shared = Shared::new(all.as_mut_ptr());
    (0..outputs).into_par_iter().for_each(|output| {
        let (mut taps, mut values) = ([[0.0; LANES]; 9], [[0.0; LANES]; POINTS]);
        for first in (0..inputs).step_by(LANES) {
            let len = LANES.min(inputs - first);
            for lane in 0..len {
                let kernel = &weight[kernel(output, first + lane)..][..9];
                for (place, &tap) in kernel.iter().enumerate() {
                    taps[if flipped { 8 - place } else { place }][lane] = tap;
                }
            }
            weights_of_lanes(&taps, &mut values);
            for (point, values) in values.iter().enumerate() {
                let to = shared.at((output * POINTS + point) * inputs + first);
                // SAFETY: these inputs of this output and point.
                unsafe { write_lanes(values, len, to) };
            }
        }
    });
    // SAFETY: all inputs of all outputs and points have been written.
    unsafe { all.set_len(POINTS * outputs * inputs) };
    all
}

vectorized! {
    /// Computes [`weights`] of several kernels.
    fn weights_of_lanes(taps: &[[f32; LANES]; 9], out: &mut [[f32; LANES]; POINTS]) {
        for lane in 0..LANES {
            let values = weights(core::array::from_fn(|tap| taps[tap][lane]));
            for point in 0..POINTS {
                out[point][lane] = values[point];
            }
        }
    }
}

/// Computes `G g` of one column.
#[inline(always)]
fn g_column([a, b, c]: [f32; 3]) -> [f32; IN] {
    let near = (a + c * 0.5) * (-2.0 / 3.0);
    let far = (a + c * 2.0) * (1.0 / 6.0);
    let (near_odd, far_odd) = (b * (-2.0 / 3.0 * FRAC_1_SQRT_2), b * (SQRT_2 / 6.0));
    [a, near + near_odd, near - near_odd, far + far_odd, far - far_odd, c]
}

/// Computes `G g Gt`.
#[inline(always)]
fn weights(g: [f32; 9]) -> [f32; POINTS] {
    let columns: [[f32; IN]; 3] = core::array::from_fn(|x| g_column([g[x], g[3 + x], g[6 + x]]));
    let mut u = [0.0; POINTS];
    for (y, row) in u.chunks_exact_mut(IN).enumerate() {
        row.copy_from_slice(&g_column(columns.map(|column| column[y])));
    }
    u
}

/// Computes `Gt u` of one column.
#[inline(always)]
fn gt_column(u: [f32; IN]) -> [f32; 3] {
    let [near, far] = [u[1] + u[2], u[3] + u[4]];
    [
        u[0] - near * (2.0 / 3.0) + far * (1.0 / 6.0),
        (u[2] - u[1]) * (2.0 / 3.0 * FRAC_1_SQRT_2) + (u[3] - u[4]) * (SQRT_2 / 6.0),
        (far - near) * (1.0 / 3.0) + u[5],
    ]
}

/// Computes `Gt u G`, the transpose of [`weights`].
fn weights_transposed(u: [f32; POINTS]) -> [f32; 9] {
    let columns: [[f32; 3]; IN] = core::array::from_fn(|x| gt_column(core::array::from_fn(|y| u[y * IN + x])));
    let mut g = [0.0; 9];
    for (y, row) in g.chunks_exact_mut(3).enumerate() {
        row.copy_from_slice(&gt_column(columns.map(|column| column[y])));
    }
    g
}

/// Division of images into tiles. A line is a row of tiles of one image.
struct Tiles {
    height: usize,
    width: usize,
    down: usize,
    across: usize,
    batch: usize,
}

impl Tiles {
    fn new(g: &Geometry) -> Self {
        let [_, _, height, width] = g.output_shape();
        Self { height, width, down: height.div_ceil(OUT), across: width.div_ceil(OUT), batch: g.batch }
    }

    fn per_image(&self) -> usize {
        self.down * self.across
    }

    /// Splits the lines of all images into bands of about as many tiles as the widest block has columns.
    fn bands(&self) -> Vec<Band> {
        let lines = self.batch * self.down;
        let step = (BAND / self.across).max(1);
        let bands = (0..lines).step_by(step).map(|first| {
            let lines = (first..lines.min(first + step)).map(|line| [line / self.down, line % self.down * OUT]);
            Band { lines: lines.collect(), height: self.height, width: self.width, across: self.across }
        });
        bands.collect()
    }
}

/// Lines of tiles.
///
/// Their pixels are first transformed down the columns, in place, and then rearranged to a line of values for each
/// column of a tile; the way back reverses this.
struct Band {
    /// Image and first row of pixels of every line.
    lines: Vec<[usize; 2]>,
    /// Height and width of the images.
    height: usize,
    width: usize,
    /// Number of tiles per line.
    across: usize,
}

impl Band {
    fn tiles(&self) -> usize {
        self.lines.len() * self.across
    }

    /// Returns the number of tiles, rounded up to whole vectors.
    fn columns(&self) -> usize {
        self.tiles().next_multiple_of(LANES)
    }

    /// Returns the offsets of the `N` rows of pixels in and around every line, in the first channel of the images;
    /// `None` beyond the border.
    fn rows<const N: usize>(&self, channels: usize) -> Vec<[Option<usize>; N]> {
        let rows = self.lines.iter().map(|[image, top]| {
            core::array::from_fn(|y| {
                let row = (top + y).checked_sub((N - OUT) / 2).filter(|&row| row < self.height)?;
                Some((image * channels * self.height + row) * self.width)
            })
        });
        rows.collect()
    }

    /// Cuts the `N` x `N` pixels in and around the tiles out of the `range` of the images' channels and transforms
    /// them, as inputs (6x6) or as gradients of outputs (4x4): `[POINTS, channels, columns]`. Values beyond the last
    /// tile are arbitrary.
    fn transform<const N: usize>(&self, images: &[f32], channels: usize, range: Range<usize>, out: &mut [f32]) {
        let columns = self.columns();
        let rows = self.rows::<N>(channels);
        // Zeros beyond the right border; values beyond the last tile are read too, without effect.
        let mut transformed = Scratch::new(IN * OUT * columns);
        transformed.fill(0.0);
        let mut dealt = Scratch::new((OUT + 2) * columns);
        let stride = range.len() * columns;
        for (place, channel) in range.enumerate() {
            let plane = &images[channel * self.height * self.width..];
            let out = &mut out[place * columns..];
            match N {
                IN => inputs_down(plane, rows.as_flattened(), self.width, &mut transformed),
                _ => gradients_down(plane, rows.as_flattened(), self.width, &mut transformed),
            }
            match N {
                IN => inputs_across(&transformed, self.across, &mut dealt, out, stride),
                _ => gradients_across(&transformed, self.across, &mut dealt, out, stride),
            }
        }
    }

    /// Adds the band's contribution for some outputs to the sums `[POINTS, inputs, width]` of a weight gradient.
    fn add_products(&self, g: &Geometry, x: &[f32], grad: &[f32], outputs: Range<usize>, sums: &mut [f32]) {
        let (inputs, tiles, columns) = (g.channels_in, self.tiles(), self.columns());
        let width = sums.len() / (POINTS * inputs);
        let mut v = Scratch::new(POINTS * inputs * columns);
        self.transform::<IN>(x, inputs, 0..inputs, &mut v);
        let mut m = Scratch::new(POINTS * outputs.len() * columns);
        self.transform::<OUT>(grad, g.channels_out, outputs.clone(), &mut m);
        // Transposed, so that both operands are read along their rows.
        let mut gradients = Scratch::new(POINTS * tiles * width);
        let mut transposed = Scratch::new(tiles * outputs.len());
        for (m, gradients) in m.chunks_exact(outputs.len() * columns).zip(gradients.chunks_exact_mut(tiles * width)) {
            let m = View::new(m, [outputs.len(), tiles], columns);
            if outputs.len() == width {
                transpose(m, gradients);
                continue;
            }
            transpose(m, &mut transposed);
            for (from, to) in transposed.chunks_exact(outputs.len()).zip(gradients.chunks_exact_mut(width)) {
                to[..from.len()].copy_from_slice(from);
                to[from.len()..].fill(0.0);
            }
        }
        dispatch(Correlations { v: &v, gradients: &gradients, sums, inputs, tiles, columns, width });
    }
}

/// Adjacent values of a row of pixels or of tiles.
type Lanes = [f32; LANES];

/// Loads the first `len` values, padded with zeros.
#[inline(always)]
fn load(values: &[f32], len: usize) -> Lanes {
    match values.first_chunk() {
        Some(lanes) if len >= LANES => *lanes,
        _ => {
            let mut lanes = [0.0; LANES];
            lanes[..len].copy_from_slice(&values[..len]);
            lanes
        }
    }
}

/// Stores the first `len` lanes.
#[inline(always)]
fn store(lanes: &Lanes, len: usize, to: &mut [f32]) {
    // SAFETY: `len` values of a slice.
    unsafe { write_lanes(lanes, len, to[..len].as_mut_ptr()) };
}

/// Writes the first `len` lanes. All of them, a constant length, need no call of `memcpy`.
///
/// # Safety
/// `to` must be valid for writes of `len` values.
#[inline(always)]
unsafe fn write_lanes(lanes: &Lanes, len: usize, to: *mut f32) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match len {
            LANES => to.cast::<Lanes>().write_unaligned(*lanes),
            _ => lanes[..len].as_ptr().copy_to_nonoverlapping(to, len),
        }
    }
}

/// Applies a scalar transform to each lane.
#[inline(always)]
fn each<const N: usize, const M: usize>(line: impl Fn([f32; N]) -> [f32; M], from: [Lanes; N]) -> [Lanes; M] {
    let mut to = [[0.0; LANES]; M];
    for lane in 0..LANES {
        // A loop, since closures are not always inlined.
        let mut values = [0.0; N];
        for n in 0..N {
            values[n] = from[n][lane];
        }
        let values = line(values);
        for m in 0..M {
            to[m][lane] = values[m];
        }
    }
    to
}

/// Transforms the columns of the rows of all lines, `N` rows per line, to [`IN`] rows of pixels for all tiles.
#[inline(always)]
fn down<const N: usize>(
    plane: &[f32],
    rows: &[Option<usize>],
    width: usize,
    out: &mut [f32],
    line: impl Fn([f32; N]) -> [f32; IN],
) {
    let (stride, padded) = (out.len() / IN, width.next_multiple_of(OUT));
    for (place, rows) in rows.as_chunks::<N>().0.iter().enumerate() {
        for x in (0..width).step_by(LANES) {
            let len = LANES.min(width - x);
            let mut pixels = [[0.0; LANES]; N];
            for (pixels, row) in pixels.iter_mut().zip(rows) {
                if let Some(row) = row {
                    *pixels = load(&plane[row + x..], len);
                }
            }
            for (y, values) in each(&line, pixels).iter().enumerate() {
                store(values, len, &mut out[y * stride + place * padded + x..]);
            }
        }
    }
}

/// Distributes rows of pixels to tiles and transforms their rows: a line of values for each of [`POINTS`], `stride`
/// apart.
#[inline(always)]
fn across<const N: usize>(
    rows: &[f32],
    across: usize,
    dealt: &mut [f32],
    out: &mut [f32],
    stride: usize,
    line: impl Fn([f32; N]) -> [f32; IN],
) {
    let columns = rows.len() / (IN * OUT);
    for (y, row) in rows.chunks_exact(OUT * columns).enumerate() {
        let (tiles, _) = row.as_chunks::<OUT>();
        let (a, rest) = dealt.split_at_mut(columns);
        let (b, rest) = rest.split_at_mut(columns);
        let (c, rest) = rest.split_at_mut(columns);
        let d = &mut rest[..columns];
        for (i, tile) in tiles[..columns].iter().enumerate() {
            [a[i], b[i], c[i], d[i]] = *tile;
        }
        if N == IN {
            // Beyond its own columns a tile reads the last one of the tile before and the first one of the next.
            let (own, beyond) = dealt.split_at_mut(OUT * columns);
            let (behind, before) = beyond.split_at_mut(columns);
            before[1..columns].copy_from_slice(&own[(OUT - 1) * columns..][..columns - 1]);
            behind[..columns - 1].copy_from_slice(&own[1..columns]);
            before.iter_mut().step_by(across).for_each(|first| *first = 0.0);
            behind.iter_mut().skip(across - 1).step_by(across).for_each(|last| *last = 0.0);
        }
        for first in (0..columns).step_by(LANES) {
            let mut values = [[0.0; LANES]; N];
            for (x, values) in values.iter_mut().enumerate() {
                // The tile's own columns are followed by the column after them, then the one before.
                let x = x.checked_sub((N - OUT) / 2).unwrap_or(OUT + 1);
                *values = load(&dealt[x * columns + first..], LANES);
            }
            for (x, values) in each(&line, values).iter().enumerate() {
                store(values, LANES, &mut out[(y * IN + x) * stride + first..]);
            }
        }
    }
}

vectorized! {
    fn inputs_down(plane: &[f32], rows: &[Option<usize>], width: usize, out: &mut [f32]) {
        down(plane, rows, width, out, input_line);
    }

    fn gradients_down(plane: &[f32], rows: &[Option<usize>], width: usize, out: &mut [f32]) {
        down(plane, rows, width, out, gradient_line);
    }

    fn inputs_across(rows: &[f32], tiles: usize, dealt: &mut [f32], out: &mut [f32], stride: usize) {
        across(rows, tiles, dealt, out, stride, input_line);
    }

    fn gradients_across(rows: &[f32], tiles: usize, dealt: &mut [f32], out: &mut [f32], stride: usize) {
        across(rows, tiles, dealt, out, stride, gradient_line);
    }

    /// Transforms the products of one channel, `[POINTS, columns]`, back, through `IN` rows of pixels.
    fn write(
        products: &[f32],
        bias: f32,
        rows: &mut [f32],
        dealt: &mut [f32],
        width: usize,
        to: Destination<'_>,
    ) {
        let columns = products.len() / POINTS;
        for (y, row) in rows.chunks_exact_mut(OUT * columns).enumerate() {
            for first in (0..columns).step_by(LANES) {
                let mut values = [[0.0; LANES]; IN];
                for (x, values) in values.iter_mut().enumerate() {
                    *values = load(&products[(y * IN + x) * columns + first..], LANES);
                }
                for (x, values) in each(output_line, values).iter().enumerate() {
                    store(values, LANES, &mut dealt[x * columns + first..]);
                }
            }
            let (a, rest) = dealt.split_at(columns);
            let (b, rest) = rest.split_at(columns);
            let (c, d) = rest.split_at(columns);
            let d = &d[..columns];
            for (i, tile) in row.as_chunks_mut::<OUT>().0[..columns].iter_mut().enumerate() {
                *tile = [a[i], b[i], c[i], d[i]];
            }
        }
        let padded = width.next_multiple_of(OUT);
        for (place, to_rows) in to.rows.iter().enumerate() {
            for x in (0..width).step_by(LANES) {
                let len = LANES.min(width - x);
                let mut values = [[0.0; LANES]; IN];
                for (y, values) in values.iter_mut().enumerate() {
                    *values = load(&rows[y * OUT * columns + place * padded + x..], len);
                }
                for (row, mut values) in to_rows.iter().zip(each(output_line, values)) {
                    let Some(row) = row else { continue };
                    values.iter_mut().for_each(|value| *value += bias);
                    let to = to.plane.wrapping_add(row + x);
                    // SAFETY: a part of a row; the creator of the destination guarantees that it is valid.
                    unsafe { write_lanes(&values, len, to) };
                }
            }
        }
    }
}

/// Destination of the lines of a band.
#[derive(Clone, Copy)]
struct Destination<'a> {
    plane: *mut f32,
    rows: &'a [[Option<usize>; OUT]],
}

impl<'a> Destination<'a> {
    /// # Safety
    /// The rows of pixels at those offsets of `plane` must be valid for writes, and nothing else may access them
    /// meanwhile.
    unsafe fn new(plane: *mut f32, rows: &'a [[Option<usize>; OUT]]) -> Self {
        Self { plane, rows }
    }
}

/// Computes `Bt d`.
#[inline(always)]
fn input_line(d: [f32; IN]) -> [f32; IN] {
    let (even, odd) = (d[4] - d[2] * 2.0, (d[3] - d[1] * 2.0) * FRAC_1_SQRT_2);
    let (far_even, far_odd) = (d[4] - d[2] * 0.5, (d[3] - d[1] * 0.5) * SQRT_2);
    [d[0] - d[2] * 2.5 + d[4], even + odd, even - odd, far_even + far_odd, far_even - far_odd, d[1] - d[3] * 2.5 + d[5]]
}

/// Computes `At m`.
#[inline(always)]
fn output_line(m: [f32; IN]) -> [f32; OUT] {
    let (near, near_odd) = (m[1] + m[2], (m[1] - m[2]) * FRAC_1_SQRT_2);
    let (far, far_odd) = (m[3] + m[4], (m[3] - m[4]) * SQRT_2);
    [m[0] + near + far, near_odd + far_odd, near * 0.5 + far * 2.0, near_odd * 0.5 + far_odd * 2.0 + m[5]]
}

/// Computes `A y`, the transpose of [`output_line`].
#[inline(always)]
fn gradient_line(y: [f32; OUT]) -> [f32; IN] {
    let (even, odd) = (y[0] + y[2] * 0.5, (y[1] + y[3] * 0.5) * FRAC_1_SQRT_2);
    let (far_even, far_odd) = (y[0] + y[2] * 2.0, (y[1] + y[3] * 2.0) * SQRT_2);
    [y[0], even + odd, even - odd, far_even + far_odd, far_even - far_odd, y[3]]
}
