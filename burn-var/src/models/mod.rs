//! Models: one family, one folder, with its networks, configuration, published sizes and key map side by side.

pub mod aid;
#[cfg(feature = "metrics")]
pub mod classifier;
pub mod common;
#[cfg(feature = "metrics")]
pub mod dino;
pub mod flexvar;
#[cfg(feature = "metrics")]
pub mod inception;
#[cfg(feature = "metrics")]
pub mod judge;
pub mod llamagen;
pub mod var;
