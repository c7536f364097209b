//! The frozen networks that the discriminator looks through.

use burn::tensor::Tensor;

use crate::models::dino::Vit;
use crate::{Error, Result};

/// A frozen network whose layers of features the discriminator's heads judge. An application can bring its own.
pub trait Projector {
    /// Number of layers of features: one for each head.
    fn layers(&self) -> usize;

    /// Channels of the features, the same in all layers.
    fn channels(&self) -> usize;

    /// The features of pictures `[batch, channels, height, width]` in `[-1, 1]`: for each layer
    /// `[batch, channels, positions]`. Gradients pass to the pictures.
    ///
    /// # Errors
    /// If the pictures do not fit.
    fn features(&self, images: Tensor<4>) -> Result<Vec<Tensor<3>>>;
}

/// A DINO vision transformer: what leaves some of its blocks, then what enters the first; the class token is added to
/// those of all patches (the read-out of StyleGAN-T and AID-VAR).
#[derive(Debug, Clone)]
pub struct VitProjector {
    vit: Vit,
    blocks: Vec<usize>,
}

impl VitProjector {
    /// Looks at what leaves the blocks of these numbers, from 0.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such block.
    pub fn new(vit: Vit, blocks: Vec<usize>) -> Result<Self> {
        let depth = vit.config().depth;
        match blocks.iter().find(|block| **block >= depth) {
            Some(block) => Err(Error::config("block of the encoder", block, format!("below its depth {depth}"))),
            None => Ok(Self { vit, blocks }),
        }
    }

    /// The transformer.
    pub fn vit(&self) -> &Vit {
        &self.vit
    }

    /// Looks at four blocks at even distances, the last among them: 2, 5, 8 and 11 of ViT-S, as the papers; at all, if
    /// there are no more than four.
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
        let seen = self.vit.features(self.vit.prepare(images)?, &self.blocks)?;
        let read_out = |tokens: Tensor<3>| {
            let [_, count, _] = tokens.dims();
            let (class, patches) = (tokens.clone().narrow(1, 0, 1), tokens.narrow(1, 1, count - 1));
            (patches + class).swap_dims(1, 2)
        };
        Ok(seen.blocks.into_iter().chain([seen.embedding]).map(read_out).collect())
    }
}
