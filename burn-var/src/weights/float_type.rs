//! Element types of weights.

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A floating-point type of weights, in memory or in a file. Sums are in single precision for every type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// Single precision, 4 bytes: the type of the published results, and the only one for training.
    #[default]
    F32,
    /// Half precision, 2 bytes, 11 significant bits.
    F16,
    /// bfloat16, the upper half of single precision, 2 bytes, 8 significant bits.
    Bf16,
}

impl FloatType {
    /// Returns the element type of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Checks that a device can hold weights of this type.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming both.
    pub fn check(self, device: &Device) -> Result<()> {
        match device.supports_dtype(self.dtype()) {
            true => Ok(()),
            false => {
                let what = format!("weights of type {:?} on {device:?}", self.dtype());
                Err(Error::unsupported(what, "use single precision (f32), or another device"))
            }
        }
    }
}
