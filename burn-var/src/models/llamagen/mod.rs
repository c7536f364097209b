//! LlamaGen (Sun et al. 2024, arXiv 2406.06525): next-token prediction by the architecture of Llama, row by row over the
//! tokens of an image. The weights serve maps of any size.

mod block;
mod lora;
mod preset;
mod tokenizer;
mod tokenizer_weights;
mod transformer;
mod weights;

pub use lora::LlamaGenLora;
pub use preset::LlamaGenPreset;
pub use tokenizer::{LlamaGenVq, LlamaGenVqConfig};
pub use transformer::{LlamaGen, LlamaGenConfig, LlamaGenState};
