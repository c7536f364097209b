//! The families whose files a pipeline can load.

use burn::tensor::Device;

use crate::generation::{NextScale, Tokenizer};
use crate::models::common::Lora;
use crate::models::flexvar::{FlexVae, FlexVar, FlexVarPreset};
use crate::models::llamagen::{LlamaGen, LlamaGenConfig, LlamaGenVq};
use crate::models::var::{Var, VqVae};
use crate::weights::{GenerationConfig, LoadOptions, Pretrained, StateDict};
use crate::{Error, Result, Scales};

/// A transformer with the tokenizer that its family uses.
pub(super) trait Family: Pretrained + NextScale + Send + Sync + 'static {
    type Tokenizer: Pretrained + Tokenizer + Send + Sync + 'static;

    /// Returns the settings of the authors' evaluation, for files without any.
    fn evaluation(config: &Self::Config) -> GenerationConfig;

    /// Merges a LoRA into the weights.
    ///
    /// # Errors
    /// [`Error::Config`] for a LoRA of other sizes; [`Error::Unsupported`] for a family without.
    fn merged(self, lora: &Lora) -> Result<Self>;
}

impl Family for Var {
    type Tokenizer = VqVae;

    fn evaluation(_: &Self::Config) -> GenerationConfig {
        GenerationConfig::default()
    }

    fn merged(self, lora: &Lora) -> Result<Self> {
        lora.merge(self)
    }
}

impl Family for FlexVar {
    type Tokenizer = FlexVae;

    fn evaluation(_: &Self::Config) -> GenerationConfig {
        FlexVarPreset::evaluation()
    }

    fn merged(self, lora: &Lora) -> Result<Self> {
        lora.merge(self)
    }
}

impl Family for LlamaGen {
    type Tokenizer = LlamaGenVq;

    fn evaluation(config: &LlamaGenConfig) -> GenerationConfig {
        config.evaluation()
    }

    fn merged(self, _: &Lora) -> Result<Self> {
        Err(Error::unsupported("a LoRA", "it is for the transformers of VAR and FlexVAR, and this is LlamaGen's"))
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
    let models = dict.models()?;
    let holds = |kind| models.iter().any(|model| model.kind() == kind);
    match () {
        () if holds(FlexVae::KIND) => load::<FlexVae>(dict, scales, device),
        () if holds(LlamaGenVq::KIND) => load::<LlamaGenVq>(dict, scales, device),
        () => load::<VqVae>(dict, scales, device),
    }
}
