use super::{BatchInfo, Branches, Guidance, Logits, Schedule};
use crate::Result;
use crate::ops::extrapolate;
use crate::scales::ScaleAt;

/// Classifier-free guidance: `(1 + t) * cond - t * null` with a strength t per scale, also for the logits of a
/// corrupted prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct Cfg {
    schedule: Schedule,
}

impl Cfg {
    /// Creates guidance with the given strengths.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }

    /// Creates guidance with VAR's ramp up to `strength` (1.5 in the paper's evaluation, 4 in its demo).
    pub fn ramp(strength: f64) -> Self {
        Self::new(Schedule::Ramp(strength))
    }
}

/// Returns the guided logits; the null branch stays for later parts.
fn guided(logits: Logits, strength: f64) -> Logits {
    let corrupted = logits.corrupted.map(|corrupted| Box::new(guided(*corrupted, strength)));
    let cond = match &logits.null {
        Some(null) => extrapolate(logits.cond, null.clone(), strength),
        None => logits.cond,
    };
    Logits { cond, null: logits.null, corrupted }
}

impl Guidance for Cfg {
    fn name(&self) -> &'static str {
        "cfg"
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.schedule.check(self.name(), batch.scales)
    }

    fn branches(&self, at: ScaleAt<'_>) -> Branches {
        Branches { null: self.schedule.at(at) != 0.0, ..Branches::default() }
    }

    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        Ok(match self.schedule.at(at) {
            0.0 => logits,
            strength => guided(logits, strength),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scales;

    #[test]
    fn zero_strength_needs_no_null_branch() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let needs_null = |cfg: Cfg, k: usize| cfg.branches(scales.at(k)).null;
        assert!(!needs_null(Cfg::ramp(3.0), 0), "the first scale of a ramp");
        assert!(needs_null(Cfg::ramp(3.0), 1));
        assert!(!needs_null(Cfg::ramp(0.0), 2), "no strength");
    }
}
