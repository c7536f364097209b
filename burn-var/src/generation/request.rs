use super::Condition;
use crate::editing::KnownTokens;
use crate::sampling::Sampler;
use crate::{Result, Scales};

/// A batch of images to generate.
#[derive(Debug, Clone)]
pub struct BatchRequest {
    /// One condition per image.
    pub conditions: Vec<Condition>,
    /// Seed of the whole set of images.
    pub seed: u64,
    /// Index of the first image in the set. Image `i` of seed `s` depends on `(s, i)` and its condition alone, not on
    /// how the set is split into batches.
    pub first: u64,
    /// Token filters and sampling.
    pub sampler: Sampler,
    /// Scale schedule; the model's own if `None`.
    pub scales: Option<Scales>,
    /// Tokens that are not drawn, for editing and for teacher forcing.
    pub known: Option<KnownTokens>,
}

impl BatchRequest {
    /// Creates a request for images of the given conditions, with indices from 0, with the sampler of VAR's
    /// paper.
    pub fn new(conditions: Vec<Condition>, seed: u64) -> Self {
        Self { conditions, seed, first: 0, sampler: Sampler::default(), scales: None, known: None }
    }

    /// Creates a request for images of the given class labels.
    pub fn classes(labels: &[usize], seed: u64) -> Self {
        Self::new(Condition::classes(labels), seed)
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) without images, [`Error::Config`](crate::Error::Config) naming a setting
    /// of the sampler.
    pub fn validate(&self) -> Result<()> {
        if self.conditions.is_empty() {
            return Err(crate::Error::shape("conditions", "at least one image", [0]));
        }
        self.sampler.validate()
    }
}
