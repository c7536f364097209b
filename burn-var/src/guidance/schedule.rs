//! How strong guidance is from scale to scale.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Scales};

/// A strength for every scale; 0 is no guidance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// From 0 at the first scale linearly to this at the last: VAR's, for classifier-free guidance.
    Ramp(f64),
    /// `s (1 - k / K)` at scale `k`, counted from 0, of `K`: from all of it to a `K`th, Scaled Spatial Guidance's.
    Decay(f64),
    /// The same at every scale.
    Constant(f64),
    /// One number a scale. Zeros at the end save the branches that only this guidance needs.
    PerScale(Vec<f64>),
}

impl Schedule {
    /// The strength at scale `k`, from 0.
    pub fn at(&self, k: usize, scales: &Scales) -> f64 {
        match self {
            Self::Ramp(strength) => strength * scales.ratio(k),
            Self::Decay(strength) => strength * (1.0 - k as f64 / scales.len() as f64),
            Self::Constant(strength) => *strength,
            Self::PerScale(strengths) => strengths.get(k).copied().unwrap_or(0.0),
        }
    }

    /// Checks that it fits a ladder; `name` is whose strength it is.
    pub(super) fn check(&self, name: &str, scales: &Scales) -> Result<()> {
        let strengths = match self {
            Self::Ramp(strength) | Self::Decay(strength) | Self::Constant(strength) => std::slice::from_ref(strength),
            Self::PerScale(strengths) if strengths.len() != scales.len() => {
                let expected = format!("{}, one a scale", scales.len());
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
        let found = |schedule: Schedule| (0..3).map(|k| schedule.at(k, &scales)).collect::<Vec<_>>();
        assert_eq!(found(Schedule::Ramp(3.0)), [0.0, 1.5, 3.0]);
        assert_eq!(found(Schedule::Decay(3.0)), [3.0, 2.0, 1.0]);
        assert_eq!(found(Schedule::Constant(3.0)), [3.0; 3]);
        assert_eq!(found(Schedule::PerScale(vec![1.0, 2.0, 0.0])), [1.0, 2.0, 0.0]);
    }

    #[test]
    fn a_schedule_of_another_length_is_refused() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let error = Schedule::PerScale(vec![1.0, 2.0]).check("cfg", &scales).unwrap_err().to_string();
        assert!(error.contains("cfg") && error.contains("3, one a scale"), "{error}");
        assert!(Schedule::Ramp(f64::NAN).check("cfg", &scales).is_err());
    }
}
