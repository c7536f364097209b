use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use super::flex;

/// Hyperparameters and index of one step of [`adamw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay rates of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Index of the step, from 1.
    pub time: usize,
}

/// Computes one step of AdamW (Loshchilov and Hutter 2019, algorithm 2), off the graph: the new weights and both
/// moments, all of one shape. `None` stands for moments of zero, as before the first step.
pub fn adamw<const D: usize>(
    weights: Tensor<D>,
    grad: Tensor<D>,
    moments: Option<[Tensor<D>; 2]>,
    step: AdamWStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let AdamWStep { learning_rate, weight_decay, betas: [beta_1, beta_2], epsilon, time } = step;
    let moments = moments.unwrap_or_else(|| [weights.zeros_like(), weights.zeros_like()]);
    #[cfg(feature = "flex")]
    if [&weights, &grad, &moments[0], &moments[1]].into_iter().all(flex::is_plain) {
        return flex::adamw(weights, grad, moments, step);
    }
    let [first, second] = moments;
    let first = first * beta_1 + grad.clone() * (1.0 - beta_1);
    let second = second * beta_2 + grad.square() * (1.0 - beta_2);
    let [bias_1, bias_2] = [beta_1, beta_2].map(|beta| 1.0 - beta.powi(time as i32));
    let update = first.clone() / bias_1 / ((second.clone() / bias_2).sqrt() + epsilon);
    (weights * (1.0 - learning_rate * weight_decay) - update * learning_rate, [first, second])
}
