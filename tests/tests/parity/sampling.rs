//! Top-k and top-p, against `sample_with_top_k_top_p_`.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::sampling::{Sampler, softmax};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use serde::Deserialize;

#[derive(Deserialize)]
struct Setting {
    name: String,
    top_k: usize,
    top_p: f64,
}

pub(super) fn read(case: &Case, _device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    for Setting { name, top_k, top_p } in case.get::<Vec<Setting>>("/cases") {
        let Array { shape, values } = case.array(&format!("{name}.logits"));
        let vocab = shape.last().copied().unwrap_or(1);
        let sampler = Sampler { top_k, top_p, ..Sampler::greedy() };
        let (mut keep, mut probabilities) = (Vec::new(), Vec::new());
        for row in values.chunks(vocab) {
            let mut row: Vec<f32> = row.iter().map(|logit| *logit as f32).collect();
            sampler.filter(&mut row)?;
            keep.extend(row.iter().map(|logit| f64::from(u8::from(logit.is_finite()))));
            probabilities.extend(softmax(&row));
        }
        checks.array(&format!("{name}.keep"), "keep", Array { shape: shape.clone(), values: keep });
        checks.array(&format!("{name}.probs"), "probs", Array { shape, values: probabilities });
    }
    Ok(())
}
