//! The VAR transformer and its generation, against `models/var.py` of VAR.

use std::ops::ControlFlow;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor};
use burn_var::generation::Generated;
use burn_var::guidance::{Cfg, Guidance};
use burn_var::models::var::{Var, VarConfig, VqVae};
use burn_var::sampling::Sampler;
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{BatchRequest, Condition, NextScale, Result, TeacherForced, TokenPyramid, Tokenizer, generate};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Case, Tolerance};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;

use super::vqvae;

/// The names of the fields of a transformer's configuration in the cases.
const FIELDS: [&str; 11] = [
    "depth",
    "embed_dim",
    "num_heads",
    "mlp_ratio",
    "norm_eps",
    "shared_aln",
    "attn_l2_norm",
    "vocab_size",
    "z_channels",
    "num_classes",
    "patch_nums",
];

/// Reads the transformer's configuration at a pointer.
pub(super) fn config(case: &Case, pointer: &str) -> VarConfig {
    case.pick(&[pointer], &FIELDS)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let tokenizer = vqvae::config(case, &["/config/vae", "/config"]);
    let tokenizer = vqvae::from_recipe(&tokenizer, &case.get("/weightgen/vae"), device)?;
    let transformer = from_recipe(case, device)?;
    let conditions = case.conditions("labels", transformer.config().num_classes);
    for strength in case.get::<Vec<f64>>("/cfgs") {
        let generated = greedy(&tokenizer, &transformer, &conditions, strength)?;
        let name = |array: &str| format!("cfg{strength}.{array}");
        for (k, logits) in generated.logits.into_iter().enumerate() {
            checks.floats(&name(&format!("logits_{k}")), "logits", logits);
            checks.ids(&name(&format!("ids_{k}")), "ids", generated.result.tokens.map(k));
        }
        let image = name("image");
        if case.has(&image) {
            let first = case.array(&image).shape[0];
            let decoded = tokenizer.decode(generated.result.canvas.clone().narrow(0, 0, first));
            checks.floats(&image, "image", (decoded + 1.0) / 2.0);
        }
        checks.floats(&name("f_hat"), "f_hat", generated.result.canvas);
    }
    teacher_forced(case, &tokenizer, &transformer, &conditions, checks)?;
    training(case, &conditions, device, checks)
}

/// Builds the transformer with weights from the recipe, through the loader of real checkpoints.
pub(super) fn from_recipe(case: &Case, device: &Device) -> Result<Var> {
    let config = config(case, "/config");
    let recipe: WeightGen = case.get("/weightgen/var");
    let weights = recipe.for_module(&config.init_zeros(device)?, &Var::keys(&config));
    Var::load_with(&weights, &config, LoadOptions::default(), device)
}

/// The result of a generation, with the logits of every scale.
pub(super) struct Greedy {
    pub(super) result: Generated,
    pub(super) logits: Vec<Tensor<3>>,
}

/// Generates the most likely tokens under VAR's guidance ramp.
pub(super) fn greedy(tokenizer: &VqVae, transformer: &Var, conditions: &[Condition], strength: f64) -> Result<Greedy> {
    let mut logits = Vec::new();
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(strength))];
    let request = BatchRequest { sampler: Sampler::greedy(), ..BatchRequest::new(conditions.to_vec(), 0) };
    let result = generate(tokenizer, transformer, guidance, request, &mut |done| {
        logits.push(done.logits.clone());
        ControlFlow::Continue(())
    })?;
    Ok(Greedy { result, logits })
}

fn teacher_forced(
    case: &Case,
    tokenizer: &VqVae,
    transformer: &Var,
    conditions: &[Condition],
    checks: &mut Checks<'_>,
) -> Result<()> {
    let device = tokenizer.codebook().device();
    let tokens = TokenPyramid::from_sequence(tokenizer.scales().clone(), case.ids("gt_ids", &device))?;
    let input = tokenizer.teacher_input(&tokens);
    checks.floats("var_input", "f_hat", input.clone());
    checks.floats(
        "tf_logits",
        "logits",
        transformer.teacher_forced(conditions, input.clone(), transformer.scales(), None)?,
    );
    if case.has("tf_logits_uncond") {
        let first = case.array("tf_logits_uncond").shape[0];
        let (conditions, input) = (vec![Condition::Null; first], input.narrow(0, 0, first));
        let logits = transformer.teacher_forced(&conditions, input, transformer.scales(), None)?;
        checks.floats("tf_logits_uncond", "logits", logits);
    }
    Ok(())
}

fn training(case: &Case, conditions: &[Condition], device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let device = device.clone().autodiff();
    let transformer = from_recipe(case, &device)?;
    let input = case.tensor("var_input", &device);
    let logits = transformer.teacher_forced(conditions, input, transformer.scales(), None)?;
    let smoothing: f64 = case.find("/scalars/label_smoothing").unwrap_or(0.0);
    let log_probabilities = log_softmax(logits, 2);
    let target = case.ids::<2>("gt_ids", &device).unsqueeze_dim::<3>(2);
    let on_target = log_probabilities.clone().gather(2, target).mean();
    let loss = (on_target * (1.0 - smoothing) + log_probabilities.mean() * smoothing).neg();
    let ce_loss = case.tolerance("ce_loss", "ce_loss");
    checks.scalar("ce_loss", case.get("/scalars/ce_loss"), vqvae::number(&loss), ce_loss);

    let gradients = Gradients::of(&transformer, &loss.backward(), &Var::keys(transformer.config()));
    checks.gradients("/grad_ce", &gradients);
    let Tolerance { relative, .. } = case.tolerance("grads", "grads");
    let total = Tolerance { absolute: 0.0, relative };
    checks.scalar("grad_total_l2", case.get("/scalars/grad_total_l2"), gradients.norm(), total);
    let without: Vec<String> = case.find("/params_without_gradient").unwrap_or_default();
    checks.require(gradients.without() == without, || {
        format!("parameters without a gradient: expected {without:?}, found {:?}", gradients.without())
    });
    Ok(())
}
