use burn::tensor::{Device, Int, Tensor};

use super::Vocabulary;
use crate::math::Resize;
use crate::ops::transpose;
use crate::scales::ScaleAt;
use crate::{MapSize, Result, Scales, TokenPyramid};

/// A tokenizer with a canvas (the running feature map, f-hat in the papers): each scale's tokens are painted on it, and
/// it decodes to an image at any time.
///
/// Residual tokenizers add to the canvas; those whose every scale stands for the whole image replace it.
pub trait Tokenizer {
    /// Returns the default scale schedule.
    fn scales(&self) -> &Scales;

    /// Returns the choices per token.
    fn vocabulary(&self) -> Vocabulary;

    /// Returns the number of channels of the canvas and of a code vector.
    fn z_channels(&self) -> usize;

    /// Returns the shape of the images of a schedule, `[channels, height, width]`.
    fn image_shape(&self, scales: &Scales) -> [usize; 3];

    /// Returns the device of the weights.
    fn device(&self) -> Device;

    /// Encodes images `[batch, channels, height, width]` in `[-1, 1]` to token ids.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the images do not have the shape [`Tokenizer::image_shape`] of the schedule.
    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid>;

    /// Returns an empty canvas, `[batch, z_channels, height, width]`.
    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4>;

    /// Returns the code vectors of ids `[batch, tokens * symbols]`: `[batch, tokens, z_channels]`.
    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3>;

    /// Returns the vectors of all choices of a symbol, `[vocabulary.size, z_channels / symbols]`.
    fn codebook(&self) -> Tensor<2>;

    /// Paints a scale's code vectors, `[batch, tokens, z_channels]`, on the canvas, and returns the new canvas.
    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4>;

    /// Returns a transformer's input for a scale, computed from the canvas: `[batch, z_channels, height_k, width_k]`.
    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4>;

    /// Decodes a canvas to images `[batch, channels, height, width]` in `[-1, 1]`; smaller than the final ones if the
    /// canvas is, see [`Tokenizer::preview`].
    fn decode(&self, canvas: Tensor<4>) -> Tensor<4>;

    /// Decodes the canvas of any scale to images of the schedule's final size: a preview. Where a canvas has the size of
    /// its scale, the smaller image is resized.
    fn preview(&self, canvas: Tensor<4>, scales: &Scales) -> Tensor<4> {
        let [_, height, width] = self.image_shape(scales);
        // Cubic interpolation can exceed the range.
        Resize::Bicubic.apply(self.decode(canvas), MapSize { height, width }).clamp(-1.0, 1.0)
    }

    /// Returns the canvas after each scale of a pyramid.
    fn canvases(&self, tokens: &TokenPyramid) -> Vec<Tensor<4>> {
        let mut canvas = self.blank(tokens.batch(), tokens.scales());
        let mut canvases = Vec::with_capacity(tokens.scales().len());
        for at in tokens.scales().iter() {
            canvas = self.paint(canvas, at, self.lookup(tokens.map(at.k())));
            canvases.push(canvas.clone());
        }
        canvases
    }

    /// Returns the inputs of a teacher-forced transformer: those of all scales but the first, from the true tokens.
    /// `[batch, L - tokens of the first scale, z_channels]` (`idxBl_to_var_input` in VAR's code).
    fn teacher_input(&self, tokens: &TokenPyramid) -> Tensor<3> {
        let mut canvas = self.blank(tokens.batch(), tokens.scales());
        let mut inputs = Vec::with_capacity(tokens.scales().len());
        for at in tokens.scales().iter().skip(1) {
            let before = at.k() - 1;
            canvas = self.paint(canvas, tokens.scales().at(before), self.lookup(tokens.map(before)));
            inputs.push(transpose(self.next_input(&canvas, at).flatten::<3>(2, 3))); // [batch, tokens, z]
        }
        if inputs.is_empty() {
            return Tensor::zeros([tokens.batch(), 0, self.z_channels()], &canvas.device());
        }
        Tensor::cat(inputs, 1)
    }
}
