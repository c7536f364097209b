//! FlexVAR (Jiao et al. 2025, arXiv 2502.20313): next-scale prediction without residuals. Every scale stands for the whole
//! image, so schedules, sizes and aspect ratios are free at generation.

mod first_scale;
mod preset;
mod tokenizer;
mod tokenizer_weights;
mod transformer;
mod weights;

pub use first_scale::{FirstScale, MaskedFirst, SeenScales};
pub use preset::FlexVarPreset;
pub use tokenizer::{FlexVae, FlexVaeConfig};
pub use transformer::{FlexVar, FlexVarConfig, FlexVarState};
