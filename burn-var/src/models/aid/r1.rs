//! The R1 penalty of the discriminator heads, with their backward pass written out by hand.
//!
//! Burn differentiates once, so the gradient that R1 penalizes is an expression of its own, which autodiff then
//! differentiates: the same value and gradients as a double backward pass.

use burn::tensor::Tensor;

use super::heads::{
    DiscriminatorHeads, Head, HeadTrace, Layer, LayerTrace, LocalNorm, NormTrace, SpectralConv, convolve,
};
use crate::ops::swap;
use crate::{Error, Result};

impl DiscriminatorHeads {
    /// Computes the R1 penalty at the inputs of the heads, `[1]`: the squared gradient of the sum of an image's logits
    /// with respect to its features, summed over heads, channels and positions, mean over images. The loss is
    /// `gamma / 2` times it.
    ///
    /// # Errors
    /// The errors of [`DiscriminatorHeads::forward`].
    pub fn r1(&self, features: &[Tensor<3>], condition: Option<&Tensor<2>>) -> Result<Tensor<1>> {
        let batch = features.first().map_or(1, |features| features.dims()[0]);
        let outputs = self.outputs(features, condition)?;
        let squares = outputs.map(|(head, output)| head.input_gradient(output.logits, output.trace).square().sum());
        let sum = squares.reduce(|a, b| a + b).ok_or_else(|| Error::config("heads", 0, "at least 1"))?;
        Ok(sum / batch as f64)
    }
}

impl Head {
    /// Computes the gradient of the sum of the logits with respect to the features, `[batch, channels, length]`.
    fn input_gradient(&self, logits: Tensor<3>, trace: HeadTrace) -> Tensor<3> {
        let HeadTrace { first, second, projection, unbounded } = trace;
        // The gradient of a logit with respect to itself before the bound: 1, and 0 where the bound changed it.
        let unchanged = unbounded.detach().equal(logits.detach()).float();
        let grad = match projection {
            Some(projection) => unchanged * projection,
            None => unchanged,
        };
        let grad = self.cls.backward(grad) / 2f64.sqrt();
        let grad = self.second.backward(grad.clone(), second) + grad;
        self.first.backward(grad, first)
    }
}

impl Layer {
    /// Computes the gradient of the input from that of the output.
    fn backward(&self, grad: Tensor<3>, trace: LayerTrace) -> Tensor<3> {
        self.conv.backward(self.norm.backward(grad * trace.slope, trace.norm))
    }
}

impl SpectralConv {
    /// Computes the gradient of the input from that of the output: a convolution with the flipped kernel.
    fn backward(&self, grad: Tensor<3>) -> Tensor<3> {
        convolve(grad, swap(self.weight(), 0, 1).flip([2]), None)
    }
}

impl LocalNorm {
    /// Computes the gradient of the input from that of the output.
    fn backward(&self, grad: Tensor<3>, trace: NormTrace) -> Tensor<3> {
        let NormTrace { normalized, std, above_floor } = trace;
        let [batch, channels, length] = grad.dims();
        let grad = grad.reshape(normalized.dims()) * self.weight.val().reshape([1, 1, channels, 1]);
        // The part that passes through the variance, which is constant below the floor.
        let along = (grad.clone() * normalized.clone()).mean_dims(&[1, 3]) * above_floor;
        let out = (grad.clone() - grad.mean_dims(&[1, 3]) - normalized * along) / std;
        out.reshape([batch, channels, length])
    }
}
