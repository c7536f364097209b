//! One pass of the tokenizer over images, and the backward pass of its loss.

use burn::tensor::{Gradients, Tensor};
use burn_var::nn::Conv2d;

use super::adversary::{Adversary, weight_gradient};
use super::family::{Reconstruction, TrainedTokenizer};
use crate::engine::run::Metrics;
use crate::losses::{Criterion, Distance};
use crate::tensor::{gradient, scalar};
use crate::{Error, Result};

/// One pass of the tokenizer over images, with everything its loss needs, on the graph.
pub(super) struct Pass {
    /// Constants.
    images: Tensor<4>,
    pub(super) made: Reconstruction,
}

/// Both sides of the adversarial game at the reconstruction, off the graph.
pub(super) struct Sides {
    distance: Distance,
    /// Gradient of the terms that compare images.
    pull: Tensor<4>,
    /// The adversarial term, and its gradient.
    opposition: Tensor<1>,
    push: Tensor<4>,
}

impl Pass {
    /// Encodes and decodes images, which are off the graph, at the last scale and at the `extra` ones.
    pub(super) fn new<M: TrainedTokenizer>(model: &M, images: Tensor<4>, extra: &[usize]) -> Result<Self> {
        let images = Tensor::from_inner(images);
        let made = model.reconstruct(&images, extra)?;
        Ok(Self { images, made })
    }

    /// Returns images and their reconstructions, off the graph.
    pub(super) fn images(&self) -> [Tensor<4>; 2] {
        [self.images.clone().inner(), self.made.image.clone().inner()]
    }

    /// Computes the gradients of both sides at the reconstruction.
    ///
    /// Burn's graphs can be walked back once, and the adaptive weight needs each side's gradient by itself: both walks end
    /// at the reconstruction, and one more leads their sum through the tokenizer.
    pub(super) fn sides(&self, criterion: &Criterion, adversary: &Adversary) -> Result<Sides> {
        let [_, reconstruction] = self.images();
        let leaf = Tensor::from_inner(reconstruction.clone()).require_grad();
        let distance = criterion.distance(leaf.clone(), self.images.clone())?;
        let pull = gradient(&leaf, distance.total.clone());
        let distance = distance.inner();
        let (opposition, push) = adversary.oppose(reconstruction);
        Ok(Sides { distance, pull, opposition, push })
    }

    /// Returns the gradients of both sides at the weight of the decoder's last convolution.
    pub(super) fn at_last_convolution(&self, last: &Conv2d, sides: &Sides) -> [Tensor<4>; 2] {
        let input = self.made.trunk.clone().inner();
        [&sides.pull, &sides.push].map(|side| weight_gradient(last, &input, side))
    }

    /// Returns the gradients of the loss without an adversarial term, and its terms.
    pub(super) fn backward(&self, criterion: &Criterion) -> Result<(Gradients, Terms)> {
        let distance = criterion.distance(self.made.image.clone(), self.images.clone())?;
        let (rest, smaller) = self.rest(criterion)?;
        let loss = rest + distance.total.clone();
        Ok((loss.backward(), self.terms(distance, smaller, loss.inner(), None)))
    }

    /// Returns the part of the loss that no adversary judges: that of the quantizer, and the mean distance of the extra
    /// scales; and that distance by itself.
    fn rest(&self, criterion: &Criterion) -> Result<(Tensor<1>, Option<Tensor<1>>)> {
        let vq = self.made.vq_loss.clone() * criterion.weights.vq;
        let distances = self
            .made
            .extra
            .iter()
            .map(|[image, target]| Ok(criterion.distance_at_any_size(image.clone(), target.clone())?.total));
        let distances = distances.collect::<Result<Vec<_>>>()?;
        let count = distances.len() as f64;
        let Some(smaller) = distances.into_iter().reduce(|sum, distance| sum + distance) else {
            return Ok((vq, None));
        };
        let smaller = smaller / count;
        Ok((vq + smaller.clone(), Some(smaller)))
    }

    fn terms(
        &self,
        distance: Distance,
        smaller: Option<Tensor<1>>,
        loss: Tensor<1>,
        gan: Option<[Tensor<1>; 2]>,
    ) -> Terms {
        let Distance { l2, l1, perceptual, .. } = distance.inner();
        let mut terms = vec![("loss".to_owned(), loss)];
        let vq = Some(self.made.vq_loss.clone());
        let own = [("l2", Some(l2)), ("l1", l1), ("perceptual", perceptual), ("smaller", smaller), ("vq", vq)];
        terms.extend(own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.inner()))));
        terms.extend(gan.into_iter().flat_map(|gan| Terms::GAN.map(str::to_owned).into_iter().zip(gan)));
        Terms(terms)
    }

    /// Returns the gradients of the whole loss, and its terms; `weight` is that of the adversarial term, `[1]`.
    pub(super) fn backward_against(
        &self,
        criterion: &Criterion,
        sides: Sides,
        weight: Tensor<1>,
    ) -> Result<(Gradients, Terms)> {
        let Sides { distance, pull, opposition, push } = sides;
        let along = pull + push * weight.clone().reshape([1, 1, 1, 1]);
        let (rest, smaller) = self.rest(criterion)?;
        let loss = rest.clone().inner() + distance.total.clone() + opposition.clone() * weight.clone();
        let gradients = (rest + (self.made.image.clone() * Tensor::from_inner(along)).sum()).backward();
        Ok((gradients, self.terms(distance, smaller, loss, Some([opposition, weight]))))
    }
}

/// The terms of a loss, off the graph; not read from the device before they are asked for.
pub(super) struct Terms(pub(super) Vec<(String, Tensor<1>)>);

impl Terms {
    /// The adversarial term before it is weighted, and its weight.
    const GAN: [&str; 2] = ["g_loss", "gan_weight"];

    /// Reads each term, by name.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        self.0.iter().map(|(name, value)| Ok((name.clone(), scalar(value, "read the loss")?))).collect()
    }

    /// Explains an `error` in `step`: names the term that is not finite, if there is one.
    pub(super) fn explain(terms: &[&Self], step: u64, error: Error) -> Error {
        // The sum comes first in each list, its causes later.
        let all = terms.iter().flat_map(|terms| terms.0.iter().rev());
        let culprit = all
            .filter_map(|(name, value)| Some((name, scalar(value, "read the loss").ok()?)))
            .find(|(_, value)| !value.is_finite());
        match culprit {
            None => error,
            Some((name, found)) => burn_var::Error::NonFinite {
                what: format!("the loss term `{name}` at step {step}"),
                found,
                hint: "lower the learning rate, or resume from the last checkpoint with another seed",
            }
            .into(),
        }
    }
}
