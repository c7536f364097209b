//! FlexVAR's tokenizer, against `models/vq_llama.py` of FlexVAR.

use burn::tensor::{Device, Int, Tensor};
use burn_var::math::Resize;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::{FlexVae, FlexVaeConfig};
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{MapSize, Result, Scales, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;
use burn_var_tests::weightgen::WeightGen;

/// Reads the sizes in the object at a pointer; those that a case does not name are the published ones.
pub(super) fn config(case: &Case, pointer: &str, patch_nums: Scales) -> FlexVaeConfig {
    let get = |name: &str| format!("{pointer}/{name}");
    let public = VqModelConfig::vq16(case.get(&get("codebook_size")), case.get(&get("codebook_embed_dim")));
    let vq = VqModelConfig {
        ch: case.get(&get("ch")),
        z_channels: case.get(&get("z_channels")),
        ch_mult: case.find(&get("ch_mult")).unwrap_or(public.ch_mult),
        num_res_blocks: case.find(&get("num_res_blocks")).unwrap_or(public.num_res_blocks),
        codebook_l2_norm: case.find(&get("l2_norm")).unwrap_or(public.codebook_l2_norm),
        ..public
    };
    FlexVaeConfig { vq, patch_nums }
}

/// Builds a tokenizer with weights from the recipe, through the loader of real checkpoints.
pub(super) fn from_recipe(config: &FlexVaeConfig, recipe: &WeightGen, device: &Device) -> Result<FlexVae> {
    let weights = recipe.for_module(&config.init_zeros(device)?, &FlexVae::keys(config));
    FlexVae::load_with(&weights, config, LoadOptions::default(), device)
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let sides: Vec<usize> = case.get("/config/scales");
    let config = config(case, "/config", Scales::square(&sides)?);
    let recipe: WeightGen = case.get("/weightgen");
    inference(case, &from_recipe(&config, &recipe, device)?, device, checks)?;
    let device = device.clone().autodiff();
    training(case, &from_recipe(&config, &recipe, &device)?, &device, checks)
}

fn inference(case: &Case, model: &FlexVae, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let image: Tensor<4> = case.tensor("image", device);
    checks.floats("encoder_out", "floats", model.vq.encoder.forward(image.clone()));
    let latent = model.latent(image.clone())?;
    checks.floats("encode_conti", "floats", latent.clone());
    let scales = model.scales();
    let tokens = model.encode(image, scales)?;
    for at in scales.iter() {
        let (side, ids) = (at.size().height, tokens.map(at.k()));
        checks.floats(&format!("area_{side}"), "floats", Resize::Area.apply(latent.clone(), at.size()));
        checks.ids(&format!("idx_{side}"), "ids", ids.clone());
        let canvas = model.paint(model.blank(ids.dims()[0], scales), at, model.lookup(ids));
        checks.floats(&format!("quant_{side}"), "floats", canvas.clone());
        if at.is_first() && case.has(&format!("mse_quant_{side}")) {
            checks.floats(&format!("mse_quant_{side}"), "floats", canvas.clone());
        }
        if at.is_last() {
            checks.floats("decode_last", "floats", model.decode_raw(canvas));
        } else {
            let next = scales.at(at.k() + 1);
            let name = format!("up_{side}_to_{}", next.size().height);
            checks.floats(&name, "floats", model.next_input(&canvas, next));
        }
    }

    let free: Tensor<2, Int> = case.ids("free_ids", device);
    let [batch, count] = free.dims();
    let expected = case.array("decode_free").shape;
    let factor = model.config().vq.downsampling();
    let size = MapSize { height: expected[2] / factor, width: expected[3] / factor };
    checks.require(size.area() == count, || format!("`decode_free` is {expected:?}, `free_ids` has {count} tokens"));
    let schedule = Scales::new(vec![size])?;
    let canvas = model.paint(model.blank(batch, &schedule), schedule.at(0), model.lookup(free));
    checks.floats("decode_free", "floats", model.decode_raw(canvas));

    let native = model.vq.quantize.quantize(latent);
    let [images, tokens] = native.dims();
    checks.ids("encode_idx", "ids", native.reshape([images * tokens]));
    Ok(())
}

fn training(case: &Case, model: &FlexVae, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let latent = Tensor::from_inner(model.latent(case.tensor("image", device))?.inner()).require_grad();
    let quantized = model.vq.quantize.forward_train(latent.clone());
    checks.floats("vq_loss", "losses", quantized.vq_loss.clone());
    checks.floats("commit_loss", "losses", quantized.commit_loss.clone());
    let entropy = quantized.entropy_loss.clone().unwrap_or_else(|| Tensor::zeros([1], device));
    checks.floats("entropy_arg", "losses", entropy);
    let upstream: Tensor<4> = case.tensor("ste_grad_w", device);
    let gradients = (quantized.codes * upstream).sum().backward();
    match latent.grad(&gradients) {
        Some(gradient) => checks.floats("ste_grad", "gradients", gradient),
        None => checks.fail("no gradient reaches the latent"),
    }
    Ok(())
}
