//! FID's Inception network and its two ways of preparing images, against pytorch-fid and the graph of the
//! guided-diffusion evaluator.

use burn::tensor::{Device, Tensor};
use burn_var::models::inception::{Inception, InceptionInput};
use burn_var::weights::Pretrained;
use burn_var::{MapSize, Result};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::weightgen::WeightGen;

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let recipe: WeightGen = case.get("/weightgen");
    let weights = recipe.for_module(&Inception::init_zeros(device), &Inception::keys(&()));
    let network = Inception::load(&weights, device)?;
    for image in case.arrays_of_role("input") {
        let Some(name) = image.strip_suffix(".image") else { continue };
        let Array { shape, values } = case.array(&image);
        let pixels: Vec<u8> = values.iter().map(|value| *value as u8).collect();
        let size = MapSize { height: shape[0], width: shape[1] };
        for (protocol, input) in [("tf1", InceptionInput::Tf1), ("torch", InceptionInput::Torch)] {
            let about = |what: &str| format!("{name}.{protocol}.{what}");
            let wanted = |what: &str| case.has(&about(what));
            if !wanted("pool") {
                continue;
            }
            let mut compare = |what: &str, found: Array| checks.array(&about(what), &about(what), found);
            let prepared = input.prepare(&pixels, size, device)?;
            let steps = 299_usize.div_ceil(23);
            let sampled = read_back(prepared.clone())?;
            let sampled = (0..3 * steps * steps).map(|i| {
                let (channel, row, column) = (i / steps / steps, i / steps % steps * 23, i % steps * 23);
                sampled[(channel * 299 + row) * 299 + column]
            });
            compare("input", Array { shape: vec![3, steps, steps], values: sampled.collect() });
            let mut blocks = Vec::new();
            let features = network.observed(prepared, &mut |block, x| {
                if wanted(&format!("mid.{block}")) {
                    blocks.push((block, read_back(x.clone())));
                }
            })?;
            for (block, values) in blocks {
                let values = values?;
                let step = values.len() / 64;
                compare(&format!("mid.{block}"), flat(values.into_iter().step_by(step).take(64)));
            }
            compare("pool", flat(read_back(features.pool.clone())?.into_iter().step_by(17)));
            if wanted("spatial") {
                compare("spatial", flat(read_back(features.spatial)?));
            }
            for (what, with_bias) in [("logits", true), ("logits_no_bias", false)] {
                if wanted(what) {
                    let logits = read_back(network.logits(features.pool.clone(), with_bias))?;
                    compare(what, flat(logits.into_iter().take(32)));
                }
            }
        }
    }
    Ok(())
}

fn read_back<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    tensor.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read features"))
}

fn flat(values: impl IntoIterator<Item = f64>) -> Array {
    let values: Vec<f64> = values.into_iter().collect();
    Array { shape: vec![values.len()], values }
}
