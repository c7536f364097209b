use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use burn_var::init::{Init, initialize};
use burn_var::ops;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The sizes of a projection head; DINO's own, for ViT-S on ImageNet, are 2048, 256 and 65,536.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadConfig {
    /// Width of the two hidden layers.
    pub hidden: usize,
    /// Width of what is compared with the outputs' directions.
    pub bottleneck: usize,
    /// Number of outputs.
    pub outputs: usize,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { hidden: 512, bottleneck: 128, outputs: 1024 }
    }
}

impl HeadConfig {
    /// Refuses sizes of 0.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let sizes =
            [("head.hidden", self.hidden), ("head.bottleneck", self.bottleneck), ("head.outputs", self.outputs)];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, size)) => Err(Error::config(*name, size, "at least 1")),
            None => Ok(()),
        }
    }

    /// A head for features of `width`. First weights keep the size of what passes, whatever the widths: DINO's own
    /// deviation of 0.02 does so for its widths alone, and the vector of length one would amplify what is small.
    pub(super) fn init(&self, width: usize, seed: u64, device: &Device) -> ProjectionHead {
        let sizes = [width, self.hidden, self.hidden, self.bottleneck];
        let zeros = |shape: [usize; 2]| Param::from_tensor(Tensor::<2>::zeros(shape, device));
        let layers = sizes.windows(2).map(|pair| Layer {
            weight: zeros([pair[0], pair[1]]),
            bias: Param::from_tensor(Tensor::zeros([pair[1]], device)),
        });
        let head = ProjectionHead { layers: layers.collect(), last: zeros([self.bottleneck, self.outputs]) };
        initialize(head, seed, |slot| match slot.shape {
            [inputs, _] => Init::Normal((*inputs as f64).powf(-0.5)),
            _ => Init::Constant(0.0),
        })
    }
}

#[derive(Module, Debug)]
struct Layer {
    /// `[in, out]`.
    weight: Param<Tensor<2>>,
    /// `[out]`.
    bias: Param<Tensor<1>>,
}

/// Three layers with GELU between, a vector of length one, and its cosines with the outputs' directions.
#[derive(Module, Debug)]
pub(super) struct ProjectionHead {
    layers: Vec<Layer>,
    /// `[bottleneck, outputs]`; only the directions of its columns count (DINO keeps their lengths at one).
    last: Param<Tensor<2>>,
}

impl ProjectionHead {
    /// `[crops, width]` to `[crops, outputs]`.
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let last = self.layers.len() - 1;
        let x = self.layers.iter().enumerate().fold(x, |x, (i, layer)| {
            let x = ops::linear(x, layer.weight.val(), Some(layer.bias.val()));
            if i == last { x } else { ops::gelu(x) }
        });
        let directions = unit(self.last.val(), 0);
        ops::linear(unit(x, 1), directions, None)
    }
}

/// Vectors of length one along an axis.
fn unit(x: Tensor<2>, axis: usize) -> Tensor<2> {
    let length = x.clone().square().sum_dim(axis).sqrt().clamp_min(1e-12);
    x / length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_cosines() {
        let config = HeadConfig { hidden: 8, bottleneck: 4, outputs: 50 };
        let head = config.init(6, 3, &Device::default());
        let x = Tensor::<2>::random([7, 6], burn::tensor::Distribution::Normal(0.0, 5.0), &Device::default());
        let cosines: Vec<f32> = head.forward(x).into_data().try_into_vec().unwrap();
        assert!(cosines.iter().all(|cosine| cosine.abs() <= 1.0 + 1e-5), "{cosines:?}");
        assert!(cosines.iter().any(|cosine| cosine.abs() > 0.3), "of every direction: {cosines:?}");
        assert!(HeadConfig { outputs: 0, ..config }.validate().is_err());
    }
}
