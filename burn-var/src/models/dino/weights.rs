//! Checkpoints of DINO's vision transformers: `dino_deitsmall16_pretrain.pth`, and timm's safetensors of the same.

use std::path::Path;

use burn::tensor::Device;

use super::model_config::{axes, count};
use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, StateDict, export, load, save};
use crate::encoder::{Vit, VitConfig};
use crate::{Error, Result};

const MODEL: &str = "DINO vision transformer";
/// Width of a head in all published sizes; shapes do not tell it.
const HEAD_WIDTH: usize = 64;

/// The names in DINO's and timm's files: those of the module itself.
pub fn vit_keys() -> KeyMap {
    KeyMap::identity(MODEL)
}

/// The sizes of a vision transformer, from the file's own configuration if it has one, else from its shapes, with the
/// heads 64 wide and the pictures normalised as in all published models.
///
/// # Errors
/// [`Error::Format`] if this is no such transformer.
pub fn vit_config(dict: &StateDict) -> Result<VitConfig> {
    match ModelConfig::of(dict)? {
        Some(ModelConfig::Vit(config)) => return Ok(config),
        Some(_) => return Err(Error::format(dict.origin(), format!("it holds another model than a {MODEL}"))),
        None => {}
    }
    let [embed_dim, image_channels, patch_size, _] = axes(dict, "patch_embed.proj.weight", MODEL)?;
    let [_, tokens, _] = axes(dict, "pos_embed", MODEL)?;
    let [hidden, _] = axes(dict, "blocks.0.mlp.fc1.weight", MODEL)?;
    let grid = (tokens - 1).isqrt();
    if grid * grid + 1 != tokens {
        return Err(Error::shape(
            "pos_embed",
            "one position for the class and a square of them",
            [1, tokens, embed_dim],
        ));
    }
    let config = VitConfig {
        image_size: grid * patch_size,
        image_channels,
        patch_size,
        embed_dim,
        depth: count(dict, |i| format!("blocks.{i}.norm1.weight")),
        num_heads: (embed_dim / HEAD_WIDTH).max(1),
        mlp_ratio: hidden as f64 / embed_dim as f64,
        ..VitConfig::dino_small_16()
    };
    config.validate()?;
    Ok(config)
}

/// A vision transformer with the weights of a checkpoint, strictly.
///
/// # Errors
/// [`Error::Weights`] if they do not fit `config`; see [`vit_config`] and [`load`].
pub fn load_vit(dict: &StateDict, config: &VitConfig, device: &Device) -> Result<Vit> {
    Ok(load(config.init_zeros(device)?, dict, &vit_keys(), LoadOptions::default())?.0)
}

/// Writes a vision transformer as safetensors under DINO's names, its configuration inside; `half` rounds to half
/// precision.
///
/// # Errors
/// As [`save`].
pub fn save_vit(model: &Vit, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let metadata = ModelConfig::Vit(model.config().clone()).metadata()?;
    save(&export(model, &vit_keys())?, path, &SaveOptions { half, metadata })
}
