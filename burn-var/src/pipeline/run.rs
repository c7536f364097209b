use std::sync::Arc;

use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use image::RgbImage;

use super::classes::ClassNames;
use super::model::{AnyGeneration, AnyPair, ModelPair};
use super::{PipelineBuilder, Request, Settings};
use crate::generation::{BatchRequest, Generated, NextScale, ScaleDone, Tokenizer};
use crate::guidance::{Aid, AidWeight, BatchInfo, Guidance, GuidanceConfig, Schedule};
use crate::image::{ValueRange, from_image, to_images, to_images_async};
use crate::models::aid::Injector;
use crate::ops::Precision;
use crate::sampling::Sampler;
use crate::weights::GenerationConfig;
use crate::{Condition, Error, MapSize, Result, Scales, TokenPyramid};

/// A model with its settings: generates, previews and edits images.
///
/// Cloning is cheap: clones share the weights.
///
/// ```no_run
/// use burn_var::prelude::*;
///
/// # fn main() -> burn_var::Result<()> {
/// let mut pipeline = Pipeline::builder().model("models/fashion-mnist").without_injector().build()?;
/// pipeline.configure(&Settings { cfg: Some(Schedule::Ramp(2.0)), top_k: Some(100), ..Settings::default() })?;
/// let boot = pipeline.classes().find("Ankle boot")?;
/// let images = pipeline.generate(&Request::classes([boot; 4]).seed(1))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pipeline {
    model: Arc<dyn AnyPair>,
    config: GenerationConfig,
    injector: Option<(Injector, AidWeight)>,
    guidance: GuidanceConfig,
    sampler: Sampler,
    aid: Option<Aid>,
    batch_size: usize,
    /// Default schedule in place of the model's own.
    scales: Option<Scales>,
    /// Precision in use, and the one that settings without any stand for.
    precision: Precision,
    own_precision: Precision,
}

impl Pipeline {
    /// Loads a model onto the default device: a folder with `tokenizer.safetensors`, `transformer.safetensors` and, if
    /// it has one, AID-VAR's `injector.safetensors`; or one file that holds tokenizer and transformer. A name such as
    /// `hub:owner/repository` or `hub:owner/repository/file.pth` is looked up in the local Hugging Face cache.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] for a file that is missing or damaged, [`Error::Weights`] for weights that
    /// do not fit.
    pub fn from_pretrained(path: impl Into<std::path::PathBuf>) -> Result<Self> {
        PipelineBuilder::new().model(path).build()
    }

    /// Returns a builder, for a model in two files, another device, an injector, a LoRA, or weights in half precision.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::new()
    }

    /// Creates a pipeline of any model, with its generation settings.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that the model cannot have.
    pub fn new<T, M>(pair: ModelPair<T, M>, config: GenerationConfig) -> Result<Self>
    where
        T: Tokenizer + Send + Sync + 'static,
        M: NextScale + Send + Sync + 'static,
    {
        let [_, height, _] = pair.tokenizer.image_shape(pair.transformer.scales());
        let settings = Settings::default();
        let mut pipeline = Self {
            model: Arc::new(pair),
            injector: None,
            guidance: settings.guidance(&config),
            sampler: settings.sampler(&config),
            aid: None,
            batch_size: if height > 64 { 8 } else { 32 },
            scales: None,
            precision: Precision::Exact,
            own_precision: Precision::Exact,
            config,
        };
        pipeline.configure(&settings)?;
        Ok(pipeline)
    }

    /// Adds AID-VAR's guidance injector, with the weight it is used with unless the settings name another.
    ///
    /// # Errors
    /// [`Error::Config`] if it is for a transformer of another width; [`Error::Unsupported`] if the model has no
    /// embedding of code vectors.
    pub fn with_injector(mut self, injector: Injector, weight: AidWeight) -> Result<Self> {
        self.aid = Some(self.guidance_by(&injector, weight.clone())?);
        self.injector = Some((injector, weight));
        Ok(self)
    }

    fn guidance_by(&self, injector: &Injector, weight: AidWeight) -> Result<Aid> {
        let embedding = self.code_embedding().ok_or_else(|| {
            Error::unsupported("an injector", "this model has no embedding of code vectors for it to read")
        })?;
        Aid::new(injector.clone(), embedding, weight)
    }

    /// Replaces the settings of generation, and checks them against the model.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting; [`Error::Unsupported`] for an injector's weight without an injector.
    pub fn configure(&mut self, settings: &Settings) -> Result<()> {
        let (guidance, sampler) = (settings.guidance(&self.config), settings.sampler(&self.config));
        sampler.validate()?;
        let aid = match (&self.injector, settings.aid_weight.clone()) {
            (_, Some(AidWeight::OFF)) | (None, None) => None,
            (None, Some(_)) => {
                return Err(Error::unsupported("`aid_weight`", "the model has no injector; add one to the pipeline"));
            }
            (Some((injector, own)), weight) => Some(self.guidance_by(injector, weight.unwrap_or_else(|| own.clone()))?),
        };
        self.check_parts(&guidance, aid.clone())?;
        (self.guidance, self.sampler, self.aid) = (guidance, sampler, aid);
        self.precision = settings.precision.unwrap_or(self.own_precision);
        Ok(())
    }

    /// Checks that guidance fits the schedule.
    fn check_parts(&self, guidance: &GuidanceConfig, aid: Option<Aid>) -> Result<()> {
        let device = self.device();
        let info = BatchInfo { scales: self.scales(), images: 1, seed: 0, first: 0, device: &device };
        guidance.chain(aid)?.iter_mut().try_for_each(|part| part.begin(&info))
    }

    /// Returns this pipeline without injector, Scaled Spatial Guidance and visual prefix guidance, to compare with.
    #[must_use]
    pub fn plain(&self) -> Self {
        let guidance = GuidanceConfig { vpg: None, ssg: None, ..self.guidance.clone() };
        Self { guidance, aid: None, ..self.clone() }
    }

    /// Sets the number of images per batch. It changes speed and memory, not the images.
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: batch_size.max(1), ..self }
    }

    /// Sets the precision of products in transformer, injector and decoder; [`Precision::Exact`] by default. The choice of
    /// codes, resizes and the encoder, which finds tokens, are exact in each.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, own_precision: precision, ..self }
    }

    /// Returns the precision in use.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Sets the default scale schedule, for models that accept any (FlexVAR); [`Request::scales`] sets that of one request.
    ///
    /// # Errors
    /// [`Error::Config`] if the model accepts only its own, or a guidance setting does not fit the schedule.
    pub fn with_scales(mut self, scales: Scales) -> Result<Self> {
        self.model.check_scales(&scales)?;
        self.scales = Some(scales);
        self.check_parts(&self.guidance, self.aid.clone())?;
        Ok(self)
    }

    /// Sets the default size of the images in pixels, over the schedule [`Scales::for_size`].
    ///
    /// # Errors
    /// [`Error::Config`] for a size that no map of tokens has; those of [`Pipeline::with_scales`].
    pub fn with_size(self, width: u32, height: u32) -> Result<Self> {
        let finest = self.scales().finest();
        let factor = self.image_shape()[1] / finest.height;
        let (columns, rows) = (width as usize / factor, height as usize / factor);
        if [columns * factor, rows * factor] != [width as usize, height as usize] || columns * rows == 0 {
            let expected = format!("multiples of {factor}, the pixels per token");
            return Err(Error::config("size of the images", format!("{width}x{height}"), expected));
        }
        let scales = self.scales().for_size(MapSize { height: rows, width: columns })?;
        self.with_scales(scales)
    }

    /// Returns the number of images per batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Returns the default scale schedule.
    pub fn scales(&self) -> &Scales {
        self.scales.as_ref().unwrap_or_else(|| self.model.scales())
    }

    /// Returns the shape of the images of the default schedule, `[channels, height, width]`.
    pub fn image_shape(&self) -> [usize; 3] {
        self.tokenizer().image_shape(self.scales())
    }

    /// Returns the classes of the model, with their names if it has any.
    pub fn classes(&self) -> ClassNames<'_> {
        ClassNames { count: self.model.num_classes(), names: &self.config.class_names }
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> Device {
        self.tokenizer().device()
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &dyn Tokenizer {
        self.model.tokenizer()
    }

    /// Returns the transformer's embedding of code vectors, `[.., z_channels]` to `[.., width]`; `None` for a model without
    /// one.
    pub fn code_embedding(&self) -> Option<&Linear> {
        self.model.code_embedding()
    }

    /// Returns the tokenizer and the transformer if they are of these types.
    pub fn pair<T: 'static, M: 'static>(&self) -> Option<&ModelPair<T, M>> {
        self.model.as_any().downcast_ref()
    }

    /// Returns the guidance in use, except for the injector.
    pub fn guidance(&self) -> &GuidanceConfig {
        &self.guidance
    }

    /// Returns the token filters and sampling in use.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Returns the injector in use and its weight.
    pub fn injector(&self) -> Option<(&Injector, &AidWeight)> {
        let aid = self.aid.as_ref()?;
        Some((aid.injector(), aid.weight()))
    }

    /// Generates images, one per condition.
    ///
    /// # Errors
    /// [`Error::Label`] for a class that the model does not have; those of [`Steps`].
    pub fn generate(&self, request: &Request) -> Result<Vec<RgbImage>> {
        let mut images = Vec::with_capacity(request.conditions.len());
        for batch in self.batches(request)? {
            let generated = self.start(batch)?.finish()?;
            images.extend(self.images(generated.canvas)?);
        }
        Ok(images)
    }

    /// Generates images without blocking while results are read back from the device, as a browser needs it.
    ///
    /// # Errors
    /// The errors of [`Pipeline::generate`].
    pub async fn generate_async(&self, request: &Request) -> Result<Vec<RgbImage>> {
        let mut images = Vec::with_capacity(request.conditions.len());
        for batch in self.batches(request)? {
            let mut steps = self.start(batch)?;
            while steps.next_async().await?.is_some() {}
            let canvas = steps.finish()?.canvas;
            images.extend(to_images_async(self.decode(canvas), ValueRange::Signed).await?);
        }
        Ok(images)
    }

    /// Starts the generation of all images of a request at once, scale by scale. Dropping the steps stops it.
    ///
    /// # Errors
    /// The errors of [`Pipeline::generate`].
    pub fn steps(&self, request: &Request) -> Result<Steps<'_>> {
        self.start(self.batch(request, 0..request.conditions.len()))
    }

    /// Splits a request into batches.
    fn batches(&self, request: &Request) -> Result<Vec<BatchRequest>> {
        let count = request.conditions.len();
        if request.known.is_some() && count > self.batch_size {
            let hint = format!("known tokens belong to one batch: ask for at most {} images", self.batch_size);
            return Err(Error::unsupported(format!("an edit of {count} images at once"), hint));
        }
        let starts = (0..count).step_by(self.batch_size);
        Ok(starts.map(|start| self.batch(request, start..count.min(start + self.batch_size))).collect())
    }

    fn batch(&self, request: &Request, images: std::ops::Range<usize>) -> BatchRequest {
        BatchRequest {
            seed: request.seed,
            first: request.first + images.start as u64,
            sampler: self.sampler,
            scales: request.scales.clone(),
            known: request.known.clone(),
            conditions: request.conditions[images].to_vec(),
        }
    }

    /// Starts a batch with the pipeline's guidance.
    ///
    /// # Errors
    /// The errors of [`Pipeline::generate`].
    pub fn start(&self, batch: BatchRequest) -> Result<Steps<'_>> {
        let mut guidance = self.guidance.clone();
        if batch.conditions.iter().all(|condition| matches!(condition, Condition::Null)) {
            // Both branches would be the same.
            guidance.cfg = Schedule::Constant(0.0);
        }
        let guidance = guidance.chain(self.aid.clone())?;
        self.start_with(guidance, batch)
    }

    /// Starts a batch with custom guidance instead of the pipeline's.
    ///
    /// # Errors
    /// The errors of [`Pipeline::generate`].
    pub fn start_with<'a>(
        &'a self,
        guidance: Vec<Box<dyn Guidance + 'a>>,
        mut batch: BatchRequest,
    ) -> Result<Steps<'a>> {
        let scales = batch.scales.get_or_insert_with(|| self.scales().clone()).clone();
        let generation = self.precision.scope(|| self.model.start(guidance, batch))?;
        Ok(Steps { pipeline: self, scales, generation })
    }

    /// Decodes a canvas, `[batch, z_channels, height, width]` to `[batch, channels, height, width]` in `[-1, 1]`.
    pub fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.precision.scope(|| self.tokenizer().decode(canvas))
    }

    /// Decodes a canvas of any scale to images of the size that a schedule ends with, as [`Pipeline::decode`].
    pub fn preview(&self, canvas: Tensor<4>, scales: &Scales) -> Tensor<4> {
        self.precision.scope(|| self.tokenizer().preview(canvas, scales))
    }

    /// Decodes a canvas to images.
    ///
    /// # Errors
    /// The errors of [`to_images`].
    pub fn images(&self, canvas: Tensor<4>) -> Result<Vec<RgbImage>> {
        to_images(self.decode(canvas), ValueRange::Signed)
    }

    /// Encodes an image to tokens, for editing. It is resized to cover the model's size, and cut at the center.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty image.
    pub fn encode(&self, image: &RgbImage) -> Result<TokenPyramid> {
        self.encode_over(image, self.scales())
    }

    /// Encodes an image as [`Pipeline::encode`] does, to the tokens of another scale schedule.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty image; [`Error::Config`] for a schedule that the tokenizer does not have.
    pub fn encode_over(&self, image: &RgbImage, scales: &Scales) -> Result<TokenPyramid> {
        let images = from_image(image, self.tokenizer().image_shape(scales), &self.device())?;
        self.tokenizer().encode(images, scales)
    }
}

/// A batch on its way through the scales: an iterator with one [`Step`] per scale. Dropping it stops the generation.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pipeline = burn_var::pipeline::Pipeline::from_pretrained("models/fashion-mnist")?;
/// # let request = burn_var::pipeline::Request::classes([3]);
/// for step in pipeline.steps(&request)? {
///     let step = step?;
///     step.image()?.save(format!("preview-{}.png", step.k()))?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Steps<'a> {
    pipeline: &'a Pipeline,
    scales: Scales,
    generation: Box<dyn AnyGeneration + 'a>,
}

impl<'a> Steps<'a> {
    /// Generates the next scale without blocking while something is read back; returns `None` after the last.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for logits that are not numbers; [`Error::Device`] if they cannot be read.
    pub async fn next_async(&mut self) -> Result<Option<Step<'a>>> {
        let done = self.pipeline.precision.scope_async(self.generation.next_scale_async()).await?;
        Ok(done.map(|done| Step { pipeline: self.pipeline, scales: self.scales.clone(), done }))
    }

    /// Generates the remaining scales, and returns tokens and canvas.
    ///
    /// # Errors
    /// The errors of [`Steps::next_async`].
    pub fn finish(mut self) -> Result<Generated> {
        for step in self.by_ref() {
            step?;
        }
        self.generation.finish()
    }

    fn step(&mut self) -> Result<Option<Step<'a>>> {
        let done = self.pipeline.precision.scope(|| self.generation.next_scale())?;
        Ok(done.map(|done| Step { pipeline: self.pipeline, scales: self.scales.clone(), done }))
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Result<Step<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// A finished scale.
pub struct Step<'a> {
    pipeline: &'a Pipeline,
    scales: Scales,
    done: ScaleDone,
}

impl Step<'_> {
    /// Returns the number of the scale, from 0.
    pub fn k(&self) -> usize {
        self.done.k
    }

    /// Returns the tokens, logits and canvas of the scale.
    pub fn scale(&self) -> &ScaleDone {
        &self.done
    }

    /// Decodes the canvas so far: a preview of every image.
    ///
    /// # Errors
    /// The errors of [`to_images`].
    pub fn images(&self) -> Result<Vec<RgbImage>> {
        to_images(self.preview(self.done.canvas.clone()), ValueRange::Signed)
    }

    /// Decodes a preview of the first image.
    ///
    /// # Errors
    /// The errors of [`to_images`].
    pub fn image(&self) -> Result<RgbImage> {
        Ok(to_images(self.preview(self.done.canvas.clone().narrow(0, 0, 1)), ValueRange::Signed)?.remove(0))
    }

    /// Decodes previews without blocking while they are read back.
    ///
    /// # Errors
    /// The errors of [`to_images`].
    pub async fn images_async(&self) -> Result<Vec<RgbImage>> {
        to_images_async(self.preview(self.done.canvas.clone()), ValueRange::Signed).await
    }

    /// Decodes a canvas to images of the final size.
    fn preview(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.pipeline.preview(canvas, &self.scales)
    }
}
