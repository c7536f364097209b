//! Terms of losses that do not depend on a training method.

mod reconstruction;

pub use reconstruction::TokenizerLoss;
pub(crate) use reconstruction::{Criterion, Distance, LPIPS_LEAST, load_lpips};
