//! AID-VAR's correction of what enters the transformer.

use burn::nn::Linear;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Entering, Guidance};
use crate::aid::Injector;
use crate::transformer::Var;
use crate::{Error, Result, Scales, nn};

/// How much of the injector's map is added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AidWeight {
    /// The same at every scale but the first, which has nothing before it; 0.001 in the papers.
    Constant(f64),
    /// One number a scale; the first is not used.
    PerScale(Vec<f64>),
}

impl Default for AidWeight {
    fn default() -> Self {
        Self::Constant(0.001)
    }
}

impl AidWeight {
    /// The weight at scale `k`.
    pub fn at(&self, k: usize) -> f64 {
        match self {
            Self::Constant(weight) => *weight,
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
        Ok(Self { injector, word_embed: transformer.word_embed().clone(), weight })
    }

    /// The injector's map for the scale that is about to enter, `[batch, tokens, width]`, values between -2 and 2; none
    /// at the first scale.
    ///
    /// # Errors
    /// [`Error::Shape`] if the codes are not those of the scale before.
    pub fn map(&self, scale: Entering<'_>) -> Result<Option<Tensor<3>>> {
        let (Some(before), Some(codes)) = (scale.k.checked_sub(1), scale.previous) else { return Ok(None) };
        let tokens = nn::apply(&self.word_embed, codes.clone());
        let (from, to) = (scale.scales.size(before), scale.scales.size(scale.k));
        self.injector.forward(tokens, from, to, None).map(Some)
    }
}

impl Guidance for Aid {
    fn name(&self) -> &'static str {
        "aid"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        let weights = match &self.weight {
            AidWeight::Constant(weight) => std::slice::from_ref(weight),
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
        Ok(match self.map(scale)? {
            Some(map) => {
                let branches = hidden.dims()[0] / map.dims()[0];
                hidden + (map * weight).repeat_dim(0, branches)
            }
            None => hidden,
        })
    }
}
