//! Next-scale transformers: all tokens of a scale at once, from the scales before it.

mod attention;
mod lora;
mod modulation;
mod preset;
mod truncated;
mod var;

use burn::tensor::Tensor;

pub use attention::{Attention, Context};
pub use lora::{Adapted, Lora, LoraConfig, LowRankConfig};
pub use modulation::{BlockModulation, HeadModulation};
pub use preset::VarPreset;
pub use truncated::Truncated;
pub use var::{Var, VarConfig, VarInit, drop_labels};

use crate::ops::KvCache;
use crate::{Result, Scales};

/// A class to condition on, or `None` for the null class that classifier-free guidance contrasts with.
pub type Label = Option<usize>;

/// What the generation loop needs of a transformer.
pub trait NextScale {
    /// The ladder that it predicts.
    fn scales(&self) -> &Scales;

    /// Number of classes, the null class not counted.
    fn num_classes(&self) -> usize;

    /// Number of codes that it chooses from.
    fn vocab_size(&self) -> usize;

    /// Starts a batch: everything that depends on the labels alone, and an empty cache.
    ///
    /// # Errors
    /// [`crate::Error::Label`] for a class that the model does not have.
    fn begin(&self, labels: &[Label]) -> Result<Session>;

    /// What enters the first block for scale `k`: `[batch, tokens, width]`. `input` is the tokenizer's view of the
    /// canvas, `[batch, z_channels, height_k, width_k]`; the first scale starts from the class alone.
    fn embed(&self, session: &Session, k: usize, input: Tensor<4>) -> Tensor<3>;

    /// All blocks over scale `k`'s hidden states: logits `[batch, tokens, vocab_size]`. Keys and values join the cache.
    fn step(&self, session: &mut Session, hidden: Tensor<3>) -> Tensor<3>;
}

/// One batch on its way up the ladder. A value: dropping it leaves the model as it was.
#[derive(Debug, Clone)]
pub struct Session {
    /// Class embedding, `[batch, width]`.
    pub(crate) condition: Tensor<2>,
    /// Position plus level embedding of all scales, `[1, L, width]`.
    pub(crate) positions: Tensor<3>,
    /// Constant over all scales, so computed once a picture.
    pub(crate) blocks: Vec<BlockModulation>,
    pub(crate) head: HeadModulation,
    pub(crate) caches: Vec<KvCache>,
    /// A low-rank change of all blocks.
    pub(crate) lora: Option<Lora>,
}

impl Session {
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.condition.dims()[0]
    }

    /// Goes on with the first `batch` sequences only.
    #[must_use]
    pub fn truncate(self, batch: usize) -> Self {
        Self {
            condition: self.condition.narrow(0, 0, batch),
            positions: self.positions,
            blocks: self.blocks.into_iter().map(|block| block.truncate(batch)).collect(),
            head: self.head.truncate(batch),
            caches: self.caches.into_iter().map(|cache| cache.truncate(batch)).collect(),
            lora: self.lora,
        }
    }

    /// Lets no gradient pass to the scales before.
    fn detach(&mut self) {
        self.caches.iter_mut().for_each(KvCache::detach);
    }
}
