//! Checkpoints of DINO's vision transformers: `dino_deitsmall16_pretrain.pth`, and timm's safetensors of the same.

use burn::tensor::Device;

use super::{Vit, VitConfig};
use crate::weights::shapes::{axes, count};
use crate::weights::{KeyMap, Kind, Pretrained, StateDict};
use crate::{Error, Result, Scales};

/// Width of a head in all published sizes; shapes do not determine it.
const HEAD_WIDTH: usize = 64;

impl Pretrained for Vit {
    const KIND: Kind = Kind {
        name: "vit",
        role: "vit",
        title: "DINO vision transformer",
        source: "`dino_deitsmall16_pretrain.pth` is a published one, `burn-var train dino` trains one",
        sections: &[],
        landmark: Some("patch_embed.proj.weight"),
    };

    type Config = VitConfig;

    fn config(&self) -> &VitConfig {
        self.config()
    }

    /// Returns the names of the module, which are those of DINO's and timm's files.
    fn keys(_: &VitConfig) -> KeyMap {
        KeyMap::identity(Self::KIND.title)
    }

    fn init_zeros(config: &VitConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Infers the configuration from the shapes, with heads of 64 channels and images normalized as in all published
    /// models.
    fn infer(dict: &StateDict, _: Option<&Scales>) -> Result<VitConfig> {
        let [embed_dim, image_channels, patch_size, _] = axes(dict, "patch_embed.proj.weight", Self::KIND)?;
        let [_, tokens, _] = axes(dict, "pos_embed", Self::KIND)?;
        let [hidden, _] = axes(dict, "blocks.0.mlp.fc1.weight", Self::KIND)?;
        let grid = (tokens - 1).isqrt();
        if grid * grid + 1 != tokens {
            let expected = "one position for the class and a square number for the patches";
            return Err(Error::shape("pos_embed", expected, [1, tokens, embed_dim]));
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
}
