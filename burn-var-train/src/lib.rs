//! Trainers for next-scale autoregressive image generation: tokenizer and transformer, with exact resume.

pub mod data;
mod error;

pub use error::{Error, Result};
