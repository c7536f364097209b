use burn::tensor::Tensor;

use crate::scales::ScaleAt;
use crate::{Scales, Tokenizer, ops};

/// Decodes logits to code vectors softly (equation 5): `softmax(logits / temperature) codebook`, `[batch, tokens, vocab]`
/// to `[batch, tokens, z_channels]`. Gradients pass, which they do not through a lookup; a temperature near 0 gives the
/// vectors of the most likely codes.
pub fn soft_codes(logits: Tensor<3>, codebook: Tensor<2>, temperature: f64) -> Tensor<3> {
    let logits = if temperature == 1.0 { logits } else { logits / temperature };
    ops::linear(ops::softmax(logits), codebook, None)
}

/// A canvas painted with [`soft_codes`], scale by scale, while tokens are drawn for another. Scales that have not come
/// yet add nothing to it, so that [`Tokenizer::decode`] shows the image as of each scale.
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

    /// Lets no gradient pass to the scales painted so far.
    pub fn detach(&mut self) {
        self.canvas = self.canvas.clone().detach();
    }
}
