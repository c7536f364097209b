use crate::editing::KnownTokens;
use crate::{Condition, Scales};

/// Images to generate with a [`Pipeline`](super::Pipeline).
///
/// ```
/// use burn_var::pipeline::Request;
///
/// let request = Request::classes([3, 3, 7]).seed(42);
/// let rest = Request::new([Some(3), None]).seed(42).first(3); // images 3 and 4 of the same set
/// assert_eq!(request.conditions.len() + rest.conditions.len(), 5);
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    /// One condition per image.
    pub conditions: Vec<Condition>,
    /// Seed of the set of images.
    pub seed: u64,
    /// Index of the first image in the set: image `i` of seed `s` is the same in every batch and every request.
    pub first: u64,
    /// Scale schedule, for models that accept others than their own.
    pub scales: Option<Scales>,
    /// Tokens that are not drawn, for editing; see [`Pipeline::encode`](super::Pipeline::encode).
    pub known: Option<KnownTokens>,
}

impl Request {
    /// Creates a request for one image per condition, with seed 0.
    pub fn new(conditions: impl IntoIterator<Item = impl Into<Condition>>) -> Self {
        let conditions = conditions.into_iter().map(Into::into).collect();
        Self { conditions, seed: 0, first: 0, scales: None, known: None }
    }

    /// Creates a request for one image per class label.
    pub fn classes(labels: impl IntoIterator<Item = usize>) -> Self {
        Self::new(labels)
    }

    /// Creates a request for `count` images without a condition.
    pub fn unconditional(count: usize) -> Self {
        Self::new(vec![Condition::Null; count])
    }

    /// Sets the seed.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the number of the first image in the set.
    #[must_use]
    pub fn first(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Sets the scale schedule.
    #[must_use]
    pub fn scales(self, scales: Scales) -> Self {
        Self { scales: Some(scales), ..self }
    }

    /// Sets the tokens that are known, for editing.
    #[must_use]
    pub fn known(self, known: KnownTokens) -> Self {
        Self { known: Some(known), ..self }
    }
}
