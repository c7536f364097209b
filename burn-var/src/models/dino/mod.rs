//! Networks that turn pictures into features for discriminators and metrics; frozen there.

mod inception;
mod vit;

pub use inception::{Inception, InceptionFeatures, InceptionInput};
pub use vit::{Vit, VitConfig, VitFeatures};
