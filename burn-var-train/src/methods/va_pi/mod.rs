//! VA-pi (arXiv 2512.19680): post-training of a transformer by the reward of its decoded samples.
//!
//! One teacher-forced pass over true tokens gives the probabilities of all tokens. Samples are drawn from them, every token by
//! itself, decoded, and compared with the image; those that are more alike than others of their image become likelier.
//! Cross-entropy of the true tokens keeps the model where it is.

mod config;
mod family;
mod grpo;
mod method;
mod reward;
mod step;
#[cfg(test)]
mod tests;

pub use config::{Codes, Credit, Estimator, PolicyMean, StraightThrough, VaPiConfig, VaPiTrainConfig};
pub use family::VaPiFamily;
pub use grpo::{GrpoConfig, GrpoLoss, Samples, advantages, grpo_loss, log_probs};
pub use method::{VaPiMethod, train_va_pi};
pub use reward::{PixelError, RewardConfig, RewardTarget, Rewards, Targets, Terms, noisy_context};
pub use step::{Draw, Judgment, StraightThroughLoss, VaPi};
