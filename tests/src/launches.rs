//! Kernel launches of a generation and of a training step on a GPU backend. They are a property of the program: a software GPU
//! counts as many as any other.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_var::generation::TeacherInput;
use burn_var::guidance::Cfg;
use burn_var::models::var::{Var, VarConfig, VarInit, VarPreset, VqVae, VqVaeConfig};
use burn_var::rng::Rng;
use burn_var::{BatchRequest, Condition, Result, Scales, TeacherForced, TokenPyramid, Tokenizer, generate, ops};
use burn_var_train::engine::{Learner, Network, Rules, SectionNames};
use burn_var_train::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_var};
use burn_var_train::run::RunConfig;
use cubecl::config::{TypeNameFormatLevel, type_name_format};
use cubecl::logging::{LaunchObservation, LaunchObserver};

/// Number of launches by the name of the kernel.
pub type Launches = BTreeMap<String, usize>;

/// Returns the number of launches of all kernels.
pub fn total(launches: &Launches) -> usize {
    launches.values().sum()
}

#[derive(Default)]
struct Counter(Mutex<BTreeMap<&'static str, usize>>);

impl LaunchObserver for Counter {
    fn launched(&self, kernel: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
    }
}

/// Counts the launches of the process, from all threads, as long as it lives.
pub struct Count {
    counter: Arc<Counter>,
    device: Device,
    _observation: LaunchObservation,
}

impl Count {
    /// Starts to count.
    pub fn new(device: &Device) -> Self {
        let counter = Arc::new(Counter::default());
        Self { _observation: LaunchObservation::new(counter.clone()), counter, device: device.clone() }
    }

    /// Waits for the device, and returns the launches since the last call.
    pub fn take(&self) -> Launches {
        self.device.sync().expect("the device finishes its work");
        let counts = std::mem::take(&mut *self.counter.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut launches = Launches::new();
        for (name, count) in counts {
            *launches.entry(type_name_format(name, TypeNameFormatLevel::Short)).or_default() += count;
        }
        launches
    }
}

/// Models of any depth and width, with the structure of VAR-d16 otherwise and untrained weights.
pub struct Models {
    /// The tokenizer, whose networks are narrow.
    pub tokenizer: VqVae,
    /// Sizes of the transformer.
    pub config: VarConfig,
    device: Device,
}

impl Models {
    /// Creates the models. `width` must be a multiple of 64, the width of a head.
    ///
    /// # Errors
    /// [`burn_var::Error::Config`] for sizes that do not fit each other.
    pub fn new(depth: usize, width: usize, scales: Scales, device: &Device) -> Result<Self> {
        let config = VarConfig {
            depth,
            embed_dim: width,
            num_heads: width / 64,
            num_classes: 10,
            patch_nums: scales.clone(),
            drop_path_rate: 0.0,
            ..VarPreset::D16.config()
        };
        let tokenizer = VqVaeConfig { ch: 32, ..VqVaeConfig::public(scales) }.init(1, device)?;
        Ok(Self { tokenizer, config, device: device.clone() })
    }

    /// Generates an image with classifier-free guidance until all kernels are compiled and once more; returns the launches of
    /// each scale, that of the first with those before it, and the tokens.
    ///
    /// # Errors
    /// The errors of [`generate`].
    pub fn generation(&self) -> Result<(Vec<Launches>, Vec<u32>)> {
        let model = self.config.init(VarInit::default(), 1, &self.device)?;
        let mut last = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let count = Count::new(&self.device);
            let mut scales = Vec::new();
            let guidance: Vec<Box<dyn burn_var::guidance::Guidance>> = vec![Box::new(Cfg::ramp(1.5))];
            let generated = generate(&self.tokenizer, &model, guidance, BatchRequest::classes(&[3], 42), &mut |_| {
                scales.push(count.take());
                ControlFlow::Continue(())
            })?;
            last = (scales, generated.tokens.to_rows()?.concat());
        }
        Ok(last)
    }

    /// Runs training steps on two images until all kernels are compiled and once more; returns the launches of the last by
    /// part, and its loss.
    ///
    /// # Errors
    /// The errors of the trainer's step.
    pub fn training_step(&self) -> burn_var_train::Result<(Vec<(&'static str, Launches)>, f64)> {
        const BATCH: usize = 2;
        let scales = &self.config.patch_nums;
        let mut rng = Rng::new(1, "tokens", 0);
        let mut row = || (0..scales.tokens()).map(|_| rng.below(self.config.vocab_size) as u32).collect();
        let rows: Vec<Vec<u32>> = (0..BATCH).map(|_| row()).collect();
        let model: Var = self.config.init(VarInit::default(), 1, &self.device.clone().autodiff())?;
        let run: RunConfig = serde_json::from_value(serde_json::json!({ "steps": 100, "batch_size": BATCH }))
            .expect("the settings of a run");
        let optimizer = OptimConfig { clip_norm: Some(2.0), ..OptimConfig::default() };
        let rules = Rules::new(&run, &optimizer, &LrSchedule::default(), &EmaConfig::default(), no_decay_var);
        let mut learner = Learner::new(model, rules, SectionNames::SINGLE);
        let mut last = (Vec::new(), f64::NAN);
        for step in 0..ROUNDS as u64 {
            let count = Count::new(&self.device);
            let mut parts = Vec::new();
            let tokens = TokenPyramid::from_rows(scales.clone(), &rows, &self.device)?;
            let input = TeacherInput::of(&self.tokenizer, &tokens).on_graph();
            parts.push(("input", count.take()));
            let logits = learner.model.teacher_forced(&Condition::classes(&[1; BATCH]), input, scales, None)?;
            parts.push(("forward", count.take()));
            let loss = ops::cross_entropy(logits, tokens.sequence(), 0.0).mean();
            let value = loss.clone().inner();
            let gradients = GradientsParams::from_grads(loss.backward(), &learner.model);
            parts.push(("loss and backward", count.take()));
            learner.add(gradients);
            learner.update(step)?;
            parts.push(("clipping, AdamW, average", count.take()));
            last = (parts, value.into_scalar::<f32>().into());
        }
        Ok(last)
    }

    /// Decodes a blank canvas twice; returns the launches of the second.
    pub fn decode(&self) -> Launches {
        let canvas: Tensor<4> = self.tokenizer.blank(1, &self.config.patch_nums);
        self.tokenizer.decode(canvas.clone()).into_data();
        let count = Count::new(&self.device);
        self.tokenizer.decode(canvas).into_data();
        count.take()
    }
}

/// Rounds until the search for fusions is over and all kernels are compiled.
const ROUNDS: usize = 3;
