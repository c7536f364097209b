//! Checkpoints of AID-VAR's guidance injector, alone or inside those of its trainer.

use std::path::Path;

use burn::tensor::Device;

use super::model_config::{axes, count};
use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, Section, StateDict, export, load, save};
use crate::aid::{Injector, InjectorConfig, InjectorResize};
use crate::guidance::AidWeight;
use crate::{Error, Result};

const MODEL: &str = "AID-VAR injector";

/// How AID-VAR names the injector's parameters.
pub fn injector_keys() -> KeyMap {
    KeyMap::new(MODEL, &[], |path| {
        path.replace("ffn.fc1", "ffn.0").replace("ffn.fc2", "ffn.3").replace("in_proj.", "in_proj_")
    })
}

/// The weights alone: the trainer keeps tables of positions beside them (`pos_9`), one for each length it has seen.
fn weights(dict: &StateDict) -> Result<StateDict> {
    Ok(dict.section(Section::Injector)?.filtered(|key| !key.starts_with("pos_")))
}

/// The sizes of an injector, from the file's own configuration if it has one, else from its shapes. Files of the
/// authors resize as their code does and have 8 heads, of which the shapes say nothing.
///
/// # Errors
/// [`Error::Format`] if this is no injector.
pub fn injector_config(dict: &StateDict) -> Result<InjectorConfig> {
    let dict = weights(dict)?;
    match ModelConfig::of(&dict)? {
        Some(ModelConfig::Injector(config)) => return Ok(config),
        Some(_) => return Err(Error::format(dict.origin(), format!("it holds another model than an {MODEL}"))),
        None => {}
    }
    let [embed_dim, input_dim] = axes(&dict, "input_proj.weight", MODEL)?;
    let num_layers = count(&dict, |i| format!("encoder.layers.{i}.norm1.weight"));
    let config = InjectorConfig {
        input_dim,
        embed_dim,
        num_layers,
        resize: InjectorResize::Flat1d,
        ..InjectorConfig::paper(embed_dim)
    };
    config.validate()?;
    Ok(config)
}

/// An injector with the weights of a checkpoint, strictly.
///
/// # Errors
/// [`Error::Weights`] if they do not fit `config`; see [`injector_config`] and [`load`].
pub fn load_injector(dict: &StateDict, config: &InjectorConfig, device: &Device) -> Result<Injector> {
    Ok(load(config.init_zeros(device)?, &weights(dict)?, &injector_keys(), LoadOptions::default())?.0)
}

/// Where the weight that an injector was trained with is in a file's metadata.
const WEIGHT: &str = "burn_var_aid_weight";

/// How much of the injector's map should be added; none if the file does not say.
///
/// # Errors
/// [`Error::Format`] if it cannot be understood.
pub fn injector_weight(dict: &StateDict) -> Result<Option<AidWeight>> {
    let Some(note) = dict.metadata().get(WEIGHT) else { return Ok(None) };
    serde_json::from_str(note)
        .map(Some)
        .map_err(|error| Error::format(dict.origin(), format!("`{WEIGHT}` in its metadata is not understood: {error}")))
}

/// Writes an injector as safetensors under AID-VAR's names, its configuration and the weight to use it with inside;
/// `half` rounds to half precision.
///
/// # Errors
/// As [`save`].
pub fn save_injector(model: &Injector, weight: Option<&AidWeight>, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let mut metadata = ModelConfig::Injector(model.config().clone()).metadata()?;
    if let Some(weight) = weight {
        let note = serde_json::to_string(weight)
            .map_err(|error| Error::config("weight of the injector", error, "what JSON can hold"))?;
        metadata.insert(WEIGHT.to_owned(), note);
    }
    save(&export(model, &injector_keys())?, path, &SaveOptions { half, metadata })
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::MapSize;

    #[test]
    fn a_file_gives_the_injector_back() {
        let device = Device::default();
        let config = InjectorConfig { broadcast: true, num_layers: 1, ..InjectorConfig::paper(16) };
        let model = config.init(5, &device).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("injector.safetensors");
        save_injector(&model, Some(&AidWeight::Constant(0.25)), &path, false).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(injector_config(&dict).unwrap(), config, "the configuration came along");
        assert_eq!(injector_weight(&dict).unwrap(), Some(AidWeight::Constant(0.25)), "and the weight");
        let back = load_injector(&dict, &config, &device).unwrap();
        let map = |model: &Injector| {
            let tokens = Tensor::ones([1, 4, 16], &device);
            model.forward(tokens, MapSize::square(2), MapSize::square(3), None).unwrap().into_data()
        };
        assert_eq!(map(&back), map(&model));
    }

    #[test]
    fn the_authors_files_are_recognised() {
        let config = InjectorConfig { resize: InjectorResize::Flat1d, num_layers: 3, ..InjectorConfig::paper(24) };
        let module = config.init(1, &Device::default()).unwrap();
        let dict = export(&module, &injector_keys()).unwrap();
        assert!(
            dict.contains("encoder.layers.2.self_attn.in_proj_weight") && dict.contains("encoder.layers.0.ffn.3.bias")
        );
        assert_eq!(injector_config(&dict).unwrap(), config, "the shapes tell");
        let other = export(&crate::nn::Conv2d::same([1, 1], 1, &Device::default()), &injector_keys()).unwrap();
        assert!(injector_config(&other).unwrap_err().to_string().contains("injector"));
    }
}
