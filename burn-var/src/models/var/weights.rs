//! Checkpoints of the VAR transformer: `var_d16.pth` to `var_d36.pth`, and those of the VAR trainer.

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::{Var, VarConfig};
use crate::models::common::trunk::{self, TrunkShapes};
use crate::weights::shapes::axes;
use crate::weights::{GenerationConfig, KeyMap, Kind, Pretrained, StateDict};
use crate::{Error, Result, Scales};

impl Pretrained for Var {
    const KIND: Kind = Kind {
        name: "var",
        role: "transformer",
        title: "VAR transformer",
        source: "`var_d16.pth` to `var_d36.pth` are published ones, `burn-var train var` trains one",
        sections: &["trainer.var_wo_ddp."],
        landmark: Some("lvl_embed.weight"),
    };

    type Config = VarConfig;

    fn config(&self) -> &VarConfig {
        self.config()
    }

    /// Returns the names of VAR, whose adaptive norms are the second part of a `Sequential`.
    fn keys(_: &VarConfig) -> KeyMap {
        trunk::keys(Self::KIND, &["lvl_1L", "attn_bias_for_masking", "zero_k_bias"])
    }

    fn init_zeros(config: &VarConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Infers the configuration from the shapes.
    ///
    /// The scale schedule is read from the buffer `lvl_1L`, or recognized by its length if it is a published one;
    /// `scales` overrides both. The drop-path rate gets the published value for the depth.
    ///
    /// # Errors
    /// [`Error::Format`] if this is not a VAR transformer; [`Error::Config`] if `scales` is needed.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<VarConfig> {
        let shapes = TrunkShapes::of(dict, Self::KIND)?;
        let config = VarConfig {
            depth: shapes.depth,
            embed_dim: shapes.embed_dim,
            num_heads: shapes.num_heads,
            mlp_ratio: shapes.mlp_ratio,
            norm_eps: 1e-6,
            shared_aln: shapes.shared_aln,
            attn_l2_norm: shapes.attn_l2_norm,
            vocab_size: shapes.vocab_size,
            z_channels: shapes.z_channels,
            num_classes: shapes.num_classes,
            patch_nums: scales.cloned().map_or_else(|| infer_scales(dict), Ok)?,
            drop_path_rate: shapes.drop_path_rate,
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the generation settings, the defaults if the file has none.
    fn notes(dict: &StateDict) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        GenerationConfig::of(dict)?.unwrap_or_default().insert(&mut metadata)?;
        Ok(metadata)
    }
}

/// Infers the scale schedule of a transformer whose token maps are square.
fn infer_scales(dict: &StateDict) -> Result<Scales> {
    let [_, length, _] = axes(dict, "pos_1LC", Var::KIND)?;
    let [scales, _] = axes(dict, "lvl_embed.weight", Var::KIND)?;
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
            Err(Error::config("patch_nums", found, "the scale schedule of this transformer's training"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapSize;
    use crate::models::var::{VarInit, VqVae};
    use crate::weights::{SaveOptions, export};

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
        export(&config.init_zeros(&Device::flex()).unwrap(), &Var::keys(config)).unwrap()
    }

    #[test]
    fn sizes_are_read_from_the_shapes() {
        for flags in [[false, false], [false, true], [true, false], [true, true]] {
            for sides in [&Scales::VAR_256, &Scales::VAR_512] {
                let expected = config(flags, Scales::square(sides).unwrap());
                let found = Var::config_of(&weights(&expected), None).unwrap();
                assert_eq!(found, expected, "shared_aln and attn_l2_norm {flags:?}");
            }
        }
    }

    #[test]
    fn an_undetermined_schedule_must_be_given() {
        let odd = Scales::new(vec![MapSize::square(1), MapSize { height: 2, width: 3 }]).unwrap();
        let expected = config([true, true], odd.clone());
        let dict = weights(&expected);
        let error = Var::config_of(&dict, None).unwrap_err().to_string();
        assert!(error.contains("patch_nums") && error.contains("7 tokens in 2 scales"), "{error}");
        assert_eq!(Var::config_of(&dict, Some(&odd)).unwrap(), expected, "with the schedule given");
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var.safetensors");
        let expected = config([true, true], Scales::square(&[1, 3]).unwrap());
        let model = expected.init(VarInit::default(), 1, &Device::flex()).unwrap();
        let mut options = SaveOptions::default();
        GenerationConfig::default().insert(&mut options.metadata).unwrap();
        model.save(&path, &options).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(Var::config_of(&dict, None).unwrap(), expected, "configuration");
        let again = export(&Var::load(&dict, &Device::flex()).unwrap(), &Var::keys(&expected)).unwrap();
        for key in dict.keys() {
            assert_eq!(again.tensor(key).unwrap(), dict.tensor(key).unwrap(), "values of {key}");
        }
        let error = VqVae::config_of(&dict, None).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
    }

    #[test]
    fn adaptive_norms_are_the_second_part_of_a_sequential() {
        let keys = Var::keys(&config([true, true], Scales::square(&[1]).unwrap()));
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
