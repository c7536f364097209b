//! AdamW with a weight decay that differs by parameter and changes over the steps.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamWState, AdaptiveMomentumState, GradientsParams, ModuleOptimizer, Optimizer};
use burn::store::RecordError;
use burn::tensor::{Bytes, Device, Tensor};
use burn_var::ops::{AdamWStep, Clipping, JointUpdate, UpdatedParameters, adamw};
use serde::{Deserialize, Serialize};

use super::ema::{averages_of, with_averages};
use super::schedule::progress;
use super::{GradNorm, clip_grad_norm, cosine_between, ema_update, scale_grads};
use crate::checkpoint::record_error;
use crate::{Error, Result};

/// AdamW (Loshchilov and Hutter 2019) and gradient clipping; the defaults are PyTorch's, not Burn's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment (VAR trains with 0.95).
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay at the first step.
    pub weight_decay: f64,
    /// Weight decay at the last step, on half a cosine from the first; the same as at the first when absent.
    pub weight_decay_end: Option<f64>,
    /// The largest norm of all gradients together; `inf` or none clips nothing.
    pub clip_norm: Option<f64>,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01, weight_decay_end: None, clip_norm: None }
    }
}

impl OptimConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, beta) in [("optimizer.beta_1", self.beta_1), ("optimizer.beta_2", self.beta_2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::config(name, beta, "a number from 0 up to, not including, 1"));
            }
        }
        let end = self.weight_decay_end.unwrap_or(self.weight_decay);
        for (name, value, zero) in [
            ("optimizer.epsilon", self.epsilon, false),
            ("optimizer.weight_decay", self.weight_decay, true),
            ("optimizer.weight_decay_end", end, true),
        ] {
            if !(value.is_finite() && (value > 0.0 || (zero && value == 0.0))) {
                return Err(Error::config(name, value, if zero { "0 or more" } else { "a positive number" }));
            }
        }
        match self.clip_norm {
            Some(clip) if clip.is_nan() || clip <= 0.0 => {
                Err(Error::config("optimizer.clip_norm", clip, "a positive number, or inf to clip nothing"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the weight decay of `step`, counted from 0, in a run of `steps`.
    pub fn weight_decay_at(&self, step: u64, steps: u64) -> f64 {
        let end = self.weight_decay_end.unwrap_or(self.weight_decay);
        cosine_between(self.weight_decay, end, progress(step, steps))
    }

    /// Creates an optimizer for `module`, which decays the parameters that `no_decay` does not name.
    ///
    /// When resuming, load the module first: the moments are found by its parameters' identities.
    pub fn init<M: Module>(&self, module: &M, no_decay: NoDecay) -> AdamW {
        let mut collect = CollectPaths { no_decay, path: Vec::new(), found: Vec::new() };
        module.visit(&mut collect);
        let weight_decay = Arc::new(AtomicU64::new(0));
        let exchange = Arc::new(Mutex::new(None));
        let rule = |weight_decay| FusedAdamW {
            betas: [self.beta_1, self.beta_2],
            epsilon: self.epsilon,
            weight_decay,
            exchange: exchange.clone(),
        };
        let inner = ModuleOptimizer::from(rule(weight_decay.clone())).with_group(
            ParamGroup::from_paths(collect.found),
            rule(Arc::default()),
            None,
        );
        AdamW { inner, weight_decay, exchange, clip_norm: self.clip_norm, norm: None }
    }
}

/// Decides by path (`blocks.0.attn.proj.bias`) and rank whether a parameter is exempt from weight decay.
pub type NoDecay = fn(path: &str, rank: usize) -> bool;

/// Exempts vectors: biases, gains and scales.
pub fn no_decay_1d(_path: &str, rank: usize) -> bool {
    rank == 1
}

/// Exempts the norms, as LlamaGen's post-training does; embeddings decay.
pub fn no_decay_norms(path: &str, _rank: usize) -> bool {
    path.contains("norm")
}

/// VAR's rule (`filter_params` and its keys in `train.py`): vectors, biases, embeddings of position and level, gains.
pub fn no_decay_var(path: &str, rank: usize) -> bool {
    const KEYS: [&str; 12] = [
        "cls_token",
        "start_token",
        "task_token",
        "cfg_uncond",
        "pos_embed",
        "pos_1LC",
        "pos_start",
        "lvl_embed",
        "gamma",
        "beta",
        "ada_gss",
        "scale_mul",
    ];
    rank == 1 || path.ends_with("bias") || KEYS.iter().any(|key| path.contains(key))
}

/// Constants of one step.
#[derive(Debug, Clone, Copy)]
pub struct StepRates {
    /// The step, counted from 0, for messages.
    pub step: u64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight decay; multiplied by the learning rate, as in PyTorch.
    pub weight_decay: f64,
}

/// The optimizer of one module. Training with two networks uses two of them.
pub struct AdamW {
    inner: ModuleOptimizer,
    /// The bits of an `f64`, shared with the copies that Burn keeps beside every parameter's moments.
    weight_decay: Arc<AtomicU64>,
    /// Shared with those copies, too: what goes to a joint update of all parameters, and comes from it.
    exchange: Arc<Mutex<Option<Exchange>>>,
    clip_norm: Option<f64>,
    /// The numbers of the last joint update, on the device: see [`JointUpdate::run`].
    norm: Option<Tensor<1>>,
}

/// Moving average of a module in an update.
#[derive(Debug)]
pub struct Average<'a, M> {
    /// The average, off the autodiff device; `None` keeps none.
    pub module: &'a mut Option<M>,
    /// Share of it that the update keeps.
    pub decay: f64,
}

impl AdamW {
    /// Clips the gradients and updates the module; returns it with the norm of the gradients before clipping.
    ///
    /// Parameters without a gradient stay as they are, undecayed, as in PyTorch.
    ///
    /// # Errors
    /// The errors of [`clip_grad_norm`]; nothing is updated then.
    pub fn step<M: Module>(&mut self, rates: StepRates, module: M, mut grads: GradientsParams) -> Result<(M, f64)> {
        let norm = clip_grad_norm(&module, &mut grads, self.clip_norm, rates.step)?;
        self.weight_decay.store(rates.weight_decay.to_bits(), Ordering::Relaxed);
        Ok((self.inner.step(rates.learning_rate, module, grads), norm))
    }

    /// Multiplies the gradients by `share`, then does what [`AdamW::step`] and [`ema_update`] do. Returns the module, and the
    /// norm of the gradients before clipping.
    ///
    /// On a GPU these are a few kernels for all parameters, and the norm of the gradients stays there. If it is not finite, no
    /// parameter changes from then on, and [`AdamW::check`] is an error.
    ///
    /// # Errors
    /// On a CPU the errors of [`clip_grad_norm`]; nothing is updated then.
    pub fn update<M: Module>(
        &mut self,
        rates: StepRates,
        module: M,
        average: Average<'_, M>,
        mut grads: GradientsParams,
        share: f64,
    ) -> Result<(M, GradNorm)> {
        let span = tracing::trace_span!("part", op = "Optimizer", pass = "").entered();
        let mut module = module;
        if let Some(update) = JointUpdate::new() {
            let mut list = List { grads: &grads, ids: VecDeque::new(), places: GradientsParams::new(), device: None };
            module = module.map(&mut list);
            let List { ids, places, device, .. } = list;
            if let Some(Some(device)) = device {
                let before = self.norm.take().unwrap_or_else(|| Clipping::first(&device));
                let joint = Joint { update, ids, places, before };
                return Ok(self.update_together(rates, module, average, (grads, share), joint));
            }
        }
        if share != 1.0 {
            scale_grads(&module, &mut grads, share);
        }
        let (module, norm) = self.step(rates, module, grads)?;
        drop(span);
        let _span = tracing::trace_span!("part", op = "MovingAverage", pass = "").entered();
        *average.module = average.module.take().map(|of| ema_update(of, &module, average.decay));
        Ok((module, GradNorm::Known(norm)))
    }

    /// Updates all parameters together. Burn keeps the moments of each one, in the form of its checkpoints, where they can only
    /// be reached one after the other: so one pass collects everything, and a second puts it back.
    fn update_together<M: Module>(
        &mut self,
        rates: StepRates,
        module: M,
        average: Average<'_, M>,
        (grads, share): (GradientsParams, f64),
        Joint { update, ids, places, before }: Joint,
    ) -> (M, GradNorm) {
        self.weight_decay.store(rates.weight_decay.to_bits(), Ordering::Relaxed);
        let averaged = average.module.is_some();
        // Taken out of the module, so that they can be changed in place.
        let averages = average.module.take().map_or_else(GradientsParams::new, averages_of);
        let exchange = Exchange { ids, averages, times: VecDeque::new(), parameters: Parameters::Before(update) };
        let (module, exchange) = self.pass(rates.learning_rate, module, grads, exchange);
        let Exchange { ids, averages: others, times, parameters } = exchange;
        let clipping = Clipping { share, max: self.clip_norm, follow: 1.0 - average.decay, step: rates.step, before };
        let (parameters, norm) = match parameters {
            Parameters::Before(update) => update.run(&clipping),
            Parameters::After(..) => unreachable!("the first pass collects"),
        };
        let exchange =
            Exchange { ids, averages: GradientsParams::new(), times, parameters: Parameters::After(parameters) };
        let (module, exchange) = self.pass(rates.learning_rate, module, places, exchange);
        self.norm = Some(norm.clone());
        *average.module = averaged.then(|| with_averages(&module, exchange.averages, others, average.decay));
        (module, GradNorm::OnDevice(Box::new(norm)))
    }

    /// Brings all parameters to an exchange that have an entry in `grads`, and returns what has become of both.
    fn pass<M: Module>(&mut self, rate: f64, module: M, grads: GradientsParams, exchange: Exchange) -> (M, Exchange) {
        let lock = || self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        *lock() = Some(exchange);
        let module = self.inner.step(rate, module, grads);
        let exchange = lock().take().expect("put there above");
        (module, exchange)
    }

    /// Checks that the norms of all gradients so far were finite. On a GPU this waits until the last update is done.
    ///
    /// # Errors
    /// `burn_var::Error::NonFinite` naming the step; `burn_var::Error::Device` if the norm cannot be read back.
    pub fn check(&self) -> Result<()> {
        match &self.norm {
            Some(norm) => GradNorm::OnDevice(Box::new(norm.clone())).read().map(|_| ()),
            None => Ok(()),
        }
    }

    /// The moments, for a checkpoint.
    ///
    /// # Errors
    /// [`Error::Format`] if they cannot be read from the device.
    pub fn to_bytes(&self) -> Result<Bytes> {
        self.inner.into_bytes().map_err(record_error("optimizer".as_ref()))
    }

    pub(crate) fn load(mut self, bytes: Bytes) -> Result<Self, RecordError> {
        self.inner = self.inner.from_bytes(bytes)?;
        Ok(self)
    }
}

/// Burn's AdamW has a constant weight decay and takes a dozen passes over the weights; this one reads the decay at every
/// step, and takes one. What it keeps is Burn's.
#[derive(Clone)]
struct FusedAdamW {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: Arc<AtomicU64>,
    exchange: Arc<Mutex<Option<Exchange>>>,
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: f64,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (time, moments) = match state {
            Some(AdamWState { momentum: AdaptiveMomentumState { time, moment_1, moment_2, .. } }) => {
                (time + 1, Some([moment_1, moment_2]))
            }
            None => (1, None),
        };
        let weight_decay = f64::from_bits(self.weight_decay.load(Ordering::Relaxed));
        let step = AdamWStep { learning_rate: lr, weight_decay, betas: self.betas, epsilon: self.epsilon, time };
        let state = |time, [first, second]: [Tensor<D>; 2]| {
            Some(AdamWState::new(AdaptiveMomentumState::new(time, first, second)))
        };
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(exchange) = exchange.as_mut() else {
            let (tensor, moments) = adamw(tensor, grad, moments, step);
            return (tensor, state(time, moments));
        };
        let id = exchange.next_id();
        match &mut exchange.parameters {
            Parameters::Before(update) => {
                update.push(tensor.clone(), grad, moments, exchange.averages.remove(id), step);
                exchange.times.push_back(time);
                (tensor, None)
            }
            Parameters::After(parameters) => {
                let (tensor, moments, average) = parameters.take().expect("as many as were collected");
                let time = exchange.times.pop_front().expect("as many as were collected");
                if let Some(average) = average {
                    exchange.averages.register(id, average);
                }
                (tensor, state(time, moments))
            }
        }
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        <burn::optim::AdamW as Optimizer>::to_device(state, device)
    }
}

/// A joint update, and what belongs to the parameters with a gradient.
struct Joint {
    update: JointUpdate,
    /// In the order in which Burn updates them.
    ids: VecDeque<ParamId>,
    /// Stand in for gradients in the second pass, since Burn updates nothing without one.
    places: GradientsParams,
    before: Tensor<1>,
}

/// Parameters on their way from [`FusedAdamW`] to a joint update, and its results on their way back.
struct Exchange {
    /// In the order in which Burn updates them; the next one comes first.
    ids: VecDeque<ParamId>,
    /// Moving averages.
    averages: GradientsParams,
    times: VecDeque<usize>,
    parameters: Parameters,
}

enum Parameters {
    Before(JointUpdate),
    After(UpdatedParameters),
}

impl Exchange {
    fn next_id(&mut self) -> ParamId {
        let id = self.ids.pop_front().expect("Burn updates the parameters that were listed");
        self.ids.push_back(id);
        id
    }
}

/// Lists the parameters with a gradient, in the order in which Burn updates them.
struct List<'a> {
    grads: &'a GradientsParams,
    ids: VecDeque<ParamId>,
    /// Weights in the place of gradients.
    places: GradientsParams,
    /// Where all of them are; `Some(None)` if a joint update does not take one of them.
    device: Option<Option<Device>>,
}

impl ModuleMapper for List<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(grad) = self.grads.get::<D>(param.id) else { return param };
        // A parameter in two places is updated in the first.
        if self.places.get::<D>(param.id).is_some() {
            return param;
        }
        let weights = param.val().inner();
        let takes = JointUpdate::takes(&weights) && JointUpdate::takes(&grad);
        self.device = match self.device.take() {
            Some(None) => Some(None),
            _ => Some(takes.then(|| weights.device())),
        };
        self.ids.push_back(param.id);
        self.places.register(param.id, weights);
        param
    }
}

struct CollectPaths {
    no_decay: NoDecay,
    path: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for CollectPaths {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if (self.no_decay)(&path, D) {
            self.found.push(path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any layer will do")]
mod tests {
    use burn::nn::{Linear, LinearConfig};

    use super::*;

    fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
        tensor.clone().into_data().try_to_vec().expect("f32")
    }

    fn gradients(linear: &Linear, device: &Device) -> GradientsParams {
        let x = Tensor::<2>::from_data([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], device);
        GradientsParams::from_grads(linear.forward(x).square().sum().backward(), linear)
    }

    /// The update written out in f64, as in the paper's algorithm 2 and `torch.optim.AdamW`.
    #[test]
    fn equals_the_formula_with_changing_decay() {
        let device = Device::flex().autodiff();
        let config = OptimConfig { beta_2: 0.95, weight_decay: 0.4, weight_decay_end: Some(0.1), ..Default::default() };
        let mut linear = LinearConfig::new(3, 5).init(&device);
        let mut optimizer = config.init(&linear, no_decay_1d);
        let mut expected: Vec<f64> = values(&linear.weight.val()).into_iter().map(f64::from).collect();
        let (mut m, mut v) = (vec![0.0; 15], vec![0.0; 15]);
        for step in 0..4 {
            let rates = StepRates { step, learning_rate: 0.01, weight_decay: config.weight_decay_at(step, 4) };
            let grads = gradients(&linear, &device);
            let grad = values(&grads.get::<2>(linear.weight.id).expect("gradient"));
            for i in 0..15 {
                let g = f64::from(grad[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.95 * v[i] + 0.05 * g * g;
                let t = step as i32 + 1;
                let update = m[i] / (1.0 - 0.9f64.powi(t)) / ((v[i] / (1.0 - 0.95f64.powi(t))).sqrt() + 1e-8);
                expected[i] = expected[i] * (1.0 - 0.01 * rates.weight_decay) - 0.01 * update;
            }
            (linear, _) = optimizer.step(rates, linear, grads).expect("finite");
        }
        for (found, expected) in values(&linear.weight.val()).into_iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() < 2e-6, "weight {found}, expected {expected}");
        }
    }

    /// A parameter group must still be found after the first step, when Burn has cached it beside the moments.
    #[test]
    fn exempt_parameters_do_not_decay() {
        let device = Device::flex().autodiff();
        let step = |weight_decay: f64| {
            let mut linear = LinearConfig::new(3, 5).init(&device);
            linear.weight = linear.weight.map(|w| Tensor::from_inner(w.inner().ones_like()).require_grad());
            linear.bias = linear.bias.map(|b| b.map(|b| Tensor::from_inner(b.inner().ones_like()).require_grad()));
            let mut optimizer = OptimConfig::default().init(&linear, no_decay_1d);
            for step in 0..3 {
                let rates = StepRates { step, learning_rate: 0.01, weight_decay };
                let grads = gradients(&linear, &device);
                (linear, _) = optimizer.step(rates, linear, grads).expect("finite");
            }
            (values(&linear.weight.val()), values(&linear.bias.expect("bias").val()))
        };
        let ((plain_weight, plain_bias), (weight, bias)) = (step(0.0), step(0.5));
        assert_ne!(plain_weight, weight, "the matrix decays");
        // The gradients differ once the matrix does, Adam's normalised steps hardly.
        for (plain, decayed) in plain_bias.into_iter().zip(bias) {
            assert!((plain - decayed).abs() < 1e-4, "the bias does not decay: {plain} and {decayed}");
        }
    }

    #[test]
    fn the_authors_groups() {
        for path in
            ["pos_1LC", "blocks.3.ada_gss", "lvl_embed.weight", "head.proj.bias", "blocks.0.attn.scale_mul_1H11"]
        {
            assert!(no_decay_var(path, 3), "`{path}` is exempt");
        }
        assert!(no_decay_var("blocks.0.anything", 1), "vectors are exempt");
        for path in ["blocks.0.attn.mat_qkv.weight", "class_emb.weight", "head.weight", "shared_ada_lin.weight"] {
            assert!(!no_decay_var(path, 2), "`{path}` decays");
        }
    }

    #[test]
    fn a_partial_section_keeps_the_trainers_defaults() {
        let defaults = OptimConfig { beta_2: 0.95, clip_norm: Some(2.0), ..Default::default() };
        let read = |text: &str| crate::config::over(defaults.clone(), toml::Deserializer::parse(text).expect("TOML"));
        assert_eq!(read("").expect("empty"), defaults, "nothing set");
        let expected = OptimConfig { weight_decay: 0.1, clip_norm: Some(f64::INFINITY), ..defaults.clone() };
        let found = read("weight_decay = 0.1\nclip_norm = inf").expect("two keys");
        assert_eq!(found, expected, "what is not set is as the trainer has it");
        found.validate().expect("an infinite norm clips nothing");
        let error = read("weight_dekay = 0.1").expect_err("misspelt").to_string();
        assert!(error.contains("`weight_dekay`") && error.contains("`weight_decay`"), "names both: {error}");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (config, name) in [
            (OptimConfig { beta_2: 1.0, ..Default::default() }, "beta_2"),
            (OptimConfig { epsilon: 0.0, ..Default::default() }, "epsilon"),
            (OptimConfig { weight_decay: -0.1, ..Default::default() }, "weight_decay"),
            (OptimConfig { clip_norm: Some(0.0), ..Default::default() }, "clip_norm"),
        ] {
            let error = config.validate().expect_err(name).to_string();
            assert!(error.contains(name), "names `{name}`: {error}");
        }
        OptimConfig::default().validate().expect("the defaults are valid");
    }
}
