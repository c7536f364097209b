//! The policy loss of VA-pi, against `train_c2i_grpo.py` of its code.

use burn::tensor::{Device, Int, Tensor};
use burn_var::Result;
use burn_var::ops::transpose;
use burn_var::sampling::{Sampler, TopPRule, softmax};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_train::va_pi::{GrpoConfig, PixelError, Samples, advantages, grpo_loss, log_probs, noisy_context};
use serde_json::{Map, Value};

use super::vqvae;

/// Log-probability that stands for a token outside the filter.
const OUTSIDE: f64 = -1e30;

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let group: usize = case.get("/config/G");
    let tokens: Tensor<2, Int> = case.ids("tokens", device);
    let [rows, length] = tokens.dims();
    let old = old_log_probs(case, &tokens, group, device, checks);
    filtered(case, &tokens, group, checks)?;
    for suffix in ["", "_degenerate"] {
        let rewards = case.array(&format!("rewards{suffix}")).values;
        let name = format!("advantages{suffix}");
        let floor = GrpoConfig::default().advantage_floor;
        let found =
            advantages(&rewards, group, floor).unwrap_or_else(|error| panic!("case `{}`: {error}", case.name()));
        checks.array(&name, "advantages", Array { shape: vec![rows], values: found });
    }

    let truth: Tensor<2, Int> = case.ids("gt_tokens", device);
    // One sample per row: the cases have logits of their own for each sample.
    let truth = truth.unsqueeze_dim::<3>(1).repeat_dim(1, group).reshape([rows, length]);
    let ids = tokens.unsqueeze_dim::<3>(2);
    let given = case.tensor::<1>("advantages", device).reshape([rows, 1, 1]);
    let reference: Tensor<3> = case.tensor("ref_logits", device);
    let variants: Map<String, Value> = case.get("/variants");
    for (name, variant) in &variants {
        let number = |field: &str| variant[field].as_f64().unwrap_or_else(|| panic!("a number `{field}` of {name}"));
        let temperature = variant.get("temperature").and_then(Value::as_f64).unwrap_or(1.0);
        let uses_kl = variant["use_kl"].as_bool().unwrap_or_default();
        let config = GrpoConfig {
            clip: number("clip"),
            advantage_clip: number("adv_clip"),
            kl: if uses_kl { number("kl_coef") } else { 0.0 },
            temperature,
            cross_entropy: number("ce"),
            ..GrpoConfig::default()
        };
        let logits = case.tensor::<3>("policy_logits", &device.clone().autodiff()).require_grad();
        let samples = Samples {
            ids: Tensor::from_inner(ids.clone()),
            old: Tensor::from_inner(old.clone()),
            reference: Some(Tensor::from_inner(log_probs(reference.clone(), ids.clone(), temperature, None))),
            advantages: Tensor::from_inner(given.clone()),
            support: None,
            weights: None,
        };
        let found = grpo_loss(&config, logits.clone(), None, samples, Tensor::from_inner(truth.clone()));
        let found = found.unwrap_or_else(|error| panic!("case `{}`: {error}", case.name()));
        checks.floats(&format!("{name}_loss"), "loss", found.total.clone());
        checks.floats(&format!("{name}_policy_term"), "policy_term", found.policy.clone());
        checks.floats(&format!("{name}_ce"), "ce", found.cross_entropy.clone());
        let tolerance = || case.tolerance("loss", "loss");
        for (field, value) in [("loss", &found.total), ("clip_fraction", &found.clip_fraction(config.clip))] {
            checks.scalar(&format!("/variants/{name}/{field}"), number(field), vqvae::number(value), tolerance());
        }
        if temperature == 1.0 {
            let flat = |values: Tensor<3>| values.reshape([rows, length]);
            checks.floats("new_logp", "new_logp", flat(found.new.clone()));
            checks.floats("ratio", "ratio", flat(found.ratio.clone()));
            if let Some(kl) = found.kl.clone() {
                checks.floats("per_token_kl", "per_token_kl", flat(kl));
            }
        }
        match logits.grad(&found.total.backward()) {
            Some(gradient) => checks.floats(&format!("{name}_grad"), "grad", gradient),
            None => checks.fail(format!("{name}: no gradient of the logits")),
        }
    }
    rewards(case, device, checks);
    noise(case, device, checks);
    Ok(())
}

/// Compares the log-probabilities of the samples at rollout, from logits that the samples of an image share.
fn old_log_probs(
    case: &Case,
    tokens: &Tensor<2, Int>,
    group: usize,
    device: &Device,
    checks: &mut Checks<'_>,
) -> Tensor<3> {
    let logits: Tensor<3> = case.tensor("rollout_logits", device);
    let [rows, length] = tokens.dims();
    let samples = transpose(tokens.clone().reshape([rows / group, group, length]));
    let found = transpose(log_probs(logits, samples, 1.0, None)).reshape([rows, length]);
    checks.floats("old_logp_plain", "old_logp", found.clone());
    found.unsqueeze_dim(2)
}

/// Compares the log-probabilities under the filters of the sampler.
fn filtered(case: &Case, tokens: &Tensor<2, Int>, group: usize, checks: &mut Checks<'_>) -> Result<()> {
    let setting = |field: &str| format!("/config/sampler/{field}");
    let sampler = Sampler {
        temperature: case.get(&setting("temperature")),
        top_k: case.get(&setting("top_k")),
        top_p: case.get(&setting("top_p")),
        top_p_rule: TopPRule::Descending,
        ..Sampler::default()
    };
    let logits = case.array("rollout_logits");
    let [length, vocabulary] = [logits.shape[1], logits.shape[2]];
    let mut rows: Vec<f32> = logits.values.iter().map(|logit| *logit as f32).collect();
    let mut probabilities = Vec::new();
    for row in rows.chunks_mut(vocabulary) {
        sampler.filter(row)?;
        probabilities.push(softmax(row));
    }
    let ids = tokens.clone().try_into_vec_as::<i64>().expect("ids");
    let of = |(at, id): (usize, &i64)| {
        let row = at / length / group * length + at % length;
        match probabilities[row][*id as usize] {
            0.0 => OUTSIDE,
            probability => probability.ln(),
        }
    };
    let values = ids.iter().enumerate().map(of).collect();
    checks.array("old_logp_filtered", "old_logp", Array { shape: tokens.dims().to_vec(), values });
    Ok(())
}

fn rewards(case: &Case, device: &Device, checks: &mut Checks<'_>) {
    let lpips: Tensor<1> = case.tensor("lpips_given", device);
    for (name, error) in [("reward_l2", PixelError::L2), ("reward_l1", PixelError::L1)] {
        let error = error.of(case.tensor("pred_img", device), case.tensor("gt_img", device));
        checks.floats(name, "reward", (error + lpips.clone()).neg());
    }
}

fn noise(case: &Case, device: &Device, checks: &mut Checks<'_>) {
    let tokens: Tensor<2, Int> = case.ids("gt_tokens", device);
    let replaced = case.ids::<2>("noise_mask", device).equal_elem(1);
    let prefix = tokens.narrow(1, 0, replaced.dims()[1]);
    checks.ids("noisy_prefix", "noisy_prefix", noisy_context(prefix, replaced, case.ids("noise_ids", device)));
}
