//! The identity of the network that computed features or statistics.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The network that computed features: architecture, weights and preprocessing.
///
/// Distances between features of different networks mean nothing, even where the networks have the same width. Features
/// and statistics are therefore saved with this identity, and combined only where it is equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkIdentity {
    /// The architecture, with every setting that changes features and is not visible in the weights.
    pub kind: String,
    /// The fingerprint of the weights.
    pub weights: String,
    /// The way from 8-bit images to the input of the network: resizing, channels and normalization.
    pub preprocessing: String,
}

impl NetworkIdentity {
    /// The kind of FID's network, for which reference statistics are published.
    pub const INCEPTION: &str = "Inception v3 (FID)";

    /// Creates an identity from its three parts.
    ///
    /// The strings are saved and compared as they are, so change them only when the features change.
    pub fn new(kind: impl Into<String>, weights: impl Into<String>, preprocessing: impl Into<String>) -> Self {
        Self { kind: kind.into(), weights: weights.into(), preprocessing: preprocessing.into() }
    }

    /// Returns `true` if Frechet distances through this network are what papers call FID.
    pub fn is_fid(&self) -> bool {
        self.kind == Self::INCEPTION
    }

    /// Checks that `first` and `second` come from the same network. Each side is a name for the message, and the
    /// identity that is recorded with its features.
    ///
    /// # Errors
    /// [`Error::Network`] if the identities differ.
    pub fn check_same(first: (&str, &Self), second: (&str, &Self)) -> Result<()> {
        if first.1 == second.1 {
            return Ok(());
        }
        Err(mismatch(first, (second.0, Some(second.1)), "compute both with one network"))
    }

    /// Checks reference statistics against the network that they are used with. Published statistics (those of the
    /// guided-diffusion evaluator and of pytorch-fid) do not record a network. They exist for FID's network only, and are
    /// accepted with it; no other network accepts statistics of unknown origin.
    ///
    /// # Errors
    /// [`Error::Network`] if the statistics come from another network, or from an unknown one.
    pub fn check_statistics(features: (&str, &Self), statistics: (&str, Option<&Self>)) -> Result<()> {
        match statistics.1 {
            Some(network) if network == features.1 => Ok(()),
            None if features.1.is_fid() => Ok(()),
            Some(_) => {
                let action = "compute the statistics again from the reference images with the network of the features";
                Err(mismatch(features, statistics, action))
            }
            None => {
                let action = "an older version wrote the statistics, without the network: compute them again from the \
                              reference images (statistics of unknown origin are accepted with FID's Inception only)";
                Err(mismatch(features, statistics, action))
            }
        }
    }
}

impl fmt::Display for NetworkIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, weights, preprocessing } = self;
        write!(f, "{kind}, weights {}, input {preprocessing}", weights.get(..12).unwrap_or(weights))
    }
}

/// Returns the error that names both networks and says what to do.
pub(super) fn mismatch(
    first: (&str, &NetworkIdentity),
    second: (&str, Option<&NetworkIdentity>),
    action: &str,
) -> Error {
    let side = |name: &str, network: Option<&NetworkIdentity>| match network {
        Some(network) => format!("{name} from [{network}]"),
        None => format!("{name} from an unknown network"),
    };
    let (a, b) = (side(first.0, Some(first.1)), side(second.0, second.1));
    Error::Network { reason: format!("{a}, {b}; {action}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_identity_counts() {
        let network = NetworkIdentity::new("ViT", "0123456789abcdef", "resize to 224x224");
        let check = |other: &NetworkIdentity| NetworkIdentity::check_same(("`a`", &network), ("`b`", other));
        assert!(check(&network.clone()).is_ok());
        for other in [
            NetworkIdentity { kind: "classifier".into(), ..network.clone() },
            NetworkIdentity { weights: "fedcba9876543210".into(), ..network.clone() },
            NetworkIdentity { preprocessing: "resize to 112x112".into(), ..network.clone() },
        ] {
            let error = check(&other).unwrap_err();
            assert!(matches!(error, Error::Network { .. }), "an application can match it: {error:?}");
            let message = error.to_string();
            for part in ["`a`", "`b`", &network.to_string(), &other.to_string(), "compute both with one network"] {
                assert!(message.contains(part), "`{part}` in: {message}");
            }
        }
    }

    #[test]
    fn statistics_of_unknown_origin_are_for_inception_only() {
        let inception = NetworkIdentity::new(NetworkIdentity::INCEPTION, "01", "TensorFlow 1 resize");
        let other = NetworkIdentity::new("ViT", "01", "TensorFlow 1 resize");
        let check = |network: &NetworkIdentity, statistics: Option<&NetworkIdentity>| {
            NetworkIdentity::check_statistics(("the images", network), ("`ref.npz`", statistics))
        };
        assert!(check(&inception, None).is_ok(), "published statistics");
        assert!(check(&other, Some(&other)).is_ok());
        let error = check(&other, None).unwrap_err().to_string();
        assert!(error.contains("`ref.npz` from an unknown network") && error.contains("compute them again"), "{error}");
        let error = check(&inception, Some(&other)).unwrap_err().to_string();
        assert!(error.contains(&inception.to_string()) && error.contains(&other.to_string()), "{error}");
    }
}
