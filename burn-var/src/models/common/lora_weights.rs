//! Files of a low-rank adaptation.

use std::path::Path;

use burn::tensor::Device;

use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, StateDict, export, load, save};
use crate::transformer::Lora;
use crate::{Error, Result};

/// Parameters are named as here: `blocks.0.mat_qkv.down`. The authors have released no such file.
fn lora_keys() -> KeyMap {
    KeyMap::new("LoRA", &[], str::to_owned)
}

/// A low-rank adaptation from a file written by [`save_lora`], strictly.
///
/// # Errors
/// [`Error::Format`] if the file holds no configuration of one; [`Error::Weights`] if the weights do not fit it.
pub fn load_lora(dict: &StateDict, device: &Device) -> Result<Lora> {
    let Some(ModelConfig::Lora(config)) = ModelConfig::of(dict)? else {
        return Err(Error::format(dict.origin(), "it holds no LoRA: `burn-var train aid` makes one if asked to"));
    };
    Ok(load(config.init_zeros(device)?, dict, &lora_keys(), LoadOptions::default())?.0)
}

/// Writes a low-rank adaptation as safetensors, its configuration inside; `half` rounds to half precision.
///
/// # Errors
/// As [`save`].
pub fn save_lora(model: &Lora, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let metadata = ModelConfig::Lora(model.config().clone()).metadata()?;
    save(&export(model, &lora_keys())?, path, &SaveOptions { half, metadata })
}
