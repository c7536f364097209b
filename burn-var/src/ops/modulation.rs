//! Adaptive layer norm: scales, shifts and gates that differ by image.

use std::sync::OnceLock;

use burn::tensor::Tensor;

#[cfg(feature = "gpu")]
use super::cube;
use super::{gated_residual, gelu_tanh, layer_norm_modulate};

/// Scale, shift or gate of every channel, one row per image: a part of a projection that holds several.
#[derive(Debug, Clone)]
pub struct Rows {
    packed: Tensor<2>,
    offset: usize,
    width: usize,
    /// `[batch, 1, width]`, cut out at the first use; not at all if kernels read the projection.
    part: OnceLock<Tensor<3>>,
}

impl Rows {
    /// Splits `[batch, N * width]` into its parts.
    pub fn split<const N: usize>(packed: Tensor<2>) -> [Self; N] {
        let width = packed.dims()[1] / N;
        core::array::from_fn(|i| Self { packed: packed.clone(), offset: i * width, width, part: OnceLock::new() })
    }

    /// Returns the rows as `[batch, 1, width]`.
    pub fn tensor(&self) -> Tensor<3> {
        self.part.get_or_init(|| self.packed.clone().narrow(1, self.offset, self.width).unsqueeze_dim(1)).clone()
    }

    /// Keeps the rows of the first images.
    #[must_use]
    pub fn keep_first(self, batch: usize) -> Self {
        let part = self.part.into_inner().map(|part| OnceLock::from(part.narrow(0, 0, batch)));
        Self { packed: self.packed.narrow(0, 0, batch), part: part.unwrap_or_default(), ..self }
    }
}

#[cfg(feature = "gpu")]
impl Rows {
    /// Returns the projection, `[batch, at least width]`.
    pub(crate) fn packed(&self) -> Tensor<2> {
        self.packed.clone()
    }

    /// Returns the place of the first channel in each row of the projection.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }
}

impl From<Tensor<3>> for Rows {
    /// Creates rows from `[batch, 1, width]`.
    fn from(rows: Tensor<3>) -> Self {
        let packed = rows.clone().squeeze_dim::<2>(1);
        Self { width: packed.dims()[1], packed, offset: 0, part: OnceLock::from(rows) }
    }
}

/// Computes [`layer_norm_modulate`] with rows of a projection.
///
/// # Shapes
/// - `x` and output: `[batch, length, channels]`
pub fn modulated_norm(x: Tensor<3>, [scale, shift]: [&Rows; 2], eps: f64) -> Tensor<3> {
    #[cfg(feature = "gpu")]
    if cube::is_plain(&x) {
        return cube::modulated_norm(x, [scale, shift], eps);
    }
    layer_norm_modulate(x, scale.tensor(), shift.tensor(), eps)
}

/// Result of a linear layer, `[batch, length, channels]`, to which the layer's bias may have yet to be added: a kernel that
/// reads the result can do so on the way.
#[derive(Debug, Clone)]
pub struct Branch {
    /// The result.
    pub value: Tensor<3>,
    /// Bias that is not part of it yet, `[channels]`.
    pub bias: Option<Tensor<1>>,
}

impl Branch {
    /// Adds the bias if it has yet to be added.
    pub fn with_bias(self) -> Tensor<3> {
        match self.bias {
            Some(bias) => self.value + bias.unsqueeze::<3>(),
            None => self.value,
        }
    }

    /// Computes [`gelu_tanh`] of the result.
    pub fn gelu_tanh(self) -> Tensor<3> {
        #[cfg(feature = "gpu")]
        if let Some(bias) = self.bias.as_ref().filter(|_| cube::is_plain(&self.value)) {
            return cube::gelu(self.value, bias.clone());
        }
        gelu_tanh(self.with_bias())
    }
}

/// Adds a gated branch, [`gated_residual`], and normalizes the sum, [`modulated_norm`]; returns the sum and the norm.
pub fn residual_norm(
    x: Tensor<3>,
    branch: Branch,
    gate: &Rows,
    [scale, shift]: [&Rows; 2],
    eps: f64,
) -> (Tensor<3>, Tensor<3>) {
    #[cfg(feature = "gpu")]
    if cube::is_plain(&x) {
        return cube::residual_norm(x, branch, gate, [scale, shift], eps);
    }
    let sum = gated_residual(x, branch.with_bias(), gate.tensor());
    let normed = modulated_norm(sum.clone(), [scale, shift], eps);
    (sum, normed)
}

/// Returns `true` if [`residual_norm`] adds a bias on the way.
pub(crate) fn adds_bias(x: &Tensor<3>) -> bool {
    #[cfg(feature = "gpu")]
    return cube::is_plain(x);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = x;
        false
    }
}
