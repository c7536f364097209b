use burn_var::Condition;
use burn_var::guidance::AidWeight;
use burn_var::pipeline::{Request, Settings};
use serde::Deserialize;

/// Images that the page asks for. Settings that are left out are those of the model's file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// Class; none for images without a condition.
    pub class: Option<usize>,
    /// Number of images.
    pub count: usize,
    /// Seed of the set of images.
    pub seed: u64,
    /// Strength of classifier-free guidance.
    pub cfg: Option<f64>,
    /// Number of most likely codes to draw from; 0 is all.
    pub top_k: Option<usize>,
    /// Share of the probability to draw from; 0 is all.
    pub top_p: Option<f64>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// True to leave the injector out.
    pub without_injector: bool,
    /// Number of scales that are kept of a given image, from the coarsest.
    pub complete: Option<usize>,
}

impl Wanted {
    /// Returns the settings of the pipeline.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            cfg_strength: self.cfg,
            top_k: self.top_k,
            top_p: self.top_p,
            temperature: self.temperature,
            aid_weight: self.without_injector.then_some(AidWeight::OFF),
            ..Settings::default()
        }
    }

    /// Returns the request, without known tokens.
    pub(crate) fn request(&self) -> Request {
        Request::new(vec![Condition::from(self.class); self.count]).seed(self.seed)
    }
}
