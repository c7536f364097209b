//! Top-k and top-p, against `sample_with_top_k_top_p_`.

use burn::tensor::{Device, Tensor, TensorData};
use burn_var::sampling::{Sampler, softmax};
use burn_var::{Error, Result};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use serde::Deserialize;

#[derive(Deserialize)]
struct Setting {
    name: String,
    top_k: usize,
    top_p: f64,
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    for Setting { name, top_k, top_p } in case.get::<Vec<Setting>>("/cases") {
        let Array { shape, values } = case.array(&format!("{name}.logits"));
        let vocab = shape.last().copied().unwrap_or(1);
        let sampler = Sampler { top_k, top_p, ..Sampler::greedy() };
        let mut values: Vec<f32> = values.into_iter().map(|logit| logit as f32).collect();
        let rows = Tensor::from_data(TensorData::new(values.clone(), [values.len() / vocab, vocab]), device);
        match sampler.filter_on_device(rows)? {
            Some(filtered) => values = filtered.try_into_vec_as().map_err(Error::device("read logits"))?,
            None => values.chunks_mut(vocab).try_for_each(|row| sampler.filter(row))?,
        }
        let keep = values.iter().map(|logit| f64::from(u8::from(logit.is_finite()))).collect();
        let probabilities = values.chunks(vocab).flat_map(softmax).collect();
        checks.array(&format!("{name}.keep"), "keep", Array { shape: shape.clone(), values: keep });
        checks.array(&format!("{name}.probs"), "probs", Array { shape, values: probabilities });
    }
    Ok(())
}
