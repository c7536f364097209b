//! Pictures to token pyramids and back.

mod blocks;
mod quantizer;
mod vqvae;

use burn::tensor::{Int, Tensor};

pub use blocks::{AttnBlock, Decoder, Encoder, ResBlock};
pub use quantizer::{Quantized, Quantizer, phi_index};
pub use vqvae::{VqVae, VqVaeConfig};

use crate::{Result, Scales, TokenPyramid};

/// What the generation loop needs of a tokenizer: a canvas (the running feature map, f-hat in the papers) that each
/// scale's tokens are painted on, and that decodes to a picture at any time.
pub trait Tokenizer {
    /// The ladder of token maps.
    fn scales(&self) -> &Scales;

    /// Number of codes.
    fn vocab_size(&self) -> usize;

    /// Channels of the canvas.
    fn z_channels(&self) -> usize;

    /// Shape of the pictures, `[channels, height, width]`.
    fn picture_shape(&self) -> [usize; 3];

    /// Pictures `[batch, channels, height, width]` in `[-1, 1]` to token ids.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the pictures have another shape than [`Tokenizer::picture_shape`].
    fn tokenize(&self, images: Tensor<4>) -> Result<TokenPyramid>;

    /// An empty canvas of zeros, `[batch, z_channels, height, width]`.
    fn blank(&self, batch: usize) -> Tensor<4>;

    /// The code vectors of `[batch, tokens]` ids: `[batch, tokens, z_channels]`.
    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// All code vectors, `[vocab_size, z_channels]`.
    fn codebook(&self) -> Tensor<2>;

    /// Adds scale `k`'s code vectors, `[batch, tokens, z_channels]`, to the canvas.
    fn paint(&self, canvas: Tensor<4>, k: usize, codes: Tensor<3>) -> Tensor<4>;

    /// What a transformer sees of the canvas before it predicts scale `k`: `[batch, z_channels, height_k, width_k]`.
    fn next_input(&self, canvas: &Tensor<4>, k: usize) -> Tensor<4>;

    /// The canvas as pictures `[batch, channels, height, width]` in `[-1, 1]`.
    fn decode(&self, canvas: Tensor<4>) -> Tensor<4>;

    /// The canvas after every scale of a pyramid.
    fn canvases(&self, tokens: &TokenPyramid) -> Vec<Tensor<4>> {
        let mut canvas = self.blank(tokens.batch());
        (0..self.scales().len())
            .map(|k| {
                canvas = self.paint(canvas.clone(), k, self.lookup(tokens.map(k)));
                canvas.clone()
            })
            .collect()
    }

    /// What a transformer is fed when it is taught: the inputs of all scales but the first, of the true tokens.
    /// `[batch, L - tokens of the first scale, z_channels]` (`idxBl_to_var_input` in VAR's code).
    fn teacher_input(&self, tokens: &TokenPyramid) -> Tensor<3> {
        let count = self.scales().len();
        let mut canvas = self.blank(tokens.batch());
        let mut inputs = Vec::with_capacity(count);
        for k in 0..count - 1 {
            canvas = self.paint(canvas, k, self.lookup(tokens.map(k)));
            inputs.push(self.next_input(&canvas, k + 1).flatten::<3>(2, 3).swap_dims(1, 2)); // [batch, tokens, z]
        }
        if inputs.is_empty() {
            return Tensor::zeros([tokens.batch(), 0, self.z_channels()], &canvas.device());
        }
        Tensor::cat(inputs, 1)
    }
}
