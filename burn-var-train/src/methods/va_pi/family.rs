//! The families of models that VA-pi trains.

use burn::tensor::Tensor;
use burn_var::models::common::Adaptable;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVar};
use burn_var::models::llamagen::{LlamaGen, LlamaGenVq};
use burn_var::models::var::{Var, VqVae};
use burn_var::weights::Pretrained;
use burn_var::{MapSize, Scales, Tokenizer, ops};

use super::Credit;
use crate::optim::{NoDecay, no_decay_norms, no_decay_var};
use crate::{Error, Result};

/// A transformer that VA-pi trains, and the tokenizer of its family.
pub trait VaPiFamily: Adaptable {
    /// The tokenizer.
    type Tokenizer: Tokenizer + Pretrained;

    /// Tokens that a reward can be credited to, the default first.
    const CREDITS: &'static [Credit];

    /// Parameters without weight decay.
    const NO_DECAY: NoDecay;

    /// True if the tokenizer decides about the scale schedule; else the transformer does.
    const TOKENIZER_HAS_SCALES: bool;

    /// Returns the final canvas of the code vectors of all tokens, `[batch, L, z_channels]`. Gradients pass.
    fn canvas(tokenizer: &Self::Tokenizer, codes: Tensor<3>, scales: &Scales) -> Tensor<4>;

    /// Decodes a canvas to images, as the authors of the family do: clamped by VAR's tokenizer alone. Gradients pass.
    fn decode(tokenizer: &Self::Tokenizer, canvas: Tensor<4>) -> Tensor<4>;

    /// Encodes images to the latent before it is quantized, of the size of a canvas.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] for images of another shape.
    fn latent(tokenizer: &Self::Tokenizer, images: Tensor<4>) -> Result<Tensor<4>>;

    /// Returns the codebook as it is stored, `[vocabulary, z_channels]`; [`Tokenizer::codebook`] is the one in use.
    fn stored_codes(tokenizer: &Self::Tokenizer) -> Tensor<2>;

    /// Checks that this model can be trained.
    ///
    /// # Errors
    /// [`Error::Config`] naming what it is and what is expected.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Returns code vectors, `[batch, tokens, z_channels]` row by row, as a map.
fn map_of(codes: Tensor<3>, MapSize { height, width }: MapSize) -> Tensor<4> {
    let [batch, _, channels] = codes.dims();
    ops::swap(codes, 1, 2).reshape([batch, channels, height, width])
}

impl VaPiFamily for Var {
    type Tokenizer = VqVae;

    const CREDITS: &'static [Credit] =
        &[Credit::Shared, Credit::PrefixSwap, Credit::OnlyScale, Credit::LeaveOneScale, Credit::LastScale];
    const NO_DECAY: NoDecay = no_decay_var;
    const TOKENIZER_HAS_SCALES: bool = true;

    fn canvas(tokenizer: &VqVae, codes: Tensor<3>, scales: &Scales) -> Tensor<4> {
        let blank = tokenizer.blank(codes.dims()[0], scales);
        scales.iter().fold(blank, |canvas, at| {
            let range = at.range();
            tokenizer.paint(canvas, at, codes.clone().narrow(1, range.start, range.len()))
        })
    }

    fn decode(tokenizer: &VqVae, canvas: Tensor<4>) -> Tensor<4> {
        tokenizer.decode(canvas)
    }

    fn latent(tokenizer: &VqVae, images: Tensor<4>) -> Result<Tensor<4>> {
        Ok(tokenizer.latent(images)?)
    }

    fn stored_codes(tokenizer: &VqVae) -> Tensor<2> {
        tokenizer.codebook()
    }
}

impl VaPiFamily for FlexVar {
    type Tokenizer = FlexVae;

    const CREDITS: &'static [Credit] = &[Credit::LastScale, Credit::PerScaleDecode, Credit::Shared];
    const NO_DECAY: NoDecay = no_decay_var;
    const TOKENIZER_HAS_SCALES: bool = false;

    /// Returns the map of the last scale, which alone is decoded.
    fn canvas(_: &FlexVae, codes: Tensor<3>, scales: &Scales) -> Tensor<4> {
        let range = scales.range(scales.len() - 1);
        map_of(codes.narrow(1, range.start, range.len()), scales.finest())
    }

    fn decode(tokenizer: &FlexVae, canvas: Tensor<4>) -> Tensor<4> {
        tokenizer.decode_raw(canvas)
    }

    fn latent(tokenizer: &FlexVae, images: Tensor<4>) -> Result<Tensor<4>> {
        Ok(tokenizer.latent(images)?)
    }

    fn stored_codes(tokenizer: &FlexVae) -> Tensor<2> {
        tokenizer.vq.quantize.embedding.weight.val()
    }

    fn check(&self) -> Result<()> {
        match self.config().first {
            FirstScale::OneShot => Ok(()),
            first => Err(Error::config("first of the transformer", format!("{first:?}"), "one-shot")),
        }
    }
}

impl VaPiFamily for LlamaGen {
    type Tokenizer = LlamaGenVq;

    const CREDITS: &'static [Credit] = &[Credit::Shared];
    const NO_DECAY: NoDecay = no_decay_norms;
    const TOKENIZER_HAS_SCALES: bool = false;

    fn canvas(_: &LlamaGenVq, codes: Tensor<3>, scales: &Scales) -> Tensor<4> {
        map_of(codes, scales.finest())
    }

    fn decode(tokenizer: &LlamaGenVq, canvas: Tensor<4>) -> Tensor<4> {
        tokenizer.decode_raw(canvas)
    }

    fn latent(tokenizer: &LlamaGenVq, images: Tensor<4>) -> Result<Tensor<4>> {
        Ok(tokenizer.latent(images)?)
    }

    fn stored_codes(tokenizer: &LlamaGenVq) -> Tensor<2> {
        tokenizer.vq.quantize.embedding.weight.val()
    }
}
