//! 3x3 convolution with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2016).
//!
//! A tile of 4x4 output pixels needs 6x6 inputs `d` and the 3x3 weights `g`:
//! `Y = At [(G g Gt) * (Bt d B)] A`, where `*` multiplies element by element; summed over channels, that is one matrix
//! product for each of the 36 elements. The transforms lose about one decimal digit against a direct sum.

use core::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    block::{Blocks, LANES, ROWS, dispatch, height},
    columns::Geometry,
    matrix::{Shared, View, transpose},
    scratch::Scratch,
    simd::{add, has_fma, vectorised},
};

/// Pixels of a side of an output tile, of its inputs, and elements of the latter.
const OUT: usize = 4;
const IN: usize = 6;
const POINTS: usize = IN * IN;
/// Fewest channels on both sides for which the products outweigh the transforms.
const MIN_CHANNELS: usize = 16;
/// Most weights of a kernel's tap for which they, four times as many as before, stay in the cache and can be read for
/// every few tiles; with more of them it takes images of as many pixels.
const MANY_WEIGHTS: usize = 1 << 15;
const MIN_PIXELS: usize = 1 << 10;
/// Tiles of a band, about: the columns of its products.
const BAND: usize = 4 * LANES;
/// Blocks of channels whose products are transformed back together, while they are in the cache.
const BLOCKS: usize = 8;
/// Fewest blocks of channels of a task, which transforms all inputs.
const MIN_BLOCKS: usize = 4;
/// Tasks for each thread, about.
const TASKS: usize = 4;
/// Values of a partial weight gradient, about: what stays in the second cache.
const PART_VALUES: usize = 1 << 18;
/// Most values in all partial weight gradients together, and most of those for the same weights.
const MAX_PART_VALUES: usize = 1 << 24;
const MAX_PARTS: usize = 16;

/// Whether this is a convolution for which the tiles pay: 3x3, stride 1, same size, many channels, few pixels wasted, and
/// enough of them to make up for transforming the weights.
pub(super) fn pays(g: &Geometry) -> bool {
    let tiles = Tiles::new(g);
    let few_weights = g.channels_in * g.channels_out <= MANY_WEIGHTS;
    has_fma()
        && g.is_same_3x3()
        && g.channels_in.min(g.channels_out) >= MIN_CHANNELS
        && tiles.per_image() * OUT * OUT <= 2 * g.pixels_out()
        && (few_weights || g.pixels_out() >= MIN_PIXELS)
}

/// The convolution of `x` with `weight`, plus `bias`.
pub(super) fn convolve(g: &Geometry, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let weights = transformed_weights(g, |output, input| {
        let kernel = (output * g.channels_in + input) * 9;
        core::array::from_fn(|tap| weight[kernel + tap])
    });
    run(g, x, &weights, bias)
}

/// `d loss / d x`: the convolution of the gradient with the kernels turned around.
pub(super) fn input_gradient(g: &Geometry, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let turned = g.swapped();
    let weights = transformed_weights(&turned, |input, output| {
        let kernel = (output * g.channels_in + input) * 9;
        core::array::from_fn(|tap| weight[kernel + 8 - tap])
    });
    run(&turned, grad, &weights, &vec![0.0; g.channels_in])
}

/// `d loss / d weight`: the transposes of all three transforms around products over the tiles, as partial sums over runs
/// of bands that are added in order at the end.
pub(super) fn weight_gradient(g: &Geometry, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let tiles = Tiles::new(g);
    let [inputs, outputs] = [g.channels_in, g.channels_out];
    let bands = tiles.bands();
    // Cut by the shapes alone, so that sums do not depend on the number of threads.
    let width = (PART_VALUES / (POINTS * inputs)).max(BAND).next_multiple_of(LANES).min(outputs.next_multiple_of(LANES));
    let across = outputs.div_ceil(width);
    let most = (MAX_PART_VALUES / (POINTS * inputs * width * across)).clamp(1, MAX_PARTS);
    let runs = bands.chunks(bands.len().div_ceil(most).max(1)).collect::<Vec<_>>();
    let parts = (0..runs.len() * across).into_par_iter().map(|part| {
        let range = part % across * width..outputs.min((part % across + 1) * width);
        let mut sums = vec![0.0; POINTS * inputs * width];
        for band in runs[part / across] {
            tiles.add_products(g, x, grad, band, range.clone(), &mut sums);
        }
        sums
    });
    let parts = parts.collect::<Vec<_>>();
    let mut totals = parts.into_iter();
    let mut total = totals.by_ref().take(across).collect::<Vec<_>>();
    for (index, part) in totals.enumerate() {
        add(&part, &mut total[index % across]);
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

/// Each task transforms the inputs of a band of tiles, multiplies them with the weights of some outputs and transforms
/// those back, all in its core's cache.
fn run(g: &Geometry, x: &[f32], weights: &[f32], bias: &[f32]) -> Vec<f32> {
    let [inputs, outputs] = [g.channels_in, g.channels_out];
    assert_eq!(bias.len(), outputs, "conv2d: length of the bias");
    let tiles = Tiles::new(g);
    let bands = tiles.bands();
    let blocks = outputs.div_ceil(ROWS);
    let parts = (TASKS * rayon::current_num_threads()).div_ceil(bands.len().max(1));
    let step = ROWS * blocks.div_ceil(parts.clamp(1, (blocks / MIN_BLOCKS).max(1)));
    let parts = outputs.div_ceil(step);
    let mut out: Vec<f32> = Vec::with_capacity(g.batch * outputs * g.pixels_out());
    let shared = Shared::new(out.as_mut_ptr());
    (0..bands.len() * parts).into_par_iter().for_each(|task| {
        let (band, part) = (&bands[task / parts], task % parts);
        let columns = tiles.columns(band);
        let mut v = Scratch::new(POINTS * inputs * columns);
        let image = |image: usize| &x[image * inputs * g.pixels_out()..];
        tiles.transform(image, 0..inputs, band, Patch::Inputs, &mut v);
        let mut m = Scratch::new(POINTS * BLOCKS * ROWS * columns);
        let end = outputs.min((part + 1) * step);
        for first in (part * step..end).step_by(BLOCKS * ROWS) {
            let outputs_here = first..end.min(first + BLOCKS * ROWS);
            dispatch(Products { weights, v: &v, m: &mut m, inputs, outputs: outputs_here.clone(), columns });
            for (channel, m) in outputs_here.zip(m.chunks_exact(POINTS * columns)) {
                let plane = |image: usize| shared.at((image * outputs + channel) * g.pixels_out());
                // SAFETY: writes to the rows of `band` in the planes of this channel alone, which is no other task's.
                unsafe { tiles.write(m, bias[channel], band, plane) };
            }
        }
    });
    // SAFETY: the bands cover the images, and the parts their channels.
    unsafe { out.set_len(g.batch * outputs * g.pixels_out()) };
    out
}

/// Of each output, the products of all points for the tiles of a band.
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
                let a = &weights[(output * POINTS + point * rows) * inputs..][..rows * inputs];
                let block = Blocks {
                    rows,
                    depth: inputs,
                    columns,
                    a: a.as_ptr(),
                    a_strides: [1, rows],
                    b: v.as_ptr(),
                    b_stride: columns,
                    out: m[((output - outputs.start) * POINTS + point) * columns..].as_mut_ptr(),
                    out_stride: POINTS * columns,
                    accumulate: false,
                };
                // SAFETY: the operands are slices of the sizes of the product, and the output has been found to be.
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

/// The weights in the domain of the products: of every block of outputs, `[POINTS, inputs, block]`.
fn transformed_weights(g: &Geometry, kernel: impl Fn(usize, usize) -> [f32; 9] + Sync) -> Vec<f32> {
    let [inputs, outputs] = [g.channels_in, g.channels_out];
    let mut all = vec![0.0; POINTS * outputs * inputs];
    all.par_chunks_mut(POINTS * ROWS * inputs).enumerate().for_each(|(chunk, mut all)| {
        let mut output = chunk * ROWS;
        while !all.is_empty() {
            let rows = height(all.len() / (POINTS * inputs));
            let (block, rest) = all.split_at_mut(POINTS * rows * inputs);
            for row in 0..rows {
                for input in 0..inputs {
                    let values = weights(kernel(output + row, input));
                    for (points, value) in block.chunks_exact_mut(rows * inputs).zip(values) {
                        points[input * rows + row] = value;
                    }
                }
            }
            (all, output) = (rest, output + rows);
        }
    });
    all
}

/// `G g` of one column.
#[inline(always)]
fn g_column([a, b, c]: [f32; 3]) -> [f32; IN] {
    let even = (a + c) * (1.0 / 6.0);
    let far = a * (1.0 / 24.0) + c * (1.0 / 6.0);
    [a * 0.25, -even - b * (1.0 / 6.0), -even + b * (1.0 / 6.0), far + b * (1.0 / 12.0), far - b * (1.0 / 12.0), c]
}

/// `G g Gt`.
fn weights(g: [f32; 9]) -> [f32; POINTS] {
    let columns: [[f32; IN]; 3] = core::array::from_fn(|x| g_column([g[x], g[3 + x], g[6 + x]]));
    let mut u = [0.0; POINTS];
    for (y, row) in u.chunks_exact_mut(IN).enumerate() {
        row.copy_from_slice(&g_column(columns.map(|column| column[y])));
    }
    u
}

/// `Gt u` of one column.
#[inline(always)]
fn gt_column(u: [f32; IN]) -> [f32; 3] {
    let [near, far] = [u[1] + u[2], u[3] + u[4]];
    [
        u[0] * 0.25 - near * (1.0 / 6.0) + far * (1.0 / 24.0),
        (u[2] - u[1]) * (1.0 / 6.0) + (u[3] - u[4]) * (1.0 / 12.0),
        (far - near) * (1.0 / 6.0) + u[5],
    ]
}

/// `Gt u G`, the transpose of [`weights`].
fn weights_transposed(u: [f32; POINTS]) -> [f32; 9] {
    let columns: [[f32; 3]; IN] = core::array::from_fn(|x| gt_column(core::array::from_fn(|y| u[y * IN + x])));
    let mut g = [0.0; 9];
    for (y, row) in g.chunks_exact_mut(3).enumerate() {
        row.copy_from_slice(&gt_column(columns.map(|column| column[y])));
    }
    g
}

/// What is cut out of an image for a tile.
#[derive(Clone, Copy)]
enum Patch {
    /// The 6x6 pixels around it, to be transformed by `Bt d B`.
    Inputs,
    /// Its 4x4 pixels, to be transformed by `A y At`.
    Gradients,
}

/// How images are cut into tiles. A line is a row of tiles of one image.
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

    /// Cuts the lines of all images into bands of about as many tiles as the widest block has columns.
    fn bands(&self) -> Vec<Range<usize>> {
        let lines = self.batch * self.down;
        let step = (BAND / self.across).max(1);
        (0..lines).step_by(step).map(|first| first..lines.min(first + step)).collect()
    }

    /// Tiles of a band, up to the end of a vector.
    fn columns(&self, band: &Range<usize>) -> usize {
        (band.len() * self.across).next_multiple_of(LANES)
    }

    /// Cuts and transforms the patches of `band` in some channels of images: `[POINTS, channels, columns]`. What is beyond
    /// the last tile is of any value.
    fn transform<'a>(
        &self,
        image: impl Fn(usize) -> &'a [f32],
        channels: Range<usize>,
        band: &Range<usize>,
        patch: Patch,
        out: &mut [f32],
    ) {
        let (count, columns) = (band.len() * self.across, self.columns(band));
        let pixels = self.height * self.width;
        let mut cut = Scratch::new(POINTS * count);
        let mut points: [&mut [f32]; POINTS] = collect(out.chunks_exact_mut(channels.len() * columns));
        for (place, channel) in channels.enumerate() {
            let plane = |of: usize| &image(of)[channel * pixels..][..pixels];
            let mut out = points.each_mut().map(|values| &mut values[place * columns..][..count]);
            match patch {
                Patch::Inputs => {
                    self.cut::<IN>(plane, band, &mut cut);
                    both_axes::<IN, IN>(&cut, count, &mut out, input_line);
                }
                Patch::Gradients => {
                    self.cut::<OUT>(plane, band, &mut cut);
                    both_axes::<OUT, IN>(&cut, count, &mut out, gradient_line);
                }
            }
        }
    }

    /// Adds to the sums `[POINTS, inputs, width]` of a weight gradient what a band contributes for some outputs.
    fn add_products(
        &self,
        g: &Geometry,
        x: &[f32],
        grad: &[f32],
        band: &Range<usize>,
        outputs: Range<usize>,
        sums: &mut [f32],
    ) {
        let (tiles, columns, width) = (band.len() * self.across, self.columns(band), sums.len() / (POINTS * g.channels_in));
        let mut v = Scratch::new(POINTS * g.channels_in * columns);
        let image = |of: usize| &x[of * g.channels_in * g.pixels_out()..];
        self.transform(image, 0..g.channels_in, band, Patch::Inputs, &mut v);
        let mut m = Scratch::new(POINTS * outputs.len() * columns);
        let image = |of: usize| &grad[of * g.channels_out * g.pixels_out()..];
        self.transform(image, outputs.clone(), band, Patch::Gradients, &mut m);
        // Transposed, so that both operands are read along their rows.
        let mut gradients = Scratch::new(POINTS * tiles * width);
        let mut turned = Scratch::new(tiles * outputs.len());
        for (m, gradients) in m.chunks_exact(outputs.len() * columns).zip(gradients.chunks_exact_mut(tiles * width)) {
            transpose(View::new(m, [outputs.len(), tiles], columns), &mut turned);
            for (from, to) in turned.chunks_exact(outputs.len()).zip(gradients.chunks_exact_mut(width)) {
                to[..from.len()].copy_from_slice(from);
                to[from.len()..].fill(0.0);
            }
        }
        dispatch(Correlations { v: &v, gradients: &gradients, sums, inputs: g.channels_in, tiles, columns, width });
    }

    /// Deals the `N` x `N` pixels in and around every tile of `band` out to `N * N` lines with a value for each tile.
    fn cut<'a, const N: usize>(&self, plane: impl Fn(usize) -> &'a [f32], band: &Range<usize>, cut: &mut [f32]) {
        let count = band.len() * self.across;
        let before = (N - OUT) / 2;
        // One pixel of zeros to the left if it is wanted, and as many as are missing to the right.
        let mut row = Scratch::new(self.across * OUT + 2);
        row.fill(0.0);
        for (place, line) in band.clone().enumerate() {
            let (plane, top) = (plane(line / self.down), line % self.down * OUT);
            let tiles = place * self.across..(place + 1) * self.across;
            for (y, lines) in cut.chunks_exact_mut(N * count).enumerate() {
                let mut lines = collect::<_, N>(lines.chunks_exact_mut(count).map(|line| &mut line[tiles.clone()]));
                match (top + y).checked_sub(before).filter(|&from| from < self.height) {
                    Some(from) => {
                        row[before..before + self.width].copy_from_slice(&plane[from * self.width..][..self.width]);
                        deal(&row, &mut lines);
                    }
                    None => lines.iter_mut().for_each(|line| line.fill(0.0)),
                }
            }
        }
    }

    /// Transforms the products of one channel, `[POINTS, columns]`, back and writes the tiles of `band` to its planes.
    ///
    /// # Safety
    /// `plane(image)` must point to `height * width` values, of which nobody else uses the rows of the band.
    unsafe fn write(&self, products: &[f32], bias: f32, band: &Range<usize>, plane: impl Fn(usize) -> *mut f32) {
        let (count, columns) = (band.len() * self.across, self.columns(band));
        let mut pixels = Scratch::new(OUT * OUT * count);
        let mut lines: [_; OUT * OUT] = collect(pixels.chunks_exact_mut(count));
        both_axes::<IN, OUT>(products, columns, &mut lines, output_line);
        for (place, line) in band.clone().enumerate() {
            let (plane, top) = (plane(line / self.down), line % self.down * OUT);
            for y in 0..OUT.min(self.height - top) {
                // SAFETY: a row of the plane, which the caller vouches for.
                let row = unsafe { core::slice::from_raw_parts_mut(plane.add((top + y) * self.width), self.width) };
                let lines = &pixels[y * OUT * count + place * self.across..];
                gather(lines, count, bias, row);
            }
        }
    }
}

/// Applies `line`, from `N` to `M` values, to the columns and then to the rows of `N` x `N` lines, `stride` values apart
/// and as long as those of `to`.
#[inline(always)]
fn both_axes<const N: usize, const M: usize>(
    from: &[f32],
    stride: usize,
    to: &mut [&mut [f32]],
    line: fn([&[f32]; N], [&mut [f32]; M]),
) {
    let count = to[0].len();
    let mut middle = Scratch::new(M * N * count);
    let source = |at: usize| &from[at * stride..][..count];
    for x in 0..N {
        let outputs = middle.chunks_exact_mut(count).skip(x).step_by(N);
        line(core::array::from_fn(|y| source(y * N + x)), collect(outputs));
    }
    for (middle, to) in middle.chunks_exact(N * count).zip(to.chunks_exact_mut(M)) {
        let rows: [&[f32]; N] = collect(middle.chunks_exact(count));
        line(rows, collect(to.iter_mut().map(|line| &mut **line)));
    }
}

/// As many as the array holds.
#[inline(always)]
fn collect<T, const N: usize>(mut items: impl Iterator<Item = T>) -> [T; N] {
    core::array::from_fn(|_| items.next().expect("as many lines as the array holds"))
}

vectorised! {
    /// `Bt d`, for many tiles.
    fn input_line(d: [&[f32]; IN], out: [&mut [f32]; IN]) {
        let [d0, d1, d2, d3, d4, d5] = d;
        let [o0, o1, o2, o3, o4, o5] = out;
        let len = d0.len();
        let (d1, d2, d3, d4, d5) = (&d1[..len], &d2[..len], &d3[..len], &d4[..len], &d5[..len]);
        let (o0, o1, o2) = (&mut o0[..len], &mut o1[..len], &mut o2[..len]);
        let (o3, o4, o5) = (&mut o3[..len], &mut o4[..len], &mut o5[..len]);
        for i in 0..len {
            let even = d4[i] - d2[i] * 4.0;
            let odd = d3[i] - d1[i] * 4.0;
            let far_even = d4[i] - d2[i];
            let far_odd = (d3[i] - d1[i]) * 2.0;
            o0[i] = d0[i] * 4.0 - d2[i] * 5.0 + d4[i];
            o1[i] = even + odd;
            o2[i] = even - odd;
            o3[i] = far_even + far_odd;
            o4[i] = far_even - far_odd;
            o5[i] = d1[i] * 4.0 - d3[i] * 5.0 + d5[i];
        }
    }

    /// `At m`, for many tiles.
    fn output_line(m: [&[f32]; IN], out: [&mut [f32]; OUT]) {
        let [m0, m1, m2, m3, m4, m5] = m;
        let [o0, o1, o2, o3] = out;
        let len = m0.len();
        let (m1, m2, m3, m4, m5) = (&m1[..len], &m2[..len], &m3[..len], &m4[..len], &m5[..len]);
        let (o0, o1, o2, o3) = (&mut o0[..len], &mut o1[..len], &mut o2[..len], &mut o3[..len]);
        for i in 0..len {
            let (near, near_odd) = (m1[i] + m2[i], m1[i] - m2[i]);
            let (far, far_odd) = (m3[i] + m4[i], m3[i] - m4[i]);
            o0[i] = m0[i] + near + far;
            o1[i] = near_odd + far_odd * 2.0;
            o2[i] = near + far * 4.0;
            o3[i] = near_odd + far_odd * 8.0 + m5[i];
        }
    }

    /// `A y`, the transpose of [`output_line`].
    fn gradient_line(y: [&[f32]; OUT], out: [&mut [f32]; IN]) {
        let [y0, y1, y2, y3] = y;
        let [o0, o1, o2, o3, o4, o5] = out;
        let len = y0.len();
        let (y1, y2, y3) = (&y1[..len], &y2[..len], &y3[..len]);
        let (o0, o1, o2) = (&mut o0[..len], &mut o1[..len], &mut o2[..len]);
        let (o3, o4, o5) = (&mut o3[..len], &mut o4[..len], &mut o5[..len]);
        for i in 0..len {
            let (even, odd) = (y0[i] + y2[i], y1[i] + y3[i]);
            let (far_even, far_odd) = (y0[i] + y2[i] * 4.0, y1[i] * 2.0 + y3[i] * 8.0);
            o0[i] = y0[i];
            o1[i] = even + odd;
            o2[i] = even - odd;
            o3[i] = far_even + far_odd;
            o4[i] = far_even - far_odd;
            o5[i] = y3[i];
        }
    }

    /// Interleaves four lines to a row, adding a bias.
    fn gather(lines: &[f32], count: usize, bias: f32, row: &mut [f32]) {
        let (tiles, rest) = row.as_chunks_mut::<OUT>();
        let [a, b, c, d] = [0, 1, 2, 3].map(|x| &lines[x * count..][..tiles.len() + usize::from(!rest.is_empty())]);
        for (i, tile) in tiles.iter_mut().enumerate() {
            *tile = [a[i] + bias, b[i] + bias, c[i] + bias, d[i] + bias];
        }
        let last = tiles.len();
        for (value, line) in rest.iter_mut().zip([a, b, c, d]) {
            *value = line[last] + bias;
        }
    }
}

/// Deals the pixels of a row out to `N` lines, a tile each place: tile `i` sees the `N` pixels from `4 i` on.
#[inline(always)]
fn deal<const N: usize>(row: &[f32], lines: &mut [&mut [f32]; N]) {
    let (own, beyond) = lines.split_at_mut(OUT);
    let [a, b, c, d] = own else { unreachable!("at least as many lines as a tile has columns") };
    deal_four(row, a, b, c, d);
    // What a tile sees beyond its own columns are the first ones of the next.
    for (x, (line, of_next)) in beyond.iter_mut().zip([a, b]).enumerate() {
        let (last, inner) = line.split_last_mut().expect("at least one tile");
        inner.copy_from_slice(&of_next[1..]);
        *last = row[(inner.len() + 1) * OUT + x];
    }
}

vectorised! {
    fn deal_four(row: &[f32], a: &mut [f32], b: &mut [f32], c: &mut [f32], d: &mut [f32]) {
        let (tiles, _) = row.as_chunks::<OUT>();
        let len = a.len();
        let (tiles, b, c, d) = (&tiles[..len], &mut b[..len], &mut c[..len], &mut d[..len]);
        for i in 0..len {
            [a[i], b[i], c[i], d[i]] = tiles[i];
        }
    }
}
