//! Checkpoints of FlexVAR's tokenizer: `FlexVAE.pth`.

use burn::tensor::Device;

use super::{FlexVae, FlexVaeConfig};
use crate::models::common::vq_model::VqModelConfig;
use crate::models::llamagen::LlamaGenVq;
use crate::weights::{KeyMap, Kind, Pretrained, StateDict};
use crate::{Result, Scales};

impl Pretrained for FlexVae {
    const KIND: Kind = Kind {
        name: "flexvae",
        role: "tokenizer",
        title: "FlexVAE",
        source: "`FlexVAE.pth` is the published one, `burn-var train flexvae` trains one",
        sections: &["model.", "trainer.vae_local."],
        landmark: Some("encoder.conv_blocks.0.res.0.conv1.weight"),
    };

    type Config = FlexVaeConfig;

    fn config(&self) -> &FlexVaeConfig {
        self.config()
    }

    /// Returns the names of LlamaGen's tokenizer.
    fn keys(config: &FlexVaeConfig) -> KeyMap {
        config.vq.keys(Self::KIND)
    }

    /// Tells FlexVAE from LlamaGen's tokenizer, whose names are the same.
    fn recognizes(dict: &StateDict) -> bool {
        Self::KIND.landmark.is_some_and(|key| dict.contains(key)) && !LlamaGenVq::recognizes(dict)
    }

    fn init_zeros(config: &FlexVaeConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Replaces the scale schedule: one set of weights serves all.
    fn with_scales(config: FlexVaeConfig, scales: &Scales) -> FlexVaeConfig {
        FlexVaeConfig { patch_nums: scales.clone(), ..config }
    }

    /// Infers the configuration from the shapes. The default schedule is the authors' for 256 pixels, unless `scales`
    /// names another.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<FlexVaeConfig> {
        let patch_nums = scales.cloned().unwrap_or_else(|| Scales::published(&Scales::VAR_256));
        Ok(FlexVaeConfig { vq: VqModelConfig::infer(dict, Self::KIND)?, patch_nums })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{SaveOptions, export};

    fn config() -> FlexVaeConfig {
        let vq = VqModelConfig {
            image_channels: 1,
            ch: 32,
            ch_mult: vec![1, 2, 3],
            num_res_blocks: 1,
            z_channels: 5,
            ..VqModelConfig::vq16(7, 3)
        };
        FlexVaeConfig { vq, patch_nums: Scales::square(&Scales::VAR_256).unwrap() }
    }

    #[test]
    fn levels_are_named_in_order_of_computation() {
        let keys = FlexVae::keys(&config());
        for (path, parts) in [
            ("vq.encoder.down.0.block.0.conv1.weight", vec!["encoder.conv_blocks.0.res.0.conv1.weight"]),
            ("vq.encoder.down.1.downsample.conv.bias", vec!["encoder.conv_blocks.1.downsample.conv.bias"]),
            ("vq.decoder.up.2.attn.1.proj_out.bias", vec!["decoder.conv_blocks.0.attn.1.proj_out.bias"]),
            ("vq.decoder.up.0.block.1.norm2.weight", vec!["decoder.conv_blocks.2.res.1.norm2.weight"]),
            ("vq.decoder.mid.block_2.conv2.weight", vec!["decoder.mid.2.conv2.weight"]),
            (
                "vq.encoder.mid.attn_1.qkv.weight",
                vec!["encoder.mid.1.q.weight", "encoder.mid.1.k.weight", "encoder.mid.1.v.weight"],
            ),
            ("vq.quantize.embedding.weight", vec!["quantize.embedding.weight"]),
        ] {
            assert_eq!(keys.parts(path), parts, "the names of {path}");
        }
    }

    #[test]
    fn sizes_are_read_from_the_shapes() {
        let expected = config();
        let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &FlexVae::keys(&expected)).unwrap();
        assert_eq!(FlexVae::config_of(&dict, None).unwrap(), expected);
        let other = Scales::square(&[1, 3]).unwrap();
        assert_eq!(FlexVae::config_of(&dict, Some(&other)).unwrap().patch_nums, other);
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flexvae.safetensors");
        let expected = FlexVaeConfig { patch_nums: Scales::square(&[1, 2]).unwrap(), ..config() };
        let model = expected.init(3, &Device::flex()).unwrap();
        model.save(&path, &SaveOptions::default()).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(FlexVae::config_of(&dict, None).unwrap(), expected, "configuration");
        let again = export(&FlexVae::load(&dict, &Device::flex()).unwrap(), &FlexVae::keys(&expected)).unwrap();
        for key in dict.keys() {
            assert_eq!(again.tensor(key).unwrap(), dict.tensor(key).unwrap(), "values of {key}");
        }
    }
}
