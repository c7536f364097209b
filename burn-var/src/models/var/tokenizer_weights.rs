//! Checkpoints of VAR's tokenizer: `vae_ch160v4096z32.pth`, and those of the VAR trainer.

use std::path::Path;

use burn::tensor::Device;

use super::model_config::{axes, count};
use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, Section, StateDict, export, load, save};
use crate::tokenizer::{VqVae, VqVaeConfig};
use crate::{Error, Result, Scales};

const MODEL: &str = "VQ-VAE of VAR";

/// How VAR names the tokenizer's parameters; only the phi convolutions differ, by how scales share them.
pub fn vqvae_keys(config: &VqVaeConfig) -> KeyMap {
    let inner = match config.share_quant_resi {
        0 => "",
        1 => "qresi.",
        _ => "qresi_ls.",
    };
    // Usage counts of codes: statistics of the training run, and their shape follows the ladder in use.
    KeyMap::new(MODEL, &["ema_vocab_hit_SV"], move |path| match path.strip_prefix("quantize.quant_resi.") {
        Some(rest) if inner == "qresi." => format!("quantize.quant_resi.qresi.{}", rest.trim_start_matches("0.")),
        Some(rest) => format!("quantize.quant_resi.{inner}{rest}"),
        None => path.to_owned(),
    })
}

/// The sizes of a tokenizer, from the file's own configuration if it has one, else from its shapes.
///
/// Shapes do not tell the ladder of token maps, of which one set of weights serves several: `patch_nums` sets it, and
/// replaces a configured one. Without, a file of ten scales is taken for the public model at 256 pixels. Nor do they
/// tell `using_znorm`, `quant_resi` and `beta`, which get the published values (`quant_resi` 0 where there are no phi
/// convolutions).
///
/// # Errors
/// [`Error::Format`] if this is no tokenizer, [`Error::Config`] if the ladder has to be given.
pub fn vqvae_config(dict: &StateDict, patch_nums: Option<&Scales>) -> Result<VqVaeConfig> {
    let dict = dict.section(Section::VqVae)?;
    match ModelConfig::of(&dict)? {
        Some(ModelConfig::VqVae(config)) => {
            let patch_nums = patch_nums.cloned().unwrap_or_else(|| config.patch_nums.clone());
            return Ok(VqVaeConfig { patch_nums, ..config });
        }
        Some(_) => return Err(Error::format(dict.origin(), format!("it holds another model than a {MODEL}"))),
        None => {}
    }
    let shape = |key: &str| axes::<4>(&dict, key, MODEL);
    let [ch, image_channels, ..] = shape("encoder.conv_in.weight")?;
    let levels = count(&dict, |i| format!("encoder.down.{i}.block.0.conv1.weight"));
    let mut ch_mult = Vec::with_capacity(levels);
    for level in 0..levels {
        let [channels, ..] = shape(&format!("encoder.down.{level}.block.0.conv1.weight"))?;
        if !channels.is_multiple_of(ch) {
            let expected = format!("a multiple of {ch}, the channels of the first level");
            return Err(Error::config(format!("channels of level {level}"), channels, expected));
        }
        ch_mult.push(channels / ch);
    }
    let [vocab_size, z_channels] = axes(&dict, "quantize.embedding.weight", MODEL)?;
    let separate = count(&dict, |i| format!("quantize.quant_resi.{i}.weight"));
    let share_quant_resi = if dict.contains("quantize.quant_resi.qresi.weight") {
        1
    } else {
        count(&dict, |i| format!("quantize.quant_resi.qresi_ls.{i}.weight"))
    };
    let [.., quant_conv_ks] = shape("quant_conv.weight")?;
    let scales = match dict.shape("quantize.ema_vocab_hit_SV") {
        Some([scales, _]) => Some(*scales),
        _ => (separate > 0).then_some(separate),
    };
    let patch_nums = match patch_nums {
        Some(patch_nums) => patch_nums.clone(),
        None if scales.is_none_or(|scales| scales == Scales::VAR_256.len()) => Scales::square(&Scales::VAR_256)?,
        None => {
            let found = format!("not in the file, which has {} scales", scales.unwrap_or_default());
            return Err(Error::config("patch_nums", found, "the ladder that this tokenizer was trained with"));
        }
    };
    let public = VqVaeConfig::public(patch_nums);
    let has_phi = separate + share_quant_resi > 0;
    let config = VqVaeConfig {
        image_channels,
        ch,
        ch_mult,
        num_res_blocks: count(&dict, |i| format!("encoder.down.0.block.{i}.conv1.weight")),
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

/// A tokenizer with the weights of a checkpoint, strictly.
///
/// # Errors
/// [`Error::Weights`] if they do not fit `config`; see [`vqvae_config`] and [`load`].
pub fn load_vqvae(dict: &StateDict, config: &VqVaeConfig, device: &Device) -> Result<VqVae> {
    let weights = dict.section(Section::VqVae)?;
    Ok(load(config.init_zeros(device)?, &weights, &vqvae_keys(config), LoadOptions::default())?.0)
}

/// Writes a tokenizer as safetensors under VAR's names, its configuration inside; `half` rounds to half precision.
///
/// # Errors
/// As [`save`].
pub fn save_vqvae(model: &VqVae, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let metadata = ModelConfig::VqVae(model.config().clone()).metadata()?;
    save(&export(model, &vqvae_keys(model.config()))?, path, &SaveOptions { half, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn without_a_share_there_are_no_phi_convolutions() {
        let config = VqVaeConfig { quant_resi: 0.0, ..config(0) };
        let model = config.init_zeros(&Device::flex()).unwrap();
        let dict = export(&model, &vqvae_keys(&config)).unwrap();
        assert!(dict.keys().all(|key| !key.contains("quant_resi")), "no keys");
        assert_eq!(vqvae_config(&dict, Some(&config.patch_nums)).unwrap(), config, "read back from the shapes");
        load_vqvae(&dict, &config, &Device::flex()).unwrap();
    }

    #[test]
    fn phi_names_follow_the_sharing() {
        let cases = [(0, "quantize.quant_resi.2.weight"), (1, "quantize.quant_resi.qresi.weight")];
        let cases = cases.into_iter().chain([(2, "quantize.quant_resi.qresi_ls.1.weight")]);
        for (share, last) in cases {
            let dict =
                export(&config(share).init_zeros(&Device::flex()).unwrap(), &vqvae_keys(&config(share))).unwrap();
            let found = dict.keys().filter(|key| key.ends_with("weight") && key.contains("quant_resi")).last();
            assert_eq!(found, Some(last), "with share_quant_resi {share}");
        }
    }

    #[test]
    fn sizes_are_read_off_the_shapes() {
        for share in [0, 1, 2] {
            let expected = config(share);
            let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &vqvae_keys(&expected)).unwrap();
            let found = vqvae_config(&dict, Some(&expected.patch_nums)).unwrap();
            assert_eq!(found, expected, "with share_quant_resi {share}");
        }
    }

    #[test]
    fn saved_files_know_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vae.safetensors");
        let expected = VqVaeConfig { using_znorm: true, ..config(0) };
        let model = expected.init(3, &Device::flex()).unwrap();
        save_vqvae(&model, &path, false).unwrap();
        let dict = StateDict::open(&path).unwrap();
        let found = vqvae_config(&dict, None).unwrap();
        assert_eq!(found, expected, "configuration");
        let again = load_vqvae(&dict, &found, &Device::flex()).unwrap();
        let codes = |model: &VqVae| model.quantize.embedding.weight.val().into_data();
        assert_eq!(codes(&again), codes(&model), "codes");
    }

    #[test]
    fn another_model_is_refused_by_name() {
        let dict = StateDict::generated("x.pth", [("pos_start".to_owned(), vec![1, 1, 8])], |_, _| vec![0.0; 8]);
        let error = vqvae_config(&dict.unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("x.pth") && error.contains("`encoder.conv_in.weight` is missing"), "{error}");
    }
}
