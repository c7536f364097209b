//! Checkpoints of the discriminator's heads.

use burn::tensor::Device;

use super::{DiscriminatorHeads, DiscriminatorHeadsConfig};
use crate::Result;
use crate::weights::{KeyMap, Kind, Pretrained};

/// Parts of names: the module's, and those of StyleGAN-T and AID-VAR.
const NAMES: [(&str, &str); 4] = [
    ("first.conv", "main.0.0"),
    ("first.norm", "main.0.1"),
    ("second.conv", "main.1.fn.0"),
    ("second.norm", "main.1.fn.1"),
];

impl Pretrained for DiscriminatorHeads {
    const KIND: Kind = Kind {
        name: "heads",
        role: "heads",
        title: "AID discriminator",
        source: "`burn-var train aid` trains one",
        sections: &["discriminator_state_dict."],
        landmark: None,
    };

    type Config = DiscriminatorHeadsConfig;

    fn config(&self) -> &DiscriminatorHeadsConfig {
        self.config()
    }

    /// Returns the names of StyleGAN-T and AID-VAR after `heads.`.
    fn keys(_: &DiscriminatorHeadsConfig) -> KeyMap {
        KeyMap::new("discriminator heads", &[], |path| {
            let path = path.strip_prefix("heads.").unwrap_or(path);
            NAMES.iter().fold(path.to_owned(), |path, (ours, theirs)| path.replace(ours, theirs))
        })
    }

    fn init_zeros(config: &DiscriminatorHeadsConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }
}
