//! Building blocks that model families share.

pub mod attention;
mod block;
mod detach_cache;
pub(crate) mod dropout;
pub(crate) mod lora;
mod lora_weights;
mod modulation;
pub(crate) mod trunk;
pub mod vq_model;
pub mod vqgan;

pub use attention::{KvCache, SelfAttention};
pub use block::{Block, BlockSizes, BlockStack, FeedForward, HeadNorm, StackState};
pub use detach_cache::DetachCache;
pub use lora::{Adaptable, Lora, LoraConfig, LoraTarget, LowRankConfig, WithLora};
pub use modulation::{BlockModulation, NormModulation};
pub use trunk::VarInit;
