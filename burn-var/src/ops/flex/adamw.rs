use burn::tensor::Tensor;

use super::{
    bridge::{Array, span},
    matrix::Shared,
    simd::vectorized,
};
use crate::ops::AdamWStep;

/// Number of weights per task.
const PIECE: usize = 1 << 14;

/// Computes [`adamw`](crate::ops::adamw), reading and writing weights and moments once.
pub(in crate::ops) fn adamw<const D: usize>(
    weights: Tensor<D>,
    grad: Tensor<D>,
    moments: [Tensor<D>; 2],
    step: AdamWStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let _span = span::<AdamWStep>("");
    let (weights, grad) = (Array::from(weights), Array::from(grad));
    let [mut first, mut second] = moments.map(Array::from);
    let places = [first.values_mut(), second.values_mut()].map(|values| Shared::new(values.as_mut_ptr()));
    let [bias_1, bias_2] = step.betas.map(|beta| 1.0 - beta.powi(step.time as i32));
    let numbers = Numbers {
        keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
        betas: step.betas.map(|beta| beta as f32),
        new: step.betas.map(|beta| (1.0 - beta) as f32),
        rate: (step.learning_rate / bias_1) as f32,
        bias: (1.0 / bias_2) as f32,
        epsilon: step.epsilon as f32,
    };
    let (weights, _) = weights.update(PIECE, |piece, weights| {
        let at = piece * PIECE;
        // SAFETY: these values of the moments belong to no other piece.
        let [first, second] = [&places[0], &places[1]]
            .map(|place| unsafe { core::slice::from_raw_parts_mut(place.at(at), weights.len()) });
        update(weights, &grad.values()[at..], first, second, numbers);
    });
    (weights.into(), [first.into(), second.into()])
}

#[derive(Clone, Copy)]
struct Numbers {
    keep: f32,
    betas: [f32; 2],
    new: [f32; 2],
    rate: f32,
    bias: f32,
    epsilon: f32,
}

vectorized! {
    fn update(weights: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32], by: Numbers) {
        for (((weight, &grad), first), second) in weights.iter_mut().zip(grad).zip(first).zip(second) {
            *first = *first * by.betas[0] + grad * by.new[0];
            *second = *second * by.betas[1] + grad * grad * by.new[1];
            *weight = *weight * by.keep - by.rate * *first / ((*second * by.bias).sqrt() + by.epsilon);
        }
    }
}
