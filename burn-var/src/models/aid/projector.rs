//! Frozen networks whose features the discriminator's heads classify.

use burn::tensor::Tensor;

use crate::models::dino::Vit;
use crate::ops::transpose;
use crate::{Error, Result};

/// Frozen network whose feature layers the discriminator's heads classify. An application can supply its own.
pub trait Projector {
    /// Returns the number of feature layers, one per head.
    fn layers(&self) -> usize;

    /// Returns the number of channels, the same in all layers.
    fn channels(&self) -> usize;

    /// Computes features of images `[batch, channels, height, width]` in `[-1, 1]`: one `[batch, channels, positions]`
    /// per layer. Gradients pass to the images.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the network does not accept images of this shape.
    fn features(&self, images: Tensor<4>) -> Result<Vec<Tensor<3>>>;
}

/// DINO vision transformer as a projector: the outputs of some blocks, then the input of the first block, with the
/// class token added to every patch token (the readout of StyleGAN-T and AID-VAR).
#[derive(Debug, Clone)]
pub struct VitProjector {
    vit: Vit,
    blocks: Vec<usize>,
}

impl VitProjector {
    /// Creates a projector that reads the outputs of the given blocks, numbered from 0.
    ///
    /// # Errors
    /// [`Error::Config`] if a block does not exist.
    pub fn new(vit: Vit, blocks: Vec<usize>) -> Result<Self> {
        let depth = vit.config().depth;
        match blocks.iter().find(|block| **block >= depth) {
            Some(block) => Err(Error::config("block of the encoder", block, format!("below its depth {depth}"))),
            None => Ok(Self { vit, blocks }),
        }
    }

    /// Returns the transformer.
    pub fn vit(&self) -> &Vit {
        &self.vit
    }

    /// Creates a projector that reads four evenly spaced blocks, the last among them (2, 5, 8 and 11 of ViT-S, as in
    /// the papers), or all blocks if there are at most four.
    pub fn even(vit: Vit) -> Self {
        let depth = vit.config().depth;
        let count = depth.min(4);
        let blocks = (1..=count).map(|i| i * depth / count - 1).collect();
        Self { vit, blocks }
    }
}

impl Projector for VitProjector {
    fn layers(&self) -> usize {
        self.blocks.len() + 1
    }

    fn channels(&self) -> usize {
        self.vit.config().embed_dim
    }

    fn features(&self, images: Tensor<4>) -> Result<Vec<Tensor<3>>> {
        let output = self.vit.features(self.vit.prepare(images)?, &self.blocks)?;
        let read_out = |tokens: Tensor<3>| {
            let [_, count, _] = tokens.dims();
            let (class, patches) = (tokens.clone().narrow(1, 0, 1), tokens.narrow(1, 1, count - 1));
            transpose(patches + class)
        };
        Ok(output.blocks.into_iter().chain([output.embedding]).map(read_out).collect())
    }
}
