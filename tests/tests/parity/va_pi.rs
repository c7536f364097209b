//! Shared parts of the cases of VA-pi: a step over given samples, for any family.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor};
use burn_var::ops::transpose;
use burn_var::weights::Pretrained;
use burn_var::{Condition, Result, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;
use burn_var_train::va_pi::{
    Credit, Draw, GrpoConfig, GrpoLoss, Judgment, PolicyMean, RewardConfig, Rewards, VaPi, VaPiConfig, VaPiFamily,
    grpo_loss,
};

use super::llamagen::{norm, number_after};
use super::llamagen_vq::lpips;

/// Returns the settings of a case whose rewards are pixels and LPIPS.
pub(super) fn settings(group: usize, loss: GrpoConfig) -> VaPiConfig {
    VaPiConfig { group, loss, reward: reward(), ..VaPiConfig::released_c2i() }
}

/// Returns the reward of the scripts, with a path in place of the weights that a case makes up.
pub(super) fn reward() -> RewardConfig {
    RewardConfig { lpips_vgg: Some("recipe".into()), ..RewardConfig::default() }
}

/// Returns rows of samples, those of an image side by side, as `[batch, tokens, samples]`.
pub(super) fn by_image(rows: Tensor<2>, group: usize) -> Tensor<3> {
    let [count, tokens] = rows.dims();
    transpose(rows.reshape([count / group, group, tokens]))
}

/// Returns the samples of given rows of tokens, those of an image side by side.
pub(super) fn draw(rows: Tensor<2, Int>, group: usize) -> Draw {
    let [count, tokens] = rows.dims();
    Draw { ids: transpose(rows.reshape([count / group, group, tokens])), support: None }
}

/// Returns `[batch, tokens, samples]` as rows of samples.
pub(super) fn by_sample(samples: Tensor<3>) -> Tensor<2> {
    let [batch, tokens, group] = samples.dims();
    transpose(samples).reshape([batch * group, tokens])
}

/// Compares the norms of the gradients of a loss, and of all together.
pub(super) fn gradients<M: Pretrained>(case: &Case, name: &str, model: &M, loss: &Tensor<1>, checks: &mut Checks<'_>) {
    let found = Gradients::of(model, &loss.backward(), &M::keys(model.config()));
    let names: Vec<String> = case.get("/config/grad_norm_params");
    let mut norms: Vec<f64> = names.iter().map(|key| found.get(key).flatten().map_or(0.0, norm)).collect();
    norms.push(found.norm());
    checks.array(&format!("{name}_grad_norms"), "grad_norms", Array { shape: vec![norms.len()], values: norms });
}

/// Compares the parts of a loss.
pub(super) fn losses(name: &str, loss: &GrpoLoss, checks: &mut Checks<'_>) {
    let parts = [&loss.policy, &loss.cross_entropy, &loss.total].map(|part| part.clone().inner());
    checks.floats(&format!("{name}_losses"), "losses", Tensor::cat(parts.to_vec(), 0));
}

/// Compares rewards, by sample, or by sample and scale.
fn rewards(name: &str, judgment: &Judgment, checks: &mut Checks<'_>) {
    let (scales, count) = (judgment.rewards.len(), judgment.rewards[0].len());
    let values = (0..count).flat_map(|row| judgment.rewards.iter().map(move |rewards| rewards[row])).collect();
    let shape = if scales == 1 { vec![count] } else { vec![count, scales] };
    checks.array(name, "rewards", Array { shape, values });
}

/// Returns the credit and the mean that the name of a run stands for.
fn run_settings(name: &str) -> Option<(Credit, PolicyMean)> {
    let (credit, mean) = name.split_once('_')?;
    let credit = match credit {
        "shared" | "offpolicy" => Credit::Shared,
        "prefix" => Credit::PrefixSwap,
        "only" => Credit::OnlyScale,
        "last" => Credit::LastScale,
        "perscale" => Credit::PerScaleDecode,
        _ => return None,
    };
    let mean = match mean {
        "token" => PolicyMean::Tokens,
        "scale" => PolicyMean::Scales,
        _ => return None,
    };
    Some((credit, mean))
}

/// Compares a step of a next-scale model, which lies on the autodiff device.
pub(super) fn next_scale<M: VaPiFamily>(
    case: &Case,
    tokenizer: &M::Tokenizer,
    model: &M,
    device: &Device,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let gain = number_after(case, "lpips", "gain").expect("the gain of VGG16");
    let lpips = lpips(&WeightGen { gain, ..WeightGen::default() }, device)?;
    let group: usize = case.get("/config/group");
    let plain = settings(
        group,
        GrpoConfig {
            clip: case.get("/config/eps"),
            advantage_clip: case.get("/config/adv_clip"),
            cross_entropy: case.get("/config/ce_weight"),
            ..GrpoConfig::default()
        },
    );
    let fails = |error: burn_var_train::Error| -> burn_var::Error { panic!("case `{}`: {error}", case.name()) };
    let step = |credit, mean| -> Result<VaPi<M>> {
        let config = VaPiConfig { credit: Some(credit), mean, ..plain.clone() };
        let rewards = Rewards::new(config.reward.clone(), Some(lpips.clone()), None).map_err(fails)?;
        VaPi::new(config, tokenizer.clone(), rewards).map_err(fails)
    };
    let shared = step(Credit::Shared, PolicyMean::Tokens)?;
    let scales = tokenizer.scales();
    let images: Tensor<4> = case.tensor("image", device);
    let truth = tokenizer.encode(images.clone(), scales)?;
    checks.ids("gt_ids", "gt_ids", truth.sequence());
    checks.floats("recon_img", "images", shared.decode(truth.sequence(), scales));

    let replaced = case.ids::<2>("noise_mask", device).equal_elem(1);
    let input = shared.context_of(&truth, replaced, case.ids("noise_ids", device)).map_err(fails)?;
    checks.ids("noisy_ids", "noisy_ids", input.ids()?);
    checks.floats("var_input", "input", input.codes.clone());
    let conditions: Vec<Condition> = case.conditions("labels", model.num_classes());
    let forward = || model.teacher_forced(&conditions, input.clone().on_graph(), scales, None);
    let logits = forward()?.inner();
    checks.floats("logits", "logits", logits.clone());

    let rows: Tensor<2, Int> = case.ids("tokens", device);
    checks.floats("pred_img", "images", shared.decode(rows.clone(), scales));
    let draw = draw(rows, group);
    let targets = shared.targets(images, &truth).map_err(fails)?;
    let runs: Vec<String> = case.names().filter_map(|name| name.strip_suffix("_losses")).map(str::to_owned).collect();
    let mut judged = BTreeMap::new();
    for name in &runs {
        let Some((credit, mean)) = run_settings(name) else {
            checks.fail(format!("the run `{name}` is not known"));
            continue;
        };
        let step = step(credit, mean)?;
        let judgment = match judged.get(credit_name(credit)) {
            Some(judgment) => judgment,
            None => {
                let judgment = step.judge(&targets, &truth, &draw.ids).map_err(fails)?;
                judged.entry(credit_name(credit)).or_insert(judgment)
            }
        };
        let mut samples = step.samples(logits.clone(), draw.clone(), judgment, None, None, scales).map_err(fails)?;
        match credit {
            Credit::Shared => {
                rewards("rewards_total", judgment, checks);
                checks.floats("mse", "mse", judgment.terms.pixels.clone());
                checks.floats("lpips", "lpips", judgment.terms.lpips.clone().expect("a term with a weight"));
                checks.floats("logp", "logp", by_sample(samples.old.clone()));
                let found = samples.advantages.clone();
                checks.floats("advantages", "advantages", found.flatten::<1>(0, 2));
            }
            Credit::LastScale => {}
            _ => {
                let name = credit_name(credit);
                rewards(&format!("{name}_rewards"), judgment, checks);
                let first = (0..scales.len())
                    .map(|k| by_sample(samples.advantages.clone().narrow(1, scales.range(k).start, 1)));
                checks.floats(&format!("{name}_advantages"), "advantages", Tensor::cat(first.collect(), 1));
            }
        }
        if name.starts_with("offpolicy") {
            samples.old = by_image(case.tensor("old_logp_shifted", device), group);
        }
        let sequence = Tensor::from_inner(truth.sequence());
        let loss = grpo_loss(&plain.loss, forward()?, None, samples.on_graph(), sequence).map_err(fails)?;
        losses(name, &loss, checks);
        gradients(case, name, model, &loss.total, checks);
    }
    Ok(())
}

fn credit_name(credit: Credit) -> &'static str {
    match credit {
        Credit::Shared => "shared",
        Credit::PrefixSwap => "prefix",
        Credit::OnlyScale => "only",
        Credit::LeaveOneScale => "leave",
        Credit::LastScale => "last",
        Credit::PerScaleDecode => "perscale",
    }
}
