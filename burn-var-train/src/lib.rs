//! Trainers for next-scale autoregressive image generation: tokenizer and transformer, with exact resume.

mod error;

pub use error::{Error, Result};
