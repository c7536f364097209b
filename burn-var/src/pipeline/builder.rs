use std::path::PathBuf;

use burn::tensor::Device;

use super::family::Family;
use super::{ModelFiles, ModelPair, Pipeline, Settings, resolve};
use crate::generation::Tokenizer;
use crate::guidance::AidWeight;
use crate::models::aid::Injector;
use crate::models::common::Lora;
use crate::models::flexvar::FlexVar;
use crate::models::llamagen::LlamaGen;
use crate::models::var::Var;
use crate::ops::Precision;
use crate::weights::{FloatType, GenerationConfig, LoadOptions, Pretrained, StateDict};
use crate::{Error, Result, Scales};

/// Loads a [`Pipeline`]: which files, on which device, in which precision.
#[derive(Debug, Clone, Default)]
pub struct PipelineBuilder {
    model: Option<PathBuf>,
    tokenizer: Option<PathBuf>,
    transformer: Option<PathBuf>,
    files: Option<ModelFiles>,
    scales: Option<Scales>,
    injector: InjectorChoice,
    lora: Option<PathBuf>,
    weights: FloatType,
    precision: Precision,
    device: Option<Device>,
    settings: Settings,
}

/// Injector of a pipeline.
#[derive(Debug, Clone, Default)]
enum InjectorChoice {
    /// The model's own, if it has one.
    #[default]
    Own,
    /// None.
    Without,
    /// The one in a file.
    File(PathBuf),
}

impl PipelineBuilder {
    /// Creates a builder without a model.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the model: a folder, one file with tokenizer and transformer, or `hub:owner/repository`; see
    /// [`Pipeline::from_pretrained`].
    #[must_use]
    pub fn model(self, path: impl Into<PathBuf>) -> Self {
        Self { model: Some(path.into()), ..self }
    }

    /// Names the tokenizer's file: safetensors of this project or a public `.pth` file.
    #[must_use]
    pub fn tokenizer(self, path: impl Into<PathBuf>) -> Self {
        Self { tokenizer: Some(path.into()), ..self }
    }

    /// Names the transformer's file.
    #[must_use]
    pub fn transformer(self, path: impl Into<PathBuf>) -> Self {
        Self { transformer: Some(path.into()), ..self }
    }

    /// Uses open files, such as those compiled into the program.
    #[must_use]
    pub fn files(self, files: ModelFiles) -> Self {
        Self { files: Some(files), ..self }
    }

    /// Sets the scale schedule, for files that do not contain one.
    #[must_use]
    pub fn scales(self, scales: Scales) -> Self {
        Self { scales: Some(scales), ..self }
    }

    /// Uses the injector in a file in place of the model's own.
    #[must_use]
    pub fn injector(self, path: impl Into<PathBuf>) -> Self {
        Self { injector: InjectorChoice::File(path.into()), ..self }
    }

    /// Omits the model's own injector.
    #[must_use]
    pub fn without_injector(self) -> Self {
        Self { injector: InjectorChoice::Without, ..self }
    }

    /// Merges a LoRA into the transformer. The model's own injector was not trained with it, so it is left out unless
    /// one is named.
    #[must_use]
    pub fn lora(self, path: impl Into<PathBuf>) -> Self {
        Self { lora: Some(path.into()), ..self }
    }

    /// Sets the type in which the weights of linear layers are held; single precision by default.
    #[must_use]
    pub fn weights(self, weights: FloatType) -> Self {
        Self { weights, ..self }
    }

    /// Sets the precision of products, as [`Pipeline::with_precision`] does. On a GPU that multiplies in a type of two bytes,
    /// the weights of linear layers are held in it, which does not change the images.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Sets the device; Burn's default device if it is not set.
    #[must_use]
    pub fn device(self, device: &Device) -> Self {
        Self { device: Some(device.clone()), ..self }
    }

    /// Sets the settings of generation.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// Loads the model.
    ///
    /// # Errors
    /// The errors of [`Pipeline::from_pretrained`] and [`Pipeline::configure`]; [`Error::Config`] without a model.
    pub fn build(self) -> Result<Pipeline> {
        let files = self.open()?;
        // Whatever is not recognized as another family is taken for VAR, whose loader says what is missing.
        let models = files.transformer.models()?;
        let holds = |kind| models.iter().any(|model| model.kind() == kind);
        let mut pipeline = match () {
            () if holds(FlexVar::KIND) => self.load::<FlexVar>(&files)?,
            () if holds(LlamaGen::KIND) => self.load::<LlamaGen>(&files)?,
            () => self.load::<Var>(&files)?,
        };
        if let Some(dict) = self.injector_file(&files)? {
            let weight = AidWeight::of(&dict)?.unwrap_or_default();
            let injector = Injector::load(&dict, &pipeline.device())?;
            pipeline = pipeline.with_injector(injector, weight)?;
        }
        pipeline = pipeline.with_precision(self.precision);
        pipeline.configure(&self.settings)?;
        Ok(pipeline)
    }

    /// Loads tokenizer and transformer of a family.
    fn load<M: Family>(&self, files: &ModelFiles) -> Result<Pipeline> {
        let device = self.device.clone().unwrap_or_default();
        let config = M::config_of(&files.transformer, self.scales.as_ref())?;
        let linear = match self.weights {
            // A LoRA is added in `f32`.
            FloatType::F32 if self.lora.is_none() => self.precision.of_weights(&device),
            weights => weights,
        };
        let options = LoadOptions { linear, ..LoadOptions::default() };
        let mut transformer = M::load_with(&files.transformer, &config, options, &device)?;
        if let Some(lora) = &self.lora {
            transformer = transformer.merged(&Lora::load(&StateDict::open(resolve(lora)?)?, &device)?)?;
        }
        let tokenizer = self.tokenizer_config::<M>(&files.tokenizer, &transformer, &device)?;
        let tokenizer = M::Tokenizer::load_with(&files.tokenizer, &tokenizer, LoadOptions::default(), &device)?;
        let pair = ModelPair::new(tokenizer, transformer).map_err(|error| {
            let transformer = files.transformer.origin().display();
            Error::format(files.tokenizer.origin(), format!("it does not fit `{transformer}`: {error}"))
        })?;
        Pipeline::new(pair, GenerationConfig::of(&files.transformer)?.unwrap_or_else(|| M::evaluation(&config)))
    }

    /// Returns the tokenizer's configuration, with the transformer's schedule where the tokenizer's is unknown, and where
    /// the transformer accepts any.
    fn tokenizer_config<M: Family>(
        &self,
        dict: &StateDict,
        transformer: &M,
        device: &Device,
    ) -> Result<<M::Tokenizer as Pretrained>::Config> {
        // A public tokenizer's file does not say its schedule.
        let own = M::Tokenizer::config_in(&dict.section(M::Tokenizer::KIND)?)?.is_some();
        let scales = self.scales.as_ref().or((!own).then_some(transformer.scales()));
        let config = M::Tokenizer::config_of(dict, scales)?;
        let schedule = M::Tokenizer::init_zeros(&config, device)?.scales().clone();
        Ok(match transformer.check_scales(&schedule) {
            Ok(()) => M::Tokenizer::with_scales(config, transformer.scales()),
            Err(_) => config,
        })
    }

    /// Opens the model's files without loading the weights, to look at them first; [`PipelineBuilder::files`] takes them.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for a file that is missing or damaged; [`Error::Config`] without a model.
    pub fn open(&self) -> Result<ModelFiles> {
        if let Some(files) = &self.files {
            return Ok(files.clone());
        }
        let model = self.model.as_ref().map(resolve).transpose()?;
        let part = |file: &Option<PathBuf>, name: &str| match (file, &model) {
            (Some(file), _) => StateDict::open(resolve(file)?),
            (None, Some(model)) => ModelFiles::open_part(model, name),
            (None, None) => {
                let expected = "a model's folder or file, or both tokenizer and transformer";
                Err(Error::config("files of the pipeline", format!("without `{name}`"), expected))
            }
        };
        // The model's own injector was trained with its transformer and is useless with another.
        let own = self.tokenizer.is_none() && self.transformer.is_none();
        Ok(ModelFiles {
            tokenizer: part(&self.tokenizer, ModelFiles::TOKENIZER)?,
            transformer: part(&self.transformer, ModelFiles::TRANSFORMER)?,
            injector: match &model {
                Some(model) if own => ModelFiles::open_injector(model)?,
                _ => None,
            },
        })
    }

    fn injector_file(&self, files: &ModelFiles) -> Result<Option<StateDict>> {
        Ok(match &self.injector {
            InjectorChoice::File(path) => Some(StateDict::open(resolve(path)?)?),
            InjectorChoice::Own if self.lora.is_none() => files.injector.clone(),
            InjectorChoice::Own | InjectorChoice::Without => None,
        })
    }
}
