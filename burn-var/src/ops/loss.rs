use burn::tensor::{Int, Tensor, activation::log_softmax};

#[cfg(feature = "flex")]
use super::flex;

/// Computes the cross-entropy of every position in nats, with a fraction `smoothing` of the target spread evenly over
/// all classes, as PyTorch's `label_smoothing`.
///
/// # Shapes
/// - `logits`: `[batch, length, classes]`
/// - `targets`: `[batch, length]`, each below `classes`
/// - output: `[batch, length]`
pub fn cross_entropy(logits: Tensor<3>, targets: Tensor<2, Int>, smoothing: f64) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if flex::supports(&logits) {
        return flex::run(flex::CrossEntropy::new(targets, smoothing as f32), [logits.into_dispatch()]);
    }
    let log = log_softmax(logits, 2);
    let chosen = log.clone().gather(2, targets.unsqueeze_dim(2)).squeeze_dim::<2>(2).neg();
    if smoothing == 0.0 {
        return chosen;
    }
    chosen * (1.0 - smoothing) - log.mean_dim(2).squeeze_dim::<2>(2) * smoothing
}
