//! What changes a hidden state or logits on their way: each method one part, and they compose.

mod cfg;

use burn::tensor::Tensor;

pub use cfg::{Cfg, CfgSchedule};

use crate::{Result, Scales};

/// The logits of one scale, `[batch, tokens, vocab]` each.
#[derive(Debug, Clone)]
pub struct Logits {
    /// With the pictures' classes.
    pub cond: Tensor<3>,
    /// With the null class, if some part of the chain asked for it at this scale.
    pub null: Option<Tensor<3>>,
}

/// One part of the guidance chain.
pub trait Guidance {
    /// Its name on the command line and in messages.
    fn name(&self) -> &'static str;

    /// Checks that the part fits a ladder, before anything is computed.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the setting.
    fn check(&self, scales: &Scales) -> Result<()> {
        let _ = scales;
        Ok(())
    }

    /// Whether [`Guidance::steer`] uses the null branch at scale `k`.
    fn needs_null(&self, k: usize, scales: &Scales) -> bool {
        let _ = (k, scales);
        false
    }

    /// Changes what enters the first block at scale `k`, `[sequences, tokens, width]`.
    ///
    /// # Errors
    /// Whatever the method can fail with.
    fn inject(&mut self, k: usize, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let _ = k;
        Ok(hidden)
    }

    /// Changes the logits of scale `k`.
    ///
    /// # Errors
    /// Whatever the method can fail with.
    fn steer(&mut self, k: usize, scales: &Scales, logits: Logits) -> Result<Logits> {
        let _ = (k, scales);
        Ok(logits)
    }
}
