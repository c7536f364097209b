//! Next-scale autoregressive image generation (VAR and its family) on Burn.

pub mod editing;
mod error;
pub mod generation;
pub mod guidance;
#[cfg(feature = "image")]
pub mod image;
pub mod init;
pub mod math;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod models;
pub mod nn;
pub mod ops;
#[cfg(feature = "image")]
pub mod pipeline;
pub mod prelude;
pub mod rng;
pub mod sampling;
pub mod scales;
mod tokens;
pub mod weights;

pub use error::{Error, Result};
pub use generation::{BatchRequest, Condition, NextScale, Tokenizer, generate};
pub use scales::{MapSize, Scales};
pub use tokens::TokenPyramid;
