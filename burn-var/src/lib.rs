//! Next-scale autoregressive image generation (VAR) on Burn.

pub mod aid;
#[cfg(feature = "metrics")]
pub mod classifier;
#[cfg(feature = "metrics")]
pub mod encoder;
mod error;
mod generate;
pub mod guidance;
pub mod init;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod nn;
pub mod ops;
pub mod pretrained;
mod pyramid;
pub mod resize;
pub mod rng;
pub mod sampler;
mod scales;
pub mod tokenizer;
pub mod transformer;

pub use error::{Error, Result};
pub use generate::{Generated, Request, ScaleDone, check_pair, generate};
pub use pyramid::TokenPyramid;
pub use scales::{MapSize, Scales};
pub use tokenizer::Tokenizer;
