//! Checkpoints of the FlexVAR transformer: `FlexVARd16-epo179.pth` and its like, bare or in a trainer's, and those of SAR.

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::{FirstScale, FlexVar, FlexVarConfig, FlexVarPreset, MaskedFirst, SeenScales};
use crate::models::common::trunk::{self, TrunkShapes};
use crate::weights::shapes::axes;
use crate::weights::{GenerationConfig, KeyMap, Kind, Pretrained, StateDict};
use crate::{Error, Result, Scales};

impl Pretrained for FlexVar {
    const KIND: Kind = Kind {
        name: "flexvar",
        role: "transformer",
        title: "FlexVAR transformer",
        source: "`FlexVARd16-epo179.pth` is a published one, `burn-var train flexvar` trains one",
        sections: &["trainer.var_wo_ddp."],
        landmark: None,
    };

    type Config = FlexVarConfig;

    fn config(&self) -> &FlexVarConfig {
        self.config()
    }

    /// Returns the names of VAR, all of which FlexVAR kept.
    fn keys(_: &FlexVarConfig) -> KeyMap {
        trunk::keys(Self::KIND, &["attn_bias_for_masking", "zero_k_bias"])
    }

    fn init_zeros(config: &FlexVarConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }

    /// Tells FlexVAR from VAR, whose names it shares, by the level embedding that it has given up.
    fn recognizes(dict: &StateDict) -> bool {
        dict.contains("pos_1LC") && !dict.contains("lvl_embed.weight")
    }

    /// Replaces the default schedule: the weights depend on none.
    fn with_scales(config: FlexVarConfig, scales: &Scales) -> FlexVarConfig {
        FlexVarConfig { patch_nums: scales.clone(), ..config }
    }

    /// Infers the configuration from the shapes. The default schedule is the authors' for 256 pixels, unless `scales`
    /// names another; the drop-path rate gets the published value for the depth. A mask token tells a masked first scale:
    /// ScaleAR, whose scales see the class token alone.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<FlexVarConfig> {
        let shapes = TrunkShapes::of(dict, Self::KIND)?;
        let [_, _, height, width] = axes(dict, "pos_1LC", Self::KIND)?;
        if height != width {
            let reason = format!("`pos_1LC` is {height}x{width}, expected a square table of positions");
            return Err(Error::format(dict.origin(), reason));
        }
        let (first, scales) = first_scale(dict, scales)?;
        let config = FlexVarConfig {
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
            patch_nums: scales,
            positions: height,
            drop_path_rate: shapes.drop_path_rate,
            first,
            sees: match first {
                FirstScale::OneShot => SeenScales::Before,
                FirstScale::Masked(_) => SeenScales::ClassTokenReleased,
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the generation settings, those of the authors' evaluation if the file has none.
    fn notes(dict: &StateDict) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        GenerationConfig::of(dict)?.unwrap_or_else(FlexVarPreset::evaluation).insert(&mut metadata)?;
        Ok(metadata)
    }
}

/// Returns how the first scale is predicted, and the schedule: the one given, or the authors'.
fn first_scale(dict: &StateDict, scales: Option<&Scales>) -> Result<(FirstScale, Scales)> {
    if !dict.contains("mask_token") {
        let published = || Scales::published(&Scales::VAR_256);
        return Ok((FirstScale::OneShot, scales.cloned().unwrap_or_else(published)));
    }
    let own_positions = dict.contains("randar_pos_embed");
    let masked = FirstScale::Masked(MaskedFirst { own_positions, rewrite: false });
    if let Some(scales) = scales {
        return Ok((masked, scales.clone()));
    }
    if own_positions {
        let [_, tokens, _] = axes(dict, "randar_pos_embed", FlexVar::KIND)?;
        if tokens != 16 {
            let reason =
                format!("its first scale has {tokens} tokens, the published one 16; a scale schedule is needed");
            return Err(Error::format(dict.origin(), reason));
        }
    }
    Ok((masked, Scales::published(&[4, 4, 4, 4, 4, 4, 4, 4, 5, 6, 8, 10, 13, 16])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::common::VarInit;
    use crate::models::var::Var;
    use crate::weights::{SaveOptions, export};

    fn config(flags: [bool; 2]) -> FlexVarConfig {
        FlexVarConfig {
            depth: 2,
            embed_dim: 128,
            num_heads: 2,
            mlp_ratio: 3.0,
            shared_aln: flags[0],
            attn_l2_norm: flags[1],
            vocab_size: 7,
            z_channels: 3,
            num_classes: 5,
            positions: 6,
            drop_path_rate: 0.1 * 2.0 / 24.0,
            ..FlexVarPreset::D16.config()
        }
    }

    #[test]
    fn sizes_are_read_from_the_shapes() {
        for flags in [[false, false], [false, true], [true, false], [true, true]] {
            let expected = config(flags);
            let dict = export(&expected.init_zeros(&Device::flex()).unwrap(), &FlexVar::keys(&expected)).unwrap();
            assert_eq!(FlexVar::config_of(&dict, None).unwrap(), expected, "shared_aln and attn_l2_norm {flags:?}");
            assert!(FlexVar::recognizes(&dict) && !Var::recognizes(&dict), "told from VAR");
            let other = Scales::square(&[1, 3]).unwrap();
            assert_eq!(FlexVar::config_of(&dict, Some(&other)).unwrap().patch_nums, other);
        }
    }

    #[test]
    fn saved_files_contain_their_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flexvar.safetensors");
        let expected = FlexVarConfig { patch_nums: Scales::square(&[1, 3]).unwrap(), ..config([true, true]) };
        let model = expected.init(VarInit::default(), 1, &Device::flex()).unwrap();
        model.save(&path, &SaveOptions::default()).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(FlexVar::config_of(&dict, None).unwrap(), expected, "configuration");
        let again = export(&FlexVar::load(&dict, &Device::flex()).unwrap(), &FlexVar::keys(&expected)).unwrap();
        for key in dict.keys() {
            assert_eq!(again.tensor(key).unwrap(), dict.tensor(key).unwrap(), "values of {key}");
        }
        let error = Var::config_of(&dict, None).unwrap_err().to_string();
        assert!(error.contains("another model"), "{error}");
    }
}
