//! Post-training of a frozen transformer by AID-VAR: a guidance injector against a discriminator that looks at every
//! scale's picture through a frozen encoder.
//!
//! The released trainer gives its injector no gradient: it decodes without a graph. Here the fakes come from the guided
//! rollout itself, softly decoded (equation 5), and gradients cross decoder, codebook, logits and the frozen blocks with
//! their cache to the injector.

mod config;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_var::aid::{
    Heads, HeadsConfig, Injector, InjectorConfig, Projector, SoftCanvas, VitProjector, generator_loss,
};
use burn_var::guidance::{Aid, AidWeight, Cfg, Guidance, Keep};
use burn_var::ops;
use burn_var::pretrained::{
    StateDict, load_var, load_vit, load_vqvae, save_heads, save_injector, var_config, vit_config, vqvae_config,
};
use burn_var::rng::Rng;
use burn_var::tokenizer::VqVae;
use burn_var::transformer::Var;
use burn_var::{Generated, Request, ScaleDone, TokenPyramid, Tokenizer, check_pair, generate};

pub use config::{
    AidLossConfig, AidTrainConfig, CollapseConfig, DiscriminatorConfig, GuidanceConfig, InjectorSize, Reconstruction,
};

use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{BatchOrder, Fingerprint, Split, TokenCache, TokenCacheSpec, VariantChoice};
use crate::grid::{Grid, Range, pictures};
use crate::learner::{Learner, Rules};
use crate::optim::no_decay_1d;
use crate::progress::Progress;
use crate::run::{Metrics, RunConfig, Trainer, run};
use crate::var::cached_tokens;
use crate::{Error, Result};

/// The files that a run leaves in its folder.
const INJECTOR: &str = "injector.safetensors";
const HEADS: &str = "heads.safetensors";

/// The frozen networks: the models that are corrected, and the one that the discriminator looks through. All are on an
/// autodiff device, where gradients pass through them, and none of their weights is trained.
pub struct Backbone {
    tokenizer: VqVae,
    transformer: Var,
    encoder: VitProjector,
}

impl Backbone {
    /// Reads the networks that a configuration names, on `device` (without autodiff).
    ///
    /// # Errors
    /// If a file cannot be read, or the networks do not fit each other.
    pub fn load(config: &AidTrainConfig, device: &Device) -> Result<Self> {
        let device = &device.clone().autodiff();
        let tokenizer = StateDict::open(&config.tokenizer)?;
        let transformer = StateDict::open(&config.transformer)?;
        let encoder = StateDict::open(&config.encoder)?;
        let tokenizer = load_vqvae(&tokenizer, &vqvae_config(&tokenizer, None)?, device)?.no_grad();
        let sizes = var_config(&transformer, Some(tokenizer.scales()))?;
        let transformer = load_var(&transformer, &sizes, device)?.no_grad();
        check_pair(&tokenizer, &transformer)?;
        let encoder = load_vit(&encoder, &vit_config(&encoder)?, device)?.no_grad();
        let channels = encoder.config().image_channels;
        if tokenizer.picture_shape()[0] != channels {
            let expected = format!("{}, as the tokenizer's pictures", tokenizer.picture_shape()[0]);
            return Err(Error::config("channels of the encoder", channels, expected));
        }
        let encoder = match &config.discriminator.blocks {
            Some(blocks) => VitProjector::new(encoder, blocks.clone())?,
            None => VitProjector::even(encoder),
        };
        Ok(Self { tokenizer, transformer, encoder })
    }
}

impl Backbone {
    /// Changes with any weight of the three networks.
    ///
    /// # Errors
    /// If a weight cannot be read back.
    pub fn fingerprint(&self) -> Result<String> {
        let Self { tokenizer, transformer, encoder } = self;
        Ok(Fingerprint::new().module(tokenizer)?.module(transformer)?.module(encoder.vit())?.finish())
    }
}

/// An injector and its discriminator in training.
pub struct AidTrainer {
    config: AidTrainConfig,
    folder: PathBuf,
    device: Device,
    backbone: Backbone,
    tokens: TokenCache,
    order: BatchOrder,
    injector: Learner<Injector>,
    heads: Learner<Heads>,
    /// Measured steps in a row in which the discriminator was never wrong.
    beaten: u32,
}

/// One guided rollout on the graph.
struct Rollout {
    /// The picture as of each scale that is judged, `[batch, channels, height, width]`.
    pictures: Vec<Tensor<4>>,
    /// The logits of the same scales.
    logits: Vec<Tensor<3>>,
    tokens: TokenPyramid,
}

impl AidTrainer {
    /// A run in `folder` on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// A configuration or data that no run can be made of.
    pub fn new(
        config: AidTrainConfig,
        backbone: Backbone,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<Self> {
        config.validate(backbone.tokenizer.scales())?;
        let autodiff = device.clone().autodiff();
        let InjectorSize { num_layers, num_heads, resize, broadcast } = config.injector;
        let width = backbone.transformer.config().embed_dim;
        let sizes = InjectorConfig { num_layers, num_heads, resize, broadcast, ..InjectorConfig::paper(width) };
        let injector = sizes.init(config.run.seed, &autodiff)?;
        let rules = |optimizer, learning_rate| Rules {
            optimizer,
            learning_rate,
            ema: config.ema.clone(),
            no_decay: no_decay_1d,
            steps: config.run.steps,
        };
        let rules_of_injector = rules(config.optimizer.clone(), config.learning_rate.clone());
        let injector = Learner::new(injector, rules_of_injector).named("injector-");
        let DiscriminatorConfig { variant, virtual_batch, optimizer, learning_rate, .. } = config.discriminator.clone();
        let heads = HeadsConfig {
            heads: backbone.encoder.layers(),
            variant,
            virtual_batch,
            ..HeadsConfig::aid(backbone.encoder.channels())
        };
        let heads = heads.init(config.run.seed, &autodiff)?;
        let heads = Learner::new(heads, rules(optimizer, learning_rate)).named("heads-");
        let order = BatchOrder::new(tokens.len(), config.run.batch_size, config.run.seed)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        Ok(Self { config, folder, device, backbone, tokens, order, injector, heads, beaten: 0 })
    }

    /// The injector that the run is for.
    pub fn injector(&self) -> &Injector {
        &self.injector.average
    }

    /// The networks that the run leaves as they are.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// One generation, the guidance's parts in front of classifier-free guidance.
    fn generate(
        &self,
        first: Vec<Box<dyn Guidance>>,
        cfg: f64,
        request: &Request,
        observer: &mut dyn FnMut(ScaleDone<'_>),
    ) -> Result<Generated> {
        let mut chain = first;
        chain.push(Box::new(Cfg::ramp(cfg)));
        let Backbone { tokenizer, transformer, .. } = &self.backbone;
        Ok(generate(tokenizer, transformer, &mut chain, request, &mut |done| {
            observer(done);
            ControlFlow::Continue(())
        })?)
    }

    fn aid(&self, injector: &Injector, step: u64) -> Result<Box<dyn Guidance>> {
        let weight = AidWeight::Constant(self.config.guidance.weight_at(step));
        Ok(Box::new(Aid::new(injector.clone(), &self.backbone.transformer, weight)?))
    }

    fn request(&self, labels: &[usize], step: u64) -> Request {
        let first = step * self.config.run.batch_size as u64;
        let sampler = self.config.guidance.sampler;
        Request { first, sampler, ..Request::new(labels, self.config.run.seed) }
    }

    /// The guided rollout of a step, on the graph of the injector.
    fn rollout(&self, request: &Request, step: u64) -> Result<Rollout> {
        let tokenizer = &self.backbone.tokenizer;
        let first = self.config.loss.first_scale;
        let mut canvas = SoftCanvas::new(tokenizer, request.labels.len(), self.config.loss.temperature);
        let (mut pictures, mut logits) = (Vec::new(), Vec::new());
        let guidance = vec![self.aid(&self.injector.model, step)?];
        let made = self.generate(guidance, self.config.guidance.cfg, request, &mut |done| {
            let canvas = canvas.paint(done.k, done.logits.clone());
            if done.k >= first {
                pictures.push(tokenizer.decode(canvas));
                logits.push(done.logits.clone());
            }
        })?;
        Ok(Rollout { pictures, logits, tokens: made.tokens })
    }

    /// `mean_k CE(z'_k, s_k)` against the real pictures' tokens: of the rollout's own logits, or of a taught model's.
    fn reconstruction(
        &self,
        rollout: &Rollout,
        real: &TokenPyramid,
        request: &Request,
        step: u64,
    ) -> Result<Tensor<1>> {
        let first = self.config.loss.first_scale;
        let logits = match self.config.loss.reconstruction {
            Reconstruction::FreeRunning => rollout.logits.clone(),
            Reconstruction::TeacherForced => {
                let mut logits = Vec::new();
                let guidance: Vec<Box<dyn Guidance>> =
                    vec![self.aid(&self.injector.model, step)?, Box::new(Keep::all(real.clone()))];
                self.generate(guidance, 0.0, request, &mut |done| {
                    if done.k >= first {
                        logits.push(done.logits.clone());
                    }
                })?;
                logits
            }
        };
        let entropy = |(k, logits): (usize, &Tensor<3>)| ops::cross_entropy(logits.clone(), real.map(k), 0.0).mean();
        mean((first..).zip(&logits).map(entropy))
    }

    /// One step of the discriminator on the pictures of all scales, which are off the graph.
    fn judge(&mut self, real: &[Tensor<4>], made: &[Tensor<4>], rng: &mut Rng, step: u64) -> Result<Judged> {
        let DiscriminatorConfig { r1_gamma, hinge, augment, .. } = self.config.discriminator;
        let see = |images: &Tensor<4>, rng: &mut Rng| -> Result<Vec<Tensor<3>>> {
            let images = augment.apply(Tensor::from_inner(images.clone()), rng);
            // The encoder's own graph is of no use here: nothing before the heads is trained.
            let features = self.backbone.encoder.features(images)?;
            Ok(features.into_iter().map(Tensor::detach).collect())
        };
        let seen = |images: &[Tensor<4>], rng: &mut Rng| images.iter().map(|k| see(k, rng)).collect::<Result<Vec<_>>>();
        let (real, made) = (seen(real, rng)?, seen(made, rng)?);
        let (mut losses, mut judged) = (Vec::new(), Judged::default());
        for (real, made) in real.iter().zip(&made) {
            // As PyTorch does in training: a step of the power iteration before every pass.
            self.heads.model = self.heads.model.clone().iterated();
            let on_real = self.heads.model.forward(real, None)?;
            self.heads.model = self.heads.model.clone().iterated();
            let on_made = self.heads.model.forward(made, None)?;
            judged.real.push(share(on_real.clone().mean_dim(1).greater_elem(0.0).float())?);
            judged.made.push(share(on_made.clone().mean_dim(1).lower_elem(0.0).float())?);
            let loss = hinge.discriminator_loss(on_real, on_made);
            losses.push(match r1_gamma {
                0.0 => loss,
                gamma => loss + self.heads.model.r1(real, None)? * (gamma / 2.0),
            });
        }
        let loss = mean(losses.into_iter())?;
        judged.loss = scalar(&loss)?;
        let grads = GradientsParams::from_grads(loss.backward(), &self.heads.model);
        judged.grad_norm = self.heads.update(step, grads)?.first().map_or(0.0, |(_, norm)| *norm);
        Ok(judged)
    }

    /// Stops a run whose discriminator has won for good: the injector learns nothing from it any more.
    fn watch(&mut self, judged: &Judged, adversarial: f64) -> Result<()> {
        let CollapseConfig { accuracy, patience } = self.config.collapse;
        let sure = judged.real.iter().chain(&judged.made).all(|share| *share >= accuracy);
        self.beaten = if sure { self.beaten + 1 } else { 0 };
        if patience > 0 && self.beaten >= patience {
            let what = format!(
                "the discriminator tells every picture of every scale (accuracies on real {:?}, on made {:?}, \
                 adversarial loss {adversarial:.3}) in {} measured steps in a row",
                judged.real, judged.made, self.beaten
            );
            let expected = "some doubt: lower discriminator.learning_rate, or raise discriminator.r1_gamma";
            return Err(Error::config("training", what, expected));
        }
        Ok(())
    }
}

/// What the discriminator said of one step.
#[derive(Default)]
struct Judged {
    loss: f64,
    grad_norm: f64,
    /// Shares of pictures taken for what they are, scale by scale.
    real: Vec<f64>,
    made: Vec<f64>,
}

impl Trainer for AidTrainer {
    fn step(&mut self, step: u64, measure: bool) -> Result<Metrics> {
        let indices = self.order.batch(step as usize);
        let choice = VariantChoice::Random { seed: self.config.run.seed, epoch: self.order.epoch(step as usize) };
        let batch = self.tokens.batch(&indices, choice)?;
        let tokenizer = &self.backbone.tokenizer;
        let autodiff = self.device.clone().autodiff();
        let real = TokenPyramid::from_rows(tokenizer.scales().clone(), &batch.tokens, &autodiff)?;
        let request = self.request(&batch.labels, step);
        let first = self.config.loss.first_scale;

        let rollout = self.rollout(&request, step)?;
        let made: Vec<Tensor<4>> = rollout.pictures.iter().map(|pictures| pictures.clone().inner()).collect();
        let originals: Vec<Tensor<4>> =
            tokenizer.canvases(&real).into_iter().skip(first).map(|canvas| tokenizer.decode(canvas).inner()).collect();
        let mut rng = Rng::new(self.config.run.seed, "aid augment", step);
        let mut judged = Judged::default();
        for _ in 0..self.config.discriminator.steps {
            judged = self.judge(&originals, &made, &mut rng, step)?;
        }

        // The heads do not learn from what the injector learns.
        let heads = self.heads.model.clone().no_grad();
        let augment = self.config.discriminator.augment;
        let mut terms = Vec::new();
        for pictures in &rollout.pictures {
            let features = self.backbone.encoder.features(augment.apply(pictures.clone(), &mut rng))?;
            terms.push(generator_loss(heads.forward(&features, None)?));
        }
        let adversarial = mean(terms.into_iter())?;
        let value = scalar(&adversarial)?;
        let mut metrics: Metrics = vec![("adversarial".into(), value)];
        let loss = match self.config.loss.lambda_rec {
            0.0 => adversarial,
            lambda => {
                let reconstruction = self.reconstruction(&rollout, &real, &request, step)?;
                metrics.push(("reconstruction".into(), scalar(&reconstruction)?));
                adversarial + reconstruction * lambda
            }
        };
        let grads = GradientsParams::from_grads(loss.backward(), &self.injector.model);
        let rates = self.injector.update(step, grads)?;
        if !measure {
            return Ok(Metrics::new());
        }
        self.watch(&judged, value)?;
        metrics.extend([("d_loss".into(), judged.loss), ("d_grad_norm".into(), judged.grad_norm)]);
        for (i, (real, made)) in judged.real.iter().zip(&judged.made).enumerate() {
            metrics.extend([(format!("d_real_{}", i + first), *real), (format!("d_made_{}", i + first), *made)]);
        }
        metrics.push(("tokens_changed".into(), self.changed(&rollout.tokens, &request)?));
        metrics.extend(rates);
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.injector.parts();
        parts.extend(self.heads.parts());
        parts.push(Part::bytes("beaten", self.beaten.to_le_bytes().to_vec()));
        parts
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.injector.restore(checkpoint)?;
        self.heads.restore(checkpoint)?;
        let beaten = checkpoint.bytes("beaten")?;
        let beaten = <[u8; 4]>::try_from(&beaten[..])
            .map_err(|_| Error::format(checkpoint.path(), "`beaten` is not a number of 4 bytes"))?;
        self.beaten = u32::from_le_bytes(beaten);
        Ok(())
    }

    fn data(&self) -> String {
        let TokenCacheSpec { data, tokenizer, .. } = self.tokens.spec();
        format!("{data} {tokenizer}")
    }

    /// The same seeds without the injector, and with it below.
    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let classes = self.tokens.spec().class_names.len().min(self.config.guidance.preview_classes);
        let labels: Vec<usize> = (0..classes).collect();
        let sampler = self.config.guidance.sampler;
        let request = Request { sampler, ..Request::new(&labels, self.config.run.seed) };
        let make = |guidance: Vec<Box<dyn Guidance>>| -> Result<Vec<image::RgbImage>> {
            let made = self.generate(guidance, self.config.guidance.cfg, &request, &mut |_| ())?;
            pictures(self.backbone.tokenizer.decode(made.canvas).inner(), Range::Signed)
        };
        let injector = &self.injector.model;
        let rows = [make(Vec::new())?, make(vec![self.aid(injector, step)?])?].concat();
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        Grid::new(classes).write(&path, &rows)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        let path = self.folder.join(INJECTOR);
        let weight = AidWeight::Constant(self.config.guidance.weight_at(self.config.run.steps));
        save_injector(self.injector(), Some(&weight), &path, false)?;
        save_heads(&self.heads.average, self.folder.join(HEADS), false)?;
        Ok(path)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        let scales = self.config.loss.first_scale..self.backbone.tokenizer.scales().len();
        let accuracies = scales.flat_map(|k| [format!("d_real_{k}"), format!("d_made_{k}")]);
        vec![
            ("loss", ["adversarial", "reconstruction", "d_loss"].map(str::to_owned).to_vec()),
            ("accuracy", accuracies.collect()),
            ("tokens", vec!["tokens_changed".into()]),
        ]
    }
}

impl AidTrainer {
    /// The share of tokens that differ from those of the same seeds without guidance.
    fn changed(&self, guided: &TokenPyramid, request: &Request) -> Result<f64> {
        let plain = self.generate(Vec::new(), self.config.guidance.cfg, request, &mut |_| ())?;
        share(guided.sequence().not_equal(plain.tokens.sequence()).float())
    }
}

/// The mean of single numbers on the graph.
fn mean(terms: impl Iterator<Item = Tensor<1>>) -> Result<Tensor<1>> {
    let terms: Vec<Tensor<1>> = terms.collect();
    let count = terms.len();
    let sum = terms.into_iter().reduce(|a, b| a + b);
    Ok(sum.ok_or_else(|| Error::config("scales that are judged", 0, "at least 1"))? / count as f64)
}

fn scalar(value: &Tensor<1>) -> Result<f64> {
    let value = value.clone().try_into_scalar::<f32>();
    Ok(value.map_err(burn_var::Error::device("read a loss"))?.into())
}

/// The mean of zeros and ones.
fn share(values: Tensor<2>) -> Result<f64> {
    scalar(&values.mean())
}

/// Trains an injector in `folder`, or goes on with what is there, and returns its file; none if `progress` ended the run
/// before the last step. The tokens of the pictures are kept in `tokens.safetensors` beside it.
///
/// # Errors
/// Whatever makes the run impossible or breaks it off; the same call goes on from the last checkpoint.
pub fn train_aid(
    config: AidTrainConfig,
    folder: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    let backbone = Backbone::load(&config, device)?;
    config.validate(backbone.tokenizer.scales())?;
    let source = config.data.open(Split::Train)?;
    settle(folder, &config, &RunConfig::MAY_CHANGE)?;
    let path = folder.join("tokens.safetensors");
    let plain = backbone.tokenizer.valid();
    let tokens = cached_tokens(source, config.data.mirror, &plain, &path, device, progress)?;
    let run_config = config.run.clone();
    let mut trainer = AidTrainer::new(config, backbone, tokens, folder, device)?;
    run(&mut trainer, &run_config, folder, progress)
}
