//! Everything between a loss and the next weights: gradient clipping, AdamW, schedules, moving averages.
//!
//! Gradients of several micro-batches are summed by [`burn::optim::GradientsAccumulator`]; divide each loss by their
//! number first.

mod adamw;
mod clip;
mod ema;
mod schedule;

pub use adamw::{AdamW, NoDecay, OptimConfig, StepRates, no_decay_1d, no_decay_var};
pub use clip::clip_grad_norm;
pub use ema::{EmaConfig, ema_update};
pub use schedule::{Decay, LrSchedule, cosine_between};
