//! FlexVAR with a masked first scale, teacher-forced, against `models/scalear.py` of SAR.

use burn::tensor::{Device, Int, Tensor};
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVar, FlexVarConfig, MaskedFirst, SeenScales};
use burn_var::weights::Pretrained;
use burn_var::{Result, Scales, TokenPyramid};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::gradients::Gradients;
use burn_var_train::flexvar::{counted_tokens, masked_input, masked_loss};

use super::{sar, vqvae};

/// Builds the tokenizer, whose codebook alone is used, and the transformer for a schedule.
pub(super) fn models(case: &Case, scales: &Scales, device: &Device) -> Result<(FlexVae, FlexVar)> {
    let size = |field: &str| case.get::<usize>(&format!("/config/{field}"));
    let vq = VqModelConfig {
        ch: 32,
        ch_mult: vec![1],
        num_res_blocks: 1,
        z_channels: 1,
        ..VqModelConfig::vq16(size("vocab_size"), size("z_channels"))
    };
    // The codebook is off the graph, as in training.
    let tokenizer = sar::tokenizer_from(vq, scales, &case.get("/weightgen/vae"), &device.clone().inner())?;
    let shared: bool = case.get("/config/share_position_table");
    let config = FlexVarConfig {
        first: FirstScale::Masked(MaskedFirst { own_positions: !shared, rewrite: true }),
        sees: SeenScales::ClassTokenReleased,
        ..sar::transformer_config(case, scales, size("vocab_size"), size("z_channels"))
    };
    Ok((tokenizer, sar::transformer(&config, &case.get("/weightgen/scalear"), device)?))
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let scales: Scales = case.get("/config/patch_nums");
    let (tokenizer, transformer) = models(case, &scales, &device.clone().autodiff())?;
    let maps = (0..scales.len()).map(|k| case.ids::<2>(&format!("gt_{k}"), device)).collect();
    let tokens = TokenPyramid::new(scales.clone(), maps)?;
    let conditions = case.conditions("labels", transformer.config().num_classes);
    let first = scales.size(0).area();

    let count = (first as f64 * case.get::<f64>("/config/mask_ratio")) as i64;
    let masked = case.ids::<2>("orders", device).lower_elem(count);
    let counted = counted_tokens(masked.clone(), &scales);
    checks.ids("loss_mask", "loss_mask", counted.clone().int());
    let input = masked_input(&tokenizer, &tokens);
    checks.floats("input", "input", input.clone());
    let on_graph = Tensor::from_inner(input.clone());
    let logits = transformer.masked_teacher_forced(&conditions, on_graph, Tensor::from_inner(masked), &scales, None)?;
    checks.floats("logits", "logits", logits.clone());

    let targets: Tensor<2, Int> = tokens.sequence();
    let loss = masked_loss(logits, targets, counted, 0.0);
    checks.scalar("/scalars/loss", case.get("/scalars/loss"), vqvae::number(&loss), case.tolerance("loss", "loss"));
    let gradients = Gradients::of(&transformer, &loss.backward(), &FlexVar::keys(transformer.config()));
    checks.gradients("/grad", &gradients);
    let total = "/scalars/grad_total_l2";
    checks.scalar(total, case.get(total), gradients.norm(), case.tolerance("grads", "grads"));

    let behind = Scales::new(scales.sizes()[1..].to_vec())?;
    let student = input.narrow(1, first, behind.tokens());
    let logits = transformer.class_and_scales(&conditions, Tensor::from_inner(student), &behind, None)?;
    checks.floats("student_logits", "student_logits", logits);
    Ok(())
}
