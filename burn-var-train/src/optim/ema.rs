//! Exponential moving average of the weights.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Settings of a moving average of the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// The share of the old average that a step keeps, in `[0, 1)`.
    pub decay: f64,
    /// Follows faster at first: the decay is at most `(1 + step) / (10 + step)`.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999, warmup: true }
    }
}

impl EmaConfig {
    /// Checks the decay.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn validate(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.decay) {
            return Ok(());
        }
        Err(Error::config("ema.decay", self.decay, "a number from 0 up to, not including, 1"))
    }

    /// Returns the decay of `step`, counted from 0.
    pub fn decay_at(&self, step: u64) -> f64 {
        let step = step as f64;
        if self.warmup { self.decay.min((1.0 + step) / (10.0 + step)) } else { self.decay }
    }
}

/// Returns the average after one more step: `average + (1 - decay) (live - average)`.
///
/// `average` starts as `live.valid()` and keeps living off the autodiff device; its parameters are matched by identity.
/// Frozen parameters (statistics, buffers) are taken over as they are.
pub fn ema_update<M: Module>(average: M, live: &M, decay: f64) -> M {
    let mut collect = Collect { trained: GradientsParams::new(), frozen: GradientsParams::new() };
    live.visit(&mut collect);
    average.map(&mut Follow { live: collect, weight: 1.0 - decay })
}

/// `GradientsParams` is Burn's map from a parameter's identity to a tensor; nothing in it is about gradients.
struct Collect {
    trained: GradientsParams,
    frozen: GradientsParams,
}

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let bag = if param.is_require_grad() { &mut self.trained } else { &mut self.frozen };
        let value = param.val();
        bag.register(param.id, if value.is_autodiff() { value.inner() } else { value });
    }
}

struct Follow {
    live: Collect,
    weight: f64,
}

impl ModuleMapper for Follow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if let Some(live) = self.live.trained.remove::<D>(param.id) {
            // This form leaves a weight that does not change exactly where it is.
            return param.map(|average| average.clone() + (live - average).mul_scalar(self.weight));
        }
        match self.live.frozen.remove::<D>(param.id) {
            Some(live) => param.map(|_| live),
            None => param,
        }
    }
}

/// Takes the parameters out of a moving average.
pub(super) fn averages_of<M: Module>(average: M) -> GradientsParams {
    let mut all = Averages(GradientsParams::new());
    average.visit(&mut all);
    all.0
}

/// Returns the average that [`ema_update`] would return, some of whose parameters are `moved` already; `others` are those
/// from before.
pub(super) fn with_averages<M: Module>(live: &M, moved: GradientsParams, others: GradientsParams, decay: f64) -> M {
    let mut trained = Trained(HashSet::new());
    live.visit(&mut trained);
    live.valid().map(&mut Join { trained: trained.0, moved, others, weight: 1.0 - decay })
}

struct Averages(GradientsParams);

impl ModuleVisitor for Averages {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.register(param.id, param.val());
    }
}

/// Parameters that are not frozen.
struct Trained(HashSet<ParamId>);

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if param.is_require_grad() {
            self.0.insert(param.id);
        }
    }
}

struct Join {
    trained: HashSet<ParamId>,
    moved: GradientsParams,
    others: GradientsParams,
    weight: f64,
}

impl ModuleMapper for Join {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if let Some(moved) = self.moved.remove::<D>(param.id) {
            return param.map(|_| moved);
        }
        match self.others.remove::<D>(param.id).filter(|_| self.trained.contains(&param.id)) {
            Some(average) => param.map(|live| average.clone() + (live - average).mul_scalar(self.weight)),
            None => param,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    fn filled(linear: Linear, value: f32) -> Linear {
        struct Fill(f32);
        impl ModuleMapper for Fill {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|t| {
                    let filled = Tensor::from_inner(t.clone().inner().full_like(self.0));
                    filled.set_require_grad(t.is_require_grad())
                })
            }
        }
        linear.map(&mut Fill(value))
    }

    fn weight(linear: &Linear) -> f32 {
        linear.weight.val().max().into_scalar::<f32>()
    }

    #[test]
    fn follows_the_trained_and_copies_the_frozen() {
        let live = filled(LinearConfig::new(3, 5).init(&Device::flex().autodiff()), 1.0);
        let average = live.valid();
        let mut live = filled(live, 3.0);
        live.bias = live.bias.map(|bias| bias.set_require_grad(false));
        let average = ema_update(average, &live, 0.75);
        assert_eq!(weight(&average), 1.5, "1 + 0.25 (3 - 1)");
        let bias = average.bias.as_ref().expect("bias").val().max().into_scalar::<f32>();
        assert_eq!(bias, 3.0, "a frozen parameter is taken over");
        assert_eq!(average.weight.id, live.weight.id, "identities stay");
        assert!(!average.weight.val().is_autodiff(), "the average stays off the autodiff device");
    }

    #[test]
    fn an_unchanged_weight_never_drifts() {
        let live = filled(LinearConfig::new(3, 5).init(&Device::flex().autodiff()), 0.1);
        let mut average = live.valid();
        for _ in 0..50 {
            average = ema_update(average, &live, 0.9);
        }
        assert_eq!(weight(&average), 0.1, "equal weights stay equal to the bit");
    }

    #[test]
    fn warm_up_caps_the_decay() {
        let ema = EmaConfig::default();
        assert_eq!(ema.decay_at(0), 0.1, "first step");
        assert_eq!(ema.decay_at(1_000_000), 0.999, "later the configured one");
        assert_eq!(EmaConfig { warmup: false, ..ema }.decay_at(0), 0.999, "without warm-up at once");
        EmaConfig { decay: 1.0, warmup: true }.validate().expect_err("a decay of 1 never follows");
    }
}
