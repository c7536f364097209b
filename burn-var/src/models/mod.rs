//! Models: one family, one folder, with its networks, configuration, published sizes and key map side by side.

pub mod aid;
pub mod classifier;
pub mod common;
pub mod dino;
pub mod inception;
pub mod var;
