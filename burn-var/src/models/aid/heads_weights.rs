//! Checkpoints of the discriminator's heads.

use std::path::Path;

use burn::tensor::Device;

use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, StateDict, export, load, save};
use crate::aid::Heads;
use crate::{Error, Result};

/// How StyleGAN-T and AID-VAR name the heads' parameters, from `heads.` on.
pub fn heads_keys() -> KeyMap {
    KeyMap::new("discriminator heads", &[], |path| {
        let path = path.strip_prefix("heads.").unwrap_or(path);
        [
            ("first.conv", "main.0.0"),
            ("first.norm", "main.0.1"),
            ("second.conv", "main.1.fn.0"),
            ("second.norm", "main.1.fn.1"),
        ]
        .iter()
        .fold(path.to_owned(), |path, (ours, theirs)| path.replace(ours, theirs))
    })
}

/// Heads with the configuration and the weights of a file written by [`save_heads`], strictly.
///
/// # Errors
/// [`Error::Format`] if the file holds no configuration of heads; [`Error::Weights`] if the weights do not fit it.
pub fn load_heads(dict: &StateDict, device: &Device) -> Result<Heads> {
    let Some(ModelConfig::Heads(config)) = ModelConfig::of(dict)? else {
        return Err(Error::format(
            dict.origin(),
            "it holds no heads of a discriminator: `burn-var train aid` makes some",
        ));
    };
    Ok(load(config.init_zeros(device)?, dict, &heads_keys(), LoadOptions::default())?.0)
}

/// Writes heads as safetensors under the authors' names, their configuration inside; `half` rounds to half precision.
///
/// # Errors
/// As [`save`].
pub fn save_heads(model: &Heads, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let metadata = ModelConfig::Heads(model.config().clone()).metadata()?;
    save(&export(model, &heads_keys())?, path, &SaveOptions { half, metadata })
}
