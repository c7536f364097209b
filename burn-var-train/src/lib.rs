//! Trainers for next-scale autoregressive image generation, with exact resume: tokenizer, transformer, AID-VAR's
//! injector, and the networks that evaluate images.
//!
//! - [`methods`]: one module per training method.
//! - [`engine`]: the loop that all methods share. It accumulates and clips gradients, runs optimizers and moving averages,
//!   saves, resumes and reports.
//! - [`data`]: images, their order, and caches of their tokens.
//! - [`optim`]: AdamW, schedules, clipping and moving averages.
//! - [`eval`]: scores of generated images.

pub mod config;
pub mod curves;
pub mod data;
pub mod engine;
mod error;
pub mod eval;
pub mod fs;
pub mod grid;
mod losses;
pub mod methods;
pub mod optim;
mod tensor;

pub use engine::{checkpoint, progress, report, run};
pub use error::{Error, Result};
pub use methods::tokenizer::patch_gan;
pub use methods::{aid, classifier, dino, flexvar, judge, llamagen, sar, tokenizer, transformer, va_pi, var};
