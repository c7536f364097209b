//! Tokens of all images in one file, so that the transformer's training never runs the tokenizer.
//!
//! The file is a safetensors file with two tensors of unsigned integers, 16 bits wide where that suffices, else 32:
//! `tokens` `[images, variants, L]`, coarsest scale first, and `labels` `[images]`. The entry `token_cache` of its
//! metadata is a JSON object: the number of the format and the [`TokenCacheSpec`].

mod reader;
mod spec;
mod writer;

pub use reader::{TokenBatch, TokenCache, VariantChoice};
pub use spec::TokenCacheSpec;
pub use writer::TokenCacheWriter;
