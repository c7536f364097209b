//! Settings of generation: flags take precedence over a file of settings, and that over the model's own file.

use std::path::PathBuf;

use anyhow::Result;
use burn_var::guidance::{AidWeight, Schedule, SsgConfig, SsgOrder, Uncertainty, VpgConfig};
use burn_var::ops::Precision;
use burn_var::pipeline::Settings;
use burn_var_train::config::read_toml;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::output::usage;

/// Settings of generation; what is left out comes from the transformer's file, or from the VAR paper.
#[derive(Debug, Clone, Default, Args)]
#[command(
    next_help_heading = "Sampling (default: what the transformer's file says, else cfg 1.5, top-k 900, top-p 0.96)"
)]
pub(crate) struct SamplingArgs {
    /// Settings from a TOML file; flags take precedence.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Seed of the whole set: image i of a seed is the same in every batch.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Strength of classifier-free guidance: for VAR and FlexVAR at the last scale, 0 at the first and linear between; for
    /// LlamaGen at every token, its guidance scale minus 1. 0 is none.
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
    /// Order of Scaled Spatial Guidance and classifier-free guidance.
    #[arg(long, value_enum, value_name = "ORDER")]
    ssg_order: Option<Order>,
    /// Strength of visual prefix guidance, which runs the transformer twice. The paper: 3 for VAR-d16 to 1.3
    /// for d30.
    #[arg(long, value_name = "STRENGTH", allow_negative_numbers = true)]
    vpg: Option<f64>,
    /// Share of the prefix that visual prefix guidance corrupts. [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    vpg_share: Option<f64>,
    /// AID-VAR's guidance injector: corrects the input of the transformer at each scale. [default: the model's own, if it
    /// has one and --lora is not used]
    #[arg(long, value_name = "FILE")]
    aid: Option<PathBuf>,
    /// Leave the model's own injector out.
    #[arg(long, conflicts_with_all = ["aid", "aid_weight", "aid_adaptive"])]
    no_aid: bool,
    /// Weight of the injector's map. [default: what the injector's file says, else 0.001]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    aid_weight: Option<f64>,
    /// Scale that weight by the uncertainty of the model at the scale before.
    #[arg(long, value_enum, value_name = "MEASURE")]
    aid_adaptive: Option<Adaptive>,
    /// A LoRA of the transformer, from `burn-var train aid`.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Draw from this number of most likely codes; 0 is all, 1 is always the most likely.
    #[arg(long, value_name = "CODES")]
    top_k: Option<usize>,
    /// Draw from the most likely codes that together have this share of the probability; 0 is all.
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// Divide the logits by this number: below 1 the images vary less, above 1 more.
    #[arg(long, value_name = "FACTOR")]
    temperature: Option<f64>,
    /// Mix codes instead of choosing one (Gumbel softmax, VAR's `more_smooth`): for looks, not for metrics.
    #[arg(long)]
    smooth: bool,
    /// Images per batch. It changes speed and memory, not the images. [default: 32, or 8 above 64 pixels]
    #[arg(long, value_name = "IMAGES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
}

/// Adaptation of the weight of an injector.
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

/// A file of settings; what is left out is as the model's own file says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileSettings {
    /// Classifier-free guidance: `{ ramp = 1.5 }`, `{ decay = 1.5 }`, `{ constant = 1.5 }` or `{ per-scale = [0, 1] }`.
    cfg: Option<Schedule>,
    #[serde(skip)]
    cfg_strength: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    temperature: Option<f64>,
    more_smooth: Option<bool>,
    greedy_unlisted: Option<bool>,
    vpg: Option<VpgConfig>,
    ssg: Option<SsgConfig>,
    pub(crate) aid: Option<AidSettings>,
    /// A LoRA's file.
    pub(crate) lora: Option<PathBuf>,
    /// Precision of products, in place of that of the command.
    precision: Option<Precision>,
}

impl FileSettings {
    /// Returns the settings of a pipeline; its injector has the weight already that is asked for.
    pub(crate) fn pipeline(&self) -> Settings {
        Settings {
            cfg: self.cfg.clone(),
            cfg_strength: self.cfg_strength,
            top_k: self.top_k,
            top_p: self.top_p,
            temperature: self.temperature,
            more_smooth: self.more_smooth,
            greedy_unlisted: self.greedy_unlisted,
            vpg: self.vpg.clone(),
            ssg: self.ssg.clone(),
            aid_weight: None,
            precision: self.precision,
        }
    }
}

/// An injector.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AidSettings {
    /// File; the model's own injector if left out.
    pub(crate) file: Option<PathBuf>,
    /// Weight; the one in the injector's file if left out.
    weight: Option<AidWeight>,
    #[serde(skip)]
    adaptive: Option<Adaptive>,
    /// True if a model without an injector of its own does without.
    #[serde(skip)]
    pub(crate) if_any: bool,
}

impl AidSettings {
    /// Returns the weight, given the one in the injector's file.
    pub(crate) fn weight(&self, stored: Option<AidWeight>) -> Result<AidWeight> {
        let weight = self.weight.clone().or(stored).unwrap_or_default();
        match (self.adaptive, weight) {
            (None, weight) => Ok(weight),
            (Some(adaptive), AidWeight::Constant(most)) => Ok(adaptive.weight(most)),
            (Some(_), _) => Err(usage("--aid-adaptive needs one number: name it with --aid-weight")),
        }
    }
}

impl SamplingArgs {
    /// Returns the settings; flags take precedence over the file.
    pub(crate) fn settings(&self) -> Result<FileSettings> {
        let mut settings: FileSettings = match &self.settings {
            Some(file) => read_toml(file)?,
            None => FileSettings::default(),
        };
        let without =
            |flag: &str, what: &str| usage(format!("{flag} needs {what}, or a section of that name in --settings"));
        if let Some(strengths) = &self.cfg_schedule {
            settings.cfg = Some(Schedule::PerScale(strengths.clone()));
        } else if let Some(strength) = self.cfg {
            // The form is that of the model's own schedule, not of the file's.
            (settings.cfg, settings.cfg_strength) = (None, Some(strength));
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
