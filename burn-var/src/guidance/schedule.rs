use serde::{Deserialize, Serialize};

use crate::scales::ScaleAt;
use crate::{Error, Result, Scales};

/// Guidance strength per scale; 0 disables guidance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Linear from 0 at the first scale to this value at the last: VAR's schedule for classifier-free guidance.
    Ramp(f64),
    /// `s (1 - k / K)` at scale `k`, counted from 0, of `K`: the schedule of Scaled Spatial Guidance.
    Decay(f64),
    /// The same at every scale.
    Constant(f64),
    /// One value per scale. Trailing zeros save the branches that only this guidance needs.
    PerScale(Vec<f64>),
}

impl Schedule {
    /// Returns the strength at a scale.
    pub fn at(&self, at: ScaleAt<'_>) -> f64 {
        match self {
            Self::Ramp(strength) => strength * at.ratio(),
            Self::Decay(strength) => strength * (1.0 - at.k() as f64 / at.scales().len() as f64),
            Self::Constant(strength) => *strength,
            Self::PerScale(strengths) => strengths.get(at.k()).copied().unwrap_or(0.0),
        }
    }

    /// Checks that strengths are finite and that a list has one per scale.
    ///
    /// # Errors
    /// [`Error::Config`] naming `name`.
    pub fn check(&self, name: &str, scales: &Scales) -> Result<()> {
        let strengths = match self {
            Self::Ramp(strength) | Self::Decay(strength) | Self::Constant(strength) => std::slice::from_ref(strength),
            Self::PerScale(strengths) if strengths.len() != scales.len() => {
                let expected = format!("{}, one per scale", scales.len());
                return Err(Error::config(name, format!("{} numbers", strengths.len()), expected));
            }
            Self::PerScale(strengths) => strengths,
        };
        match strengths.iter().find(|strength| !strength.is_finite()) {
            Some(strength) => Err(Error::config(name, strength, "a finite number")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_of_three_scales() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let found = |schedule: Schedule| scales.iter().map(|at| schedule.at(at)).collect::<Vec<_>>();
        assert_eq!(found(Schedule::Ramp(3.0)), [0.0, 1.5, 3.0]);
        assert_eq!(found(Schedule::Decay(3.0)), [3.0, 2.0, 1.0]);
        assert_eq!(found(Schedule::Constant(3.0)), [3.0; 3]);
        assert_eq!(found(Schedule::PerScale(vec![1.0, 2.0, 0.0])), [1.0, 2.0, 0.0]);
    }

    #[test]
    fn a_schedule_of_another_length_is_refused() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let error = Schedule::PerScale(vec![1.0, 2.0]).check("cfg", &scales).unwrap_err().to_string();
        assert!(error.contains("cfg") && error.contains("3, one per scale"), "{error}");
        assert!(Schedule::Ramp(f64::NAN).check("cfg", &scales).is_err());
    }
}
