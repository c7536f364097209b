//! Checkpoints of LlamaGen's tokenizer: `vq_ds16_c2i.pt` and its like.

use burn::tensor::Device;

use super::{LlamaGenVq, LlamaGenVqConfig};
use crate::models::common::vq_model::VqModelConfig;
use crate::weights::{KeyMap, Kind, Pretrained, StateDict};
use crate::{MapSize, Result, Scales};

/// Channels of a code in the published files. Those of FlexVAE, whose tensors have the same names, have 32.
const CODE_CHANNELS: usize = 8;

impl Pretrained for LlamaGenVq {
    const KIND: Kind = Kind {
        name: "llamagen_vq",
        role: "tokenizer",
        title: "LlamaGen tokenizer",
        source: "`vq_ds16_c2i.pt` is a published one, `burn-var train llamagen-vq` trains one",
        sections: &["model.", "state_dict."],
        landmark: None,
    };

    type Config = LlamaGenVqConfig;

    fn config(&self) -> &LlamaGenVqConfig {
        self.config()
    }

    fn keys(config: &LlamaGenVqConfig) -> KeyMap {
        config.vq.keys(Self::KIND)
    }

    fn init_zeros(config: &LlamaGenVqConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Tells LlamaGen's tokenizer from FlexVAE, whose names are the same, by the 8 channels of a code.
    fn recognizes(dict: &StateDict) -> bool {
        dict.contains("encoder.conv_blocks.0.res.0.conv1.weight")
            && dict.shape("quantize.embedding.weight").is_some_and(|shape| shape.last() == Some(&CODE_CHANNELS))
    }

    /// Replaces the default schedule: the weights serve any raster.
    fn with_scales(config: LlamaGenVqConfig, scales: &Scales) -> LlamaGenVqConfig {
        LlamaGenVqConfig { patch_nums: scales.clone(), ..config }
    }

    /// Infers the configuration from the shapes. The default schedule is that of images of 256x256, unless `scales` names
    /// another raster.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<LlamaGenVqConfig> {
        let vq = VqModelConfig::infer(dict, Self::KIND)?;
        let side = 256 / vq.downsampling();
        let patch_nums = scales.cloned().unwrap_or_else(|| Scales::of_raster(MapSize::square(side)));
        let config = LlamaGenVqConfig { vq, patch_nums };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::flexvar::{FlexVae, FlexVaeConfig};
    use crate::weights::{SaveOptions, export};

    fn config() -> LlamaGenVqConfig {
        let vq = VqModelConfig {
            image_channels: 1,
            ch: 32,
            ch_mult: vec![1, 2],
            num_res_blocks: 1,
            z_channels: 5,
            ..VqModelConfig::vq16(7, 8)
        };
        LlamaGenVqConfig { vq, patch_nums: Scales::raster(MapSize::square(128)).unwrap() }
    }

    #[test]
    fn the_published_tokenizers_have_their_number_of_parameters() {
        let raster = || Scales::raster(MapSize::square(16)).unwrap();
        for (config, count) in
            [(LlamaGenVqConfig::vq16(raster()), 71_883_403), (LlamaGenVqConfig::vq8(raster()), 70_109_835)]
        {
            let model = config.init_zeros(&Device::flex()).unwrap();
            let dict = export(&model, &LlamaGenVq::keys(&config)).unwrap();
            assert_eq!(dict.num_elements(), count, "{:?}", config.vq.ch_mult);
            assert!(LlamaGenVq::recognizes(&dict) && !FlexVae::recognizes(&dict), "told from FlexVAE");
        }
        let flexvae = FlexVaeConfig::public(Scales::square(&[1, 2]).unwrap());
        let dict = export(&flexvae.init_zeros(&Device::flex()).unwrap(), &FlexVae::keys(&flexvae)).unwrap();
        assert!(FlexVae::recognizes(&dict) && !LlamaGenVq::recognizes(&dict), "FlexVAE is told from it");
    }

    #[test]
    fn sizes_are_read_from_the_shapes() {
        let expected = config();
        let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &LlamaGenVq::keys(&expected)).unwrap();
        assert_eq!(LlamaGenVq::config_of(&dict, None).unwrap(), expected);
        let maps = Scales::square(&[1, 3]).unwrap();
        let error = LlamaGenVq::config_of(&dict, Some(&maps)).unwrap_err().to_string();
        assert!(error.contains("raster:16"), "{error}");
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vq.safetensors");
        let patch_nums = Scales::raster(MapSize { height: 2, width: 3 }).unwrap();
        let vq = VqModelConfig { codebook_embed_dim: 3, codebook_l2_norm: false, ..config().vq };
        let expected = LlamaGenVqConfig { vq, patch_nums };
        expected.init(3, &Device::flex()).unwrap().save(&path, &SaveOptions::default()).unwrap();
        assert_eq!(LlamaGenVq::config_of(&StateDict::open(&path).unwrap(), None).unwrap(), expected);
    }
}
