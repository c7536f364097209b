//! Terms of losses that do not depend on a training method.

mod reconstruction;

pub(crate) use reconstruction::{Criterion, Distance};
pub use reconstruction::TokenizerLoss;
