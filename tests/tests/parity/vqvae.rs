//! The multi-scale tokenizer, against `models/vqvae.py` of VAR.

use burn::tensor::{Device, Tensor};
use burn_var::models::var::{VqVae, VqVaeConfig, phi_index};
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{Result, Scales, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;

/// The names of the fields of a tokenizer's configuration in the cases.
const FIELDS: [&str; 12] = [
    "image_channels",
    "ch",
    "ch_mult",
    "num_res_blocks",
    "z_channels",
    "vocab_size",
    "patch_nums",
    "quant_resi",
    "share_quant_resi",
    "using_znorm",
    "quant_conv_ks",
    "beta",
];

/// Reads a tokenizer's configuration, the fields of which are spread over the objects at `pointers`.
pub(super) fn config(case: &Case, pointers: &[&str]) -> VqVaeConfig {
    case.pick(pointers, &FIELDS)
}

/// Builds a tokenizer with weights from the recipe, through the loader of real checkpoints.
pub(super) fn from_recipe(config: &VqVaeConfig, recipe: &WeightGen, device: &Device) -> Result<VqVae> {
    let weights = recipe.for_module(&config.init_zeros(device)?, &VqVae::keys(config));
    VqVae::load_with(&weights, config, LoadOptions::default(), device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let config = config(case, &["/config"]);
    let recipe: WeightGen = case.get("/weightgen");
    phis(case, &config, checks);
    inference(case, &from_recipe(&config, &recipe, device)?, device, checks)?;
    let device = device.clone().autodiff();
    training(case, &from_recipe(&config, &recipe, &device)?, &device, checks)
}

fn phis(case: &Case, config: &VqVaeConfig, checks: &mut Checks<'_>) {
    let scales = config.patch_nums.len();
    let found: Vec<usize> = (0..scales).map(|k| phi_index(config.phis(), k, scales)).collect();
    let expected = case.find::<Vec<usize>>("/phi_selected_per_scale");
    checks.require(expected.as_ref().is_none_or(|expected| *expected == found), || {
        format!("phi of each scale: expected {expected:?}, found {found:?}")
    });
}

fn inference(case: &Case, model: &VqVae, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let image: Tensor<4> = case.tensor("image", device);
    checks.floats("encoder_out", "floats", model.encoder.forward(image.clone()));
    checks.floats("f", "floats", model.latent(image.clone())?);
    let scales = model.scales();
    let tokens = model.encode(image.clone(), scales)?;
    let canvases = model.canvases(&tokens);
    for (k, canvas) in canvases.iter().enumerate() {
        checks.ids(&format!("ids_{k}"), "ids_0", tokens.map(k));
        checks.floats(&format!("f_hat_{k}"), "floats", canvas.clone());
        first_images(case, &format!("rec_{k}"), canvas, checks, |canvas| model.decode(canvas));
        let next = if k + 1 < canvases.len() { model.next_input(canvas, scales.at(k + 1)) } else { canvas.clone() };
        checks.floats(&format!("next_{k}"), "floats", next);
    }
    checks.floats("var_input", "floats", model.teacher_input(&tokens));
    if let Some(scales) = case.find::<Scales>("/config/extra_v_patch_nums") {
        let tokens = model.encode(image, &scales)?;
        for k in 0..scales.len() {
            checks.ids(&format!("extra_ids_{k}"), "ids_0", tokens.map(k));
        }
    }
    Ok(())
}

/// Compares the decoded images of the first samples, the only ones that cases hold.
fn first_images(
    case: &Case,
    name: &str,
    canvas: &Tensor<4>,
    checks: &mut Checks<'_>,
    decode: impl Fn(Tensor<4>) -> Tensor<4>,
) {
    if case.has(name) {
        let first = case.array(name).shape[0];
        checks.floats(name, "floats", decode(canvas.clone().narrow(0, 0, first)));
    }
}

fn training(case: &Case, model: &VqVae, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let keys = VqVae::keys(model.config());
    let scalars = case.tolerance("scalars", "scalars");
    let image: Tensor<4> = case.tensor("image", device);

    let (_, quantized) = model.forward_train(image.clone())?;
    checks.scalar("vq_loss", case.get("/scalars/vq_loss"), number(&quantized.loss), scalars);
    let graph = quantized.loss.backward();
    checks.gradients("/grad_vq_loss", &Gradients::of(model, &graph, &keys));

    let (reconstruction, quantized) = model.forward_train(image.clone())?;
    if case.has("train_rec") {
        let first = case.array("train_rec").shape[0];
        checks.floats("train_rec", "floats", reconstruction.clone().inner().narrow(0, 0, first));
    }
    let mse = (reconstruction - image).square().mean();
    checks.scalar("rec_mse", case.get("/scalars/rec_mse"), number(&mse), scalars);
    let graph = (mse + quantized.loss).backward();
    checks.gradients("/grad_rec_mse_plus_vq_loss", &Gradients::of(model, &graph, &keys));
    Ok(())
}

/// Reads a loss. Returns NaN, which no tolerance accepts, if it cannot be read.
pub(super) fn number(loss: &Tensor<1>) -> f64 {
    let values = loss.clone().try_into_data().ok().and_then(|data| data.try_into_vec_as::<f64>().ok());
    values.and_then(|values| values.first().copied()).unwrap_or(f64::NAN)
}
