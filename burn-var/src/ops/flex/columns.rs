use core::ops::Range;

use super::simd::add;
use crate::ops::ConvSpec;

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) batch: usize,
    pub(super) channels_in: usize,
    pub(super) channels_out: usize,
    /// Height and width of the input, the kernel and the output.
    input: [usize; 2],
    kernel: [usize; 2],
    output: [usize; 2],
    stride: usize,
    /// Zeros at the top and on the left.
    offset: [usize; 2],
}

impl Geometry {
    /// # Panics
    /// If channels differ, the stride is 0 or the kernel is larger than the padded image.
    pub(super) fn new(x: [usize; 4], weight: [usize; 4], spec: ConvSpec) -> Self {
        let [batch, channels_in, height, width] = x;
        let [channels_out, weight_in, kernel_height, kernel_width] = weight;
        let [top, bottom, left, right] = spec.padding;
        let padded = [height + top + bottom, width + left + right];
        let kernel = [kernel_height, kernel_width];
        assert_eq!(channels_in, weight_in, "conv2d: channels of the images {x:?} and of the weight {weight:?}");
        assert!(spec.stride > 0, "conv2d: the stride is 0");
        assert!(
            padded.iter().zip(kernel).all(|(&size, kernel)| (1..=size).contains(&kernel)),
            "conv2d: the weight {weight:?} is larger than the padded images {x:?}"
        );
        let output = [0, 1].map(|axis| (padded[axis] - kernel[axis]) / spec.stride + 1);
        let (input, offset) = ([height, width], [top, left]);
        Self { batch, channels_in, channels_out, input, kernel, output, stride: spec.stride, offset }
    }

    pub(super) fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.channels_out, self.output[0], self.output[1]]
    }

    /// Returns the number of pixels of an input image.
    pub(super) fn pixels_in(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Returns the number of pixels of an output image.
    pub(super) fn pixels_out(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Returns the number of inputs per output pixel, which is the number of weights per output channel.
    pub(super) fn taps(&self) -> usize {
        self.channels_in * self.kernel[0] * self.kernel[1]
    }

    /// Returns `true` if output pixels equal input pixels, so that the image is its own matrix of columns.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.input == self.output
    }

    /// Returns `true` for a 3x3 kernel that keeps height and width, centered on the pixel.
    pub(super) fn is_same_3x3(&self) -> bool {
        self.kernel == [3, 3] && self.stride == 1 && self.input == self.output && self.offset == [1, 1]
    }

    /// Returns the geometry with input and output channels exchanged, for kernels that keep height and width.
    pub(super) fn swapped(&self) -> Self {
        Self { channels_in: self.channels_out, channels_out: self.channels_in, ..*self }
    }

    /// Splits the output into bands of whole rows of about `pixels` pixels.
    pub(super) fn bands(&self, pixels: usize) -> Vec<Band> {
        let [height, width] = self.output;
        let rows = (pixels / width).max(1);
        let band = |image, first| Band { image, rows: first..height.min(first + rows), width };
        (0..self.batch).flat_map(|image| (0..height).step_by(rows).map(move |first| band(image, first))).collect()
    }

    /// Writes, for every input channel and kernel position, a line with the inputs of the pixels of `band`: a matrix of
    /// [`Self::taps`] lines.
    pub(super) fn gather(&self, image: &[f32], band: &Band, columns: &mut [f32]) {
        let taps = self.views(band);
        let lines = columns.chunks_exact_mut(band.pixels());
        let planes = image.chunks_exact(self.pixels_in()).flat_map(|plane| taps.iter().map(move |tap| (plane, tap)));
        for (line, (plane, tap)) in lines.zip(planes) {
            if tap.is_empty() {
                line.fill(0.0);
                continue;
            }
            line[..tap.rows.start * band.width].fill(0.0);
            line[tap.rows.end * band.width..].fill(0.0);
            if self.shifts() {
                let run = tap.run(band.width);
                line[run.clone()].copy_from_slice(&plane[tap.source..][..run.len()]);
            } else {
                for (row, source) in tap.rows_with_source(self) {
                    let inner = &mut line[row * band.width..][tap.columns.clone()];
                    for (to, &from) in inner.iter_mut().zip(plane[source..].iter().step_by(self.stride)) {
                        *to = from;
                    }
                }
            }
            tap.clear_edges(line, band.width);
        }
    }

    /// Computes the adjoint of [`Self::gather`]: adds every line to the pixels from which it would have been read.
    pub(super) fn scatter_add(&self, columns: &mut [f32], band: &Band, image: &mut [f32]) {
        let taps = self.views(band);
        let mut lines = columns.chunks_exact_mut(band.pixels());
        for plane in image.chunks_exact_mut(self.pixels_in()) {
            for (tap, line) in taps.iter().zip(&mut lines) {
                if tap.is_empty() {
                    continue;
                }
                if self.shifts() {
                    tap.clear_edges(line, band.width);
                    let run = tap.run(band.width);
                    add(&line[run.clone()], &mut plane[tap.source..][..run.len()]);
                } else {
                    for (row, source) in tap.rows_with_source(self) {
                        let inner = &line[row * band.width..][tap.columns.clone()];
                        for (to, &from) in plane[source..].iter_mut().step_by(self.stride).zip(inner) {
                            *to += from;
                        }
                    }
                }
            }
        }
    }

    /// Returns `true` if the input at a kernel position is the shifted output, so that rows need not be copied one by
    /// one.
    fn shifts(&self) -> bool {
        self.stride == 1 && self.input[1] == self.output[1]
    }

    fn views(&self, band: &Band) -> Vec<TapView> {
        let [kernel_height, kernel_width] = self.kernel;
        let positions = (0..kernel_height).flat_map(|row| (0..kernel_width).map(move |column| [row, column]));
        positions.map(|position| self.view(position, band)).collect()
    }

    fn view(&self, position: [usize; 2], band: &Band) -> TapView {
        let [rows, columns] = [0, 1].map(|axis| {
            let first = self.offset[axis].saturating_sub(position[axis]).div_ceil(self.stride);
            let end = (self.input[axis] + self.offset[axis]).saturating_sub(position[axis]).div_ceil(self.stride);
            first..end.min(self.output[axis])
        });
        let rows = rows.start.max(band.rows.start)..rows.end.min(band.rows.end);
        let [y, x] = [rows.start, columns.start];
        let source = (y * self.stride + position[0] - self.offset[0]) * self.input[1]
            + (x * self.stride + position[1] - self.offset[1]);
        TapView { rows: rows.start - band.rows.start..rows.end.saturating_sub(band.rows.start), columns, source }
    }
}

/// Whole rows of an output image.
#[derive(Clone, Debug)]
pub(super) struct Band {
    pub(super) image: usize,
    rows: Range<usize>,
    width: usize,
}

impl Band {
    pub(super) fn pixels(&self) -> usize {
        self.rows.len() * self.width
    }

    /// Returns the index of the band's first pixel in its image.
    pub(super) fn first_pixel(&self) -> usize {
        self.rows.start * self.width
    }
}

/// Input pixels at one kernel position for the pixels of a band.
struct TapView {
    /// Rows of the band and columns whose input lies in the image and not in the padding.
    rows: Range<usize>,
    columns: Range<usize>,
    /// Input pixel of the first of these.
    source: usize,
}

impl TapView {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() || self.columns.is_empty()
    }

    /// Returns the range of the band's pixels from the first to the last whose input lies in the image, padding between
    /// included.
    fn run(&self, width: usize) -> Range<usize> {
        self.rows.start * width + self.columns.start..(self.rows.end - 1) * width + self.columns.end
    }

    /// Iterates over the rows of the band, with the input pixel of each row's first column.
    fn rows_with_source(&self, geometry: &Geometry) -> impl Iterator<Item = (usize, usize)> {
        let step = geometry.stride * geometry.input[1];
        self.rows.clone().zip((self.source..).step_by(step))
    }

    /// Sets the pixels whose input lies left or right of the image to zero.
    fn clear_edges(&self, line: &mut [f32], width: usize) {
        for row in line.chunks_exact_mut(width).take(self.rows.end).skip(self.rows.start) {
            row[..self.columns.start].fill(0.0);
            row[self.columns.end..].fill(0.0);
        }
    }
}
