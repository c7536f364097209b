//! DINO (Caron et al. 2021): a vision transformer that turns images into features, for discriminators and metrics.

mod vit;
mod weights;

pub use vit::{Vit, VitConfig, VitOutput};
