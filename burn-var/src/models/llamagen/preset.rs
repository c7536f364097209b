//! Published sizes.

use super::LlamaGenConfig;
use crate::guidance::Schedule;
use crate::sampling::{Sampler, TopPRule};
use crate::weights::GenerationConfig;
use crate::{Error, MapSize, Result, Scales};

/// A size of the class-conditional transformer in the authors' code (<https://github.com/FoundationVision/LlamaGen>), with
/// the FID they report on ImageNet at 256x256, drawn at 256 and at 384 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LlamaGenPreset {
    /// 111 million parameters, FID 5.46 and 6.09.
    B,
    /// 343 million parameters, FID 3.80 and 3.07.
    L,
    /// 775 million parameters, FID 2.62 at 384 pixels.
    Xl,
    /// 1.4 billion parameters, FID 2.34 at 384 pixels.
    Xxl,
    /// 3.1 billion parameters, FID 2.18 at 384 pixels.
    B3,
    /// 3.9 billion parameters; not published.
    Xxxl,
    /// 1.2 billion parameters; not published.
    B1,
    /// 6.6 billion parameters; not published.
    B7,
}

impl LlamaGenPreset {
    /// Lists all presets, those with published weights first.
    pub const ALL: [Self; 8] = [Self::B, Self::L, Self::Xl, Self::Xxl, Self::B3, Self::Xxxl, Self::B1, Self::B7];

    /// Returns the name on the command line: `gpt-b`.
    pub fn name(self) -> &'static str {
        match self {
            Self::B => "gpt-b",
            Self::L => "gpt-l",
            Self::Xl => "gpt-xl",
            Self::Xxl => "gpt-xxl",
            Self::B3 => "gpt-3b",
            Self::Xxxl => "gpt-xxxl",
            Self::B1 => "gpt-1b",
            Self::B7 => "gpt-7b",
        }
    }

    /// Returns width, layers and heads.
    fn sizes(self) -> [usize; 3] {
        match self {
            Self::B => [768, 12, 12],
            Self::L => [1024, 24, 16],
            Self::Xl => [1280, 36, 20],
            Self::Xxl => [1536, 48, 24],
            Self::B3 => [3200, 24, 32],
            Self::Xxxl => [2560, 48, 40],
            Self::B1 => [2048, 22, 32],
            Self::B7 => [4096, 32, 32],
        }
    }

    /// Returns the preset of a width.
    pub(super) fn of_width(dim: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.sizes()[0] == dim)
    }

    /// Returns the number of heads.
    pub(super) fn heads(self) -> usize {
        self.sizes()[2]
    }

    /// Returns the number of tokens along a side of the published image size: 16 for 256 pixels, and 24 for 384 pixels where
    /// only those weights are published. The weights serve other sizes, too.
    pub fn side(self) -> usize {
        match self {
            Self::Xl | Self::Xxl | Self::B3 => 24,
            _ => 16,
        }
    }

    /// Returns the sizes.
    pub fn config(self) -> LlamaGenConfig {
        let [dim, n_layer, n_head] = self.sizes();
        LlamaGenConfig::new(dim, n_layer, n_head, Scales::of_raster(MapSize::square(self.side())))
    }

    /// Returns the settings of the authors' evaluation: guidance scale 2.0 for B and L, 1.75 for XL and XXL, 1.65 for 3B; no
    /// filter. A guidance scale of s is a strength of s - 1.
    pub fn evaluation(self) -> GenerationConfig {
        let scale = match self {
            Self::Xl | Self::Xxl => 1.75,
            Self::B3 => 1.65,
            _ => 2.0,
        };
        GenerationConfig { class_names: Vec::new(), cfg: Schedule::Constant(scale - 1.0), sampler: Self::sampler() }
    }

    /// Returns the sampler of the authors' evaluation: no filter, and LlamaGen's rule where top-p is set.
    pub fn sampler() -> Sampler {
        Sampler { top_k: 0, top_p: 1.0, top_p_rule: TopPRule::Descending, ..Sampler::default() }
    }
}

impl std::str::FromStr for LlamaGenPreset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|preset| preset.name()).collect();
            Error::config("preset", name, format!("one of {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::models::llamagen::LlamaGen;
    use crate::weights::{Pretrained, export};

    #[test]
    fn published_sizes_have_their_number_of_parameters() {
        let counts = [
            110_888_448,
            342_910_976,
            774_699_520,
            1_410_972_672,
            3_096_659_200,
            3_893_027_840,
            1_199_616_000,
            6_614_589_440,
        ];
        for (preset, count) in LlamaGenPreset::ALL.into_iter().zip(counts) {
            let model = preset.config().init_zeros(&Device::flex()).unwrap();
            let dict = export(&model, &LlamaGen::keys(model.config())).unwrap();
            assert_eq!(dict.num_elements(), count, "parameters of {}", preset.name());
            assert_eq!(preset.name().parse::<LlamaGenPreset>().unwrap(), preset);
        }
        assert!("gpt-x".parse::<LlamaGenPreset>().unwrap_err().to_string().contains("gpt-xxl"));
    }
}
