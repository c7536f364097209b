use burn::tensor::Tensor;

use crate::{Error, Result};

/// Condition of one image.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is one per image")]
pub enum Condition {
    /// A class label, from 0.
    Class(usize),
    /// Features of a text, `[tokens, channels]`; images of a batch may have texts of different lengths.
    Text(Tensor<2>),
    /// Nothing: the null condition that classifier-free guidance contrasts with.
    Null,
}

impl Condition {
    /// Returns the conditions of class labels, one per image.
    pub fn classes(labels: &[usize]) -> Vec<Self> {
        labels.iter().copied().map(Self::Class).collect()
    }

    /// Returns the row of a class embedding for each condition, the null class being the last of `classes + 1` rows.
    ///
    /// # Errors
    /// [`Error::Label`] for a class that the model does not have, [`Error::Unsupported`] for a text.
    pub fn class_rows(conditions: &[Self], classes: usize) -> Result<Vec<usize>> {
        let row = |condition: &Self| match *condition {
            Self::Class(label) if label >= classes => Err(Error::Label { label, classes }),
            Self::Class(label) => Ok(label),
            Self::Null => Ok(classes),
            Self::Text(_) => {
                Err(Error::unsupported("a text condition", "this model is conditioned on class labels; give a class"))
            }
        };
        conditions.iter().map(row).collect()
    }
}

impl From<usize> for Condition {
    fn from(label: usize) -> Self {
        Self::Class(label)
    }
}

impl From<Option<usize>> for Condition {
    fn from(label: Option<usize>) -> Self {
        label.map_or(Self::Null, Self::Class)
    }
}
