//! Next-scale autoregressive image generation (VAR) on Burn.

mod error;
pub mod metrics;
pub mod pretrained;
mod scales;

pub use error::{Error, Result};
pub use scales::{MapSize, Scales};
