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
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::generation::NextScale;
use burn_var::generation::{Generated, ScaleDone, check_pair};
use burn_var::guidance::{Aid, AidWeight, Cfg, Guidance};
use burn_var::image::{ValueRange, to_images};
use burn_var::models::aid::{
    Augment, DiscriminatorHeads, DiscriminatorHeadsConfig, Injector, InjectorConfig, Projector, SoftCanvas,
    VitProjector, generator_loss,
};
use burn_var::models::common::{DetachCache, Lora, LoraConfig};
use burn_var::models::dino::Vit;
use burn_var::models::var::Var;
use burn_var::models::var::VqVae;
use burn_var::ops;
use burn_var::rng::Rng;
use burn_var::weights::{LoadOptions, Pretrained, SaveOptions, StateDict};
use burn_var::{BatchRequest, TokenPyramid, Tokenizer, generate};

pub use config::{
    AidLossConfig, AidTrainConfig, CollapseConfig, DiscriminatorConfig, InjectorSize, Judges, LoraSize, Reconstruction,
    RolloutConfig, SoftDecode,
};

use crate::checkpoint::{Checkpoint, Part};
use crate::config::settle;
use crate::data::{BatchOrder, Fingerprint, Split, TokenCache, TokenCacheSpec, VariantChoice};
use crate::grid::Grid;
use crate::learner::{Learner, Rules};
use crate::optim::no_decay_1d;
use crate::progress::Progress;
use crate::run::{Metrics, RunConfig, Trainer, run};
use crate::var::cached_tokens;
use crate::{Error, Result};

/// The files that a run leaves in its folder.
const INJECTOR: &str = "injector.safetensors";
const LORA: &str = "lora.safetensors";
const HEADS: &str = "heads.safetensors";

/// The frozen networks: the models that are corrected, and the one that the discriminator looks through. All are on an
/// autodiff device, where gradients pass through them, and none of their weights is trained.
pub struct Backbone {
    tokenizer: VqVae,
    transformer: Var,
    /// None if the discriminator judges the quantizer's features.
    encoder: Option<VitProjector>,
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
        let tokenizer = VqVae::load(&tokenizer, device)?.no_grad();
        let sizes = Var::config_of(&transformer, Some(tokenizer.scales()))?;
        let transformer = Var::load_with(&transformer, &sizes, LoadOptions::default(), device)?.no_grad();
        check_pair(&tokenizer, &transformer)?;
        let Some(encoder) = &config.encoder else { return Ok(Self { tokenizer, transformer, encoder: None }) };
        let encoder = StateDict::open(encoder)?;
        let encoder = Vit::load(&encoder, device)?.no_grad();
        let channels = encoder.config().image_channels;
        if tokenizer.config().image_shape()[0] != channels {
            let expected = format!("{}, as the tokenizer's pictures", tokenizer.config().image_shape()[0]);
            return Err(Error::config("channels of the encoder", channels, expected));
        }
        let encoder = match &config.discriminator.blocks {
            Some(blocks) => VitProjector::new(encoder, blocks.clone())?,
            None => VitProjector::even(encoder),
        };
        Ok(Self { tokenizer, transformer, encoder: Some(encoder) })
    }

    /// Changes with any weight of these networks.
    ///
    /// # Errors
    /// If a weight cannot be read back.
    pub fn fingerprint(&self) -> Result<String> {
        let Self { tokenizer, transformer, encoder } = self;
        let models = Fingerprint::new().module(tokenizer)?.module(transformer)?;
        Ok(match encoder {
            Some(encoder) => models.module(encoder.vit())?,
            None => models,
        }
        .finish())
    }

    /// Layers and channels of what the heads see.
    fn seen(&self) -> [usize; 2] {
        match &self.encoder {
            Some(encoder) => [encoder.layers(), encoder.channels()],
            None => [1, self.tokenizer.z_channels()],
        }
    }

    /// What is judged of a canvas: its picture, or itself.
    fn show(&self, canvas: Tensor<4>) -> Tensor<4> {
        match self.encoder {
            Some(_) => self.tokenizer.decode(canvas),
            None => canvas,
        }
    }

    /// What the heads see of it, changed by `augment` if it is a picture.
    fn look(&self, shown: Tensor<4>, augment: &Augment, rng: &mut Rng) -> Result<Vec<Tensor<3>>> {
        match &self.encoder {
            Some(encoder) => Ok(encoder.features(augment.apply(shown, rng))?),
            None => Ok(vec![shown.flatten::<3>(2, 3)]),
        }
    }
}

/// What is trained.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
enum Correction {
    Injector(Injector),
    Lora(Lora),
}

/// An injector, or a low-rank adaptation, and its discriminator in training.
pub struct AidTrainer {
    config: AidTrainConfig,
    folder: PathBuf,
    device: Device,
    backbone: Backbone,
    tokens: TokenCache,
    order: BatchOrder,
    correction: Learner<Correction>,
    heads: Learner<DiscriminatorHeads>,
    /// Measured steps in a row in which the discriminator was never wrong.
    beaten: u32,
}

/// The scales of one guided rollout that are judged.
#[derive(Default)]
struct Rollout {
    /// Softly decoded, on the graph.
    canvases: Vec<Tensor<4>>,
    /// What the discriminator judges of each, on the graph unless that is to be made again.
    shown: Vec<Tensor<4>>,
    logits: Vec<Tensor<3>>,
}

/// Terms of a loss on their way to gradients.
struct Gradients<'a> {
    model: &'a Correction,
    so_far: GradientsAccumulator<Correction>,
    /// The sum of those that share a graph.
    waiting: Option<Tensor<1>>,
    /// Whether each has a graph of its own, which can go at once.
    apart: bool,
}

impl Gradients<'_> {
    fn add(&mut self, term: Tensor<1>) {
        if self.apart {
            self.so_far.accumulate(self.model, GradientsParams::from_grads(term.backward(), self.model));
            return;
        }
        self.waiting = Some(match self.waiting.take() {
            Some(sum) => sum + term,
            None => term,
        });
    }

    fn finish(mut self) -> GradientsParams {
        match self.waiting {
            Some(sum) => GradientsParams::from_grads(sum.backward(), self.model),
            None => self.so_far.grads(),
        }
    }
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
        let sizes = backbone.transformer.config();
        let correction = match config.lora {
            Some(LoraSize { attention, feed_forward }) => {
                let sizes = LoraConfig { attention, feed_forward, ..LoraConfig::released(&backbone.transformer) };
                Correction::Lora(sizes.init(config.run.seed, &autodiff)?)
            }
            None => {
                let InjectorSize { num_layers, num_heads, resize, broadcast } = config.injector;
                let paper = InjectorConfig::paper(sizes.embed_dim);
                let sizes = InjectorConfig { num_layers, num_heads, resize, broadcast, ..paper };
                Correction::Injector(sizes.init(config.run.seed, &autodiff)?)
            }
        };
        let rules = |optimizer, learning_rate| Rules {
            optimizer,
            learning_rate,
            ema: config.ema.clone(),
            no_decay: no_decay_1d,
            steps: config.run.steps,
        };
        let own_rules = rules(config.optimizer.clone(), config.learning_rate.clone());
        let correction = Learner::new(correction, own_rules).named("correction-");
        let DiscriminatorConfig { variant, virtual_batch, optimizer, learning_rate, .. } = config.discriminator.clone();
        let [layers, channels] = backbone.seen();
        let heads = DiscriminatorHeadsConfig {
            heads: layers,
            variant,
            virtual_batch,
            ..DiscriminatorHeadsConfig::aid(channels)
        };
        let heads = heads.init(config.run.seed, &autodiff)?;
        let heads = Learner::new(heads, rules(optimizer, learning_rate)).named("heads-");
        let order = BatchOrder::new(tokens.len(), config.run.batch_size, config.run.seed)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        Ok(Self { config, folder, device, backbone, tokens, order, correction, heads, beaten: 0 })
    }

    /// The networks that the run leaves as they are.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// One generation as corrected at `step`, `kept` tokens in place of drawn ones.
    fn generate(
        &self,
        correction: Option<&Correction>,
        step: u64,
        kept: Option<KnownTokens>,
        request: &BatchRequest,
        observer: &mut dyn FnMut(&ScaleDone),
    ) -> Result<Generated> {
        let Backbone { transformer, .. } = &self.backbone;
        let mut chain: Vec<Box<dyn Guidance>> = Vec::new();
        if let Some(Correction::Injector(injector)) = correction {
            let weight = AidWeight::Constant(self.config.guidance.weight_at(step));
            chain.push(Box::new(Aid::new(injector.clone(), transformer.word_embed(), weight)?));
        }
        if kept.is_none() {
            chain.push(Box::new(Cfg::ramp(self.config.guidance.cfg)));
        }
        let request = BatchRequest { known: kept, ..request.clone() };
        match correction {
            Some(Correction::Lora(lora)) => self.roll(&lora.adapt(transformer)?, chain, request, observer),
            _ => self.roll(transformer, chain, request, observer),
        }
    }

    fn roll<M: NextScale>(
        &self,
        transformer: &M,
        chain: Vec<Box<dyn Guidance>>,
        request: BatchRequest,
        observer: &mut dyn FnMut(&ScaleDone),
    ) -> Result<Generated> {
        let tokenizer = &self.backbone.tokenizer;
        let mut observe = |done: &ScaleDone| {
            observer(done);
            ControlFlow::Continue(())
        };
        Ok(match self.config.loss.truncate {
            true => generate(tokenizer, &DetachCache(transformer), chain, request, &mut observe)?,
            false => generate(tokenizer, transformer, chain, request, &mut observe)?,
        })
    }

    fn request(&self, labels: &[usize], step: u64) -> BatchRequest {
        let first = step * self.config.run.batch_size as u64;
        let sampler = self.config.guidance.sampler;
        BatchRequest { first, sampler, ..BatchRequest::classes(labels, self.config.run.seed) }
    }

    /// The rollout of a step; `take` gets of every scale that is judged its number, its canvas, softly decoded, and its
    /// logits.
    fn rollout(
        &self,
        correction: &Correction,
        request: &BatchRequest,
        step: u64,
        take: &mut dyn FnMut(usize, Tensor<4>, Tensor<3>),
    ) -> Result<TokenPyramid> {
        let AidLossConfig { first_scale, temperature, decode, truncate, .. } = self.config.loss;
        let mut canvas = SoftCanvas::new(
            &self.backbone.tokenizer,
            request.conditions.len(),
            self.backbone.tokenizer.scales(),
            temperature,
        );
        let made = self.generate(Some(correction), step, None, request, &mut |done| {
            let soft = canvas.paint(self.backbone.tokenizer.scales().at(done.k), done.logits.clone());
            if truncate {
                canvas.detach();
            }
            let painted = match decode {
                SoftDecode::Mean => soft,
                SoftDecode::StraightThrough => soft.clone() + (done.canvas.clone() - soft).detach(),
            };
            if done.k >= first_scale {
                take(done.k, painted, done.logits.clone());
            }
        })?;
        Ok(made.tokens)
    }

    /// The share of tokens that the correction has changed, from those of the same seeds without it.
    fn changed(&self, corrected: &TokenPyramid, request: &BatchRequest) -> Result<f64> {
        let plain = self.generate(None, 0, None, request, &mut |_| ())?;
        share(corrected.sequence().not_equal(plain.tokens.sequence()).float())
    }

    /// One step of the discriminator on what is off the graph, scale by scale; says how it did if it is to `measure`.
    fn judge(
        &mut self,
        real: &[Tensor<4>],
        made: &[Tensor<4>],
        rng: &mut Rng,
        step: u64,
        measure: bool,
    ) -> Result<Option<Judged>> {
        let DiscriminatorConfig { r1_gamma, hinge, augment, .. } = self.config.discriminator;
        let see = |shown: &Tensor<4>, rng: &mut Rng| -> Result<Vec<Tensor<3>>> {
            // The encoder's own graph is of no use here: nothing before the heads is trained.
            let features = self.backbone.look(Tensor::from_inner(shown.clone()), &augment, rng)?;
            Ok(features.into_iter().map(Tensor::detach).collect())
        };
        let seen = |shown: &[Tensor<4>], rng: &mut Rng| shown.iter().map(|k| see(k, rng)).collect::<Result<Vec<_>>>();
        let (real, made) = (seen(real, rng)?, seen(made, rng)?);
        let (mut losses, mut judged) = (Vec::new(), Judged::default());
        for (real, made) in real.iter().zip(&made) {
            // As PyTorch does in training: a step of the power iteration before every pass.
            self.heads.model = self.heads.model.clone().iterated();
            let on_real = self.heads.model.forward(real, None)?;
            self.heads.model = self.heads.model.clone().iterated();
            let on_made = self.heads.model.forward(made, None)?;
            if measure {
                judged.real.push(share(on_real.clone().mean_dim(1).greater_elem(0.0).float())?);
                judged.made.push(share(on_made.clone().mean_dim(1).lower_elem(0.0).float())?);
            }
            let loss = hinge.discriminator_loss(on_real, on_made);
            losses.push(match r1_gamma {
                0.0 => loss,
                gamma => loss + self.heads.model.r1(real, None)? * (gamma / 2.0),
            });
        }
        let loss = mean(losses.into_iter())?;
        if measure {
            judged.loss = scalar(&loss)?;
        }
        let grads = GradientsParams::from_grads(loss.backward(), &self.heads.model);
        judged.grad_norm = self.heads.update(step, grads)?.first().map_or(0.0, |(_, norm)| *norm);
        Ok(measure.then_some(judged))
    }

    /// The gradients of `mean over scales of L_adv + lambda_rec L_rec` (equation 7), and both parts' values. `rollout` is
    /// the one whose pictures the discriminator has just seen; none if it is not on the graph.
    fn learn(
        &self,
        rollout: Option<Rollout>,
        real: &TokenPyramid,
        request: &BatchRequest,
        rng: &mut Rng,
        step: u64,
    ) -> Result<(GradientsParams, Learnt)> {
        let AidLossConfig { lambda_rec, reconstruction, first_scale, truncate, checkpointing, .. } = self.config.loss;
        let augment = &self.config.discriminator.augment;
        let share = 1.0 / (self.backbone.tokenizer.scales().len() - first_scale) as f64;
        // The heads do not learn from what the injector learns.
        let heads = self.heads.model.clone().no_grad();
        let correction = &self.correction.model;
        let so_far = GradientsAccumulator::new();
        let mut gradients = Gradients { model: correction, so_far, waiting: None, apart: truncate };
        let mut learnt = Learnt::default();
        let Learnt { adversarial: adversarial_terms, reconstruction: reconstruction_terms } = &mut learnt;
        let entropy = |k: usize, logits: Tensor<3>| ops::cross_entropy(logits, real.map(k), 0.0).mean() * share;
        let free = lambda_rec > 0.0 && reconstruction == Reconstruction::FreeRunning;

        let mut adversarial = |shown: Tensor<4>| -> Result<Tensor<1>> {
            let features = self.backbone.look(shown, augment, rng)?;
            let term = generator_loss(heads.forward(&features, None)?) * share;
            adversarial_terms.push(term.clone().inner());
            Ok(term)
        };
        let mut scale = |k: usize, canvas: Tensor<4>, shown: Option<Tensor<4>>, logits: Tensor<3>| -> Result<()> {
            let mut term = match shown {
                Some(shown) => adversarial(shown)?,
                None => {
                    // The graph of decoder and encoder lives no longer than it takes to find the canvas's gradient,
                    // which then stands for all of it: the gradient of `canvas * gradient` is the same.
                    let leaf = Tensor::from_inner(canvas.clone().inner()).require_grad();
                    let gradients = adversarial(self.backbone.show(leaf.clone()))?.backward();
                    let gradient = leaf.grad(&gradients).ok_or_else(|| {
                        let expected = "one: encoder and heads must let gradients pass";
                        Error::config("gradient of a scale's picture", "none", expected)
                    })?;
                    (canvas * Tensor::from_inner(gradient)).sum()
                }
            };
            if free {
                let entropy = entropy(k, logits);
                reconstruction_terms.push(entropy.clone().inner());
                term = term + entropy * lambda_rec;
            }
            gradients.add(term);
            Ok(())
        };
        match rollout {
            Some(Rollout { canvases, shown, logits }) => {
                let scales = canvases.into_iter().zip(shown).zip(logits);
                (first_scale..).zip(scales).try_for_each(|(k, ((canvas, shown), logits))| {
                    scale(k, canvas, (!checkpointing).then_some(shown), logits)
                })?;
            }
            None => {
                let mut outcome = Ok(());
                self.rollout(correction, request, step, &mut |k, canvas, logits| {
                    if outcome.is_ok() {
                        let shown = (!checkpointing).then(|| self.backbone.show(canvas.clone()));
                        outcome = scale(k, canvas, shown, logits);
                    }
                })?;
                outcome?;
            }
        }
        if lambda_rec > 0.0 && reconstruction == Reconstruction::TeacherForced {
            let kept = Some(KnownTokens::all(real.clone()));
            self.generate(Some(correction), step, kept, request, &mut |done| {
                if done.k >= first_scale {
                    let entropy = entropy(done.k, done.logits.clone());
                    reconstruction_terms.push(entropy.clone().inner());
                    gradients.add(entropy * lambda_rec);
                }
            })?;
        }
        Ok((gradients.finish(), learnt))
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

/// The terms of the injector's loss, scale by scale.
#[derive(Default)]
struct Learnt {
    adversarial: Vec<Tensor<1>>,
    reconstruction: Vec<Tensor<1>>,
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

        let learns = step >= self.config.discriminator.head_start;
        // DetachCache gradients are taken scale by scale, each scale's graph gone before the next: there is none here.
        let correction = match self.config.loss.truncate || !learns {
            true => self.correction.model.clone().no_grad(),
            false => self.correction.model.clone(),
        };
        let mut rollout = Rollout::default();
        let checkpointing = self.config.loss.checkpointing;
        let tokens = self.rollout(&correction, &request, step, &mut |_, canvas, logits| {
            let decoded = if checkpointing { canvas.clone().detach() } else { canvas.clone() };
            rollout.shown.push(self.backbone.show(decoded));
            rollout.canvases.push(canvas);
            rollout.logits.push(logits);
        })?;
        drop(correction);
        let made: Vec<Tensor<4>> = rollout.shown.iter().map(|shown| shown.clone().inner()).collect();
        let canvases = tokenizer.canvases(&real).into_iter().skip(first);
        let originals: Vec<Tensor<4>> = canvases.map(|canvas| self.backbone.show(canvas).inner()).collect();
        let mut rng = Rng::new(self.config.run.seed, "aid augment", step);
        let mut judged = None;
        for _ in 0..self.config.discriminator.steps {
            judged = self.judge(&originals, &made, &mut rng, step, measure)?;
        }
        let learnt = match learns {
            true => {
                let on_graph = (!self.config.loss.truncate).then_some(rollout);
                let (grads, learnt) = self.learn(on_graph, &real, &request, &mut rng, step)?;
                Some((learnt, self.correction.update(step, grads)?))
            }
            false => None,
        };
        let Some(judged) = judged else { return Ok(Metrics::new()) };
        let mut metrics = Metrics::new();
        if let Some((learnt, rates)) = learnt {
            let value = sum(learnt.adversarial)?.unwrap_or_default();
            metrics.push(("adversarial".into(), value));
            metrics.extend(sum(learnt.reconstruction)?.map(|value| ("reconstruction".into(), value)));
            metrics.extend(rates);
            self.watch(&judged, value)?;
        }
        metrics.extend([("d_loss".into(), judged.loss), ("d_grad_norm".into(), judged.grad_norm)]);
        for (i, (real, made)) in judged.real.iter().zip(&judged.made).enumerate() {
            metrics.extend([(format!("d_real_{}", i + first), *real), (format!("d_made_{}", i + first), *made)]);
        }
        metrics.push(("tokens_changed".into(), self.changed(&tokens, &request)?));
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = self.correction.parts();
        parts.extend(self.heads.parts());
        parts.push(Part::bytes("beaten", self.beaten.to_le_bytes().to_vec()));
        parts
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.correction.restore(checkpoint)?;
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
        let request = BatchRequest { sampler, ..BatchRequest::classes(&labels, self.config.run.seed) };
        let make = |correction: Option<&Correction>| -> Result<Vec<image::RgbImage>> {
            let made = self.generate(correction, step, None, &request, &mut |_| ())?;
            Ok(to_images(self.backbone.tokenizer.decode(made.canvas).inner(), ValueRange::Signed)?)
        };
        // Off the graph, which for all classes at once would outgrow a step's.
        let correction = self.correction.model.clone().no_grad();
        let rows = [make(None)?, make(Some(&correction))?].concat();
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        Grid::new(classes).write(&path, &rows)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        self.heads.average.save(self.folder.join(HEADS), &SaveOptions::default())?;
        match &self.correction.average {
            Correction::Injector(injector) => {
                let path = self.folder.join(INJECTOR);
                let weight = AidWeight::Constant(self.config.guidance.weight_at(self.config.run.steps));
                let mut options = SaveOptions::default();
                weight.insert(&mut options.metadata)?;
                injector.save(&path, &options)?;
                Ok(path)
            }
            Correction::Lora(lora) => {
                let path = self.folder.join(LORA);
                lora.save(&path, &SaveOptions::default())?;
                Ok(path)
            }
        }
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

/// The mean of single numbers on the graph.
fn mean(terms: impl Iterator<Item = Tensor<1>>) -> Result<Tensor<1>> {
    let terms: Vec<Tensor<1>> = terms.collect();
    let count = terms.len();
    let sum = terms.into_iter().reduce(|a, b| a + b);
    Ok(sum.ok_or_else(|| Error::config("scales that are judged", 0, "at least 1"))? / count as f64)
}

/// The sum of single numbers, if there are any.
fn sum(terms: Vec<Tensor<1>>) -> Result<Option<f64>> {
    terms.into_iter().reduce(|a, b| a + b).as_ref().map(scalar).transpose()
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
