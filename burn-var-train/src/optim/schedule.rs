//! Learning rate and weight decay as functions of the step alone, so that a resumed run needs no state for them.
//!
//! Checked against `lr_wd_annealing` of VAR's `utils/lr_control.py`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// Half a cosine from the peak to the end fraction (VAR's `cos`).
    Cosine,
    /// The peak for the first 5 % of what follows the warm-up, then a line to the end fraction (VAR's `lin0`).
    Lin0,
}

/// The learning rate of a run: a linear warm-up, then a [`Decay`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LrSchedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// The fraction of the peak that the warm-up starts from (VAR: 0.005).
    pub warmup_start: f64,
    /// Course of the rate after the warm-up.
    pub decay: Decay,
    /// The fraction of the peak that the last step has.
    pub end: f64,
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self { peak: 1e-4, warmup_steps: 0, warmup_start: 0.005, decay: Decay::Constant, end: 0.1 }
    }
}

impl LrSchedule {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let fraction = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::config(name, value, "a fraction of the peak, 0 to 1")),
        };
        if !(self.peak > 0.0 && self.peak.is_finite()) {
            return Err(Error::config("learning_rate.peak", self.peak, "a positive number"));
        }
        fraction("learning_rate.warmup_start", self.warmup_start)?;
        fraction("learning_rate.end", self.end)
    }

    /// Returns the learning rate of `step`, counted from 0, in a run of `steps`.
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup_steps {
            let passed = step as f64 / self.warmup_steps as f64;
            return self.peak * (self.warmup_start + (1.0 - self.warmup_start) * passed);
        }
        let passed = progress(step - self.warmup_steps, steps.saturating_sub(self.warmup_steps));
        let fraction = match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => cosine_between(1.0, self.end, passed),
            Decay::Lin0 => {
                const FLAT: f64 = 0.05;
                self.end + (1.0 - self.end) * ((1.0 - passed) / (1.0 - FLAT)).min(1.0)
            }
        };
        self.peak * fraction
    }
}

/// Half a cosine wave from `start` at 0 to `end` at 1.
pub fn cosine_between(start: f64, end: f64, passed: f64) -> f64 {
    end + (start - end) * (0.5 + 0.5 * (PI * passed).cos())
}

/// Returns the share of `steps` that lies before `step`, counted from 0; 1 at the last one.
pub(super) fn progress(step: u64, steps: u64) -> f64 {
    if steps <= 1 { 1.0 } else { (step as f64 / (steps - 1) as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, what: &str) {
        assert!((found - expected).abs() < 1e-12, "{what}: {found}, expected {expected}");
    }

    #[test]
    fn warm_up_is_linear_and_ends_at_the_peak() {
        let lr = LrSchedule { peak: 2.0, warmup_steps: 4, warmup_start: 0.5, ..Default::default() };
        for (step, expected) in [(0, 1.0), (1, 1.25), (3, 1.75), (4, 2.0), (9, 2.0)] {
            close(lr.at(step, 10), expected, &format!("step {step}"));
        }
    }

    #[test]
    fn cosine_reaches_its_end_at_the_last_step() {
        let lr = LrSchedule { peak: 1.0, warmup_steps: 3, decay: Decay::Cosine, end: 0.2, ..Default::default() };
        close(lr.at(3, 14), 1.0, "first step after the warm-up");
        close(lr.at(8, 14), 0.6, "half way");
        close(lr.at(13, 14), 0.2, "last step");
        close(lr.at(99, 14), 0.2, "beyond the last step");
    }

    #[test]
    fn lin0_is_flat_then_linear() {
        let lr = LrSchedule { peak: 1.0, warmup_steps: 0, decay: Decay::Lin0, end: 0.001, ..Default::default() };
        close(lr.at(4, 101), 1.0, "4 %, still flat");
        close(lr.at(5, 101), 1.0, "5 %, the line starts at the peak");
        close(lr.at(24, 101), 0.001 + 0.999 * 0.8, "a fifth down the line");
        close(lr.at(100, 101), 0.001, "last step");
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for decay in [Decay::Constant, Decay::Cosine, Decay::Lin0] {
            for (warmup_steps, steps) in [(0, 0), (0, 1), (5, 5), (5, 6), (7, 3)] {
                let lr = LrSchedule { warmup_steps, decay, ..Default::default() };
                for step in 0..10 {
                    let rate = lr.at(step, steps);
                    assert!(rate.is_finite() && rate > 0.0, "{decay:?} {warmup_steps}/{steps} step {step}: {rate}");
                }
            }
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let error = LrSchedule { end: 1.5, ..Default::default() }.validate().expect_err("end above 1").to_string();
        assert!(error.contains("learning_rate.end") && error.contains("1.5"), "names field and value: {error}");
        LrSchedule { peak: f64::NAN, ..Default::default() }.validate().expect_err("NaN peak");
    }
}
