//! Post-training of a frozen transformer by AID-VAR: a guidance injector against a discriminator that sees the image of
//! every scale through a frozen encoder.
//!
//! The released trainer gives its injector no gradient: it decodes without a graph. Here the fakes come from the guided
//! rollout itself, softly decoded (equation 5), and gradients cross decoder, codebook, logits and the frozen blocks with
//! their cache to the injector.
//!
//! A step has one round per update of the discriminator, and then one that updates the injector.

mod config;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::generation::{Generated, NextScale, ScaleDone, check_pair};
use burn_var::guidance::{Aid, AidWeight, Cfg, Guidance};
use burn_var::image::{ValueRange, to_images};
use burn_var::models::aid::{
    Augment, DiscriminatorHeads, DiscriminatorHeadsConfig, Injector, InjectorConfig, InjectorDropout, Projector,
    SoftCanvas, VitProjector, generator_loss,
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
    AidLossConfig, AidTrainConfig, CollapseConfig, DiscriminatorConfig, DiscriminatorInput, InjectorSize, LoraSize,
    Reconstruction, RolloutConfig, SoftDecode,
};

use crate::config::Upgrade;
use crate::data::{Encoding, Fingerprint, ImageSource, Split, TokenBatch, TokenCache, TokenStream, cached_tokens};
use crate::engine::checkpoint::{Checkpoint, Part};
use crate::engine::progress::Progress;
use crate::engine::run::{Metrics, RunConfig};
use crate::engine::{
    Learner, Method, Network, NetworkGradients, Packet, Piece, Placement, Portable, Rates, Round, Rules, SectionNames,
    TrainConfig, TrainingData, train,
};
use crate::grid::Grid;
use crate::optim::no_decay_1d;
use crate::tensor::scalar;
use crate::{Error, Result};

/// The files that a run leaves in its folder.
const INJECTOR: &str = "injector.safetensors";
const LORA: &str = "lora.safetensors";
const HEADS: &str = "heads.safetensors";

/// The checkpoint section of [`AidMethod::collapse_streak`], and its name in older versions.
const STREAK: [&str; 2] = ["collapse_streak", "beaten"];

/// The indices of the networks in [`Method::networks`].
const CORRECTION_NETWORK: usize = 0;
const HEADS_NETWORK: usize = 1;

/// The frozen networks: the models that are corrected, and the encoder of the discriminator. All are on an autodiff
/// device, where gradients pass through them; none of their weights is trained.
pub struct Backbone {
    tokenizer: VqVae,
    transformer: Var,
    /// `None` if the discriminator sees the quantizer's features.
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
            let expected = format!("{}, as the tokenizer's images", tokenizer.config().image_shape()[0]);
            return Err(Error::config("channels of the encoder", channels, expected));
        }
        let encoder = match &config.discriminator.blocks {
            Some(blocks) => VitProjector::new(encoder, blocks.clone())?,
            None => VitProjector::even(encoder),
        };
        Ok(Self { tokenizer, transformer, encoder: Some(encoder) })
    }

    /// Returns a fingerprint that changes with any weight of these networks.
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

    /// Layers and channels of the features that the heads see.
    fn seen(&self) -> [usize; 2] {
        match &self.encoder {
            Some(encoder) => [encoder.layers(), encoder.channels()],
            None => [1, self.tokenizer.z_channels()],
        }
    }

    /// Returns the input of the discriminator for a canvas: the decoded image, or the canvas itself.
    fn show(&self, canvas: Tensor<4>) -> Tensor<4> {
        match self.encoder {
            Some(_) => self.tokenizer.decode(canvas),
            None => canvas,
        }
    }

    /// Returns the features that the heads see, of images changed by `augment`.
    fn features(&self, shown: Tensor<4>, augment: &Augment, rngs: &mut [Rng]) -> Result<Vec<Tensor<3>>> {
        match &self.encoder {
            Some(encoder) => Ok(encoder.features(augment.apply(shown, rngs))?),
            None => Ok(vec![shown.flatten::<3>(2, 3)]),
        }
    }
}

/// The network that corrects the transformer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
enum Correction {
    Injector(Injector),
    Lora(Lora),
}

/// The opened inputs of a run.
pub struct AidInputs {
    backbone: Backbone,
    images: Arc<dyn ImageSource>,
}

impl TrainConfig for AidTrainConfig {
    type Inputs = AidInputs;
    type Method = AidMethod;

    const UPGRADES: &'static [Upgrade] = &[Upgrade::Added { key: "injector.dropout", meant: 0.0 }];

    fn run(&self) -> &RunConfig {
        &self.run
    }

    fn open(&self, device: &Device) -> Result<AidInputs> {
        let backbone = Backbone::load(self, device)?;
        self.validate(backbone.tokenizer.scales())?;
        Ok(AidInputs { backbone, images: self.data.open(Split::Train)? })
    }

    fn start(
        self,
        AidInputs { backbone, images }: AidInputs,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<AidMethod> {
        let plain = backbone.tokenizer.valid();
        let encoding = Encoding::default_of(&plain)?;
        let tokens = cached_tokens(images, &self.data, &plain, encoding, folder, device, progress)?;
        AidMethod::new(self, backbone, tokens, folder, device)
    }
}

/// Training of an injector, or of a low-rank adaptation, against a discriminator.
pub struct AidMethod {
    config: AidTrainConfig,
    folder: PathBuf,
    device: Device,
    backbone: Backbone,
    stream: TokenStream,
    correction: Learner<Correction>,
    heads: Learner<DiscriminatorHeads>,
    /// The heads for each pass of a round: per scale, for real and for generated images.
    passes: Vec<[DiscriminatorHeads; 2]>,
    /// The numbers of the last round of the discriminator in the step at work.
    judged: Option<Judged>,
    /// Measured steps in a row in which the discriminator was never wrong.
    collapse_streak: u32,
}

/// A piece of a step.
pub struct AidBatch {
    tokens: TokenBatch,
    /// The images of the step, from the first round on.
    shown: Option<Shown>,
}

/// The inputs of the discriminator for one piece.
struct Shown {
    /// The tokens of the real images.
    real: TokenPyramid,
    request: BatchRequest,
    /// The real images scale by scale, off the graph.
    originals: Vec<Tensor<4>>,
    /// The generated images scale by scale, off the graph.
    fakes: Vec<Tensor<4>>,
    /// The tokens of the generated images.
    tokens: TokenPyramid,
    /// The rollout that generated them, if it is on the graph.
    rollout: Option<Rollout>,
}

/// The scales of one guided rollout that are judged.
#[derive(Default)]
struct Rollout {
    /// Softly decoded, on the graph.
    canvases: Vec<Tensor<4>>,
    /// The input of the discriminator for each, on the graph unless that is to be made again.
    shown: Vec<Tensor<4>>,
    logits: Vec<Tensor<3>>,
}

/// Values of a piece besides its gradients.
pub enum AidRecord {
    /// A round of the discriminator; `None` if it is not measured.
    Judged(Option<Judged>),
    /// The round of the injector.
    Learned(Learned),
}

impl Portable for AidRecord {
    fn pack(self, to: &mut Packet) -> Result<()> {
        let (judged, learned) = match self {
            Self::Judged(judged) => (Some(judged), None),
            Self::Learned(learned) => (None, Some(learned)),
        };
        let judged = judged.map(|judged| {
            let numbers = |judged: Judged| {
                let Judged { loss, grad_norm, real, fake, changed } = judged;
                (vec![loss, grad_norm, changed], (real, fake))
            };
            judged.map(numbers)
        });
        (judged, learned.map(|learned| (learned.adversarial, learned.reconstruction))).pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        type Numbers = (Vec<f64>, (Vec<f64>, Vec<f64>));
        type Terms = (Vec<Tensor<1>>, Vec<Tensor<1>>);
        let (judged, learned): (Option<Option<Numbers>>, Option<Terms>) = Portable::unpack(from, device)?;
        if let Some((adversarial, reconstruction)) = learned {
            return Ok(Self::Learned(Learned { adversarial, reconstruction }));
        }
        let judged = judged.flatten().map(|(numbers, (real, fake))| {
            let [loss, grad_norm, changed] = [0, 1, 2].map(|i| numbers.get(i).copied().unwrap_or_default());
            Judged { loss, grad_norm, real, fake, changed }
        });
        Ok(Self::Judged(judged))
    }
}

/// The terms of the injector's loss, scale by scale.
#[derive(Default)]
pub struct Learned {
    adversarial: Vec<Tensor<1>>,
    reconstruction: Vec<Tensor<1>>,
}

/// The numbers of one round of the discriminator.
#[derive(Debug, Default)]
pub struct Judged {
    loss: f64,
    grad_norm: f64,
    /// Shares of images that are recognized, scale by scale.
    real: Vec<f64>,
    fake: Vec<f64>,
    /// Share of tokens that the correction has changed.
    changed: f64,
}

impl Judged {
    /// Averages over pieces; `None` if they were not measured.
    fn mean(pieces: Vec<Option<Self>>) -> Option<Self> {
        let count = pieces.len() as f64;
        let add = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(a, b)| a + b).collect();
        let sum = pieces.into_iter().flatten().reduce(|a, b| Self {
            loss: a.loss + b.loss,
            grad_norm: 0.0,
            real: add(a.real, b.real),
            fake: add(a.fake, b.fake),
            changed: a.changed + b.changed,
        })?;
        let share = |values: Vec<f64>| values.into_iter().map(|value| value / count).collect();
        Some(Self {
            loss: sum.loss / count,
            real: share(sum.real),
            fake: share(sum.fake),
            changed: sum.changed / count,
            ..sum
        })
    }
}

/// Terms of a loss on their way to gradients.
struct Gradients<'a> {
    model: &'a Correction,
    so_far: GradientsAccumulator<Correction>,
    /// The sum of those that share a graph.
    waiting: Option<Tensor<1>>,
    /// True if each has a graph of its own, which can go at once.
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

impl AidMethod {
    /// Creates the method of a run in `folder`, on `device` (without autodiff), at its first step.
    ///
    /// # Errors
    /// Settings, models and tokens that do not fit each other.
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
                let InjectorSize { num_layers, num_heads, resize, broadcast, .. } = config.injector;
                let paper = InjectorConfig::paper(sizes.embed_dim);
                let sizes = InjectorConfig { num_layers, num_heads, resize, broadcast, ..paper };
                Correction::Injector(sizes.init(config.run.seed, &autodiff)?)
            }
        };
        let rules = Rules::new(&config.run, &config.optimizer, &config.learning_rate, &config.ema, no_decay_1d);
        let correction = Learner::new(correction, rules, SectionNames::CORRECTION);
        let DiscriminatorConfig { variant, virtual_batch, optimizer, learning_rate, .. } = &config.discriminator;
        let [layers, channels] = backbone.seen();
        let heads = DiscriminatorHeadsConfig {
            heads: layers,
            variant: *variant,
            virtual_batch: *virtual_batch,
            ..DiscriminatorHeadsConfig::aid(channels)
        };
        let heads = heads.init(config.run.seed, &autodiff)?;
        let rules = Rules::new(&config.run, optimizer, learning_rate, &config.ema, no_decay_1d);
        let heads = Learner::new(heads, rules, SectionNames::HEADS);
        let stream = TokenStream::new(tokens, &config.run)?;
        let (folder, device) = (folder.to_path_buf(), device.clone());
        let (passes, judged, collapse_streak) = (Vec::new(), None, 0);
        Ok(Self { config, folder, device, backbone, stream, correction, heads, passes, judged, collapse_streak })
    }

    /// The networks that the run leaves as they are.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// Returns true if the injector is trained in a step.
    fn learns(&self, step: u64) -> bool {
        step >= self.config.discriminator.head_start
    }

    /// Rounds of the discriminator.
    fn judging_rounds(&self) -> usize {
        self.config.discriminator.steps as usize
    }

    /// The dropout of a rollout that is trained; `None` if there is none.
    fn dropout(&self, piece: &Piece, purpose: &str) -> Option<InjectorDropout> {
        let rate = self.config.injector.dropout;
        (rate > 0.0).then(|| InjectorDropout { rate, rngs: piece.noise(purpose) })
    }

    /// Generates images as corrected at `step`, with `known` tokens in place of sampled ones. `dropout` is for training
    /// only.
    fn generate(
        &self,
        correction: Option<&Correction>,
        step: u64,
        known: Option<KnownTokens>,
        dropout: Option<InjectorDropout>,
        request: &BatchRequest,
        observer: &mut dyn FnMut(&ScaleDone),
    ) -> Result<Generated> {
        let transformer = &self.backbone.transformer;
        let mut chain: Vec<Box<dyn Guidance>> = Vec::new();
        if let Some(Correction::Injector(injector)) = correction {
            let weight = AidWeight::Constant(self.config.guidance.weight_at(step));
            let aid = Aid::new(injector.clone(), transformer.word_embed(), weight)?;
            chain.push(Box::new(match dropout {
                Some(dropout) => aid.with_dropout(dropout),
                None => aid,
            }));
        }
        if known.is_none() {
            chain.push(Box::new(Cfg::ramp(self.config.guidance.cfg)));
        }
        let request = BatchRequest { known, ..request.clone() };
        match correction {
            Some(Correction::Lora(lora)) => self.generate_with(&lora.adapt(transformer)?, chain, request, observer),
            _ => self.generate_with(transformer, chain, request, observer),
        }
    }

    fn generate_with<M: NextScale>(
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

    /// The images of a piece. Their noise is keyed by their number in the run.
    fn request(&self, labels: &[usize], piece: &Piece) -> BatchRequest {
        let first = piece.step * piece.batch_size as u64 + piece.images.start as u64;
        let sampler = self.config.guidance.sampler;
        BatchRequest { first, sampler, ..BatchRequest::classes(labels, self.config.run.seed) }
    }

    /// Does the rollout of a piece. `take` gets of every scale that is judged its number, its canvas, softly decoded, and
    /// its logits.
    fn rollout(
        &self,
        correction: &Correction,
        request: &BatchRequest,
        piece: &Piece,
        take: &mut dyn FnMut(usize, Tensor<4>, Tensor<3>),
    ) -> Result<TokenPyramid> {
        let AidLossConfig { first_scale, temperature, decode, truncate, .. } = self.config.loss;
        let tokenizer = &self.backbone.tokenizer;
        let mut canvas = SoftCanvas::new(tokenizer, request.conditions.len(), tokenizer.scales(), temperature);
        let dropout = self.dropout(piece, "injector dropout");
        let generated = self.generate(Some(correction), piece.step, None, dropout, request, &mut |done| {
            let soft = canvas.paint(tokenizer.scales().at(done.k), done.logits.clone());
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
        Ok(generated.tokens)
    }

    /// Generates the images of a piece, and decodes the real ones scale by scale.
    fn show(&self, tokens: &TokenBatch, piece: &Piece) -> Result<Shown> {
        let AidLossConfig { first_scale, truncate, checkpointing, .. } = self.config.loss;
        let tokenizer = &self.backbone.tokenizer;
        let autodiff = self.device.clone().autodiff();
        let real = TokenPyramid::from_rows(tokenizer.scales().clone(), &tokens.tokens, &autodiff)?;
        let request = self.request(&tokens.labels, piece);
        // DetachCache gradients are taken scale by scale, each scale's graph gone before the next. Several pieces are there
        // to save memory: their graphs are made again too.
        let on_graph = self.learns(piece.step) && !truncate && piece.is_whole();
        let correction = match on_graph {
            true => self.correction.model.clone(),
            false => self.correction.model.clone().no_grad(),
        };
        let mut rollout = Rollout::default();
        let tokens = self.rollout(&correction, &request, piece, &mut |_, canvas, logits| {
            let decoded = if checkpointing { canvas.clone().detach() } else { canvas.clone() };
            rollout.shown.push(self.backbone.show(decoded));
            rollout.canvases.push(canvas);
            rollout.logits.push(logits);
        })?;
        let fakes = rollout.shown.iter().map(|shown| shown.clone().inner()).collect();
        let canvases = tokenizer.canvases(&real).into_iter().skip(first_scale);
        let originals = canvases.map(|canvas| self.backbone.show(canvas).inner()).collect();
        Ok(Shown { real, request, originals, fakes, tokens, rollout: on_graph.then_some(rollout) })
    }

    /// Returns the share of tokens that the correction has changed, from those of the same seeds without it.
    fn changed(&self, Shown { tokens, request, .. }: &Shown) -> Result<f64> {
        let plain = self.generate(None, 0, None, None, request, &mut |_| ())?;
        share(tokens.sequence().not_equal(plain.tokens.sequence()).float())
    }

    /// Returns the discriminator's gradients for one piece, and its numbers if they are to be measured.
    fn judge(&self, shown: &Shown, round: &Round, piece: &Piece) -> Result<(GradientsParams, Option<Judged>)> {
        let DiscriminatorConfig { r1_gamma, hinge, augment, .. } = self.config.discriminator;
        let mut rngs = piece.noise(&format!("augmentation of round {}", round.number));
        let mut features = |images: &[Tensor<4>]| -> Result<Vec<Vec<Tensor<3>>>> {
            let mut all = Vec::with_capacity(images.len());
            for shown in images {
                // The encoder's own graph is of no use here: nothing before the heads is trained.
                let features = self.backbone.features(Tensor::from_inner(shown.clone()), &augment, &mut rngs)?;
                all.push(features.into_iter().map(Tensor::detach).collect());
            }
            Ok(all)
        };
        let (real, fake) = (features(&shown.originals)?, features(&shown.fakes)?);
        let (mut losses, mut judged) = (Vec::new(), Judged::default());
        for ((real, fake), [for_real, for_fake]) in real.iter().zip(&fake).zip(&self.passes) {
            let on_real = for_real.forward(real, None)?;
            let on_fake = for_fake.forward(fake, None)?;
            if round.measure {
                judged.real.push(share(on_real.clone().mean_dim(1).greater_elem(0.0).float())?);
                judged.fake.push(share(on_fake.clone().mean_dim(1).lower_elem(0.0).float())?);
            }
            let loss = hinge.discriminator_loss(on_real, on_fake);
            losses.push(match r1_gamma {
                0.0 => loss,
                gamma => loss + for_fake.r1(real, None)? * (gamma / 2.0),
            });
        }
        let loss = mean(losses)?;
        if round.measure {
            judged.loss = scalar(&loss, "read the discriminator's loss")?;
            if round.number + 1 == self.judging_rounds() {
                judged.changed = self.changed(shown)?;
            }
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &self.heads.model);
        Ok((gradients, round.measure.then_some(judged)))
    }

    /// Returns the gradients of `mean over scales of L_adv + lambda_rec L_rec` (equation 7) for one piece, and both terms.
    fn learn(&self, shown: Shown, round: &Round, piece: &Piece) -> Result<(GradientsParams, Learned)> {
        let AidLossConfig { lambda_rec, reconstruction, first_scale, truncate, checkpointing, .. } = self.config.loss;
        let Shown { real, request, rollout, .. } = shown;
        let augment = &self.config.discriminator.augment;
        let mut rngs = piece.noise(&format!("augmentation of round {}", round.number));
        let share = 1.0 / (self.backbone.tokenizer.scales().len() - first_scale) as f64;
        // The heads do not learn from what the injector learns.
        let heads = self.heads.model.clone().no_grad();
        let correction = &self.correction.model;
        let so_far = GradientsAccumulator::new();
        let mut gradients = Gradients { model: correction, so_far, waiting: None, apart: truncate };
        let mut learned = Learned::default();
        let Learned { adversarial: adversarial_terms, reconstruction: reconstruction_terms } = &mut learned;
        let entropy = |k: usize, logits: Tensor<3>| ops::cross_entropy(logits, real.map(k), 0.0).mean() * share;
        let free = lambda_rec > 0.0 && reconstruction == Reconstruction::FreeRunning;

        let mut adversarial = |shown: Tensor<4>| -> Result<Tensor<1>> {
            let features = self.backbone.features(shown, augment, &mut rngs)?;
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
                    let gradient = leaf.grad(&gradients).ok_or(Error::NoGradient { of: "the image of a scale" })?;
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
                self.rollout(correction, &request, piece, &mut |k, canvas, logits| {
                    if outcome.is_ok() {
                        let shown = (!checkpointing).then(|| self.backbone.show(canvas.clone()));
                        outcome = scale(k, canvas, shown, logits);
                    }
                })?;
                outcome?;
            }
        }
        if lambda_rec > 0.0 && reconstruction == Reconstruction::TeacherForced {
            let known = Some(KnownTokens::all(real.clone()));
            let dropout = self.dropout(piece, "injector dropout, teacher-forced");
            self.generate(Some(correction), piece.step, known, dropout, &request, &mut |done| {
                if done.k >= first_scale {
                    let entropy = entropy(done.k, done.logits.clone());
                    reconstruction_terms.push(entropy.clone().inner());
                    gradients.add(entropy * lambda_rec);
                }
            })?;
        }
        Ok((gradients.finish(), learned))
    }

    /// Stops a run whose discriminator has won for good: the injector learns nothing from it any more.
    fn watch(&mut self, step: u64, judged: &Judged, adversarial: f64) -> Result<()> {
        let CollapseConfig { accuracy, patience } = self.config.collapse;
        let sure = judged.real.iter().chain(&judged.fake).all(|share| *share >= accuracy);
        self.collapse_streak = if sure { self.collapse_streak + 1 } else { 0 };
        if patience > 0 && self.collapse_streak >= patience {
            let (real, fake) = (judged.real.clone(), judged.fake.clone());
            return Err(Error::Collapse { step, streak: self.collapse_streak, real, fake, adversarial });
        }
        Ok(())
    }

    /// The metrics of a step, from the discriminator's last round.
    fn metrics(&self, judged: &Judged) -> Metrics {
        let mut metrics = vec![("d_loss".into(), judged.loss), ("d_grad_norm".into(), judged.grad_norm)];
        let first = self.config.loss.first_scale;
        for (i, (real, fake)) in judged.real.iter().zip(&judged.fake).enumerate() {
            metrics.extend([(format!("d_real_{}", i + first), *real), (format!("d_made_{}", i + first), *fake)]);
        }
        metrics.push(("tokens_changed".into(), judged.changed));
        metrics
    }
}

impl Method for AidMethod {
    type Batch = AidBatch;
    type Record = AidRecord;

    fn data(&self) -> &dyn TrainingData {
        &self.stream
    }

    fn networks(&self) -> Vec<&dyn Network> {
        vec![&self.correction, &self.heads]
    }

    fn networks_mut(&mut self) -> Vec<&mut dyn Network> {
        vec![&mut self.correction, &mut self.heads]
    }

    fn check_pieces(&self, pieces: usize) -> Result<()> {
        self.config.validate_pieces(pieces)
    }

    fn batch(&mut self, piece: &Piece) -> Result<AidBatch> {
        Ok(AidBatch { tokens: self.stream.batch(piece)?, shown: None })
    }

    fn rounds(&self, step: u64) -> usize {
        self.judging_rounds() + usize::from(self.learns(step))
    }

    /// Advances the power iteration of the heads by one step per pass, as PyTorch does in training. It depends on the
    /// weights alone, so all pieces share the heads of a pass.
    fn begin(&mut self, round: &Round) -> Result<()> {
        self.passes.clear();
        if round.number < self.judging_rounds() {
            for _ in self.config.loss.first_scale..self.backbone.tokenizer.scales().len() {
                let for_real = self.heads.model.clone().iterated();
                let for_fake = for_real.clone().iterated();
                self.heads.model = for_fake.clone();
                self.passes.push([for_real, for_fake]);
            }
        }
        Ok(())
    }

    fn backward(&self, round: &Round, piece: &Piece, batch: &mut AidBatch) -> Result<(NetworkGradients, AidRecord)> {
        let shown = match batch.shown.take() {
            Some(shown) => shown,
            None => self.show(&batch.tokens, piece)?,
        };
        if round.number < self.judging_rounds() {
            let (gradients, judged) = self.judge(&shown, round, piece)?;
            batch.shown = Some(shown);
            return Ok((vec![(HEADS_NETWORK, gradients)], AidRecord::Judged(judged)));
        }
        let (gradients, learned) = self.learn(shown, round, piece)?;
        Ok((vec![(CORRECTION_NETWORK, gradients)], AidRecord::Learned(learned)))
    }

    fn finish(&mut self, round: &Round, records: Vec<AidRecord>, rates: &[Rates]) -> Result<Metrics> {
        let (mut judged, mut learned) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                AidRecord::Judged(record) => judged.push(record),
                AidRecord::Learned(record) => learned.push(record),
            }
        }
        if !judged.is_empty() {
            let grad_norm = rates.first().map(Rates::grad_norm).transpose()?.unwrap_or_default();
            self.judged = Judged::mean(judged).map(|judged| Judged { grad_norm, ..judged });
            let last = round.number + 1 == self.rounds(round.step);
            let judged = self.judged.as_ref().filter(|_| last);
            return Ok(judged.map_or_else(Metrics::new, |judged| self.metrics(judged)));
        }
        let Some(judged) = self.judged.take() else { return Ok(Metrics::new()) };
        let pieces = learned.len() as f64;
        let (adversarial, reconstruction): (Vec<_>, Vec<_>) =
            learned.into_iter().map(|piece| (piece.adversarial, piece.reconstruction)).unzip();
        let adversarial = sum(adversarial.concat())?.unwrap_or_default() / pieces;
        let mut metrics: Metrics = vec![("adversarial".into(), adversarial)];
        let reconstruction = sum(reconstruction.concat())?;
        metrics.extend(reconstruction.map(|value| ("reconstruction".into(), value / pieces)));
        for rates in rates {
            metrics.extend(rates.metrics()?);
        }
        self.watch(round.step, &judged, adversarial)?;
        metrics.extend(self.metrics(&judged));
        Ok(metrics)
    }

    fn parts(&self) -> Vec<Part<'_>> {
        vec![Part::bytes(STREAK[0], self.collapse_streak.to_le_bytes().to_vec())]
    }

    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let name = STREAK.into_iter().find(|name| checkpoint.parts().any(|part| part == *name)).unwrap_or(STREAK[0]);
        let streak = checkpoint.bytes(name)?;
        let streak = <[u8; 4]>::try_from(&streak[..])
            .map_err(|_| Error::format(checkpoint.path(), format!("`{name}` is not a number of 4 bytes")))?;
        self.collapse_streak = u32::from_le_bytes(streak);
        Ok(())
    }

    /// The same seeds without the injector, and with it below.
    fn samples(&mut self, step: u64) -> Result<Option<PathBuf>> {
        let classes = self.stream.spec().class_names.len().min(self.config.guidance.preview_classes);
        let labels: Vec<usize> = (0..classes).collect();
        let sampler = self.config.guidance.sampler;
        let request = BatchRequest { sampler, ..BatchRequest::classes(&labels, self.config.run.seed) };
        let images = |correction: Option<&Correction>| -> Result<Vec<image::RgbImage>> {
            let generated = self.generate(correction, step, None, None, &request, &mut |_| ())?;
            Ok(to_images(self.backbone.tokenizer.decode(generated.canvas).inner(), ValueRange::Signed)?)
        };
        // Off the graph, which for all classes at once would outgrow a step's.
        let correction = self.correction.model.clone().no_grad();
        let rows = [images(None)?, images(Some(&correction))?].concat();
        let path = self.folder.join("samples").join(format!("step-{step:08}.png"));
        Grid::new(classes).write(&path, &rows)?;
        Ok(Some(path))
    }

    fn export(&self) -> Result<PathBuf> {
        self.heads.average().save(self.folder.join(HEADS), &SaveOptions::default())?;
        match self.correction.average() {
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

/// Returns the mean of single numbers on the graph.
fn mean(terms: Vec<Tensor<1>>) -> Result<Tensor<1>> {
    let count = terms.len();
    let sum = terms.into_iter().reduce(|a, b| a + b);
    Ok(sum.ok_or_else(|| Error::config("scales that are judged", 0, "at least 1"))? / count as f64)
}

/// Returns the sum of single numbers, if there are any.
fn sum(terms: Vec<Tensor<1>>) -> Result<Option<f64>> {
    let sum = terms.into_iter().reduce(|a, b| a + b);
    sum.map(|sum| scalar(&sum, "read the loss")).transpose()
}

/// Returns the mean of zeros and ones.
fn share(values: Tensor<2>) -> Result<f64> {
    scalar(&values.mean(), "read a share")
}

/// Trains an injector in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped the run
/// before the last step.
///
/// # Errors
/// The errors of [`train`].
pub fn train_aid(
    config: AidTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    Ok(train(config, folder, place, progress)?.map(|(file, _)| file))
}
