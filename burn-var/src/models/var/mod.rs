//! VAR (Tian et al. 2024, arXiv 2404.02905): a multi-scale residual VQ-VAE and a next-scale transformer.

mod preset;
mod quantizer;
mod tokenizer;
mod tokenizer_weights;
mod transformer;
mod weights;

pub use crate::models::common::VarInit;
pub use preset::VarPreset;
pub use quantizer::{Quantized, Quantizer, phi_index};
pub use tokenizer::{VqVae, VqVaeConfig};
pub use transformer::{Var, VarConfig, VarState, drop_labels};
