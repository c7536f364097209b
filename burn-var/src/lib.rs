//! Next-scale autoregressive image generation (VAR and its family) on [Burn](https://burn.dev).
//!
//! An image is a stack of token maps of growing size, its scales: 1x1, 2x2, 3x3, up to 16x16 for 256x256 pixels in VAR.
//! A transformer predicts all tokens of a scale at once, from all scales before it, so ten steps make an image.
//! A tokenizer turns each token into a code vector, and paints the scale on a canvas that a decoder turns into pixels.
//! Before each prediction the transformer sees the canvas so far, resized to the next scale.
//! Guidance changes the logits on their way to the sampler, and each image has a random stream of its own.
//!
//! ```no_run
//! use burn_var::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # #[cfg(feature = "image")] {
//! let pipeline = Pipeline::from_pretrained("models/fashion-mnist")?;
//! for (i, image) in pipeline.generate(&Request::classes([3, 3, 7]).seed(42))?.into_iter().enumerate() {
//!     image.save(format!("{i}.png"))?;
//! }
//! # }
//! # Ok(())
//! # }
//! ```
//!
//! The folder `examples` shows previews, editing, guidance of your own, and a model of your own.
//!
//! # Modules
//!
//! - `pipeline` (feature `image`): from files to images.
//! - [`generation`]: the loop, and the traits [`Tokenizer`] and [`NextScale`] that a model implements.
//! - [`guidance`]: parts of a guidance chain. [`editing`]: tokens that are not drawn.
//! - [`scales`], [`sampling`], [`rng`]: the scale schedule, the draw of tokens, random streams.
//! - [`models`]: one family, one folder; [`weights`]: their checkpoints.
//! - [`metrics`]: scores of generated images.
//! - [`ops`], [`math`], [`nn`], [`init`]: what the models are made of.
//! - `gpu` (features `wgpu`, `vulkan`, `cuda`): settings of the GPU backends. [`memory`]: what a process holds.
//!
//! # Where each paper lives
//!
//! - VAR (arXiv 2404.02905): [`models::var`]; its guidance, [`guidance::Cfg`]; its editing, [`editing`].
//! - FlexVAR (arXiv 2502.20313): [`models::flexvar`].
//! - LlamaGen (arXiv 2406.06525), next-token prediction in the same loop: [`models::llamagen`].
//! - AID-VAR: [`models::aid`]; its measure ISCS, [`metrics`].
//! - Scaled Spatial Guidance: [`guidance::Ssg`]. Visual prefix guidance: [`guidance::Vpg`].
//! - DINO (arXiv 2104.14294): [`models::dino`]. Inception v3 of FID: [`models::inception`].
//!
//! # Features
//!
//! `flex` (default) is the CPU backend; `wgpu`, `vulkan`, `cuda` and `ndarray` are the others. `image` (default) is the
//! pipeline and conversion to 8-bit images. `hf-hub` downloads what a `hub:` name asks for; it is off by default.

pub mod editing;
mod error;
pub mod generation;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod guidance;
#[cfg(feature = "image")]
pub mod image;
pub mod init;
pub mod math;
pub mod memory;
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
pub use generation::{BatchRequest, Condition, NextScale, TeacherForced, Tokenizer, generate};
pub use scales::{MapSize, Scales};
pub use tokens::TokenPyramid;
