//! LPIPS, against the authors' package with recipe weights in VGG16 and the authors' own heads.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use burn_var::Result;
use burn_var::metrics::Lpips;
use burn_var::weights::StateDict;
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::weightgen::WeightGen;

const HEADS: &str = "lpips_vgg_v0.1_lin.safetensors";

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let device = &device.clone().autodiff();
    let recipe: WeightGen = case.get("/weightgen");
    let shapes = case.get::<BTreeMap<String, Vec<usize>>>("/state_dict").into_iter();
    let vgg = recipe.state_dict(shapes.filter(|(key, _)| key.starts_with("features.")));
    let lpips = Lpips::load(&vgg, &StateDict::open(case.file(HEADS))?, device)?;
    let a: Tensor<4> = case.tensor("a", device);
    let b: Tensor<4> = case.tensor("b", device);

    for (i, features) in lpips.features(a.clone())?.into_iter().enumerate() {
        let [batch, channels, ..] = features.dims();
        let means: Tensor<2> = features.mean_dims(&[2, 3]).reshape([batch, channels]);
        checks.floats(&format!("feat_mean_{i}"), "*", means.inner());
    }
    checks.floats("per_layer", "*", lpips.stages(a.clone(), b.clone())?.inner());
    checks.floats("self_distance", "*", lpips.distance(a.clone(), a.clone())?.inner());

    let a = a.require_grad();
    let distance = lpips.distance(a.clone(), b)?;
    checks.floats("distance", "*", distance.clone().inner());
    match a.grad(&distance.sum().backward()) {
        Some(gradient) => checks.floats("grad_a", "*", gradient),
        None => checks.fail("`grad_a`: no gradient arrives"),
    }
    Ok(())
}
