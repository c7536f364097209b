//! The families whose files a pipeline can load.

use crate::generation::{NextScale, Tokenizer};
use crate::models::common::LoraTarget;
use crate::models::flexvar::{FlexVae, FlexVar, FlexVarPreset};
use crate::models::var::{Var, VqVae};
use crate::weights::{GenerationConfig, Pretrained};

/// A transformer with the tokenizer that its family uses.
pub(super) trait Family: Pretrained + NextScale + LoraTarget + Send + Sync + 'static {
    type Tokenizer: Pretrained + Tokenizer + Send + Sync + 'static;

    /// Returns the settings of the authors' evaluation, for files without any.
    fn evaluation() -> GenerationConfig;
}

impl Family for Var {
    type Tokenizer = VqVae;

    fn evaluation() -> GenerationConfig {
        GenerationConfig::default()
    }
}

impl Family for FlexVar {
    type Tokenizer = FlexVae;

    fn evaluation() -> GenerationConfig {
        FlexVarPreset::evaluation()
    }
}
