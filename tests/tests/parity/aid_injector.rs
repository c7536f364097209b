//! AID-VAR's guidance injector, against `models/guidance_injector.py`.

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use burn_var::models::aid::{Injector, InjectorConfig, InjectorResize, SafeLayerNorm};
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{MapSize, Result};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Case, Tolerance};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;
use serde::Deserialize;

use super::vqvae;

/// A pair of scales, with the names of the cases.
#[derive(Deserialize)]
struct Pair {
    #[serde(rename = "L_prev")]
    tokens: usize,
    target_patch_num: usize,
}

/// Reads the configuration at a pointer. The released form is the default.
pub(super) fn config(case: &Case, pointer: &str) -> InjectorConfig {
    let mode: Option<String> = case.find(&format!("{pointer}/resize_mode"));
    let resize = match mode.as_deref() {
        Some(mode) if !mode.starts_with("flattened") => InjectorResize::Spatial,
        _ => InjectorResize::Flat1d,
    };
    let sizes: InjectorConfig = case.pick(&[pointer], &["input_dim", "embed_dim", "num_layers", "num_heads"]);
    InjectorConfig { resize, ..sizes }
}

/// Builds the injector with weights from the recipe, through the loader of real checkpoints.
pub(super) fn from_recipe(config: &InjectorConfig, recipe: &WeightGen, device: &Device) -> Result<Injector> {
    let weights = recipe.for_module(&config.init_zeros(device)?, &Injector::keys(config));
    Injector::load_with(&weights, config, LoadOptions::default(), device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let device = &device.clone().autodiff();
    let config = config(case, "/config");
    let injector = from_recipe(&config, &case.get("/weightgen"), device)?;
    let parameters: usize = case.get("/param_count");
    checks.require(burn::module::Module::num_params(&injector) == parameters, || "number of parameters".to_owned());
    for Pair { tokens, target_patch_num } in case.get::<Vec<Pair>>("/pairs") {
        let name = format!("L{tokens}_to_pn{target_patch_num}");
        let x = case.tensor::<3>(&format!("{name}.x"), device).require_grad();
        let (from, to) = (MapSize::square(tokens.isqrt()), MapSize::square(target_patch_num));
        let y = injector.forward(x.clone(), from, to, None)?;
        checks.floats(&format!("{name}.y"), "*.y", y.clone());
        let loss = y.square().sum();
        let expected: f64 = case.get(&format!("/results/{name}/loss_sum_sq"));
        checks.scalar(&format!("{name}, loss"), expected, vqvae::number(&loss), case.tolerance("grads", "grads"));
        let graph = loss.backward();
        match x.grad(&graph) {
            Some(grad) => checks.floats(&format!("{name}.dx"), "*.dx", grad),
            None => checks.fail(format!("{name}: no gradient reaches the input")),
        }
        checks
            .gradients(&format!("/results/{name}/grads"), &Gradients::of(&injector, &graph, &Injector::keys(&config)));
    }
    for name in case.names().filter(|name| name.starts_with("pos_")) {
        let length = case.array(name).shape[1];
        checks.floats(name, "*.y", Injector::positions(length, config.embed_dim, device));
    }
    if case.has("sln.x") {
        norm(case, device, checks);
    }
    Ok(())
}

fn norm(case: &Case, device: &Device, checks: &mut Checks<'_>) {
    let parameter = |name: &str| Param::from_tensor(case.tensor::<1>(name, device));
    let norm = SafeLayerNorm { weight: parameter("sln.weight"), bias: parameter("sln.bias") };
    let x = case.tensor::<2>("sln.x", device).require_grad();
    let y = norm.forward(x.clone().unsqueeze::<3>()).squeeze_dim::<2>(0);
    checks.floats("sln.y", "*.y", y.clone());
    let graph = y.square().sum().backward();
    let grads = [("sln.dweight", norm.weight.val()), ("sln.dbias", norm.bias.val())];
    for (name, parameter) in grads {
        match parameter.grad(&graph) {
            Some(grad) => checks.floats(name, "*.dx", grad),
            None => checks.fail(format!("{name}: none arrives")),
        }
    }
    match x.grad(&graph) {
        Some(grad) => norm_input_gradient(case, grad, checks),
        None => checks.fail("sln.dx: none arrives"),
    }
}

/// Compares the gradient of the norm's input.
///
/// In a row of equal numbers, the difference from the mean is rounding alone. The norm divides it by a standard deviation
/// of `sqrt(2e-5)`, and the gradient once more. So one unit in the last place of a number moves a gradient by that unit
/// over 2e-5, times twice the square of the largest weight (2). The original's own rows differ by as much.
fn norm_input_gradient(case: &Case, grad: Tensor<2>, checks: &mut Checks<'_>) {
    checks.skip("sln.dx");
    let (x, expected) = (case.array("sln.x"), case.array("sln.dx"));
    let tolerance = case.tolerance("sln.dx", "*.dx");
    let found = match grad.try_into_vec_as::<f64>() {
        Ok(found) => found,
        Err(error) => return checks.fail(format!("sln.dx: {error}")),
    };
    for (i, (expected, found)) in expected.values.iter().zip(found).enumerate() {
        let row = &x.values[i / x.shape[1] * x.shape[1]..][..x.shape[1]];
        let unit = if row.iter().all(|x| *x == row[0]) { f64::from(f32::EPSILON) * row[0].abs() } else { 0.0 };
        let allowed = Tolerance { absolute: tolerance.absolute + unit * 2.0 * 4.0 / 2e-5, ..tolerance };
        checks.scalar(&format!("sln.dx, element {i}"), *expected, found, allowed);
    }
}
