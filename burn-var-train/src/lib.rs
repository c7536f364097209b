//! Trainers for next-scale autoregressive image generation, with exact resume: tokenizer, transformer, and the frozen
//! networks that judge pictures.

pub mod aid;
pub mod checkpoint;
pub mod classifier;
pub mod config;
pub mod curves;
pub mod data;
pub mod dino;
mod error;
pub mod eval;
pub mod fs;
pub mod grid;
mod learner;
pub mod optim;
pub mod patch_gan;
pub mod progress;
pub mod report;
pub mod run;
mod stream;
pub mod tokenizer;
pub mod var;

pub use error::{Error, Result};
