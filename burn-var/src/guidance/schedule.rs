use serde::{Deserialize, Serialize};

use crate::scales::ScaleAt;
use crate::{Error, Result, Scales};

/// Guidance strength per scale; 0 disables guidance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Linear from 0 at the first scale to this value at the last: VAR's schedule for classifier-free guidance.
    Ramp(f64),
    /// Linear from half of this value at the first scale to all of it at the last: `s / 2 (1 + k / (K - 1))`, the guidance
    /// of the tokens that SAR's released training draws.
    HalfRamp(f64),
    /// `s (1 - k / K)` at scale `k`, counted from 0, of `K`: the schedule of Scaled Spatial Guidance.
    Decay(f64),
    /// The same at every scale.
    Constant(f64),
    /// FlexVAR's: `strength * k / steps` while the scale is at most `side` tokens in either direction, and `strength` at
    /// larger ones. Without `steps`, the ramp ends at the last scale. The authors use 16 and 9: the size and the number
    /// of steps after the first that they trained; a schedule of more steps then exceeds `strength`.
    RampWithin {
        /// Strength at the end of the ramp.
        strength: f64,
        /// Largest side of a map on the ramp.
        side: usize,
        /// Steps of the ramp, if there are more in the schedule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        steps: Option<usize>,
    },
    /// The same at the first scales, and 0 after: LlamaGen's `cfg_interval`, of which an interval of n tokens is the first
    /// `n + 2` scales. The branches that only this guidance needs end there.
    First {
        /// Strength at the first scales.
        strength: f64,
        /// Number of those scales.
        scales: usize,
    },
    /// LlamaGen's `power-cosine`: `strength` at the first scale, then from 0 at the second up to `strength` behind the last,
    /// `strength / 2 (1 - cos(pi ((k - 1) / (K - 1))^power))` at scale `k` of `K`.
    PowerCosine {
        /// Strength at the end.
        strength: f64,
        /// Power of the progress: the larger, the later guidance sets in.
        power: f64,
    },
    /// One value per scale. Trailing zeros save the branches that only this guidance needs.
    PerScale(Vec<f64>),
}

impl Schedule {
    /// Returns the strength at a scale.
    pub fn at(&self, at: ScaleAt<'_>) -> f64 {
        match self {
            Self::Ramp(strength) => strength * at.ratio(),
            Self::HalfRamp(strength) => 0.5 * strength * (1.0 + at.ratio()),
            Self::Decay(strength) => strength * (1.0 - at.k() as f64 / at.scales().len() as f64),
            Self::Constant(strength) => *strength,
            Self::RampWithin { strength, side, .. } if at.size().height.max(at.size().width) > *side => *strength,
            Self::RampWithin { strength, steps, .. } => {
                let after_first = at.scales().len() - 1;
                let steps = steps.map_or(after_first, |steps| steps.min(after_first));
                strength * at.k() as f64 / steps.max(1) as f64
            }
            Self::First { strength, scales } => {
                if at.k() < *scales {
                    *strength
                } else {
                    0.0
                }
            }
            Self::PowerCosine { strength, .. } if at.is_first() => *strength,
            Self::PowerCosine { strength, power } => {
                let progress = (at.k() - 1) as f64 / (at.scales().len() - 1) as f64;
                strength / 2.0 * (1.0 - (std::f64::consts::PI * progress.powf(*power)).cos())
            }
            Self::PerScale(strengths) => strengths.get(at.k()).copied().unwrap_or(0.0),
        }
    }

    /// Returns a schedule of the same form with another strength. A list of strengths becomes VAR's ramp.
    #[must_use]
    pub fn with_strength(&self, strength: f64) -> Self {
        match *self {
            Self::Ramp(_) | Self::PerScale(_) => Self::Ramp(strength),
            Self::HalfRamp(_) => Self::HalfRamp(strength),
            Self::Decay(_) => Self::Decay(strength),
            Self::Constant(_) => Self::Constant(strength),
            Self::RampWithin { side, steps, .. } => Self::RampWithin { strength, side, steps },
            Self::First { scales, .. } => Self::First { strength, scales },
            Self::PowerCosine { power, .. } => Self::PowerCosine { strength, power },
        }
    }

    /// Checks that strengths are finite and that a list has one per scale.
    ///
    /// # Errors
    /// [`Error::Config`] naming `name`.
    pub fn check(&self, name: &str, scales: &Scales) -> Result<()> {
        let strengths = match self {
            Self::Ramp(strength)
            | Self::HalfRamp(strength)
            | Self::Decay(strength)
            | Self::Constant(strength)
            | Self::RampWithin { strength, .. }
            | Self::First { strength, .. } => std::slice::from_ref(strength),
            Self::PowerCosine { power, .. } if !(power.is_finite() && *power > 0.0) => {
                return Err(Error::config(format!("power of {name}"), power, "a positive number"));
            }
            Self::PowerCosine { strength, .. } => std::slice::from_ref(strength),
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
        assert_eq!(found(Schedule::HalfRamp(3.0)), [1.5, 2.25, 3.0]);
        assert_eq!(found(Schedule::Decay(3.0)), [3.0, 2.0, 1.0]);
        assert_eq!(found(Schedule::Constant(3.0)), [3.0; 3]);
        assert_eq!(found(Schedule::PerScale(vec![1.0, 2.0, 0.0])), [1.0, 2.0, 0.0]);
        let within = |side, steps| Schedule::RampWithin { strength: 3.0, side, steps };
        assert_eq!(found(within(3, None)), [0.0, 1.5, 3.0], "all scales are on the ramp");
        assert_eq!(found(within(1, None)), [0.0, 3.0, 3.0], "larger ones have its strength");
        assert_eq!(found(within(3, Some(1))), [0.0, 3.0, 6.0], "further steps exceed it");
        assert_eq!(found(Schedule::First { strength: 3.0, scales: 2 }), [3.0, 3.0, 0.0]);
        let cosine = found(Schedule::PowerCosine { strength: 3.0, power: 2.0 });
        assert_eq!(cosine[..2], [3.0, 0.0], "the first scale has all of it, the second none");
        assert!((cosine[2] - 1.5 * (1.0 - (std::f64::consts::PI / 4.0).cos())).abs() < 1e-12, "{cosine:?}");
        assert_eq!(Schedule::PowerCosine { strength: 3.0, power: 2.0 }.with_strength(1.0).at(scales.at(0)), 1.0);
        assert_eq!(found(within(3, Some(9))), [0.0, 1.5, 3.0], "a short schedule ends at it");
    }

    #[test]
    fn a_schedule_of_another_length_is_refused() {
        let scales = Scales::square(&[1, 2, 3]).unwrap();
        let error = Schedule::PerScale(vec![1.0, 2.0]).check("cfg", &scales).unwrap_err().to_string();
        assert!(error.contains("cfg") && error.contains("3, one per scale"), "{error}");
        assert!(Schedule::Ramp(f64::NAN).check("cfg", &scales).is_err());
        let error = Schedule::PowerCosine { strength: 1.0, power: 0.0 }.check("cfg", &scales).unwrap_err().to_string();
        assert!(error.contains("power of cfg"), "{error}");
    }
}
