//! LlamaGen's generation through its cache, against `generate` in `autoregressive/models/generate.py` of its code.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{Device, Int, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::guidance::{Cfg, Guidance, Schedule};
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::llamagen::{LlamaGen, LlamaGenPreset, LlamaGenVq, LlamaGenVqConfig};
use burn_var::sampling::{Sampler, softmax};
use burn_var::{BatchRequest, Condition, Result, Scales, TokenPyramid, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use serde::Deserialize;

use super::llamagen;

/// Settings of a run.
#[derive(Deserialize)]
struct Run {
    draw: String,
    cfg_scale: f64,
    cfg_interval: i64,
    cfg_type: String,
    cfg_power: f64,
    temperature: f64,
    top_k: usize,
    top_p: f64,
}

impl Run {
    fn schedule(&self, scales: &Scales) -> Schedule {
        let strength = if self.cfg_scale > 1.0 { self.cfg_scale - 1.0 } else { 0.0 };
        let whole = match self.cfg_type.as_str() {
            "constant" => Schedule::Constant(strength),
            "power-cosine" => Schedule::PowerCosine { strength, power: self.cfg_power },
            other => panic!("the guidance `{other}` is not known"),
        };
        match (usize::try_from(self.cfg_interval), whole) {
            (Err(_), whole) => whole,
            (Ok(interval), Schedule::Constant(_)) => Schedule::First { strength, scales: interval + 2 },
            (Ok(interval), whole) => {
                let at = |at: burn_var::scales::ScaleAt<'_>| if at.k() < interval + 2 { whole.at(at) } else { 0.0 };
                Schedule::PerScale(scales.iter().map(at).collect())
            }
        }
    }
}

/// A tokenizer of the vocabulary; its images do not matter.
fn tokenizer(transformer: &LlamaGen, device: &Device) -> Result<LlamaGenVq> {
    let config = transformer.config();
    let vq = VqModelConfig {
        ch: 32,
        ch_mult: vec![1],
        num_res_blocks: 1,
        z_channels: 1,
        ..VqModelConfig::vq16(config.vocab_size, 2)
    };
    LlamaGenVqConfig { vq, patch_nums: config.patch_nums.clone() }.init(0, device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let transformer = llamagen::from_recipe(case, device)?;
    let tokenizer = tokenizer(&transformer, device)?;
    let conditions = case.conditions("labels", transformer.config().num_classes);
    for (name, run) in case.get::<BTreeMap<String, Run>>("/config/runs") {
        one(case, &name, &run, (&tokenizer, &transformer), &conditions, checks)?;
    }
    Ok(())
}

fn one(
    case: &Case,
    name: &str,
    run: &Run,
    (tokenizer, transformer): (&LlamaGenVq, &LlamaGen),
    conditions: &[Condition],
    checks: &mut Checks<'_>,
) -> Result<()> {
    let scales = &transformer.config().patch_nums;
    let schedule = run.schedule(scales);
    let strengths: Vec<f64> = scales.iter().map(|at| schedule.at(at)).collect();
    checks.array(&format!("{name}_strengths"), "strengths", Array { shape: vec![strengths.len()], values: strengths });

    let (ids, device) = (format!("{name}_ids"), tokenizer.vq.quantize.embedding.weight.val().device());
    let drawn = run.draw == "uniform";
    let known = match drawn {
        // The expected ids are fed, and each is drawn from the logits that follow from those before it.
        true => {
            let expected: Tensor<2, Int> = case.ids(&ids, &device);
            Some(KnownTokens::all(TokenPyramid::from_sequence(scales.clone(), expected)?))
        }
        false => None,
    };
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::new(schedule))];
    let request = BatchRequest { sampler: Sampler::greedy(), known, ..BatchRequest::new(conditions.to_vec(), 0) };
    let mut logits = Vec::new();
    let generated = generate(tokenizer, transformer, guidance, request, &mut |done| {
        logits.push(done.logits.clone());
        ControlFlow::Continue(())
    })?;
    let logits = Tensor::cat(logits, 1);
    checks.floats(&format!("{name}_logits"), "logits", logits.clone());
    if !drawn {
        checks.ids(&ids, "ids", generated.tokens.sequence());
        return Ok(());
    }
    let [batch, tokens, vocab] = logits.dims();
    let Run { temperature, top_k, top_p, .. } = *run;
    let sampler = Sampler { temperature, top_k, top_p, ..LlamaGenPreset::sampler() };
    let rows = logits.reshape([batch * tokens, vocab]);
    let on_device = sampler.filter_on_device(rows.clone())?;
    let is_on_device = on_device.is_some();
    let values = on_device.unwrap_or(rows).try_into_vec_as::<f32>();
    let mut values = values.map_err(burn_var::Error::device("read logits"))?;
    let uniforms = case.array(&format!("{name}_uniforms")).values;
    let (mut probabilities, mut found) = (Vec::new(), Vec::new());
    for (row, u) in values.chunks_mut(vocab).zip(uniforms) {
        if !is_on_device {
            sampler.filter(row)?;
        }
        let kept = softmax(row);
        let sums = kept.iter().scan(0.0, |sum, probability| {
            *sum += probability;
            Some(*sum)
        });
        // The case draws by the inverse of the cumulative sum: the first entry whose sum exceeds the uniform number.
        found.push(sums.take_while(|sum| *sum <= u).count() as f64);
        probabilities.extend(kept);
    }
    let shape = vec![batch, tokens, vocab];
    checks.array(&format!("{name}_probs"), "probs", Array { shape, values: probabilities });
    checks.array(&ids, "ids", Array { shape: vec![batch, tokens], values: found });
    Ok(())
}
