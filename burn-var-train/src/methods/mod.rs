//! Training methods, one module each.

pub mod aid;
pub mod classifier;
pub mod dino;
pub mod flexvar;
pub mod judge;
pub mod llamagen;
mod masked_first;
pub mod sar;
pub mod tokenizer;
pub mod transformer;
pub mod va_pi;
pub mod var;
