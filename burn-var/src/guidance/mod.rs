//! Guidance: methods that change hidden states or logits in the generation loop. Each is one part of a chain.

mod cfg;
mod chain;
mod schedule;
mod ssg;
mod vpg;

use burn::tensor::{Device, Tensor};

pub use cfg::Cfg;
pub use chain::GuidanceConfig;
pub use schedule::Schedule;
pub use ssg::{Dse, DseFill, DseScale, Ssg, SsgConfig, SsgOrder};
pub use vpg::{Vpg, VpgConfig};

pub use crate::models::aid::{Aid, AidWeight, Uncertainty};
use crate::scales::ScaleAt;
use crate::{Result, Scales};

/// Logits of one scale, `[batch, tokens, logits]` each.
#[derive(Debug, Clone)]
pub struct Logits {
    /// Logits with the images' conditions.
    pub cond: Tensor<3>,
    /// Logits with the null condition, if a part of the chain needs them at this scale.
    pub null: Option<Tensor<3>>,
    /// Both branches after a corrupted prefix, if a part needs them; its own `corrupted` is `None`.
    pub corrupted: Option<Box<Self>>,
}

impl Logits {
    /// Returns logits of the conditional branch alone.
    pub fn cond(cond: Tensor<3>) -> Self {
        Self { cond, null: None, corrupted: None }
    }
}

/// The branches of a prediction that a part needs beside the conditional one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Branches {
    /// The null condition.
    pub null: bool,
    /// The branch with a corrupted prefix, see [`Guidance::corrupt`].
    pub corrupted: bool,
}

/// Facts about a batch before its generation starts.
#[derive(Debug, Clone, Copy)]
pub struct BatchInfo<'a> {
    /// Scale schedule.
    pub scales: &'a Scales,
    /// Number of images.
    pub images: usize,
    /// Seed of the generation.
    pub seed: u64,
    /// Index of the batch's first image in the whole request.
    pub first: u64,
    /// Device of the model.
    pub device: &'a Device,
}

/// One part of a guidance chain.
///
/// A part may keep state from scale to scale; [`Guidance::begin`] starts a batch and must reset it.
///
/// ```
/// use burn_var::Result;
/// use burn_var::guidance::{Guidance, Logits};
/// use burn_var::scales::ScaleAt;
///
/// /// Sharpens the logits of the last scale.
/// struct Sharpen;
///
/// impl Guidance for Sharpen {
///     fn name(&self) -> &'static str {
///         "sharpen"
///     }
///
///     fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
///         let factor = if at.is_last() { 2.0 } else { 1.0 };
///         Ok(Logits { cond: logits.cond * factor, ..logits })
///     }
/// }
/// ```
pub trait Guidance {
    /// Returns the name of the part, as on the command line and in messages.
    fn name(&self) -> &'static str;

    /// Starts a batch: checks that the part fits the schedule, and resets its state.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the setting.
    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        let _ = batch;
        Ok(())
    }

    /// Returns the branches whose logits the part uses at a scale.
    fn branches(&self, at: ScaleAt<'_>) -> Branches {
        let _ = at;
        Branches::default()
    }

    /// Changes the hidden states that enter the first block, `[sequences, tokens, width]`: sequences with a condition
    /// first, then those of the null branch, if there is one. `codes` are the code vectors of the tokens of the scale
    /// before, `[batch, tokens, z_channels]`; `None` at the first scale.
    ///
    /// # Errors
    /// The errors of the method.
    fn hidden(&mut self, at: ScaleAt<'_>, codes: Option<&Tensor<3>>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let _ = (at, codes);
        Ok(hidden)
    }

    /// Corrupts the hidden states that enter the first block, for the branch with a corrupted prefix.
    ///
    /// # Errors
    /// The errors of the method.
    fn corrupt(&mut self, at: ScaleAt<'_>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let _ = at;
        Ok(hidden)
    }

    /// Changes the logits of a scale.
    ///
    /// # Errors
    /// The errors of the method.
    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        let _ = at;
        Ok(logits)
    }
}
