use serde::{Deserialize, Serialize};

use crate::guidance::{AidWeight, GuidanceConfig, Schedule, SsgConfig, VpgConfig};
use crate::ops::Precision;
use crate::sampling::Sampler;
use crate::weights::GenerationConfig;

/// Settings of generation. `None` stands for the setting in the model's file, or else the paper's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Classifier-free guidance.
    pub cfg: Option<Schedule>,
    /// Strength of classifier-free guidance, over a schedule of the form of `cfg` or of the model's file: see
    /// [`Schedule::with_strength`].
    pub cfg_strength: Option<f64>,
    /// Number of most likely codes to draw from; 0 is all.
    pub top_k: Option<usize>,
    /// Share of the probability to draw from; 0 is all.
    pub top_p: Option<f64>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Mixture of codes instead of one code.
    pub more_smooth: Option<bool>,
    /// Greedy draw at the scales that FlexVAR's released code does not sample; see [`Sampler::greedy_unlisted`].
    pub greedy_unlisted: Option<bool>,
    /// Visual prefix guidance.
    pub vpg: Option<VpgConfig>,
    /// Scaled Spatial Guidance.
    pub ssg: Option<SsgConfig>,
    /// Weight of the injector's map; 0 leaves the injector out.
    pub aid_weight: Option<AidWeight>,
    /// Precision of products in transformer, injector and decoder; `None` is that of the pipeline, see
    /// [`Pipeline::with_precision`](super::Pipeline::with_precision).
    pub precision: Option<Precision>,
}

impl Settings {
    /// Resolves the filter and the draw of tokens for a model.
    pub fn sampler(&self, model: &GenerationConfig) -> Sampler {
        let own = model.sampler;
        Sampler {
            top_k: self.top_k.unwrap_or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            top_p_rule: own.top_p_rule,
            temperature: self.temperature.unwrap_or(own.temperature),
            more_smooth: self.more_smooth.unwrap_or(own.more_smooth),
            greedy_unlisted: self.greedy_unlisted.unwrap_or(own.greedy_unlisted),
        }
    }

    /// Resolves the guidance for a model, except for the injector, which has weights of its own.
    pub fn guidance(&self, model: &GenerationConfig) -> GuidanceConfig {
        let cfg = self.cfg.clone().unwrap_or_else(|| model.cfg.clone());
        let cfg = self.cfg_strength.map_or_else(|| cfg.clone(), |strength| cfg.with_strength(strength));
        GuidanceConfig { cfg, vpg: self.vpg.clone(), ssg: self.ssg.clone() }
    }
}
