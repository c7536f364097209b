//! Pictures by the batch.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use burn_var::guidance::{Cfg, CfgSchedule, Guidance};
use burn_var::sampler::Sampler;
use burn_var::{Request, Tokenizer, generate};
use clap::Args;

use crate::models::{Pair, PairArgs};

/// How pictures are drawn; what is left out comes from the transformer's file, or from the VAR paper.
#[derive(Debug, Clone, Default, Args)]
#[command(
    next_help_heading = "Sampling (default: what the transformer's file says, else cfg 1.5, top-k 900, top-p 0.96)"
)]
pub(crate) struct SamplingArgs {
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
    batch: Option<u32>,
}

/// A model with its settings.
pub(crate) struct Generator {
    pub(crate) pair: Pair,
    schedule: CfgSchedule,
    sampler: Sampler,
    seed: u64,
    batch: usize,
}

/// A finished batch.
pub(crate) struct Batch<'a> {
    /// `[batch, channels, height, width]` in `[-1, 1]`.
    pub(crate) images: Tensor<4>,
    /// With `stages`, the pictures after every scale, the last one too.
    pub(crate) stages: Vec<Tensor<4>>,
    pub(crate) labels: &'a [usize],
    /// Time in the transformer and in the decoder.
    pub(crate) time: [Duration; 2],
}

impl Generator {
    pub(crate) fn new(model: &PairArgs, args: &SamplingArgs, device: &Device) -> Result<Self> {
        Self::of(model.load(device)?, args)
    }

    pub(crate) fn of(pair: Pair, args: &SamplingArgs) -> Result<Self> {
        let schedule = match (&args.cfg_schedule, args.cfg) {
            (Some(strengths), _) => CfgSchedule::PerScale(strengths.clone()),
            (None, Some(strength)) => CfgSchedule::Ramp(strength),
            (None, None) => pair.usage.cfg.clone(),
        };
        let known = pair.usage.sampler;
        let sampler = Sampler {
            top_k: args.top_k.unwrap_or(known.top_k),
            top_p: args.top_p.unwrap_or(known.top_p),
            temperature: args.temperature.unwrap_or(known.temperature),
            more_smooth: args.smooth || known.more_smooth,
        };
        let asked = |error: burn_var::Error| crate::output::usage(error.to_string());
        sampler.validate().map_err(asked)?;
        Cfg { schedule: schedule.clone() }.check(pair.tokenizer.scales()).map_err(asked)?;
        let [_, height, _] = pair.tokenizer.picture_shape();
        let batch = args.batch.map_or(if height > 64 { 8 } else { 32 }, |batch| batch as usize);
        Ok(Self { pair, schedule, sampler, seed: args.seed, batch })
    }

    /// Pictures in a batch.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Generates one picture a label, and hands them on batch by batch.
    pub(crate) fn run(
        &self,
        labels: &[usize],
        stages: bool,
        mut take: impl FnMut(Batch<'_>) -> Result<()>,
    ) -> Result<()> {
        let Pair { tokenizer, transformer, .. } = &self.pair;
        let mut first = 0;
        for part in labels.chunks(self.batch) {
            let request = Request { first, sampler: self.sampler, ..Request::new(part, self.seed) };
            first += part.len() as u64;
            let mut guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg { schedule: self.schedule.clone() })];
            let mut canvases = Vec::new();
            let start = Instant::now();
            let made = generate(tokenizer, transformer, &mut guidance, &request, &mut |scale| {
                if stages {
                    canvases.push(scale.canvas.clone());
                }
                ControlFlow::Continue(())
            })?;
            self.sync()?;
            let drawn = Instant::now();
            let images = tokenizer.decode(made.canvas);
            self.sync()?;
            let time = [drawn - start, drawn.elapsed()];
            let stages = canvases.into_iter().map(|canvas| tokenizer.decode(canvas)).collect();
            take(Batch { images, stages, labels: part, time })?;
        }
        Ok(())
    }

    /// Waits for the device.
    fn sync(&self) -> Result<()> {
        self.pair.tokenizer.codebook().device().sync().context("the device failed")
    }

    /// What was used, for results.
    pub(crate) fn settings(&self) -> serde_json::Value {
        serde_json::json!({ "seed": self.seed, "cfg": self.schedule, "sampler": self.sampler })
    }
}

/// The path of an output, or its default in the present folder.
pub(crate) fn or_default(path: Option<&PathBuf>, default: &str) -> PathBuf {
    path.cloned().unwrap_or_else(|| PathBuf::from(default))
}
