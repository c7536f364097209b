//! DINO's vision transformer, against timm and facebookresearch/dino.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn_var::math::Resize;
use burn_var::models::aid::{DiscriminatorHeadsConfig, Projector, VitProjector, generator_loss};
use burn_var::models::dino::{Vit, VitConfig};
use burn_var::ops::transpose;
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{MapSize, Result};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::weightgen::WeightGen;

use super::{disc, vqvae};

/// Reads the transformer's configuration, whose fields have other names in the case.
fn config(case: &Case) -> VitConfig {
    VitConfig {
        image_size: case.get("/config/img"),
        image_channels: 3,
        patch_size: case.get("/config/patch"),
        embed_dim: case.get("/config/embed_dim"),
        depth: case.get("/config/depth"),
        num_heads: case.get("/config/heads"),
        mlp_ratio: case.get("/config/mlp_ratio"),
        norm_eps: case.get("/config/ln_eps"),
        mean: case.get("/config/mean"),
        std: case.get("/config/std"),
    }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let vit = from_recipe(case, device)?;
    let step = case.find("/subsample").unwrap_or(1);
    let image: Tensor<4> = case.tensor("image", device);
    let side = vit.config().image_size;
    let resized = Resize::Area.apply((image.clone() + 1.0) * 0.5, MapSize { height: side, width: side });
    checks.array("resized", "resized/normalized", every(step, resized)?);
    let prepared = vit.prepare(image)?;
    checks.array("normalized", "resized/normalized", every(step, prepared.clone())?);
    let hooks: Vec<usize> = case.get("/config/hooks");
    let features = vit.features(prepared, &hooks)?;
    let layers = features.blocks.into_iter().chain([features.embedding]);
    for (i, tokens) in layers.enumerate() {
        let cls = tokens.clone().narrow(1, 0, 1);
        let patches = tokens.clone().narrow(1, 1, tokens.dims()[1] - 1);
        checks.array(&format!("feat_{i}"), "feat_*/cls/tokens", every(step, transpose(patches + cls))?);
    }
    checks.floats("cls", "feat_*/cls/tokens", features.tokens.clone().narrow(1, 0, 1).squeeze_dim::<2>(1));
    checks.array("tokens", "feat_*/cls/tokens", every(step, features.tokens)?);
    discriminator(case, &hooks, step, &device.clone().autodiff(), checks)
}

/// Builds the transformer with weights from the recipe, through the loader of real checkpoints.
fn from_recipe(case: &Case, device: &Device) -> Result<Vit> {
    let config = config(case);
    let recipe: WeightGen = case.get("/weightgen/vit");
    let weights = recipe.for_module(&config.init_zeros(device)?, &Vit::keys(&config));
    Vit::load_with(&weights, &config, LoadOptions::default(), device)
}

/// Compares the whole discriminator: features, heads, and the gradient of the generator's loss in the image.
fn discriminator(case: &Case, blocks: &[usize], step: usize, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let vit = from_recipe(case, device)?.no_grad();
    let config =
        DiscriminatorHeadsConfig { heads: blocks.len() + 1, ..DiscriminatorHeadsConfig::aid(vit.config().embed_dim) };
    let projector = VitProjector::new(vit, blocks.to_vec())?;
    let heads = disc::from_recipe(case, &config, &case.get("/weightgen/heads"), "state", device)?;
    let image = case.tensor::<4>("image", device).require_grad();
    let logits = heads.forward(&projector.features(image.clone())?, None)?;
    checks.floats("logits", "logits", logits.clone());
    let loss = generator_loss(logits);
    let logits = case.tolerance("logits", "logits");
    checks.scalar("loss_g", case.get("/scalars/loss_g"), vqvae::number(&loss), logits);
    match image.grad(&loss.backward()) {
        // The case clamps the image first, and its gradient is that of the unclamped image.
        Some(grad) => {
            let inside = case.tensor::<4>("image", &grad.device()).abs().lower_elem(1.0).float();
            checks.array("dimage", "dimage", every(step, grad * inside)?);
        }
        None => checks.fail("dimage: no gradient reaches the image"),
    }
    Ok(())
}

/// Returns every `step`-th value.
fn every<const D: usize>(step: usize, tensor: Tensor<D>) -> Result<Array> {
    let values = tensor.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read features"))?;
    let values: Vec<f64> = values.into_iter().step_by(step).collect();
    Ok(Array { shape: vec![values.len()], values })
}
