//! What changes a hidden state, logits or tokens on their way: each method one part, and they compose.

mod aid;
mod cfg;
mod chain;
mod keep;
mod schedule;
mod ssg;
mod vpg;

use burn::tensor::{Bool, Int, Tensor};

pub use aid::{Aid, AidWeight, Uncertainty};
pub use cfg::Cfg;
pub use chain::GuidanceConfig;
pub use keep::Keep;
pub use schedule::Schedule;
pub use ssg::{Dse, DseFill, DseScale, Ssg, SsgConfig, SsgOrder, dct_matrix};
pub use vpg::{Vpg, VpgConfig};

use crate::{Request, Result, Scales};

/// The logits of one scale, `[batch, tokens, vocab]` each.
#[derive(Debug, Clone)]
pub struct Logits {
    /// With the pictures' classes.
    pub cond: Tensor<3>,
    /// With the null class, if some part of the chain asked for it at this scale.
    pub null: Option<Tensor<3>>,
    /// The same two after a corrupted prefix, if some part asked for them; without any of its own.
    pub corrupted: Option<Box<Self>>,
}

impl Logits {
    /// With the pictures' classes alone.
    pub fn cond(cond: Tensor<3>) -> Self {
        Self { cond, null: None, corrupted: None }
    }
}

/// A scale that is about to enter the transformer.
#[derive(Debug, Clone, Copy)]
pub struct Entering<'a> {
    /// Which one, from 0.
    pub k: usize,
    /// The ladder.
    pub scales: &'a Scales,
    /// The code vectors of the tokens drawn at the scale before, `[batch, tokens, z_channels]`; none at the first.
    pub previous: Option<&'a Tensor<3>>,
}

/// Tokens that are not drawn.
#[derive(Debug, Clone)]
pub struct Given {
    /// Ids, `[batch, tokens]`.
    pub ids: Tensor<2, Int>,
    /// True where they are taken.
    pub mask: Tensor<2, Bool>,
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

    /// Whether [`Guidance::steer`] uses the branch with a corrupted prefix at scale `k`.
    fn needs_corrupted(&self, k: usize, scales: &Scales) -> bool {
        let _ = (k, scales);
        false
    }

    /// Changes what enters the first block, `[sequences, tokens, width]`: those with a class first, then those of the
    /// null branch, if there is one.
    ///
    /// # Errors
    /// Whatever the method can fail with.
    fn inject(&mut self, scale: Entering<'_>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let _ = scale;
        Ok(hidden)
    }

    /// What enters the first block of the branch with a corrupted prefix, given what enters the other.
    ///
    /// # Errors
    /// Whatever the method can fail with.
    fn corrupt(&mut self, scale: Entering<'_>, request: &Request, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let _ = (scale, request);
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

    /// The tokens of scale `k` that are known beforehand.
    fn given(&mut self, k: usize) -> Option<Given> {
        let _ = k;
        None
    }
}
