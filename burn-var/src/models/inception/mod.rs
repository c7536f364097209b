//! Inception v3 in the variant that defines FID.

mod network;
mod weights;

pub use network::{Inception, InceptionInput, InceptionOutput};
