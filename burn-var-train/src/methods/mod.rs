//! Training methods, one module each.

pub mod aid;
pub mod classifier;
pub mod dino;
pub mod tokenizer;
pub mod var;
