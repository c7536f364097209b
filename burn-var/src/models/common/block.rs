//! The transformer blocks that VAR and FlexVAR share (`AdaLNSelfAttn` in VAR's code): attention and feed-forward, each
//! behind an adaptive norm and a gate, and an adaptive norm before the head.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Tensor, TensorData};

use super::attention::{Context, KvCache, SelfAttention};
use super::lora::{BlockLora, Lora, branch};
use super::modulation::{BlockModulation, NormModulation};
use crate::error::require_positive;
use crate::generation::State;
#[cfg(feature = "gpu")]
use crate::ops;
use crate::ops::Rows;
use crate::rng::Rng;
use crate::{Error, Result, nn};

/// Sizes of the blocks of a transformer.
#[derive(Debug, Clone)]
pub struct BlockSizes {
    /// Number of blocks.
    pub depth: usize,
    /// Width C.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the feed-forward.
    pub hidden: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
    /// One adaptive norm projection for all blocks, instead of one per block.
    pub shared_aln: bool,
    /// L2-normalized attention.
    pub attn_l2_norm: bool,
    /// Drop path rate of the last block, for training; it rises linearly from 0 at the first.
    pub drop_path_rate: f64,
}

impl BlockSizes {
    /// Returns the hidden width of the feed-forward.
    pub fn hidden(width: usize, mlp_ratio: f64) -> usize {
        (width as f64 * mlp_ratio).round() as usize
    }

    /// Checks that the sizes fit each other; `mlp_ratio` is the one that the hidden width comes from.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field as in the configuration of a transformer.
    pub fn validate(&self, mlp_ratio: f64) -> Result<()> {
        require_positive(&[("depth", self.depth), ("embed_dim", self.width), ("num_heads", self.heads)])?;
        if !self.width.is_multiple_of(self.heads) {
            return Err(Error::config("num_heads", self.heads, format!("a divisor of embed_dim {}", self.width)));
        }
        if !(mlp_ratio.is_finite() && self.hidden > 0) {
            return Err(Error::config("mlp_ratio", mlp_ratio, "a positive number"));
        }
        if !(0.0..1.0).contains(&self.drop_path_rate) {
            return Err(Error::config("drop_path_rate", self.drop_path_rate, "a fraction in 0..1"));
        }
        Ok(())
    }
}

/// Two linear layers with GELU (tanh form) between.
#[derive(Module, Debug)]
pub struct FeedForward {
    pub(super) fc1: Linear,
    pub(super) fc2: Linear,
}

/// Attention and feed-forward, each behind an adaptive norm and a gate.
///
/// The norm's parameters come from the block's own projection `ada_lin`, or from a learned offset `ada_gss`, `[1, 1, 6,
/// width]`, to the projection that all blocks share.
#[derive(Module, Debug)]
pub struct Block {
    pub(super) attn: SelfAttention,
    pub(super) ffn: FeedForward,
    ada_lin: Option<Linear>,
    ada_gss: Option<Param<Tensor<4>>>,
    drop_path: f64,
    epsilon: f64,
}

impl Block {
    fn new(sizes: &BlockSizes, index: usize, device: &Device) -> Self {
        let width = sizes.width;
        Self {
            attn: SelfAttention::new(sizes, device),
            ffn: FeedForward {
                fc1: nn::linear(width, sizes.hidden, true, device),
                fc2: nn::linear(sizes.hidden, width, true, device),
            },
            ada_lin: (!sizes.shared_aln).then(|| nn::linear(width, 6 * width, true, device)),
            ada_gss: sizes.shared_aln.then(|| nn::zeros([1, 1, 6, width], device)),
            drop_path: match sizes.depth {
                1 => 0.0,
                depth => sizes.drop_path_rate * index as f64 / (depth - 1) as f64,
            },
            epsilon: sizes.norm_eps,
        }
    }

    /// Projects SiLU of the condition, `[batch, width]`, to the block's scales, shifts and gates; `shared` is the
    /// projection that all blocks share, if there is one.
    fn modulation(&self, active: &Tensor<2>, shared: Option<&Tensor<2>>) -> BlockModulation {
        let own = self.ada_lin.as_ref().map(|ada_lin| nn::apply(ada_lin, active.clone()));
        let offset = self.ada_gss.as_ref().map(|ada_gss| ada_gss.val().flatten::<2>(0, 3).reshape([1, -1]));
        let parts = [own, shared.cloned(), offset].into_iter().flatten();
        let packed = parts.reduce(|sum, part| sum + part).expect("a block has a norm of its own or shares one");
        BlockModulation::from_packed(packed)
    }

    /// Computes the block from its input `x` and the norm of that; returns its output, and the norm of it that `next` asks for.
    fn forward(
        &self,
        (x, normed): (Tensor<3>, Tensor<3>),
        by: &BlockModulation,
        next: &NormModulation,
        context: Context<'_>,
        lora: Option<&BlockLora>,
        noise: Option<&mut [Rng]>,
    ) -> (Tensor<3>, Tensor<3>) {
        let [gamma1, gamma2] = self.gates(by, noise);
        let mixed = self.attn.forward(normed, context, lora);
        let (x, normed) = by.norm2.after(x, mixed, &gamma1, self.epsilon);
        let h = branch(&self.ffn.fc1, lora.map(|lora| &lora.fc1), normed).gelu_tanh();
        let h = branch(&self.ffn.fc2, lora.map(|lora| &lora.fc2), h);
        next.after(x, h, &gamma2, self.epsilon)
    }

    /// Computes the block as one operation of a GPU's graph, from its input to its output, if
    /// [it can be](Self::can_be_recorded).
    #[cfg(feature = "gpu")]
    fn recorded(&self, x: Tensor<3>, by: &BlockModulation, mask: &Tensor<4>, noise: Option<&mut [Rng]>) -> Tensor<3> {
        let sharpness = self.attn.scale_mul_1H11.as_ref().expect("a block that can be recorded").val();
        let layers = [&self.attn.proj, &self.ffn.fc1, &self.ffn.fc2];
        let weights = ops::BlockWeights {
            qkv: self.attn.mat_qkv.weight.val(),
            biases: [self.attn.q_bias.val(), self.attn.v_bias.val()],
            sharpness,
            layers: layers.map(|layer| {
                let bias = layer.bias.as_ref().expect("these layers have biases");
                (layer.weight.val(), bias.val())
            }),
        };
        let mut packed = by.gamma1.packed();
        if let Some(noise) = noise.filter(|_| self.drop_path > 0.0) {
            let [batch, parts] = [packed.dims()[0], 6];
            let mut factors = vec![1.0f32; batch * parts];
            for gate in 0..2 {
                noise.iter_mut().enumerate().for_each(|(i, rng)| factors[i * parts + gate] = self.kept(rng));
            }
            let factors = Tensor::from_data(TensorData::new(factors, [batch, parts, 1]), &packed.device());
            let width = packed.dims()[1];
            packed = (packed.reshape([batch, parts, width / parts]) * factors).reshape([batch, width]);
        }
        ops::block(x, packed, weights, mask.clone(), self.epsilon)
    }

    /// Returns `true` if the block normalizes queries and keys, which is the only kind that [`Block::recorded`] knows.
    #[cfg(feature = "gpu")]
    fn can_be_recorded(&self) -> bool {
        self.attn.scale_mul_1H11.is_some()
    }

    /// Draws the factor of a gate for one image.
    fn kept(&self, rng: &mut Rng) -> f32 {
        let keep = 1.0 - self.drop_path;
        if rng.uniform() < keep { (1.0 / keep) as f32 } else { 0.0 }
    }

    /// Returns the gates of both branches. With `noise`, one stream per image, drop path closes the gates of some
    /// images and scales up the others to keep the mean.
    fn gates(&self, by: &BlockModulation, noise: Option<&mut [Rng]>) -> [Rows; 2] {
        let gates = [by.gamma1.clone(), by.gamma2.clone()];
        let Some(noise) = noise.filter(|_| self.drop_path > 0.0) else { return gates };
        gates.map(|gate| {
            let factors: Vec<f32> = noise.iter_mut().map(|rng| self.kept(rng)).collect();
            let (gate, shape) = (gate.tensor(), [factors.len(), 1, 1]);
            let factors = Tensor::from_data(TensorData::new(factors, shape), &gate.device());
            Rows::from(gate * factors)
        })
    }
}

impl Block {
    /// Creates the blocks of a transformer with zero weights, to be initialized or loaded.
    pub fn stack(sizes: &BlockSizes, device: &Device) -> Vec<Self> {
        (0..sizes.depth).map(|index| Self::new(sizes, index, device)).collect()
    }

    /// Returns the width, and the hidden width of the feed-forward.
    pub(super) fn widths(&self) -> [usize; 2] {
        self.ffn.fc1.weight.lazy_shape().dims()
    }
}

/// Adaptive norm before the head.
#[derive(Module, Debug)]
pub struct HeadNorm {
    ada_lin: Linear,
}

impl HeadNorm {
    /// Creates a norm with zero weights, to be initialized or loaded.
    pub fn new(sizes: &BlockSizes, device: &Device) -> Self {
        Self { ada_lin: nn::linear(sizes.width, 2 * sizes.width, true, device) }
    }
}

/// View of all blocks of a transformer and its head, which are fields of the transformer, as in the checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct BlockStack<'a> {
    /// Blocks, in order.
    pub blocks: &'a [Block],
    /// Adaptive norm projection that all blocks share, if any.
    pub shared_ada_lin: Option<&'a Linear>,
    /// Norm before the head.
    pub head_nm: &'a HeadNorm,
    /// Projection to logits.
    pub head: &'a Linear,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
}

impl BlockStack<'_> {
    /// Starts a batch: projects conditions `[batch, width]` to the norms of all blocks, and creates empty caches for
    /// `tokens` tokens.
    pub fn start(&self, condition: Tensor<2>, tokens: usize) -> StackState {
        let active = silu(condition.clone());
        let shared = self.shared_ada_lin.map(|shared| nn::apply(shared, active.clone()));
        StackState {
            blocks: self.blocks.iter().map(|block| block.modulation(&active, shared.as_ref())).collect(),
            head: NormModulation::from_packed(nn::apply(&self.head_nm.ada_lin, active)),
            caches: vec![KvCache::new(tokens); self.blocks.len()],
            condition,
            lora: None,
        }
    }

    /// Computes the logits of one scale, `[batch, tokens, logits]`, from its hidden states, `[batch, tokens, width]`,
    /// and the caches.
    pub fn step(&self, state: &mut StackState, hidden: Tensor<3>) -> Tensor<3> {
        let StackState { blocks, caches, head, lora, .. } = state;
        let contexts = caches.iter_mut().map(Context::Cached);
        self.logits(hidden, blocks, head, contexts, lora.as_ref(), None)
    }

    /// Computes teacher-forced logits of all scales at once under a mask, `[1, 1, tokens, tokens]`. With `noise`, one
    /// stream per image, drop path is enabled.
    pub fn teacher_forced(
        &self,
        state: &StackState,
        hidden: Tensor<3>,
        mask: &Tensor<4>,
        noise: Option<&mut [Rng]>,
    ) -> Tensor<3> {
        #[cfg(feature = "gpu")]
        if state.lora.is_none()
            && ops::is_tracked(&hidden)
            && hidden.dims()[1] <= ops::LONGEST_ROW
            && self.blocks.iter().all(Block::can_be_recorded)
        {
            let (mut x, mut noise) = (hidden, noise);
            for (block, by) in self.blocks.iter().zip(&state.blocks) {
                x = block.recorded(x, by, mask, noise.as_deref_mut());
            }
            return nn::apply(self.head, state.head.norm(x, self.norm_eps));
        }
        let contexts = self.blocks.iter().map(|_| Context::Masked(mask));
        self.logits(hidden, &state.blocks, &state.head, contexts, state.lora.as_ref(), noise)
    }

    /// Computes logits from hidden states through all blocks, each with its context.
    fn logits<'a>(
        &self,
        hidden: Tensor<3>,
        by: &[BlockModulation],
        head: &NormModulation,
        contexts: impl Iterator<Item = Context<'a>>,
        lora: Option<&Lora>,
        mut noise: Option<&mut [Rng]>,
    ) -> Tensor<3> {
        let norm1 = |i: usize| by.get(i).map_or(head, |by| &by.norm1);
        let (mut x, mut normed) = (hidden.clone(), norm1(0).norm(hidden, self.norm_eps));
        for (i, (block, context)) in self.blocks.iter().zip(contexts).enumerate() {
            let lora = lora.and_then(|lora| lora.block(i));
            (x, normed) = block.forward((x, normed), &by[i], norm1(i + 1), context, lora, noise.as_deref_mut());
        }
        nn::apply(self.head, normed)
    }
}

/// State of a batch in a [`BlockStack`].
#[derive(Debug, Clone)]
pub struct StackState {
    /// Embedded conditions, `[batch, width]`.
    pub condition: Tensor<2>,
    /// Norms of each block: constant over all scales, so computed once per batch.
    blocks: Vec<BlockModulation>,
    head: NormModulation,
    caches: Vec<KvCache>,
    lora: Option<Lora>,
}

impl StackState {
    /// Adds a low-rank adaptation to all blocks from here on.
    pub fn adapt(&mut self, lora: Lora) {
        self.lora = Some(lora);
    }

    /// Forgets all cached tokens but the first `tokens`.
    pub fn truncate(&mut self, tokens: usize) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(tokens));
    }
}

impl State for StackState {
    fn sequences(&self) -> usize {
        self.condition.dims()[0]
    }

    fn keep_first(self, count: usize) -> Self {
        Self {
            condition: self.condition.narrow(0, 0, count),
            blocks: self.blocks.into_iter().map(|block| block.keep_first(count)).collect(),
            head: self.head.keep_first(count),
            caches: self.caches.into_iter().map(|cache| cache.keep_first(count)).collect(),
            lora: self.lora,
        }
    }

    fn detach(&mut self) {
        self.caches.iter_mut().for_each(KvCache::detach);
    }
}
