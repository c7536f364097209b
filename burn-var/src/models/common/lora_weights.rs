//! Checkpoints of a low-rank adaptation, a format of this crate: the authors of AID-VAR have not released one.

use burn::tensor::Device;

use super::{Lora, LoraConfig};
use crate::Result;
use crate::weights::{KeyMap, Kind, Pretrained};

impl Pretrained for Lora {
    const KIND: Kind = Kind {
        name: "lora",
        role: "lora",
        title: "LoRA",
        source: "`burn-var train aid` trains one if its configuration has a `lora` section",
        sections: &[],
        landmark: None,
    };

    type Config = LoraConfig;

    fn config(&self) -> &LoraConfig {
        self.config()
    }

    /// Returns the names of the module: `blocks.0.mat_qkv.down`.
    fn keys(_: &LoraConfig) -> KeyMap {
        KeyMap::identity(Self::KIND.title)
    }

    fn init_zeros(config: &LoraConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }
}
