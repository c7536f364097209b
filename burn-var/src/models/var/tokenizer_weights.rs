//! Checkpoints of VAR's tokenizer: `vae_ch160v4096z32.pth`, and those of the VAR trainer.

use burn::tensor::Device;

use super::{VqVae, VqVaeConfig};
use crate::weights::shapes::{axes, count};
use crate::weights::{KeyMap, Kind, Pretrained, StateDict};
use crate::{Error, Result, Scales};

impl Pretrained for VqVae {
    const KIND: Kind = Kind {
        name: "vqvae",
        role: "tokenizer",
        title: "VQ-VAE",
        source: "`vae_ch160v4096z32.pth` is the published one, `burn-var train tokenizer` trains one",
        sections: &["trainer.vae_local."],
        landmark: Some("encoder.down.0.block.0.conv1.weight"),
    };

    type Config = VqVaeConfig;

    fn config(&self) -> &VqVaeConfig {
        self.config()
    }

    /// Returns the names of VAR, in which only the phi convolutions depend on the number of scales that share one.
    fn keys(config: &VqVaeConfig) -> KeyMap {
        let inner = match config.share_quant_resi {
            0 => "",
            1 => "qresi.",
            _ => "qresi_ls.",
        };
        // Usage counts of codes: statistics of the training run, whose shape depends on the scale schedule.
        KeyMap::new(Self::KIND.title, &["ema_vocab_hit_SV"], move |path| {
            match path.strip_prefix("quantize.quant_resi.") {
                Some(rest) if inner == "qresi." => {
                    format!("quantize.quant_resi.qresi.{}", rest.trim_start_matches("0."))
                }
                Some(rest) => format!("quantize.quant_resi.{inner}{rest}"),
                None => path.to_owned(),
            }
        })
    }

    fn init_zeros(config: &VqVaeConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Replaces the scale schedule: one set of weights serves several.
    fn with_scales(config: VqVaeConfig, scales: &Scales) -> VqVaeConfig {
        VqVaeConfig { patch_nums: scales.clone(), ..config }
    }

    /// Infers the configuration from the shapes.
    ///
    /// Shapes do not determine the scale schedule. Without `scales`, a file of ten scales is taken for the public model
    /// at 256 pixels. Nor do they determine `using_znorm`, `quant_resi` and `beta`, which get the published values
    /// (`quant_resi` is 0 if there are no phi convolutions).
    ///
    /// # Errors
    /// [`Error::Format`] if this is not a tokenizer; [`Error::Config`] if `scales` is needed.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<VqVaeConfig> {
        let shape = |key: &str| axes::<4>(dict, key, Self::KIND);
        let [ch, image_channels, ..] = shape("encoder.conv_in.weight")?;
        let levels = count(dict, |i| format!("encoder.down.{i}.block.0.conv1.weight"));
        let mut ch_mult = Vec::with_capacity(levels);
        for level in 0..levels {
            let [channels, ..] = shape(&format!("encoder.down.{level}.block.0.conv1.weight"))?;
            if !channels.is_multiple_of(ch) {
                let expected = format!("a multiple of {ch}, the channels of the first level");
                return Err(Error::config(format!("channels of level {level}"), channels, expected));
            }
            ch_mult.push(channels / ch);
        }
        let [vocab_size, z_channels] = axes(dict, "quantize.embedding.weight", Self::KIND)?;
        let separate = count(dict, |i| format!("quantize.quant_resi.{i}.weight"));
        let share_quant_resi = if dict.contains("quantize.quant_resi.qresi.weight") {
            1
        } else {
            count(dict, |i| format!("quantize.quant_resi.qresi_ls.{i}.weight"))
        };
        let [.., quant_conv_ks] = shape("quant_conv.weight")?;
        let num_scales = match dict.shape("quantize.ema_vocab_hit_SV") {
            Some([scales, _]) => Some(*scales),
            _ => (separate > 0).then_some(separate),
        };
        let patch_nums = match scales {
            Some(scales) => scales.clone(),
            None if num_scales.is_none_or(|scales| scales == Scales::VAR_256.len()) => {
                Scales::square(&Scales::VAR_256)?
            }
            None => {
                let found = format!("not in the file, which has {} scales", num_scales.unwrap_or_default());
                return Err(Error::config("patch_nums", found, "the scale schedule of this tokenizer's training"));
            }
        };
        let public = VqVaeConfig::public(patch_nums);
        let has_phi = separate + share_quant_resi > 0;
        let config = VqVaeConfig {
            image_channels,
            ch,
            ch_mult,
            num_res_blocks: count(dict, |i| format!("encoder.down.0.block.{i}.conv1.weight")),
            z_channels,
            vocab_size,
            share_quant_resi,
            quant_conv_ks,
            quant_resi: if has_phi { public.quant_resi } else { 0.0 },
            ..public
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{LoadOptions, SaveOptions, export};

    fn config(share_quant_resi: usize) -> VqVaeConfig {
        VqVaeConfig {
            image_channels: 1,
            ch: 32,
            ch_mult: vec![1, 2],
            num_res_blocks: 1,
            z_channels: 3,
            vocab_size: 5,
            share_quant_resi,
            quant_conv_ks: 1,
            ..VqVaeConfig::public(Scales::square(&[1, 2, 5]).unwrap())
        }
    }

    #[test]
    fn zero_quant_resi_has_no_phi_convolutions() {
        let config = VqVaeConfig { quant_resi: 0.0, ..config(0) };
        let model = config.init_zeros(&Device::flex()).unwrap();
        let dict = export(&model, &VqVae::keys(&config)).unwrap();
        assert!(dict.keys().all(|key| !key.contains("quant_resi")), "no keys");
        assert_eq!(VqVae::config_of(&dict, Some(&config.patch_nums)).unwrap(), config, "read back from the shapes");
        VqVae::load_with(&dict, &config, LoadOptions::default(), &Device::flex()).unwrap();
    }

    #[test]
    fn phi_names_depend_on_the_sharing() {
        let cases = [(0, "quantize.quant_resi.2.weight"), (1, "quantize.quant_resi.qresi.weight")];
        let cases = cases.into_iter().chain([(2, "quantize.quant_resi.qresi_ls.1.weight")]);
        for (share, last) in cases {
            let config = config(share);
            let dict = export(&config.init_zeros(&Device::flex()).unwrap(), &VqVae::keys(&config)).unwrap();
            let found = dict.keys().filter(|key| key.ends_with("weight") && key.contains("quant_resi")).last();
            assert_eq!(found, Some(last), "with share_quant_resi {share}");
        }
    }

    #[test]
    fn sizes_are_read_from_the_shapes() {
        for share in [0, 1, 2] {
            let expected = config(share);
            let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &VqVae::keys(&expected)).unwrap();
            let found = VqVae::config_of(&dict, Some(&expected.patch_nums)).unwrap();
            assert_eq!(found, expected, "with share_quant_resi {share}");
        }
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vae.safetensors");
        let expected = VqVaeConfig { using_znorm: true, ..config(0) };
        let model = expected.init(3, &Device::flex()).unwrap();
        model.save(&path, &SaveOptions::default()).unwrap();
        let dict = StateDict::open(&path).unwrap();
        let found = VqVae::config_of(&dict, None).unwrap();
        assert_eq!(found, expected, "configuration");
        let again = VqVae::load(&dict, &Device::flex()).unwrap();
        let codes = |model: &VqVae| model.quantize.embedding.weight.val().into_data();
        assert_eq!(codes(&again), codes(&model), "codes");
    }

    #[test]
    fn another_model_is_refused_by_name() {
        let dict = StateDict::generated("x.pth", [("pos_start".to_owned(), vec![1, 1, 8])], |_, _| vec![0.0; 8]);
        let error = VqVae::config_of(&dict.unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("x.pth") && error.contains("`encoder.conv_in.weight` is missing"), "{error}");
    }

    #[test]
    fn a_given_schedule_replaces_the_saved_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vae.safetensors");
        config(1).init_zeros(&Device::flex()).unwrap().save(&path, &SaveOptions::default()).unwrap();
        let scales = Scales::square(&[1, 3]).unwrap();
        let found = VqVae::config_of(&StateDict::open(&path).unwrap(), Some(&scales)).unwrap();
        assert_eq!(found, VqVaeConfig { patch_nums: scales, ..config(1) });
    }
}
