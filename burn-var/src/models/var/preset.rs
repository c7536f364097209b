//! Published sizes.

use super::VarConfig;
use crate::{Result, Scales};

/// A transformer whose weights the authors of VAR published
/// (<https://huggingface.co/FoundationVision/var>), with the FID they report on ImageNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VarPreset {
    /// 310 million parameters, 256x256, FID 3.55.
    D16,
    /// 600 million parameters, 256x256, FID 2.95.
    D20,
    /// 1.0 billion parameters, 256x256, FID 2.33.
    D24,
    /// 2.0 billion parameters, 256x256, FID 1.97.
    D30,
    /// 2.3 billion parameters, 512x512, shared adaptive norm, FID 2.63.
    D36,
}

impl VarPreset {
    /// Lists all presets.
    pub const ALL: [Self; 5] = [Self::D16, Self::D20, Self::D24, Self::D30, Self::D36];

    /// Returns the name on the command line: `d16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::D16 => "d16",
            Self::D20 => "d20",
            Self::D24 => "d24",
            Self::D30 => "d30",
            Self::D36 => "d36",
        }
    }

    /// Returns the sizes.
    pub fn config(self) -> VarConfig {
        let (depth, sides, shared_aln) = match self {
            Self::D16 => (16, Scales::VAR_256, false),
            Self::D20 => (20, Scales::VAR_256, false),
            Self::D24 => (24, Scales::VAR_256, false),
            Self::D30 => (30, Scales::VAR_256, false),
            Self::D36 => (36, Scales::VAR_512, true),
        };
        VarConfig {
            depth,
            embed_dim: 64 * depth,
            num_heads: depth,
            mlp_ratio: 4.0,
            norm_eps: 1e-6,
            shared_aln,
            attn_l2_norm: true,
            vocab_size: 4096,
            z_channels: 32,
            num_classes: 1000,
            patch_nums: Scales::published(&sides),
            drop_path_rate: 0.1 * depth as f64 / 24.0,
        }
    }
}

impl std::str::FromStr for VarPreset {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|preset| preset.name()).collect();
            crate::Error::config("preset", name, format!("one of {}", names.join(", ")))
        })
    }
}
