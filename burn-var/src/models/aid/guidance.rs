//! AID-VAR's correction of the hidden states that enter the transformer.

use burn::nn::Linear;
use burn::tensor::{Tensor, s};
use serde::{Deserialize, Serialize};

use super::injector::{Injector, InjectorDropout};
use crate::guidance::{BatchInfo, Guidance, Logits};
use crate::math::Resize;
use crate::scales::ScaleAt;
use crate::{Error, Result, nn, ops};

/// Weight of the injector's map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AidWeight {
    /// Constant over all scales but the first, which has no scale before it; 0.001 in the papers.
    Constant(f64),
    /// One number per scale; the first is not used.
    PerScale(Vec<f64>),
    /// Proportional to the uncertainty of the model at the scale before. Not in the papers, whose authors name the
    /// fixed weight as their method's main limit.
    Adaptive {
        /// Weight where all codes are equally likely; where the model is certain, nothing is added.
        most: f64,
        /// Measure of uncertainty.
        by: Uncertainty,
        /// Gives every position a weight of its own; otherwise all positions of a scale share the mean.
        per_position: bool,
    },
}

/// Uncertainty of logits, from 0 for one possible code to 1 where all are equally likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uncertainty {
    /// Entropy of their softmax, as a share of the largest possible.
    Entropy,
    /// 1 minus the difference of the two largest probabilities.
    Margin,
}

impl Uncertainty {
    /// Measures the uncertainty of each token: `[batch, tokens, vocab]` to `[batch, tokens, 1]`.
    pub fn of(self, logits: Tensor<3>) -> Tensor<3> {
        let probabilities = ops::softmax(logits.clone());
        match self {
            Self::Entropy => {
                let most = (logits.dims()[2] as f64).ln();
                let logarithms = burn::tensor::activation::log_softmax(logits, 2);
                // Where a probability is 0 its logarithm may be minus infinity: such a code adds nothing.
                (probabilities * logarithms.clamp_min(-1e4)).sum_dim(2) * (-1.0 / most)
            }
            Self::Margin => {
                let two = probabilities.topk(2, 2);
                let (first, second) = (two.clone().slice(s![.., .., 0..1]), two.slice(s![.., .., 1..2]));
                second - first + 1.0
            }
        }
    }
}

impl Default for AidWeight {
    fn default() -> Self {
        Self::Constant(0.001)
    }
}

impl AidWeight {
    /// Weight that disables an injector.
    pub const OFF: Self = Self::Constant(0.0);

    /// Returns the weight at scale `k`; for an adaptive weight, its maximum.
    pub fn at(&self, k: usize) -> f64 {
        match self {
            Self::Constant(weight) | Self::Adaptive { most: weight, .. } => *weight,
            Self::PerScale(weights) => weights.get(k).copied().unwrap_or(0.0),
        }
    }
}

/// AID-VAR's guidance, `x_k + w P(features of scale k - 1)` (equation 4), the same for both branches of classifier-free
/// guidance. The features are the code vectors of the sampled tokens, embedded by the transformer, without positions.
#[derive(Debug, Clone)]
pub struct Aid {
    injector: Injector,
    /// The transformer's embedding of code vectors.
    word_embed: Linear,
    weight: AidWeight,
    /// Dropout, in training only.
    dropout: Option<InjectorDropout>,
    /// Uncertainty of the tokens of the scale before, `[batch, tokens, 1]`.
    uncertainty: Option<Tensor<3>>,
}

impl Aid {
    /// Creates the guidance of a transformer, given its embedding of code vectors, by an injector.
    ///
    /// # Errors
    /// [`Error::Config`] if the injector is for a transformer of another width.
    pub fn new(injector: Injector, word_embed: &Linear, weight: AidWeight) -> Result<Self> {
        let config = injector.config();
        let [_, width] = word_embed.weight.lazy_shape().dims();
        for (name, found) in
            [("input_dim of the injector", config.input_dim), ("embed_dim of the injector", config.embed_dim)]
        {
            if found != width {
                return Err(Error::config(name, found, format!("{width}, the width of the transformer")));
            }
        }
        Ok(Self { injector, word_embed: word_embed.clone(), weight, dropout: None, uncertainty: None })
    }

    /// Switches the injector's dropout on, for training. The streams serve one generation and advance from scale to
    /// scale, so give a new [`Aid`] fresh ones for each generation.
    #[must_use]
    pub fn with_dropout(self, dropout: InjectorDropout) -> Self {
        Self { dropout: Some(dropout), ..self }
    }

    /// Returns the injector.
    pub fn injector(&self) -> &Injector {
        &self.injector
    }

    /// Returns the weight of the map.
    pub fn weight(&self) -> &AidWeight {
        &self.weight
    }

    /// Computes the injector's map for a scale, `[batch, tokens, width]`, values between -2 and 2, from the code vectors
    /// of the scale before; `None` at the first scale.
    ///
    /// # Errors
    /// [`Error::Shape`] if the codes are not those of the scale before.
    pub fn map(&mut self, at: ScaleAt<'_>, codes: Option<&Tensor<3>>) -> Result<Option<Tensor<3>>> {
        let (Some(before), Some(codes)) = (at.before(), codes) else { return Ok(None) };
        let tokens = nn::apply(&self.word_embed, codes.clone());
        self.injector.forward(tokens, before.size(), at.size(), self.dropout.as_mut()).map(Some)
    }

    /// Resizes the uncertainty of the scale before to a scale, `[batch, tokens or 1, 1]`.
    fn spread(&self, uncertainty: Tensor<3>, at: ScaleAt<'_>) -> Tensor<3> {
        let (AidWeight::Adaptive { per_position: true, .. }, Some(before)) = (&self.weight, at.before()) else {
            return uncertainty.mean_dim(1);
        };
        let (from, to) = (before.size(), at.size());
        let batch = uncertainty.dims()[0];
        let map = Resize::Bilinear.apply(uncertainty.reshape([batch, 1, from.height, from.width]), to);
        map.reshape([batch, to.area(), 1])
    }
}

impl Guidance for Aid {
    fn name(&self) -> &'static str {
        "aid"
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.uncertainty = None;
        let weights = match &self.weight {
            AidWeight::Constant(weight) | AidWeight::Adaptive { most: weight, .. } => std::slice::from_ref(weight),
            AidWeight::PerScale(weights) if weights.len() != batch.scales.len() => {
                let expected = format!("{}, one per scale", batch.scales.len());
                return Err(Error::config("aid weight", format!("{} numbers", weights.len()), expected));
            }
            AidWeight::PerScale(weights) => weights,
        };
        match weights.iter().find(|weight| !weight.is_finite()) {
            Some(weight) => Err(Error::config("aid weight", weight, "a finite number")),
            None => Ok(()),
        }
    }

    fn hidden(&mut self, at: ScaleAt<'_>, codes: Option<&Tensor<3>>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let weight = self.weight.at(at.k());
        // Skipping the addition is not the same as adding zeros: -0.0 would become 0.0.
        if weight == 0.0 {
            return Ok(hidden);
        }
        let Some(map) = self.map(at, codes)? else { return Ok(hidden) };
        let map = match self.uncertainty.take() {
            Some(uncertainty) => map * self.spread(uncertainty, at),
            None => map,
        };
        let branches = hidden.dims()[0] / map.dims()[0];
        Ok(hidden + (map * weight).repeat_dim(0, branches))
    }

    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        if let AidWeight::Adaptive { by, .. } = self.weight
            && !at.is_last()
        {
            self.uncertainty = Some(by.of(logits.cond.clone()));
        }
        Ok(logits)
    }
}
