//! Student forcing over FlexVAR by the schedules of SAR's pre-study.

use burn::tensor::{Device, Int, Tensor};
use burn_var::guidance::Schedule;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::FlexVar;
use burn_var::weights::Pretrained;
use burn_var::{Result, Scales, TokenPyramid, ops};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::gradients::Gradients;
use burn_var_train::sar::{ForcingBatch, ForcingSchedule, Sampling, StudentForcing, student_forcing_loss};

use super::{sar, vqvae};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let scales: Scales = case.get("/config/patch_nums");
    let size = |field: &str| case.get::<usize>(&format!("/config/{field}"));
    // Its codebook alone is used.
    let vq = VqModelConfig {
        ch: 32,
        ch_mult: vec![1],
        num_res_blocks: 1,
        z_channels: 1,
        ..VqModelConfig::vq16(size("vocab_size"), size("z_channels"))
    };
    let tokenizer = sar::tokenizer_from(vq, &scales, &case.get("/weightgen/vae"), device)?;
    let config = sar::transformer_config(case, &scales, size("vocab_size"), size("z_channels"));
    let conditions = case.conditions("labels", config.num_classes);
    let maps = (0..scales.len()).map(|k| case.ids::<2>(&format!("gt_{k}"), device)).collect();
    let tokens = TokenPyramid::new(scales.clone(), maps)?;
    let runs: serde_json::Map<String, serde_json::Value> = case.get("/losses");
    for name in runs.keys() {
        let Some(schedule) = schedule(name) else {
            checks.fail(format!("the schedule `{name}` is not known"));
            continue;
        };
        let transformer = sar::transformer(&config, &case.get("/weightgen/flexvar"), &device.clone().autodiff())?;
        let forcing = StudentForcing {
            sampling: Sampling::Argmax,
            cfg: Schedule::Constant(0.0),
            ..StudentForcing::new(schedule)
        };
        let batch = ForcingBatch {
            tokens: &tokens,
            conditions: &conditions,
            label_smoothing: 0.0,
            step: 0,
            seed: 0,
            first: 0,
            drop_path: None,
        };
        let found = student_forcing_loss(&forcing, &tokenizer, &transformer, batch, None)?;
        checks.floats(&format!("{name}.input"), "input", found.input);
        checks.floats(&format!("{name}.logits"), "logits", found.logits.clone());
        let sampled = format!("{name}.sampled");
        if case.has(&sampled) {
            let maps: Vec<Tensor<2, Int>> = (0..scales.len() - 1).map(|k| found.mixed.map(k)).collect();
            checks.ids(&sampled, "sampled", Tensor::cat(maps, 1));
        }

        let at = |field: &str| format!("/losses/{name}/{field}");
        let tolerance = case.tolerance("losses", "losses");
        checks.scalar(&at("loss"), case.get(&at("loss")), vqvae::number(&found.loss), tolerance);
        let per_token = ops::cross_entropy(found.logits.inner(), found.targets, 0.0);
        for (k, expected) in case.get::<Vec<f64>>(&at("per_scale")).into_iter().enumerate() {
            let range = scales.range(k);
            let loss = per_token.clone().narrow(1, range.start, range.len()).mean();
            checks.scalar(&format!("{} {k}", at("per_scale")), expected, vqvae::number(&loss), tolerance);
        }
        let gradients = Gradients::of(&transformer, &found.loss.backward(), &FlexVar::keys(transformer.config()));
        checks.gradients(&format!("/grads/{name}"), &gradients);
        let total = at("grad_total_l2");
        checks.scalar(&total, case.get(&total), gradients.norm(), case.tolerance("grads", "grads"));
    }
    Ok(())
}

/// Returns the schedule of a run.
fn schedule(name: &str) -> Option<ForcingSchedule> {
    Some(match name {
        "teacher_forcing" => ForcingSchedule::TeacherForcing,
        "full" => ForcingSchedule::Full,
        "interleave" => ForcingSchedule::Interleave,
        _ => ForcingSchedule::HybridFrom(name.strip_prefix("hybrid")?.parse().ok()?),
    })
}
