//! Classifier-free guidance.

use super::{Guidance, Logits, Schedule};
use crate::{Result, Scales};

/// `(1 + t) * cond - t * null` with a strength t that depends on the scale; of a corrupted prefix's logits too.
#[derive(Debug, Clone, PartialEq)]
pub struct Cfg {
    /// The strengths.
    pub schedule: Schedule,
}

impl Cfg {
    /// VAR's ramp up to `strength` (1.5 in the paper's evaluation, 4 in its demo).
    pub fn ramp(strength: f64) -> Self {
        Self { schedule: Schedule::Ramp(strength) }
    }
}

/// The guided logits, `null` being kept for parts that come later.
fn guided(logits: Logits, strength: f64) -> Logits {
    let corrupted = logits.corrupted.map(|corrupted| Box::new(guided(*corrupted, strength)));
    let cond = match &logits.null {
        Some(null) => logits.cond * (1.0 + strength) - null.clone() * strength,
        None => logits.cond,
    };
    Logits { cond, null: logits.null, corrupted }
}

impl Guidance for Cfg {
    fn name(&self) -> &'static str {
        "cfg"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        self.schedule.check(self.name(), scales)
    }

    fn needs_null(&self, k: usize, scales: &Scales) -> bool {
        self.schedule.at(k, scales) != 0.0
    }

    fn steer(&mut self, k: usize, scales: &Scales, logits: Logits) -> Result<Logits> {
        Ok(match self.schedule.at(k, scales) {
            0.0 => logits,
            strength => guided(logits, strength),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guidance_needs_no_null_branch() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        assert!(!Cfg::ramp(3.0).needs_null(0, &scales), "the first scale of a ramp");
        assert!(Cfg::ramp(3.0).needs_null(1, &scales));
        assert!(!Cfg::ramp(0.0).needs_null(2, &scales), "no strength");
    }
}
