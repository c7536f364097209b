//! Everything between a loss and the next weights: gradient clipping, AdamW, schedules, moving averages.
//!
//! The engine sums the gradients of the pieces of a batch before it comes here.

mod adamw;
mod clip;
mod ema;
mod schedule;

pub use adamw::{AdamW, Average, NoDecay, OptimConfig, StepRates, no_decay_1d, no_decay_norms, no_decay_var};
pub(crate) use clip::scale_grads;
pub use clip::{GradNorm, clip_grad_norm};
pub use ema::{EmaConfig, ema_update};
pub use schedule::{Decay, LrSchedule, cosine_between};
