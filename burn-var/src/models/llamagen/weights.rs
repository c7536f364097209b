//! Checkpoints of the LlamaGen transformer: `c2i_B_256.pt` and its like, bare or in a trainer's.

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::{LlamaGen, LlamaGenConfig, LlamaGenPreset};
use crate::weights::shapes::{axes, count};
use crate::weights::{GenerationConfig, KeyMap, Kind, Pretrained, StateDict};
use crate::{Error, MapSize, Result, Scales};

/// Width of a head where no preset says otherwise.
const HEAD_WIDTH: usize = 64;

impl Pretrained for LlamaGen {
    const KIND: Kind = Kind {
        name: "llamagen",
        role: "transformer",
        title: "LlamaGen transformer",
        source: "`c2i_B_256.pt` is a published one, `burn-var train llamagen` trains one",
        sections: &["model.", "state_dict."],
        landmark: Some("tok_embeddings.weight"),
    };

    type Config = LlamaGenConfig;

    fn config(&self) -> &LlamaGenConfig {
        self.config()
    }

    fn keys(_: &LlamaGenConfig) -> KeyMap {
        KeyMap::new(Self::KIND.title, &["freqs_cis", "causal_mask"], str::to_owned)
    }

    fn init_zeros(config: &LlamaGenConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Replaces the default schedule: the weights serve any raster.
    fn with_scales(config: LlamaGenConfig, scales: &Scales) -> LlamaGenConfig {
        LlamaGenConfig { patch_nums: scales.clone(), ..config }
    }

    /// Infers the configuration from the shapes. They do not determine the number of heads, which is the published one for
    /// the width or else one per 64 channels, and not the size of images, which is the published one unless `scales` names a
    /// raster.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<LlamaGenConfig> {
        let [vocab_size, dim] = axes(dict, "tok_embeddings.weight", Self::KIND)?;
        if !dict.contains("cls_embedding.embedding_table.weight") && dict.contains("cls_embedding.cap_proj.fc1.weight")
        {
            let reason = "it is conditioned on texts, expected a class-conditional LlamaGen transformer";
            return Err(Error::format(dict.origin(), reason));
        }
        let [labels, _] = axes(dict, "cls_embedding.embedding_table.weight", Self::KIND)?;
        let [ffn_hidden, _] = axes(dict, "layers.0.feed_forward.w1.weight", Self::KIND)?;
        let [packed, _] = axes(dict, "layers.0.attention.wqkv.weight", Self::KIND)?;
        let preset = LlamaGenPreset::of_width(dim);
        let n_head = preset.map_or(dim / HEAD_WIDTH, LlamaGenPreset::heads).max(1);
        let n_kv_head = (packed / (dim / n_head).max(1)).saturating_sub(n_head) / 2;
        let side = preset.map_or(16, LlamaGenPreset::side);
        let config = LlamaGenConfig {
            n_kv_head: (n_kv_head != n_head).then_some(n_kv_head),
            ffn_hidden,
            vocab_size,
            num_classes: labels - 1,
            ..LlamaGenConfig::new(
                dim,
                count(dict, |i| format!("layers.{i}.attention.wqkv.weight")),
                n_head,
                scales.cloned().unwrap_or_else(|| Scales::of_raster(MapSize::square(side))),
            )
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the generation settings, those of the authors' evaluation if the file has none.
    fn notes(dict: &StateDict) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        let own = GenerationConfig::of(dict)?;
        own.map_or_else(|| Ok(Self::config_of(dict, None)?.evaluation()), Ok)?.insert(&mut metadata)?;
        Ok(metadata)
    }
}

impl LlamaGenConfig {
    /// Returns the settings of the authors' evaluation for this width, see [`LlamaGenPreset::evaluation`].
    pub fn evaluation(&self) -> GenerationConfig {
        LlamaGenPreset::of_width(self.dim).unwrap_or(LlamaGenPreset::B).evaluation()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{LoadOptions, SaveOptions, export};

    fn config() -> LlamaGenConfig {
        let raster = Scales::raster(MapSize { height: 2, width: 3 }).unwrap();
        LlamaGenConfig { vocab_size: 7, num_classes: 5, ffn_hidden: 40, ..LlamaGenConfig::new(128, 2, 2, raster) }
    }

    fn dict(config: &LlamaGenConfig, prefix: &str) -> StateDict {
        let dict = export(&config.init_zeros(&Device::flex()).unwrap(), &LlamaGen::keys(config)).unwrap();
        let shapes = dict.keys().map(|key| (format!("{prefix}{key}"), dict.shape(key).unwrap().to_vec()));
        let others = match prefix {
            "" | "module." => Vec::new(),
            _ => vec![("optimizer.state.0.exp_avg".to_owned(), vec![2])],
        };
        StateDict::generated("x.pt", shapes.chain(others), |_, shape| vec![0.5; shape.iter().product()]).unwrap()
    }

    #[test]
    fn every_released_wrapper_loads_strictly() {
        let expected = config();
        for prefix in ["", "model.", "module.", "state_dict.", "model.module."] {
            let dict = dict(&expected, prefix);
            let kinds: Vec<_> = dict.models().unwrap().iter().map(|model| model.kind().name).collect();
            assert_eq!(kinds, ["llamagen"], "models in `{prefix}`");
            let scales = Some(&expected.patch_nums);
            assert_eq!(LlamaGen::config_of(&dict, scales).unwrap(), expected, "sizes in `{prefix}`");
            LlamaGen::load_with(&dict, &expected, LoadOptions::default(), &Device::flex()).unwrap();
        }
        let without = dict(&expected, "").filtered(|key| key != "norm.weight");
        let error = LlamaGen::load(&without, &Device::flex()).unwrap_err().to_string();
        assert!(error.contains("norm.weight"), "{error}");
    }

    #[test]
    fn heads_come_from_the_width_and_the_projection() {
        let grouped = LlamaGenConfig { n_kv_head: Some(1), ..config() };
        assert_eq!(LlamaGen::config_of(&dict(&grouped, ""), Some(&grouped.patch_nums)).unwrap(), grouped);
        for preset in LlamaGenPreset::ALL {
            let expected = LlamaGenConfig { n_layer: 1, ..preset.config() };
            let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &LlamaGen::keys(&expected)).unwrap();
            assert_eq!(LlamaGen::config_of(&dict, None).unwrap(), expected, "{}", preset.name());
        }
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("llamagen.safetensors");
        let expected = LlamaGenConfig { n_head: 4, ..config() };
        expected.init(1, &Device::flex()).unwrap().save(&path, &SaveOptions::default()).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(LlamaGen::config_of(&dict, None).unwrap(), expected, "heads are in the file");
        let larger = Scales::raster(MapSize::square(24)).unwrap();
        assert_eq!(LlamaGen::config_of(&dict, Some(&larger)).unwrap().patch_nums, larger);
    }
}
