//! VA-pi (arXiv 2512.19680): post-training of a transformer by the reward of its decoded samples. So far the parts of a step;
//! the trainer is to come.

mod grpo;
mod reward;

pub use grpo::{GrpoConfig, GrpoLoss, Samples, advantages, grpo_loss, log_probs};
pub use reward::{PixelError, noisy_context};
