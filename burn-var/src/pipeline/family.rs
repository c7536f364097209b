//! The families whose files a pipeline can load.

use burn::tensor::Device;

use crate::generation::{NextScale, Tokenizer};
use crate::models::common::LoraTarget;
use crate::models::flexvar::{FlexVae, FlexVar, FlexVarPreset};
use crate::models::var::{Var, VqVae};
use crate::weights::{GenerationConfig, LoadOptions, Pretrained, StateDict};
use crate::{Result, Scales};

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

/// Loads the tokenizer of any family that a pipeline can load. `scales` is the scale schedule of files that do not
/// contain one, and of tokenizers that accept any.
///
/// # Errors
/// [`Error::Format`](crate::Error::Format) if the file holds none; those of [`Pretrained::load_with`].
pub fn load_tokenizer(
    dict: &StateDict,
    scales: Option<&Scales>,
    device: &Device,
) -> Result<Box<dyn Tokenizer + Send + Sync>> {
    fn load<T>(dict: &StateDict, scales: Option<&Scales>, device: &Device) -> Result<Box<dyn Tokenizer + Send + Sync>>
    where
        T: Pretrained + Tokenizer + Send + Sync + 'static,
    {
        let config = T::config_of(dict, scales)?;
        Ok(Box::new(T::load_with(dict, &config, LoadOptions::default(), device)?))
    }
    // Whatever is not recognized as another family is taken for VAR's, whose loader says what is missing.
    match dict.models()?.iter().any(|model| model.kind() == FlexVae::KIND) {
        true => load::<FlexVae>(dict, scales, device),
        false => load::<VqVae>(dict, scales, device),
    }
}
