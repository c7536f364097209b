//! Published sizes.

use super::transformer::POSITIONS;
use super::{FirstScale, FlexVarConfig, SeenScales};
use crate::guidance::Schedule;
use crate::sampling::Sampler;
use crate::weights::GenerationConfig;
use crate::{Result, Scales};

/// A transformer whose weights the authors of FlexVAR published (<https://huggingface.co/jiaosiyu1999/FlexVAR>), with the
/// FID they report on ImageNet at 256x256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlexVarPreset {
    /// 316 million parameters, FID 3.05.
    D16,
    /// 607 million parameters, FID 2.41.
    D20,
    /// 1.0 billion parameters, FID 2.21, or 2.08 in 13 steps.
    D24,
}

impl FlexVarPreset {
    /// Lists all presets.
    pub const ALL: [Self; 3] = [Self::D16, Self::D20, Self::D24];

    /// Returns the name on the command line: `d16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::D16 => "d16",
            Self::D20 => "d20",
            Self::D24 => "d24",
        }
    }

    /// Returns the sizes.
    pub fn config(self) -> FlexVarConfig {
        let depth = match self {
            Self::D16 => 16,
            Self::D20 => 20,
            Self::D24 => 24,
        };
        FlexVarConfig {
            depth,
            embed_dim: 64 * depth,
            num_heads: depth,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            shared_aln: false,
            attn_l2_norm: true,
            vocab_size: 8912,
            z_channels: 32,
            num_classes: 1000,
            patch_nums: Scales::published(&Scales::VAR_256),
            positions: POSITIONS,
            drop_path_rate: 0.1 * depth as f64 / 24.0,
            first: FirstScale::OneShot,
            sees: SeenScales::Before,
        }
    }

    /// Returns the settings of the authors' evaluation: guidance 2.5, top-k 900, top-p 0.95. For sizes beyond training
    /// they keep the guidance constant and draw greedily; see [`Schedule::RampWithin`] and [`Sampler::greedy_unlisted`].
    pub fn evaluation() -> GenerationConfig {
        GenerationConfig {
            class_names: Vec::new(),
            cfg: Schedule::RampWithin { strength: 2.5, side: 16, steps: Some(9) },
            sampler: Sampler { top_k: 900, top_p: 0.95, greedy_unlisted: true, ..Sampler::default() },
        }
    }
}

impl std::str::FromStr for FlexVarPreset {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|preset| preset.name()).collect();
            crate::Error::config("preset", name, format!("one of {}", names.join(", ")))
        })
    }
}
