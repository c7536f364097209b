//! Networks that turn pictures into features for discriminators and metrics; frozen there.

mod vit;

pub use vit::{Vit, VitConfig, VitFeatures};
