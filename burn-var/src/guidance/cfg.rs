//! Classifier-free guidance.

use serde::{Deserialize, Serialize};

use super::{Guidance, Logits};
use crate::{Error, Result, Scales};

/// How strong the guidance is at each scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CfgSchedule {
    /// VAR's: from 0 at the first scale linearly to this at the last.
    Ramp(f64),
    /// The same at every scale.
    Constant(f64),
    /// One number a scale. Zeros at the end save the null branch there.
    PerScale(Vec<f64>),
}

impl CfgSchedule {
    /// The strength at scale `k`; 0 is no guidance.
    pub fn at(&self, k: usize, scales: &Scales) -> f64 {
        match self {
            Self::Ramp(strength) => strength * scales.ratio(k),
            Self::Constant(strength) => *strength,
            Self::PerScale(strengths) => strengths.get(k).copied().unwrap_or(0.0),
        }
    }
}

/// `(1 + t) * cond - t * null` with a strength t that depends on the scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Cfg {
    /// The strengths.
    pub schedule: CfgSchedule,
}

impl Cfg {
    /// VAR's ramp up to `strength` (1.5 in the paper's evaluation, 4 in its demo).
    pub fn ramp(strength: f64) -> Self {
        Self { schedule: CfgSchedule::Ramp(strength) }
    }
}

impl Guidance for Cfg {
    fn name(&self) -> &'static str {
        "cfg"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        let strengths = match &self.schedule {
            CfgSchedule::Ramp(strength) | CfgSchedule::Constant(strength) => std::slice::from_ref(strength),
            CfgSchedule::PerScale(strengths) if strengths.len() != scales.len() => {
                return Err(Error::config(
                    "cfg",
                    format!("{} numbers", strengths.len()),
                    format!("{}, one a scale", scales.len()),
                ));
            }
            CfgSchedule::PerScale(strengths) => strengths,
        };
        match strengths.iter().find(|strength| !strength.is_finite()) {
            Some(strength) => Err(Error::config("cfg", strength, "a finite number")),
            None => Ok(()),
        }
    }

    fn needs_null(&self, k: usize, scales: &Scales) -> bool {
        self.schedule.at(k, scales) != 0.0
    }

    fn steer(&mut self, k: usize, scales: &Scales, logits: Logits) -> Result<Logits> {
        let strength = self.schedule.at(k, scales);
        Ok(match logits {
            Logits { cond, null: Some(null) } if strength != 0.0 => {
                Logits { cond: cond * (1.0 + strength) - null.clone() * strength, null: Some(null) }
            }
            logits => logits,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ramp_starts_at_zero_and_ends_at_the_strength() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let found: Vec<f64> = (0..3).map(|k| CfgSchedule::Ramp(3.0).at(k, &scales)).collect();
        assert_eq!(found, [0.0, 1.5, 3.0]);
        assert!(!Cfg::ramp(3.0).needs_null(0, &scales), "the first scale of a ramp needs no null branch");
        assert!(!Cfg::ramp(0.0).needs_null(2, &scales), "no guidance needs no null branch");
    }

    #[test]
    fn a_schedule_of_another_length_is_refused() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let cfg = Cfg { schedule: CfgSchedule::PerScale(vec![1.0, 2.0]) };
        assert!(cfg.check(&scales).unwrap_err().to_string().contains("3, one a scale"));
        assert!(Cfg::ramp(f64::NAN).check(&scales).is_err());
    }
}
