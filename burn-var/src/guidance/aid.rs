//! AID-VAR's correction of what enters the transformer.

use burn::nn::Linear;
use burn::tensor::{Tensor, s};
use serde::{Deserialize, Serialize};

use super::{Entering, Guidance, Logits};
use crate::aid::{Injector, InjectorDropout};
use crate::resize::Resize;
use crate::transformer::Var;
use crate::{Error, Result, Scales, nn, ops};

/// How much of the injector's map is added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AidWeight {
    /// The same at every scale but the first, which has nothing before it; 0.001 in the papers.
    Constant(f64),
    /// One number a scale; the first is not used.
    PerScale(Vec<f64>),
    /// As much as the model was uncertain at the scale before. Not of the papers, whose authors name the fixed weight as
    /// their method's main limit.
    Adaptive {
        /// The weight where the model has no idea; where it is certain nothing is added.
        most: f64,
        /// How uncertainty is measured.
        by: Uncertainty,
        /// Whether every position has a weight of its own; else all of a scale share the mean.
        per_position: bool,
    },
}

/// How uncertain logits are, from 0 for one possible code to 1 for all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uncertainty {
    /// Entropy of their softmax, as a share of the most there can be.
    Entropy,
    /// 1 less the distance between the two largest probabilities.
    Margin,
}

impl Uncertainty {
    /// Of each token: `[batch, tokens, vocab]` to `[batch, tokens, 1]`.
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
    /// The weight at scale `k`; of an adaptive one the most it can be.
    pub fn at(&self, k: usize) -> f64 {
        match self {
            Self::Constant(weight) | Self::Adaptive { most: weight, .. } => *weight,
            Self::PerScale(weights) => weights.get(k).copied().unwrap_or(0.0),
        }
    }
}

/// `x_k + w P(features of scale k - 1)` (equation 4), the same for both branches of classifier-free guidance. The
/// features are the code vectors of the tokens drawn, embedded by the transformer, without positions.
#[derive(Debug, Clone)]
pub struct Aid {
    injector: Injector,
    /// The transformer's embedding of code vectors.
    word_embed: Linear,
    /// How much of the map is added.
    pub weight: AidWeight,
    /// Of the tokens of the scale before, `[batch, tokens, 1]`.
    uncertainty: Option<Tensor<3>>,
    /// In training only.
    dropout: Option<InjectorDropout>,
}

impl Aid {
    /// The correction of `transformer` by `injector`.
    ///
    /// # Errors
    /// [`Error::Config`] if the injector was made for a transformer of another width.
    pub fn new(injector: Injector, transformer: &Var, weight: AidWeight) -> Result<Self> {
        let (config, width) = (injector.config(), transformer.config().embed_dim);
        for (name, found) in
            [("input_dim of the injector", config.input_dim), ("embed_dim of the injector", config.embed_dim)]
        {
            if found != width {
                return Err(Error::config(name, found, format!("{width}, the width of the transformer")));
            }
        }
        Ok(Self { injector, word_embed: transformer.word_embed().clone(), weight, uncertainty: None, dropout: None })
    }

    /// Switches the injector's dropout on, for training. The streams serve one generation and advance from scale to
    /// scale, so give a new [`Aid`] fresh ones for each generation.
    #[must_use]
    pub fn with_dropout(mut self, dropout: InjectorDropout) -> Self {
        self.dropout = Some(dropout);
        self
    }

    /// The injector's map for the scale that is about to enter, `[batch, tokens, width]`, values between -2 and 2; none
    /// at the first scale. Without dropout.
    ///
    /// # Errors
    /// [`Error::Shape`] if the codes are not those of the scale before.
    pub fn map(&self, scale: Entering<'_>) -> Result<Option<Tensor<3>>> {
        self.map_with(scale, None)
    }

    fn map_with(&self, scale: Entering<'_>, dropout: Option<&mut InjectorDropout>) -> Result<Option<Tensor<3>>> {
        let (Some(before), Some(codes)) = (scale.k.checked_sub(1), scale.previous) else { return Ok(None) };
        let tokens = nn::apply(&self.word_embed, codes.clone());
        let (from, to) = (scale.scales.size(before), scale.scales.size(scale.k));
        self.injector.forward(tokens, from, to, dropout).map(Some)
    }
}

impl Aid {
    /// Brings the uncertainty of the scale before to this one, `[batch, tokens or 1, 1]`.
    fn spread(&self, uncertainty: Tensor<3>, scale: Entering<'_>) -> Tensor<3> {
        let (AidWeight::Adaptive { per_position: true, .. }, Some(before)) = (&self.weight, scale.k.checked_sub(1))
        else {
            return uncertainty.mean_dim(1);
        };
        let (from, to) = (scale.scales.size(before), scale.scales.size(scale.k));
        let batch = uncertainty.dims()[0];
        let map = Resize::Bilinear.apply(uncertainty.reshape([batch, 1, from.height, from.width]), to);
        map.reshape([batch, to.area(), 1])
    }
}

impl Guidance for Aid {
    fn name(&self) -> &'static str {
        "aid"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        let weights = match &self.weight {
            AidWeight::Constant(weight) | AidWeight::Adaptive { most: weight, .. } => std::slice::from_ref(weight),
            AidWeight::PerScale(weights) if weights.len() != scales.len() => {
                let expected = format!("{}, one a scale", scales.len());
                return Err(Error::config("aid weight", format!("{} numbers", weights.len()), expected));
            }
            AidWeight::PerScale(weights) => weights,
        };
        match weights.iter().find(|weight| !weight.is_finite()) {
            Some(weight) => Err(Error::config("aid weight", weight, "a finite number")),
            None => Ok(()),
        }
    }

    fn inject(&mut self, scale: Entering<'_>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        let weight = self.weight.at(scale.k);
        // Nothing added is not the same as zeros added: -0.0 would become 0.0.
        if weight == 0.0 {
            return Ok(hidden);
        }
        let mut dropout = self.dropout.take();
        let map = self.map_with(scale, dropout.as_mut())?;
        self.dropout = dropout;
        let Some(map) = map else { return Ok(hidden) };
        let map = match self.uncertainty.take() {
            Some(uncertainty) => map * self.spread(uncertainty, scale),
            None => map,
        };
        let branches = hidden.dims()[0] / map.dims()[0];
        Ok(hidden + (map * weight).repeat_dim(0, branches))
    }

    fn steer(&mut self, k: usize, scales: &Scales, logits: Logits) -> Result<Logits> {
        if let AidWeight::Adaptive { by, .. } = self.weight
            && k + 1 < scales.len()
        {
            self.uncertainty = Some(by.of(logits.cond.clone()));
        }
        Ok(logits)
    }
}
