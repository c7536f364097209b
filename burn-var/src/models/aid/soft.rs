use burn::tensor::Tensor;

use crate::scales::ScaleAt;
use crate::{Scales, Tokenizer, ops};

/// Decodes logits to code vectors softly (equation 5): `softmax(logits / temperature) codebook`, `[batch, tokens,
/// vocab]` to `[batch, tokens, z_channels]`. Unlike a lookup, it lets gradients pass; as the temperature approaches 0,
/// the result approaches the vector of the most likely code.
pub fn soft_codes(logits: Tensor<3>, codebook: Tensor<2>, temperature: f64) -> Tensor<3> {
    let logits = if temperature == 1.0 { logits } else { logits / temperature };
    ops::linear(ops::softmax(logits), codebook, None)
}

/// Canvas painted with [`soft_codes`], scale by scale, during generation. Scales that are not painted yet add nothing,
/// so [`Tokenizer::decode`] shows the image as of each scale.
#[derive(Debug)]
pub struct SoftCanvas<'a, T> {
    tokenizer: &'a T,
    codebook: Tensor<2>,
    canvas: Tensor<4>,
    temperature: f64,
}

impl<'a, T: Tokenizer> SoftCanvas<'a, T> {
    /// Creates an empty canvas for `batch` images.
    pub fn new(tokenizer: &'a T, batch: usize, scales: &Scales, temperature: f64) -> Self {
        Self { tokenizer, codebook: tokenizer.codebook(), canvas: tokenizer.blank(batch, scales), temperature }
    }

    /// Paints a scale and returns the canvas so far, `[batch, z_channels, height, width]`.
    pub fn paint(&mut self, at: ScaleAt<'_>, logits: Tensor<3>) -> Tensor<4> {
        let codes = soft_codes(logits, self.codebook.clone(), self.temperature);
        self.canvas = self.tokenizer.paint(self.canvas.clone(), at, codes);
        self.canvas.clone()
    }

    /// Detaches the canvas: no gradient passes to the scales painted so far.
    pub fn detach(&mut self) {
        self.canvas = self.canvas.clone().detach();
    }
}
