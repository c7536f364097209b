use burn_var::pipeline::Pipeline;
use serde::Serialize;

/// Properties of a model that the page shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Height and width of each scale, in tokens.
    pub scales: Vec<[usize; 2]>,
    /// Number of previews of an image: one per scale, or per row of tokens of a next-token model.
    pub stages: usize,
    /// Channels, height and width of the images.
    pub shape: [usize; 3],
    /// True if there is an injector.
    pub injector: bool,
    /// Number of weights in the files.
    pub weights: usize,
    /// Strength of classifier-free guidance at the last scale.
    pub cfg: f64,
    /// Number of most likely codes to draw from; 0 is all.
    pub top_k: usize,
    /// Share of the probability to draw from; 0 is all.
    pub top_p: f64,
    /// Divisor of the logits.
    pub temperature: f64,
}

impl Description {
    /// Describes a pipeline with the settings of its file.
    pub(crate) fn new(pipeline: &Pipeline, weights: usize) -> Self {
        let (classes, scales, sampler) = (pipeline.classes(), pipeline.scales(), pipeline.sampler());
        Self {
            classes: (0..classes.count).map(|class| classes.name(class)).collect(),
            scales: scales.sizes().iter().map(|size| [size.height, size.width]).collect(),
            stages: scales.stages().len(),
            shape: pipeline.image_shape(),
            injector: pipeline.injector().is_some(),
            weights,
            cfg: pipeline.guidance().cfg.at(scales.at(scales.len() - 1)),
            top_k: sampler.top_k,
            top_p: sampler.top_p,
            temperature: sampler.temperature,
        }
    }
}
