//! Trainers for next-scale autoregressive image generation: tokenizer and transformer, with exact resume.

pub mod checkpoint;
pub mod data;
mod error;
pub mod fs;
pub mod optim;

pub use error::{Error, Result};
