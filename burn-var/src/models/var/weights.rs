//! Checkpoints of the VAR transformer: `var_d16.pth` to `var_d36.pth`, and those of the VAR trainer.

use std::path::Path;

use burn::tensor::Device;

use super::model_config::{axes, count};
use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, Section, StateDict, Usage, export, load, save};
use crate::transformer::{Var, VarConfig};
use crate::{Error, Result, Scales};

const MODEL: &str = "VAR transformer";

/// How VAR names the transformer's parameters: its adaptive norms are the second part of a `Sequential`.
pub fn var_keys() -> KeyMap {
    KeyMap::new(MODEL, &["lvl_1L", "attn_bias_for_masking", "zero_k_bias"], |path| match path.rsplit_once("ada_lin.") {
        Some((before, after)) => format!("{before}ada_lin.1.{after}"),
        None => path.to_owned(),
    })
}

/// The sizes of a transformer, from the file's own configuration if it has one, else from its shapes.
///
/// The ladder of token maps is read from the buffer `lvl_1L`, or recognised by its length where it is a published one;
/// `patch_nums` sets it where neither helps. The drop-path rate gets the published value for the depth.
///
/// # Errors
/// [`Error::Format`] if this is no VAR transformer, [`Error::Config`] if the ladder has to be given.
pub fn var_config(dict: &StateDict, patch_nums: Option<&Scales>) -> Result<VarConfig> {
    let dict = dict.section(Section::Var)?;
    match ModelConfig::of(&dict)? {
        Some(ModelConfig::Var(config)) => return Ok(config),
        Some(_) => return Err(Error::format(dict.origin(), format!("it holds another model than a {MODEL}"))),
        None => {}
    }
    let [vocab_size, embed_dim] = axes(&dict, "head.weight", MODEL)?;
    let [_, z_channels] = axes(&dict, "word_embed.weight", MODEL)?;
    let [labels, _] = axes(&dict, "class_emb.weight", MODEL)?;
    let [hidden, _] = axes(&dict, "blocks.0.ffn.fc1.weight", MODEL)?;
    let depth = count(&dict, |i| format!("blocks.{i}.attn.mat_qkv.weight"));
    let sharpness = "blocks.0.attn.scale_mul_1H11";
    let attn_l2_norm = dict.contains(sharpness);
    let num_heads = if attn_l2_norm {
        let [_, heads, _, _] = axes(&dict, sharpness, MODEL)?;
        heads
    } else {
        // Every model of this family has heads of 64 channels.
        embed_dim / 64
    };
    let config = VarConfig {
        depth,
        embed_dim,
        num_heads,
        mlp_ratio: hidden as f64 / embed_dim as f64,
        norm_eps: 1e-6,
        shared_aln: dict.contains("shared_ada_lin.1.weight"),
        attn_l2_norm,
        vocab_size,
        z_channels,
        num_classes: labels - 1,
        patch_nums: patch_nums.cloned().map_or_else(|| ladder(&dict), Ok)?,
        drop_path_rate: 0.1 * depth as f64 / 24.0,
    };
    config.validate()?;
    Ok(config)
}

/// The ladder of a transformer whose token maps are square.
fn ladder(dict: &StateDict) -> Result<Scales> {
    let [_, length, _] = axes(dict, "pos_1LC", MODEL)?;
    let [scales, _] = axes(dict, "lvl_embed.weight", MODEL)?;
    let areas = if dict.contains("lvl_1L") {
        let levels = dict.tensor("lvl_1L")?.try_into_vec_as::<i64>();
        let levels = levels.map_err(|error| Error::format(dict.origin(), format!("`lvl_1L`: {error}")))?;
        (0..scales as i64).map(|k| levels.iter().filter(|level| **level == k).count()).collect()
    } else {
        Vec::new()
    };
    let sides: Vec<usize> = areas.iter().map(|area: &usize| area.isqrt()).collect();
    if !sides.is_empty() && areas.iter().zip(&sides).all(|(area, side)| side * side == *area) {
        return Scales::square(&sides);
    }
    let published: [&[usize]; 3] = [&Scales::VAR_256, &Scales::VAR_512, &Scales::VAR_1024];
    let fits =
        |sides: &&&[usize]| sides.len() == scales && sides.iter().map(|side| side * side).sum::<usize>() == length;
    match published.iter().find(fits) {
        Some(sides) => Scales::square(sides),
        None => {
            let found = format!("not in the file, which has {length} tokens in {scales} scales");
            Err(Error::config("patch_nums", found, "the ladder that this transformer was trained with"))
        }
    }
}

/// A transformer with the weights of a checkpoint, strictly, in single precision.
///
/// # Errors
/// [`Error::Weights`] if they do not fit `config`; see [`var_config`] and [`load`].
pub fn load_var(dict: &StateDict, config: &VarConfig, device: &Device) -> Result<Var> {
    load_var_with(dict, config, LoadOptions::default(), device)
}

/// As [`load_var`], with options: weights in half precision take half the memory.
///
/// # Errors
/// As [`load_var`].
pub fn load_var_with(dict: &StateDict, config: &VarConfig, options: LoadOptions, device: &Device) -> Result<Var> {
    let weights = dict.section(Section::Var)?;
    Ok(load(config.init_zeros(device)?, &weights, &var_keys(), options)?.0)
}

/// Writes a transformer as safetensors under VAR's names, its configuration and `usage` inside; `half` rounds to half
/// precision.
///
/// # Errors
/// As [`save`].
pub fn save_var(model: &Var, usage: &Usage, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let mut metadata = ModelConfig::Var(model.config().clone()).metadata()?;
    metadata.extend([usage.entry()?]);
    save(&export(model, &var_keys())?, path, &SaveOptions { half, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapSize;

    fn config(flags: [bool; 2], patch_nums: Scales) -> VarConfig {
        VarConfig {
            depth: 2,
            embed_dim: 128,
            num_heads: 2,
            mlp_ratio: 3.0,
            norm_eps: 1e-6,
            shared_aln: flags[0],
            attn_l2_norm: flags[1],
            vocab_size: 7,
            z_channels: 3,
            num_classes: 5,
            patch_nums,
            drop_path_rate: 0.1 * 2.0 / 24.0,
        }
    }

    fn weights(config: &VarConfig) -> StateDict {
        export(&config.init_zeros(&Device::flex()).unwrap(), &var_keys()).unwrap()
    }

    #[test]
    fn sizes_are_read_off_the_shapes() {
        for flags in [[false, false], [false, true], [true, false], [true, true]] {
            for sides in [&Scales::VAR_256, &Scales::VAR_512] {
                let expected = config(flags, Scales::square(sides).unwrap());
                let found = var_config(&weights(&expected), None).unwrap();
                assert_eq!(found, expected, "shared_aln and attn_l2_norm {flags:?}");
            }
        }
    }

    #[test]
    fn a_ladder_that_nothing_tells_has_to_be_given() {
        let odd = Scales::new(vec![MapSize::square(1), MapSize { height: 2, width: 3 }]).unwrap();
        let expected = config([true, true], odd.clone());
        let dict = weights(&expected);
        let error = var_config(&dict, None).unwrap_err().to_string();
        assert!(error.contains("patch_nums") && error.contains("7 tokens in 2 scales"), "{error}");
        assert_eq!(var_config(&dict, Some(&odd)).unwrap(), expected, "with the ladder given");
    }

    #[test]
    fn saved_files_know_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var.safetensors");
        let expected = config([true, true], Scales::square(&[1, 3]).unwrap());
        let model = expected.init(crate::transformer::VarInit::default(), 1, &Device::flex()).unwrap();
        save_var(&model, &Usage::default(), &path, false).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(var_config(&dict, None).unwrap(), expected, "configuration");
        let again = export(&load_var(&dict, &expected, &Device::flex()).unwrap(), &var_keys()).unwrap();
        for key in dict.keys() {
            assert_eq!(again.tensor(key).unwrap(), dict.tensor(key).unwrap(), "values of {key}");
        }
        let error = crate::pretrained::vqvae_config(&dict, None).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
    }

    #[test]
    fn adaptive_norms_are_the_second_part_of_a_sequential() {
        let keys = var_keys();
        for (path, key) in [
            ("blocks.3.ada_lin.bias", "blocks.3.ada_lin.1.bias"),
            ("shared_ada_lin.weight", "shared_ada_lin.1.weight"),
            ("head_nm.ada_lin.weight", "head_nm.ada_lin.1.weight"),
            ("blocks.0.ada_gss", "blocks.0.ada_gss"),
        ] {
            assert_eq!(keys.key(path), key, "the name of {path}");
        }
    }
}
