//! How pictures are drawn and guided: flags over a file of settings over what the model's own file says.

use std::path::PathBuf;

use anyhow::Result;
use burn_var::guidance::{AidWeight, GuidanceConfig, Schedule, SsgConfig, SsgOrder, Uncertainty, VpgConfig};
use burn_var::weights::GenerationConfig;
use burn_var::sampling::Sampler;
use burn_var_train::config::read_toml;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::output::usage;

/// How pictures are drawn; what is left out comes from the transformer's file, or from the VAR paper.
#[derive(Debug, Clone, Default, Args)]
#[command(
    next_help_heading = "Sampling (default: what the transformer's file says, else cfg 1.5, top-k 900, top-p 0.96)"
)]
pub(crate) struct SamplingArgs {
    /// Settings from a TOML file; what is named here goes before it.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The seed of the whole set: picture i of a seed is the same whatever the batch.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Strength of classifier-free guidance at the last scale, 0 at the first and linear between. 0 is none.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    cfg: Option<f64>,
    /// Strength of classifier-free guidance at every scale, `0,0.5,1,1.5` for instance.
    #[arg(
        long,
        value_name = "STRENGTHS",
        value_delimiter = ',',
        conflicts_with = "cfg",
        allow_negative_numbers = true
    )]
    cfg_schedule: Option<Vec<f64>>,
    /// Strength of Scaled Spatial Guidance, which decays from scale to scale; 0.3 is a place to start.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    ssg: Option<f64>,
    /// Where Scaled Spatial Guidance stands to classifier-free guidance.
    #[arg(long, value_enum, value_name = "ORDER")]
    ssg_order: Option<Order>,
    /// Strength of visual prefix guidance, which takes a second run of the transformer. The paper: 3 for VAR-d16 to 1.3
    /// for d30.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    vpg: Option<f64>,
    /// The share of the prefix that visual prefix guidance corrupts. [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    vpg_share: Option<f64>,
    /// AID-VAR's guidance injector: corrects what enters the transformer, scale by scale. [default: the model's own, if it
    /// has one and --lora does not change it]
    #[arg(long, value_name = "FILE")]
    aid: Option<PathBuf>,
    /// Without the model's own injector.
    #[arg(long, conflicts_with_all = ["aid", "aid_weight", "aid_adaptive"])]
    no_aid: bool,
    /// How much of the injector's map is added. [default: what the injector's file says, else 0.001]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    aid_weight: Option<f64>,
    /// Scale that weight by how uncertain the model was at the scale before.
    #[arg(long, value_enum, value_name = "MEASURE")]
    aid_adaptive: Option<Adaptive>,
    /// A LoRA of the transformer, from `burn-var train aid`.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Draw from so many of the most likely codes; 0 is all, 1 is always the most likely.
    #[arg(long, value_name = "CODES")]
    top_k: Option<usize>,
    /// Draw from the most likely codes that have this share of the probability together; 0 is all.
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// Divides the logits: below 1 is more certain, above 1 more varied.
    #[arg(long, value_name = "FACTOR")]
    temperature: Option<f64>,
    /// Mix codes instead of choosing one (Gumbel softmax, VAR's `more_smooth`): for looks, not for figures.
    #[arg(long)]
    smooth: bool,
    /// Pictures at a time. It changes speed and memory, not the pictures. [default: 32, or 8 above 64 pixels]
    #[arg(long, value_name = "PICTURES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
}

/// How the weight of an injector adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adaptive {
    /// By the mean entropy of a scale's tokens.
    Entropy,
    /// By the mean margin between the two likeliest codes.
    Margin,
    /// By entropy, position by position.
    EntropyMap,
    /// By margin, position by position.
    MarginMap,
}

impl Adaptive {
    fn weight(self, most: f64) -> AidWeight {
        let by = match self {
            Self::Entropy | Self::EntropyMap => Uncertainty::Entropy,
            Self::Margin | Self::MarginMap => Uncertainty::Margin,
        };
        AidWeight::Adaptive { most, by, per_position: matches!(self, Self::EntropyMap | Self::MarginMap) }
    }
}

/// [`SsgOrder`], as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// After it, on the guided logits.
    PostCfg,
    /// Before it, on both branches.
    PerBranch,
    /// Before it, on the branch with a class.
    CondOnly,
}

impl From<Order> for SsgOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::PostCfg => Self::PostCfg,
            Order::PerBranch => Self::PerBranch,
            Order::CondOnly => Self::CondOnly,
        }
    }
}

/// A file of settings; what is left out is as the model's own file has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Classifier-free guidance: `{ ramp = 1.5 }`, `{ decay = 1.5 }`, `{ constant = 1.5 }` or `{ per-scale = [0, 1] }`.
    cfg: Option<Schedule>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    temperature: Option<f64>,
    more_smooth: Option<bool>,
    vpg: Option<VpgConfig>,
    ssg: Option<SsgConfig>,
    pub(crate) aid: Option<AidSettings>,
    /// A LoRA's file.
    pub(crate) lora: Option<PathBuf>,
}

/// An injector.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AidSettings {
    /// The model's own, if left out.
    pub(crate) file: Option<PathBuf>,
    /// What the injector's file says, if left out.
    weight: Option<AidWeight>,
    #[serde(skip)]
    adaptive: Option<Adaptive>,
    /// Whether a model that has none of its own goes without.
    #[serde(skip)]
    pub(crate) if_any: bool,
}

impl AidSettings {
    /// The weight, given the one in the injector's file.
    pub(crate) fn weight(&self, stored: Option<AidWeight>) -> Result<AidWeight> {
        let weight = self.weight.clone().or(stored).unwrap_or_default();
        match (self.adaptive, weight) {
            (None, weight) => Ok(weight),
            (Some(adaptive), AidWeight::Constant(most)) => Ok(adaptive.weight(most)),
            (Some(_), _) => Err(usage("--aid-adaptive wants one number: name it with --aid-weight")),
        }
    }
}

impl SamplingArgs {
    /// The flags over the file of settings.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings: Settings = match &self.settings {
            Some(file) => read_toml(file)?,
            None => Settings::default(),
        };
        let without =
            |flag: &str, what: &str| usage(format!("{flag} wants {what}, or a part of that name in --settings"));
        if let Some(strengths) = &self.cfg_schedule {
            settings.cfg = Some(Schedule::PerScale(strengths.clone()));
        } else if let Some(strength) = self.cfg {
            settings.cfg = Some(Schedule::Ramp(strength));
        }
        if let Some(strength) = self.ssg {
            let ssg = settings.ssg.get_or_insert_with(|| SsgConfig::paper(strength));
            ssg.schedule = Schedule::Decay(strength);
        }
        if let Some(order) = self.ssg_order {
            settings.ssg.as_mut().ok_or_else(|| without("--ssg-order", "--ssg"))?.order = order.into();
        }
        if let Some(strength) = self.vpg {
            let vpg = settings.vpg.get_or_insert_with(|| VpgConfig::paper(strength));
            vpg.schedule = Schedule::Constant(strength);
        }
        if let Some(share) = self.vpg_share {
            settings.vpg.as_mut().ok_or_else(|| without("--vpg-share", "--vpg"))?.share = share;
        }
        settings.lora = self.lora.clone().or(settings.lora);
        if self.no_aid {
            settings.aid = None;
        } else if let Some(file) = &self.aid {
            settings.aid = Some(AidSettings { file: Some(file.clone()), ..Default::default() });
        } else if settings.aid.is_none() && settings.lora.is_none() {
            settings.aid = Some(AidSettings { if_any: true, ..Default::default() });
        }
        if let Some(weight) = self.aid_weight {
            let aid = settings.aid.get_or_insert_default();
            (aid.weight, aid.if_any) = (Some(AidWeight::Constant(weight)), false);
        }
        if let Some(adaptive) = self.aid_adaptive {
            let aid = settings.aid.get_or_insert_default();
            (aid.adaptive, aid.if_any) = (Some(adaptive), false);
        }
        settings.top_k = self.top_k.or(settings.top_k);
        settings.top_p = self.top_p.or(settings.top_p);
        settings.temperature = self.temperature.or(settings.temperature);
        settings.more_smooth = self.smooth.then_some(true).or(settings.more_smooth);
        Ok(settings)
    }
}

impl Settings {
    /// How tokens are drawn from a model with this usage.
    pub(crate) fn sampler(&self, known: &GenerationConfig) -> Sampler {
        let known = known.sampler;
        Sampler {
            top_k: self.top_k.unwrap_or(known.top_k),
            top_p: self.top_p.unwrap_or(known.top_p),
            temperature: self.temperature.unwrap_or(known.temperature),
            more_smooth: self.more_smooth.unwrap_or(known.more_smooth),
        }
    }

    /// The guidance of a model with this usage, but for the injector.
    pub(crate) fn guidance(&self, known: &GenerationConfig) -> GuidanceConfig {
        let cfg = self.cfg.clone().unwrap_or_else(|| known.cfg.clone());
        GuidanceConfig { cfg, vpg: self.vpg.clone(), ssg: self.ssg.clone() }
    }
}
