//! Low-rank adaptation of LlamaGen's layers, for post-training: its authors have none.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::block::Layer;
use super::{LlamaGen, LlamaGenConfig};
use crate::generation::{Condition, TeacherInput};
use crate::models::common::lora::{LowRank, without_effect};
use crate::models::common::{Adaptable, LoraConfig, LowRankConfig};
use crate::rng::Rng;
use crate::{Error, Result, Scales};

/// Updates of one layer. Fields are named as in the layer.
#[derive(Module, Debug)]
pub(super) struct LayerLora {
    pub(super) wqkv: LowRank,
    pub(super) wo: LowRank,
    pub(super) w1: LowRank,
    pub(super) w3: LowRank,
    pub(super) w2: LowRank,
}

/// Low-rank updates of all layers of a [`LlamaGen`]: of the projections of attention, and of the three matrices of the
/// feed-forward.
#[derive(Module, Debug)]
pub struct LlamaGenLora {
    layers: Vec<LayerLora>,
}

impl LlamaGenLora {
    fn new(config: &LlamaGenConfig, attention: LowRankConfig, feed_forward: LowRankConfig, device: &Device) -> Self {
        let (dim, hidden) = (config.dim, config.ffn_hidden);
        let packed = (config.n_head + 2 * config.kv_heads()) * config.head_dim();
        let layer = |_| LayerLora {
            wqkv: LowRank::new([dim, packed], attention, device),
            wo: LowRank::new([dim, dim], attention, device),
            w1: LowRank::new([dim, hidden], feed_forward, device),
            w3: LowRank::new([dim, hidden], feed_forward, device),
            w2: LowRank::new([hidden, dim], feed_forward, device),
        };
        Self { layers: (0..config.n_layer).map(layer).collect() }
    }

    pub(super) fn layer(&self, index: usize) -> Option<&LayerLora> {
        self.layers.get(index)
    }

    fn check(&self, transformer: &LlamaGen) -> Result<()> {
        match (self.layers.len(), transformer.layers().len()) {
            (found, expected) if found == expected => Ok(()),
            (found, expected) => {
                Err(Error::config("layers of the LoRA", found, format!("{expected}, the transformer's")))
            }
        }
    }
}

impl Adaptable for LlamaGen {
    type Lora = LlamaGenLora;

    fn low_rank(&self, attention: LowRankConfig, feed_forward: LowRankConfig, seed: u64) -> Result<LlamaGenLora> {
        let config = self.config();
        let (depth, embed_dim, hidden_dim) = (config.n_layer, config.dim, config.ffn_hidden);
        LoraConfig { depth, embed_dim, hidden_dim, attention, feed_forward }.validate()?;
        let device = self.devices().into_iter().next().unwrap_or_default();
        Ok(without_effect(LlamaGenLora::new(config, attention, feed_forward, &device), seed))
    }

    fn teacher_forced_with(
        &self,
        lora: &LlamaGenLora,
        conditions: &[Condition],
        input: TeacherInput,
        scales: &Scales,
        noise: Option<&mut [Rng]>,
    ) -> Result<Tensor<3>> {
        lora.check(self)?;
        self.all_logits(conditions, input, scales, noise, Some(lora))
    }

    fn merged(mut self, lora: &LlamaGenLora) -> Result<Self> {
        lora.check(&self)?;
        self.layers_mut().iter_mut().zip(&lora.layers).for_each(|(layer, change)| Layer::merge(layer, change));
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{Init, initialize};
    use crate::{MapSize, TeacherForced, TokenPyramid};

    #[test]
    fn starts_without_effect_and_merges_exactly() {
        let scales = Scales::raster(MapSize::square(3)).unwrap();
        let config = LlamaGenConfig {
            n_kv_head: Some(1),
            ffn_hidden: 24,
            vocab_size: 11,
            num_classes: 3,
            ..LlamaGenConfig::new(16, 2, 2, scales.clone())
        };
        let device = Device::default();
        let plain = initialize(config.init_zeros(&device).unwrap(), 1, |_| Init::Normal(0.3));
        let rows: Vec<Vec<u32>> = (0..2).map(|image| (0..9).map(|at| (3 * at + image) % 11).collect()).collect();
        let ids = TokenPyramid::from_rows(scales.clone(), &rows, &device).unwrap().sequence();
        let input = TeacherInput { codes: Tensor::zeros([2, 8, 1], &device), ids: Some(ids) };
        let conditions = Condition::classes(&[0, 2]);
        let values = |logits: Tensor<3>| logits.into_data().try_into_vec::<f32>().unwrap();
        let of = |model: &LlamaGen| values(model.teacher_forced(&conditions, input.clone(), &scales, None).unwrap());
        let with = |lora: &LlamaGenLora| {
            values(plain.teacher_forced_with(lora, &conditions, input.clone(), &scales, None).unwrap())
        };

        let (attention, feed_forward) = (LowRankConfig { rank: 3, alpha: 6.0 }, LowRankConfig { rank: 2, alpha: 1.0 });
        let fresh = plain.low_rank(attention, feed_forward, 4).unwrap();
        assert_eq!(with(&fresh), of(&plain), "second factors are zero");
        let trained = initialize(fresh, 9, |_| Init::Normal(0.3));
        let (apart, merged) = (with(&trained), of(&plain.clone().merged(&trained).unwrap()));
        let worst = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let effect = worst(&apart, &of(&plain));
        assert!(effect > 1e-3, "the update changes the logits");
        assert!(worst(&apart, &merged) < 1e-5 * effect.max(1.0), "{apart:?}\n{merged:?}");
        let error = plain.low_rank(LowRankConfig { rank: 0, alpha: 1.0 }, feed_forward, 4).unwrap_err().to_string();
        assert!(error.contains("attention.rank"), "{error}");
        let other = LlamaGenConfig { n_layer: 3, ..config }.init_zeros(&device).unwrap();
        assert!(other.merged(&trained).unwrap_err().to_string().contains("layers of the LoRA"));
    }
}
