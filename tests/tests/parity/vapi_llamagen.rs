//! A step of VA-pi on LlamaGen, against `train_c2i_grpo.py` of its code.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use burn_var::generation::TeacherInput;
use burn_var::metrics::Lpips;
use burn_var::models::llamagen::{LlamaGen, LlamaGenVq};
use burn_var::weights::{LoadOptions, Pretrained, StateDict, export};
use burn_var::{Condition, Result, TeacherForced, TokenPyramid, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::weightgen::WeightGen;
use burn_var_train::engine::{Learner, Network, Rules, SectionNames};
use burn_var_train::optim::{LrSchedule, OptimConfig};
use burn_var_train::va_pi::{
    Codes, Draw, Estimator, GrpoConfig, GrpoLoss, Judgment, PixelError, RewardConfig, Rewards, Samples,
    StraightThrough, VaPi, VaPiConfig, VaPiFamily, grpo_loss,
};
use serde_json::{Map, Value};

use super::llamagen_vq::lpips;
use super::va_pi::{by_image, by_sample, draw, gradients, losses, reward, settings};
use super::{llamagen, vqvae};

/// The models of a case, and what all its runs share.
struct Setting<'a> {
    case: &'a Case,
    device: &'a Device,
    tokenizer: LlamaGenVq,
    lpips: Lpips,
    group: usize,
    truth: TokenPyramid,
    conditions: Vec<Condition>,
}

impl Setting<'_> {
    /// Returns a step whose networks are those of the case.
    fn step(&self, config: VaPiConfig) -> VaPi<LlamaGen> {
        let rewards = self.require(Rewards::new(config.reward.clone(), Some(self.lpips.clone()), None));
        self.require(VaPi::new(config, self.tokenizer.clone(), rewards))
    }

    fn require<T>(&self, found: burn_var_train::Result<T>) -> T {
        found.unwrap_or_else(|error| panic!("case `{}`: {error}", self.case.name()))
    }

    fn logits(&self, model: &LlamaGen, input: &TeacherInput) -> Result<Tensor<3>> {
        model.teacher_forced(&self.conditions, input.clone(), self.tokenizer.scales(), None)
    }

    fn loss(&self, config: &GrpoConfig, logits: Tensor<3>, samples: Samples) -> GrpoLoss {
        let truth = Tensor::from_inner(self.truth.sequence());
        self.require(grpo_loss(config, logits, None, samples.on_graph(), truth))
    }
}

/// Reads the model with the recipe at a pointer.
fn model(case: &Case, pointer: &str, device: &Device) -> Result<LlamaGen> {
    let (config, recipe) = (llamagen::config(case)?, case.get::<WeightGen>(pointer));
    let weights = recipe.for_module(&config.init_zeros(device)?, &LlamaGen::keys(&config));
    LlamaGen::load_with(&weights, &config, LoadOptions::default(), device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let autodiff = device.clone().autodiff();
    let policy = model(case, "/weightgen", &autodiff)?;
    let tokenizer = llamagen::tokenizer(case, policy.config().patch_nums.finest(), device)?;
    let images: Tensor<4> = case.tensor("image", device);
    let truth = tokenizer.encode(images.clone(), tokenizer.scales())?;
    checks.ids("gt_ids", "gt_ids", truth.sequence());
    let conditions = case.conditions("labels", policy.config().num_classes);
    let (lpips, group) = (lpips(&case.get("/lpips/weightgen"), device)?, case.get("/config/group"));
    let of = Setting { case, device, tokenizer, lpips, group, truth, conditions };

    let step = of.step(settings(of.group, GrpoConfig::default()));
    // The last token feeds nothing, and has no noise.
    let padded = |name: &str| {
        let given: Tensor<2, Int> = case.ids(name, device);
        let [batch, _] = given.dims();
        Tensor::cat(vec![given, Tensor::zeros([batch, 1], device)], 1)
    };
    let noisy = step.context_of(&of.truth, padded("noise_mask").equal_elem(1), padded("noise_ids"));
    let noisy = of.require(noisy);
    let ids = noisy.ids()?;
    let length = ids.dims()[1];
    checks.ids("noisy_prefix", "noisy_prefix", ids.narrow(1, 0, length - 1));
    let input = noisy.clone().on_graph();
    let logits = of.logits(&policy, &input)?.inner();
    checks.floats("logits", "logits", logits.clone());

    let rows: Tensor<2, Int> = case.ids("tokens", device);
    checks.floats("pred_img", "pred_img", step.decode(rows.clone(), of.tokenizer.scales()));
    let draw = draw(rows, of.group);
    let judgment = rewards(&of, &images, &draw, checks);
    let reference = of.logits(&model(case, "/reference_weightgen", device)?, &noisy)?;
    let old = |name: &str| by_image(case.tensor(name, device), of.group);

    let variants: Map<String, Value> = case.get("/config/variants");
    let mut released = None;
    for (name, variant) in &variants {
        let number = |field: &str| variant[field].as_f64().unwrap_or_else(|| panic!("a number `{field}` of {name}"));
        let set = |field: &str| variant.get(field).and_then(Value::as_bool).unwrap_or_default();
        let config = GrpoConfig {
            clip: number("eps"),
            advantage_clip: number("adv_clip"),
            kl: if set("use_kl") { number("kl_coef") } else { 0.0 },
            temperature: variant.get("temperature").and_then(Value::as_f64).unwrap_or(1.0),
            cross_entropy: number("ce"),
            ..GrpoConfig::default()
        };
        let step = of.step(settings(of.group, config));
        let counted = set("token_drop").then(|| {
            let Array { shape, values } = case.array("token_mask");
            values.chunks(shape[1]).map(|row| row.iter().map(|counted| *counted != 0.0).collect()).collect()
        });
        let counted: Option<Vec<Vec<bool>>> = counted;
        let scales = of.tokenizer.scales();
        let samples =
            step.samples(logits.clone(), draw.clone(), &judgment, Some(reference.clone()), counted.as_deref(), scales);
        let mut samples = of.require(samples);
        if config.temperature == 1.0 {
            checks.floats("old_logp", "old_logp", by_sample(samples.old.clone()));
        }
        checks.floats("advantages", "advantages", samples.advantages.clone().flatten::<1>(0, 2));
        samples.old = old(variant["old"].as_str().expect("an array"));
        let loss = of.loss(&config, of.logits(&policy, &input)?, samples.clone());
        losses(name, &loss, checks);
        let k3 = format!("{name}_k3");
        if let (true, Some(kl)) = (case.has(&k3), &loss.kl) {
            checks.floats(&k3, "k3", by_sample(kl.clone().inner()));
        }
        gradients(case, name, &policy, &loss.total, checks);
        if case.get::<String>("/config/optimizer/variant") == *name {
            released = Some((config, samples));
        }
    }
    straight_through(&of, &policy, &images, checks)?;
    match released {
        Some((config, samples)) => update(&of, policy, &input, config, samples, checks),
        None => panic!("case `{}`: the variant of the optimizer", case.name()),
    }
}

/// Compares the terms of the reward, and their sum with two sets of weights. Returns the rewards with those of the scripts.
fn rewards(of: &Setting<'_>, images: &Tensor<4>, draw: &Draw, checks: &mut Checks<'_>) -> Judgment {
    let what: String = of.case.get("/arrays/rewards_options/what");
    let weights = what.trim_start_matches("-(").split([')', '+']).filter_map(|term| term.trim().split_once(' '));
    let weights: BTreeMap<&str, f64> =
        weights.filter_map(|(weight, name)| Some((name, weight.parse().ok()?))).collect();
    let weight = |name: &str| weights.get(name).copied().unwrap_or(0.0);
    let options = RewardConfig {
        error: PixelError::L1,
        pixels: weight("L1"),
        lpips: weight("LPIPS"),
        embedding: weight("embed_cos"),
        ..reward()
    };
    let [found, _] =
        [(reward(), "mse", "rewards"), (options, "l1", "rewards_options")].map(|(config, pixels, name)| {
            let step = of.step(VaPiConfig { reward: config, ..settings(of.group, GrpoConfig::default()) });
            let targets = of.require(step.targets(images.clone(), &of.truth));
            let judgment = of.require(step.judge(&targets, &of.truth, &draw.ids));
            checks.floats(pixels, pixels, judgment.terms.pixels.clone());
            checks.floats("lpips", "lpips", judgment.terms.lpips.clone().expect("a term with a weight"));
            if let Some(embedding) = judgment.terms.embedding.clone() {
                checks.floats("embed_cos", "embed_cos", embedding);
            }
            let values = judgment.rewards[0].clone();
            checks.array(name, name, Array { shape: vec![values.len()], values });
            judgment
        });
    found
}

/// Compares the straight-through estimator, without contextual noise.
fn straight_through(of: &Setting<'_>, policy: &LlamaGen, images: &Tensor<4>, checks: &mut Checks<'_>) -> Result<()> {
    let input = TeacherInput::of(&of.tokenizer, &of.truth).on_graph();
    for (name, codes) in [("ste", Codes::Used), ("ste_raw", Codes::Stored)] {
        let loss = GrpoConfig { cross_entropy: of.case.get("/config/ste/ce"), ..GrpoConfig::default() };
        let through = StraightThrough { tau: of.case.get("/config/ste/tau"), codes };
        let estimator = Estimator::StraightThrough(through);
        let step = of.step(VaPiConfig { estimator, ..settings(of.group, loss) });
        let targets = of.require(step.targets(images.clone(), &of.truth));
        let gumbel = of.case.tensor("gumbel", of.device);
        let logits = of.logits(policy, &input)?;
        let found = of.require(step.straight_through(logits, None, gumbel, targets, &of.truth));
        let mean = |terms: Tensor<1>| terms.inner().mean();
        let lpips = found.terms.lpips.clone().expect("a term with a weight");
        let losses = vec![
            mean(found.terms.pixels.clone()),
            mean(lpips),
            found.cross_entropy.clone().inner(),
            found.total.clone().inner(),
        ];
        checks.floats(&format!("{name}_losses"), "losses", Tensor::cat(losses, 0));
        gradients(of.case, name, policy, &found.total, checks);
        if codes == Codes::Used {
            checks.ids("ste_ids", "ste_ids", found.ids);
            checks.floats("ste_img", "ste_img", found.images);
        }
    }
    Ok(())
}

/// Compares an update by AdamW, and the loss after it.
fn update(
    of: &Setting<'_>,
    policy: LlamaGen,
    input: &TeacherInput,
    config: GrpoConfig,
    samples: Samples,
    checks: &mut Checks<'_>,
) -> Result<()> {
    let number = |field: &str| of.case.get::<f64>(&format!("/config/optimizer/{field}"));
    let [beta_1, beta_2]: [f64; 2] = of.case.get("/config/optimizer/betas");
    let optimizer = OptimConfig {
        beta_1,
        beta_2,
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
        weight_decay_end: None,
        clip_norm: Some(number("max_grad_norm")),
    };
    let learning_rate = LrSchedule { peak: number("lr"), ..LrSchedule::default() };
    let rules = Rules { optimizer, learning_rate, ema: None, no_decay: <LlamaGen as VaPiFamily>::NO_DECAY, steps: 1 };
    let before = weights(&policy.valid())?;
    let mut learner = Learner::new(policy, rules, SectionNames::SINGLE);
    let loss = of.loss(&config, of.logits(&learner.model, input)?, samples.clone());
    let gradients = GradientsParams::from_grads(loss.total.backward(), &learner.model);
    learner.add(gradients);
    let rates = of.require(learner.update(0)).expect("an update");
    let grad_norm = of.require(rates.grad_norm());
    checks.array("step_grad_norm", "step_grad_norm", Array { shape: vec![1], values: vec![grad_norm] });

    let after = weights(&learner.model.valid())?;
    let names: Vec<String> = of.case.get("/config/grad_norm_params");
    let read = |dict: &StateDict, name: &str| -> Result<Vec<f64>> {
        Ok(dict.tensor(name)?.try_into_vec_as::<f64>().expect("floats"))
    };
    let mut norms = Vec::new();
    for name in &names {
        let (before, after) = (read(&before, name)?, read(&after, name)?);
        norms.push(before.iter().zip(&after).map(|(before, after)| (after - before).powi(2)).sum::<f64>().sqrt());
    }
    checks.array("step_update_norms", "step_update_norms", Array { shape: vec![norms.len()], values: norms });

    // The old policy is the reference whose distance the case has.
    let samples = Samples { reference: Some(samples.old.clone()), ..samples };
    let loss = of.loss(&config, of.logits(&learner.model, input)?, samples);
    losses("step", &loss, checks);
    checks.floats("step_ratio", "step_ratio", by_sample(loss.ratio.clone().inner()));
    let k3 = loss.kl.clone().expect("a reference").inner().mean();
    checks.array("step_k3", "step_k3", Array { shape: vec![1], values: vec![vqvae::number(&k3)] });
    Ok(())
}

/// Returns the weights under the names of checkpoints.
fn weights(model: &LlamaGen) -> Result<StateDict> {
    export(model, &LlamaGen::keys(model.config()))
}
