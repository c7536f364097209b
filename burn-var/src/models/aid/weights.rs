//! Checkpoints of AID-VAR's guidance injector, alone or inside those of its trainer.

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::{AidWeight, Injector, InjectorConfig, InjectorResize};
use crate::weights::shapes::{axes, count};
use crate::weights::{KeyMap, Kind, Pretrained, StateDict, note};
use crate::{Result, Scales};

/// Name of the weight in a file's metadata.
const WEIGHT: &str = "burn_var_aid_weight";

impl Pretrained for Injector {
    const KIND: Kind = Kind {
        name: "injector",
        role: "injector",
        title: "AID injector",
        source: "`burn-var train aid` trains one",
        sections: &["planner_state_dict.", "planner."],
        landmark: Some("input_proj.weight"),
    };

    type Config = InjectorConfig;

    fn config(&self) -> &InjectorConfig {
        self.config()
    }

    /// Returns the names of AID-VAR.
    fn keys(_: &InjectorConfig) -> KeyMap {
        KeyMap::new(Self::KIND.title, &[], |path| {
            path.replace("ffn.fc1", "ffn.0").replace("ffn.fc2", "ffn.3").replace("in_proj.", "in_proj_")
        })
    }

    fn init_zeros(config: &InjectorConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Infers the configuration from the shapes. The authors' files have 8 heads and resize as their code does, which
    /// shapes do not determine.
    fn infer(dict: &StateDict, _: Option<&Scales>) -> Result<InjectorConfig> {
        let [embed_dim, input_dim] = axes(dict, "input_proj.weight", Self::KIND)?;
        let config = InjectorConfig {
            input_dim,
            embed_dim,
            num_layers: count(dict, |i| format!("encoder.layers.{i}.norm1.weight")),
            resize: InjectorResize::Flat1d,
            ..InjectorConfig::paper(embed_dim)
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the parameters, without the position tables that the trainer stores beside them (`pos_9`), one per
    /// sequence length it has seen.
    fn weights(dict: &StateDict) -> Result<StateDict> {
        Ok(dict.section(Self::KIND)?.filtered(|key| !key.starts_with("pos_")))
    }

    /// Returns the weight of the injector's guidance.
    fn notes(dict: &StateDict) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        if let Some(weight) = AidWeight::of(dict)? {
            weight.insert(&mut metadata)?;
        }
        Ok(metadata)
    }
}

impl AidWeight {
    /// Returns the weight in the metadata of an injector's file, or `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if it is invalid.
    pub fn of(dict: &StateDict) -> Result<Option<Self>> {
        note::read(dict, WEIGHT)
    }

    /// Adds the weight to the metadata of an injector's file that is to be saved.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if JSON cannot hold it.
    pub fn insert(&self, metadata: &mut BTreeMap<String, String>) -> Result<()> {
        note::insert(metadata, WEIGHT, self)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::MapSize;
    use crate::weights::{SaveOptions, export};

    #[test]
    fn an_injector_round_trips_through_a_file() {
        let device = Device::default();
        let config = InjectorConfig { broadcast: true, num_layers: 1, ..InjectorConfig::paper(16) };
        let model = config.init(5, &device).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("injector.safetensors");
        let mut options = SaveOptions::default();
        AidWeight::Constant(0.25).insert(&mut options.metadata).unwrap();
        model.save(&path, &options).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(dict.metadata()[WEIGHT], r#"{"constant":0.25}"#, "the text of earlier versions");
        assert_eq!(AidWeight::of(&dict).unwrap(), Some(AidWeight::Constant(0.25)), "the weight is in the file");
        assert_eq!(Injector::config_of(&dict, None).unwrap(), config, "the configuration is in the file");
        let back = Injector::load(&dict, &device).unwrap();
        let map = |model: &Injector| {
            let tokens = Tensor::ones([1, 4, 16], &device);
            model.forward(tokens, MapSize::square(2), MapSize::square(3), None).unwrap().into_data()
        };
        assert_eq!(map(&back), map(&model));
    }

    #[test]
    fn the_authors_files_load() {
        let config = InjectorConfig { resize: InjectorResize::Flat1d, num_layers: 3, ..InjectorConfig::paper(24) };
        let module = config.init(1, &Device::default()).unwrap();
        let dict = export(&module, &Injector::keys(&config)).unwrap();
        assert!(
            dict.contains("encoder.layers.2.self_attn.in_proj_weight") && dict.contains("encoder.layers.0.ffn.3.bias")
        );
        assert_eq!(Injector::config_of(&dict, None).unwrap(), config, "read from the shapes");
        let other = export(&crate::nn::Conv2d::same([1, 1], 1, &Device::default()), &Injector::keys(&config)).unwrap();
        assert!(Injector::config_of(&other, None).unwrap_err().to_string().contains("injector"));
    }
}
