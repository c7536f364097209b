//! Inception v3 in the variant that defines FID: the network of TensorFlow's `classify_image_graph_def.pb`, as ported
//! by pytorch-fid. It differs from torchvision's in its pooling branches, which changes every published number.
#![allow(non_snake_case, reason = "fields bear the checkpoint's names")]

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::nn::{linear, zeros};
use crate::ops::{self, ConvSpec, max_pool_3x3, mean_pool_3x3};
use crate::{Error, MapSize, Result};

/// Height and width of the network's input.
const SIDE: usize = 299;
/// Added to the variance in the batch norms.
const EPSILON: f64 = 1e-3;
/// Number of channels of `Mixed_6d.branch1x1` in the spatial features of sFID.
const SPATIAL_CHANNELS: usize = 7;

/// Preprocessing of 8-bit images to the network's input. The choice changes features by about one percent, so report it
/// with every number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InceptionInput {
    /// TensorFlow 1, as in the guided-diffusion evaluator and therefore the VAR papers: bilinear from `target * (in /
    /// out)` without half-pixel centers, then `(x - 128) / 128`.
    #[default]
    Tf1,
    /// pytorch-fid: scaled to `[0, 1]`, bilinear with half-pixel centers and without antialiasing, then `2 x - 1`.
    Torch,
}

impl InceptionInput {
    /// Prepares images of one size, rows of red, green and blue in `0..=255`: `[images, 3, 299, 299]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `pixels` is not a whole number of images.
    pub fn prepare(self, pixels: &[u8], size: MapSize, device: &Device) -> Result<Tensor<4>> {
        let per_image = 3 * size.area();
        if per_image == 0 || !pixels.len().is_multiple_of(per_image) {
            let expected = format!("images of {} x {} x 3 numbers", size.height, size.width);
            return Err(Error::shape("pixels", expected, [pixels.len()]));
        }
        let count = pixels.len() / per_image;
        let (rows, columns) = (self.sources(size.height), self.sources(size.width));
        let mut values = vec![0.0; count * 3 * SIDE * SIDE];
        let planes = values.par_chunks_mut(SIDE * SIDE).enumerate();
        planes.for_each(|(plane, out)| {
            let from = &pixels[plane / 3 * per_image..][..per_image];
            let at = |row: usize, column: usize| {
                let value = f32::from(from[(row * size.width + column) * 3 + plane % 3]);
                if self == Self::Torch { value / 255.0 } else { value }
            };
            for (out, row) in out.chunks_exact_mut(SIDE).zip(&rows) {
                for (out, column) in out.iter_mut().zip(&columns) {
                    let [above, below] = [row.low, row.high].map(|row| [at(row, column.low), at(row, column.high)]);
                    *out = self.blend(above, below, row.weight, column.weight);
                }
            }
        });
        let shape = [count, 3, SIDE, SIDE];
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Interpolates four values in single precision and in the order of the original kernels, to match the last bit.
    fn blend(self, [a, b]: [f32; 2], [c, d]: [f32; 2], down: f32, right: f32) -> f32 {
        match self {
            Self::Tf1 => {
                let (above, below) = (a + (b - a) * right, c + (d - c) * right);
                (above + (below - above) * down - 128.0) / 128.0
            }
            Self::Torch => {
                let (above, below) = ((1.0 - right) * a + right * b, (1.0 - right) * c + right * d);
                2.0 * ((1.0 - down) * above + down * below) - 1.0
            }
        }
    }

    /// Returns the source of each of the [`SIDE`] values along an axis.
    fn sources(self, from: usize) -> Vec<Tap> {
        let step = from as f32 / SIDE as f32;
        let tap = |i: usize| {
            let place = match self {
                Self::Tf1 => i as f32 * step,
                Self::Torch => (step * (i as f32 + 0.5) - 0.5).max(0.0),
            };
            let low = (place as usize).min(from - 1);
            Tap { low, high: (low + 1).min(from - 1), weight: place - low as f32 }
        };
        (0..SIDE).map(tap).collect()
    }
}

/// Two neighboring values, and the weight of the second.
struct Tap {
    low: usize,
    high: usize,
    weight: f32,
}

/// Outputs of [`Inception`].
#[derive(Debug, Clone)]
pub struct InceptionOutput {
    /// `pool_3:0`, `[batch, 2048]`: for FID, precision and recall.
    pub pool: Tensor<2>,
    /// `mixed_6/conv:0`, the first 7 channels, in order of height, width and channel, `[batch, 2023]`: for sFID.
    pub spatial: Tensor<2>,
}

/// FID's Inception v3. Field names are those of `pt_inception-2015-12-05-6726825d.pth`.
#[derive(Module, Debug)]
pub struct Inception {
    Conv2d_1a_3x3: Unit,
    Conv2d_2a_3x3: Unit,
    Conv2d_2b_3x3: Unit,
    Conv2d_3b_1x1: Unit,
    Conv2d_4a_3x3: Unit,
    Mixed_5b: BlockA,
    Mixed_5c: BlockA,
    Mixed_5d: BlockA,
    Mixed_6a: BlockB,
    Mixed_6b: BlockC,
    Mixed_6c: BlockC,
    Mixed_6d: BlockC,
    Mixed_6e: BlockC,
    Mixed_7a: BlockD,
    Mixed_7b: BlockE,
    Mixed_7c: BlockE,
    fc: Linear,
}

impl Inception {
    /// Number of pool features.
    pub const POOL: usize = 2048;
    /// Number of spatial features.
    pub const SPATIAL: usize = 17 * 17 * SPATIAL_CHANNELS;

    /// Number of classes of the last layer.
    pub const CLASSES: usize = 1008;

    /// Creates a network whose weights are zero, to be loaded.
    pub fn init_zeros(device: &Device) -> Self {
        let unit = |input, output, kernel: usize, stride, pad: usize| {
            Unit::new([input, output], [kernel; 2], stride, [pad; 2], device)
        };
        Self {
            Conv2d_1a_3x3: unit(3, 32, 3, 2, 0),
            Conv2d_2a_3x3: unit(32, 32, 3, 1, 0),
            Conv2d_2b_3x3: unit(32, 64, 3, 1, 1),
            Conv2d_3b_1x1: unit(64, 80, 1, 1, 0),
            Conv2d_4a_3x3: unit(80, 192, 3, 1, 0),
            Mixed_5b: BlockA::new(192, 32, device),
            Mixed_5c: BlockA::new(256, 64, device),
            Mixed_5d: BlockA::new(288, 64, device),
            Mixed_6a: BlockB::new(288, device),
            Mixed_6b: BlockC::new(128, device),
            Mixed_6c: BlockC::new(160, device),
            Mixed_6d: BlockC::new(160, device),
            Mixed_6e: BlockC::new(192, device),
            Mixed_7a: BlockD::new(768, device),
            Mixed_7b: BlockE::new(1280, false, device),
            Mixed_7c: BlockE::new(2048, true, device),
            fc: linear(Self::POOL, Self::CLASSES, true, device),
        }
    }

    /// Computes features of prepared images, `[batch, 3, 299, 299]`; see [`InceptionInput::prepare`].
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn features(&self, images: Tensor<4>) -> Result<InceptionOutput> {
        self.observed(images, &mut |_, _| ())
    }

    /// Computes [`Inception::features`], and calls `observe` with the name and output of each block.
    ///
    /// # Errors
    /// The errors of [`Inception::features`].
    pub fn observed(
        &self,
        images: Tensor<4>,
        observe: &mut dyn FnMut(&'static str, &Tensor<4>),
    ) -> Result<InceptionOutput> {
        let [batch, shape @ ..] = images.dims();
        if batch == 0 || shape != [3, SIDE, SIDE] {
            return Err(Error::shape("images", format!("[batch, 3, {SIDE}, {SIDE}]"), images.dims()));
        }
        let mut observed = |name, x: Tensor<4>| {
            observe(name, &x);
            x
        };
        let x = observed("Conv2d_1a_3x3", self.Conv2d_1a_3x3.forward(images));
        let x = observed("Conv2d_2a_3x3", self.Conv2d_2a_3x3.forward(x));
        let x = observed("Conv2d_2b_3x3", self.Conv2d_2b_3x3.forward(x));
        let x = observed("maxpool1", max_pool_3x3(x, 2, 0));
        let x = observed("Conv2d_3b_1x1", self.Conv2d_3b_1x1.forward(x));
        let x = observed("Conv2d_4a_3x3", self.Conv2d_4a_3x3.forward(x));
        let x = observed("maxpool2", max_pool_3x3(x, 2, 0));
        let x = observed("Mixed_5b", self.Mixed_5b.forward(x));
        let x = observed("Mixed_5c", self.Mixed_5c.forward(x));
        let x = observed("Mixed_5d", self.Mixed_5d.forward(x));
        let x = observed("Mixed_6a", self.Mixed_6a.forward(x));
        let x = observed("Mixed_6b", self.Mixed_6b.forward(x).0);
        let x = observed("Mixed_6c", self.Mixed_6c.forward(x).0);
        // TensorFlow counts the blocks from 5b on, so its `mixed_6` is 6d; ports that take 6e are wrong.
        let (x, first) = self.Mixed_6d.forward(x);
        let x = observed("Mixed_6d", x);
        let x = observed("Mixed_6e", self.Mixed_6e.forward(x).0);
        let x = observed("Mixed_7a", self.Mixed_7a.forward(x));
        let x = observed("Mixed_7b", self.Mixed_7b.forward(x));
        let x = observed("Mixed_7c", self.Mixed_7c.forward(x));
        let pool = x.reshape([batch, Self::POOL, 64]).mean_dim(2).squeeze_dim(2);
        let spatial = ops::permute(first.narrow(1, 0, SPATIAL_CHANNELS), [0, 2, 3, 1]).reshape([batch, Self::SPATIAL]);
        Ok(InceptionOutput { pool, spatial })
    }

    /// Computes logits of 1008 classes, `[batch, 1008]`, from [`InceptionOutput::pool`]. The guided-diffusion evaluator
    /// omits the bias before its softmax, and so does the Inception Score that papers report.
    pub fn logits(&self, pool: Tensor<2>, with_bias: bool) -> Tensor<2> {
        let bias = self.fc.bias.as_ref().filter(|_| with_bias).map(Param::val);
        ops::linear(pool, self.fc.weight.val(), bias)
    }
}

/// Convolution, batch norm with training statistics, ReLU.
#[derive(Module, Debug)]
struct Unit {
    conv: Weight,
    bn: Norm,
    stride: usize,
    pad: [usize; 2],
}

#[derive(Module, Debug)]
struct Weight {
    weight: Param<Tensor<4>>,
}

#[derive(Module, Debug)]
struct Norm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
}

impl Unit {
    fn new(
        [input, output]: [usize; 2],
        [height, width]: [usize; 2],
        stride: usize,
        pad: [usize; 2],
        device: &Device,
    ) -> Self {
        let vector = || zeros([output], device);
        Self {
            conv: Weight { weight: zeros([output, input, height, width], device) },
            bn: Norm { weight: vector(), bias: vector(), running_mean: vector(), running_var: vector() },
            stride,
            pad,
        }
    }

    /// Applies the norm as a factor and an offset per channel, folded into the convolution.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let Norm { weight, bias, running_mean, running_var } = &self.bn;
        let factor = weight.val() / (running_var.val() + EPSILON).sqrt();
        let offset = bias.val() - running_mean.val() * factor.clone();
        let channels = factor.dims()[0];
        let weight = self.conv.weight.val() * factor.reshape([channels, 1, 1, 1]);
        let [down, across] = self.pad;
        let spec = ConvSpec { stride: self.stride, padding: [down, down, across, across] };
        ops::relu(ops::conv2d(x, weight, Some(offset), spec))
    }
}

fn join(parts: Vec<Tensor<4>>) -> Tensor<4> {
    Tensor::cat(parts, 1)
}

/// `Mixed_5*`, 35x35.
#[derive(Module, Debug)]
struct BlockA {
    branch1x1: Unit,
    branch5x5_1: Unit,
    branch5x5_2: Unit,
    branch3x3dbl_1: Unit,
    branch3x3dbl_2: Unit,
    branch3x3dbl_3: Unit,
    branch_pool: Unit,
}

impl BlockA {
    fn new(input: usize, pool: usize, device: &Device) -> Self {
        let unit = |input, output, kernel: usize| Unit::new([input, output], [kernel; 2], 1, [kernel / 2; 2], device);
        Self {
            branch1x1: unit(input, 64, 1),
            branch5x5_1: unit(input, 48, 1),
            branch5x5_2: unit(48, 64, 5),
            branch3x3dbl_1: unit(input, 64, 1),
            branch3x3dbl_2: unit(64, 96, 3),
            branch3x3dbl_3: unit(96, 96, 3),
            branch_pool: unit(input, pool, 1),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        join(vec![
            self.branch1x1.forward(x.clone()),
            self.branch5x5_2.forward(self.branch5x5_1.forward(x.clone())),
            self.branch3x3dbl_3.forward(double),
            self.branch_pool.forward(mean_pool_3x3(x)),
        ])
    }
}

/// `Mixed_6a`, to 17x17.
#[derive(Module, Debug)]
struct BlockB {
    branch3x3: Unit,
    branch3x3dbl_1: Unit,
    branch3x3dbl_2: Unit,
    branch3x3dbl_3: Unit,
}

impl BlockB {
    fn new(input: usize, device: &Device) -> Self {
        Self {
            branch3x3: Unit::new([input, 384], [3; 2], 2, [0; 2], device),
            branch3x3dbl_1: Unit::new([input, 64], [1; 2], 1, [0; 2], device),
            branch3x3dbl_2: Unit::new([64, 96], [3; 2], 1, [1; 2], device),
            branch3x3dbl_3: Unit::new([96, 96], [3; 2], 2, [0; 2], device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let double = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        join(vec![self.branch3x3.forward(x.clone()), self.branch3x3dbl_3.forward(double), max_pool_3x3(x, 2, 0)])
    }
}

/// `Mixed_6b` to `Mixed_6e`, 17x17, 768 channels in and out.
#[derive(Module, Debug)]
struct BlockC {
    branch1x1: Unit,
    branch7x7_1: Unit,
    branch7x7_2: Unit,
    branch7x7_3: Unit,
    branch7x7dbl_1: Unit,
    branch7x7dbl_2: Unit,
    branch7x7dbl_3: Unit,
    branch7x7dbl_4: Unit,
    branch7x7dbl_5: Unit,
    branch_pool: Unit,
}

impl BlockC {
    fn new(middle: usize, device: &Device) -> Self {
        let unit = |input, output, kernel: [usize; 2]| {
            Unit::new([input, output], kernel, 1, kernel.map(|side| side / 2), device)
        };
        Self {
            branch1x1: unit(768, 192, [1, 1]),
            branch7x7_1: unit(768, middle, [1, 1]),
            branch7x7_2: unit(middle, middle, [1, 7]),
            branch7x7_3: unit(middle, 192, [7, 1]),
            branch7x7dbl_1: unit(768, middle, [1, 1]),
            branch7x7dbl_2: unit(middle, middle, [7, 1]),
            branch7x7dbl_3: unit(middle, middle, [1, 7]),
            branch7x7dbl_4: unit(middle, middle, [7, 1]),
            branch7x7dbl_5: unit(middle, 192, [1, 7]),
            branch_pool: unit(768, 192, [1, 1]),
        }
    }

    /// Returns the output, and the output of the first branch.
    fn forward(&self, x: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let first = self.branch1x1.forward(x.clone());
        let seven = self.branch7x7_2.forward(self.branch7x7_1.forward(x.clone()));
        let double = self.branch7x7dbl_2.forward(self.branch7x7dbl_1.forward(x.clone()));
        let double = self.branch7x7dbl_4.forward(self.branch7x7dbl_3.forward(double));
        let all = join(vec![
            first.clone(),
            self.branch7x7_3.forward(seven),
            self.branch7x7dbl_5.forward(double),
            self.branch_pool.forward(mean_pool_3x3(x)),
        ]);
        (all, first)
    }
}

/// `Mixed_7a`, to 8x8.
#[derive(Module, Debug)]
struct BlockD {
    branch3x3_1: Unit,
    branch3x3_2: Unit,
    branch7x7x3_1: Unit,
    branch7x7x3_2: Unit,
    branch7x7x3_3: Unit,
    branch7x7x3_4: Unit,
}

impl BlockD {
    fn new(input: usize, device: &Device) -> Self {
        let unit =
            |input, output, kernel: [usize; 2], stride, pad| Unit::new([input, output], kernel, stride, pad, device);
        Self {
            branch3x3_1: unit(input, 192, [1, 1], 1, [0, 0]),
            branch3x3_2: unit(192, 320, [3, 3], 2, [0, 0]),
            branch7x7x3_1: unit(input, 192, [1, 1], 1, [0, 0]),
            branch7x7x3_2: unit(192, 192, [1, 7], 1, [0, 3]),
            branch7x7x3_3: unit(192, 192, [7, 1], 1, [3, 0]),
            branch7x7x3_4: unit(192, 192, [3, 3], 2, [0, 0]),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let seven = self.branch7x7x3_2.forward(self.branch7x7x3_1.forward(x.clone()));
        join(vec![
            self.branch3x3_2.forward(self.branch3x3_1.forward(x.clone())),
            self.branch7x7x3_4.forward(self.branch7x7x3_3.forward(seven)),
            max_pool_3x3(x, 2, 0),
        ])
    }
}

/// `Mixed_7b` and `Mixed_7c`, 8x8.
#[derive(Module, Debug)]
struct BlockE {
    branch1x1: Unit,
    branch3x3_1: Unit,
    branch3x3_2a: Unit,
    branch3x3_2b: Unit,
    branch3x3dbl_1: Unit,
    branch3x3dbl_2: Unit,
    branch3x3dbl_3a: Unit,
    branch3x3dbl_3b: Unit,
    branch_pool: Unit,
    /// `Mixed_7c` uses the maximum where all other blocks use the mean; a slip in the original that its weights rely
    /// on.
    pools_maximum: bool,
}

impl BlockE {
    fn new(input: usize, pools_maximum: bool, device: &Device) -> Self {
        let unit = |input, output, kernel: [usize; 2]| {
            Unit::new([input, output], kernel, 1, kernel.map(|side| side / 2), device)
        };
        Self {
            branch1x1: unit(input, 320, [1, 1]),
            branch3x3_1: unit(input, 384, [1, 1]),
            branch3x3_2a: unit(384, 384, [1, 3]),
            branch3x3_2b: unit(384, 384, [3, 1]),
            branch3x3dbl_1: unit(input, 448, [1, 1]),
            branch3x3dbl_2: unit(448, 384, [3, 3]),
            branch3x3dbl_3a: unit(384, 384, [1, 3]),
            branch3x3dbl_3b: unit(384, 384, [3, 1]),
            branch_pool: unit(input, 192, [1, 1]),
            pools_maximum,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let three = self.branch3x3_1.forward(x.clone());
        let double = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x.clone()));
        let pooled = if self.pools_maximum { max_pool_3x3(x.clone(), 1, 1) } else { mean_pool_3x3(x.clone()) };
        join(vec![
            self.branch1x1.forward(x),
            self.branch3x3_2a.forward(three.clone()),
            self.branch3x3_2b.forward(three),
            self.branch3x3dbl_3a.forward(double.clone()),
            self.branch3x3dbl_3b.forward(double),
            self.branch_pool.forward(pooled),
        ])
    }
}
