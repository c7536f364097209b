//! One step of VA-pi: context, samples, rewards and losses, for any family.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData};
use burn_var::generation::TeacherInput;
use burn_var::math::Resize;
use burn_var::models::aid::soft_codes;
use burn_var::rng::Rng;
use burn_var::sampling::{Noise, Sampler, TopPRule};
use burn_var::{MapSize, Scales, TokenPyramid, Tokenizer, ops};
use rayon::prelude::*;

use super::reward::{RewardTarget, Targets, Terms};
use super::{
    Codes, Credit, Estimator, PolicyMean, Rewards, Samples, StraightThrough, VaPiConfig, VaPiFamily, advantages,
    log_probs, noisy_context,
};
use crate::{Error, Result};

/// Settings and frozen networks of a step, which lie off the autodiff graph.
pub struct VaPi<M: VaPiFamily> {
    config: VaPiConfig,
    credit: Credit,
    tokenizer: M::Tokenizer,
    rewards: Rewards,
    /// The same networks on the graph, for the straight-through estimator.
    through: Option<(M::Tokenizer, Rewards)>,
}

/// Samples of a batch as they were drawn.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Ids, `[batch, tokens, samples]`.
    pub ids: Tensor<3, Int>,
    /// Tokens that could be drawn, `[batch, tokens, vocabulary]`; all if `None`.
    pub support: Option<Tensor<3, Bool>>,
}

/// Rewards of samples. A row is a sample; those of an image lie side by side.
#[derive(Debug, Clone)]
pub struct Judgment {
    /// Rewards by scale, or a single list for all.
    pub rewards: Vec<Vec<f64>>,
    /// Terms of the last of these rewards, before they are weighted.
    pub terms: Terms,
}

/// Loss of the straight-through estimator and its parts.
#[derive(Debug, Clone)]
pub struct StraightThroughLoss {
    /// Weighted terms of the reward, plus weighted cross-entropy.
    pub total: Tensor<1>,
    /// Terms of the reward, `[batch]` each.
    pub terms: Terms,
    /// Cross-entropy of the true tokens; 0, and not computed, without a weight.
    pub cross_entropy: Tensor<1>,
    /// Ids that were decoded, `[batch, tokens]`.
    pub ids: Tensor<2, Int>,
    /// Decoded images.
    pub images: Tensor<4>,
}

impl<M: VaPiFamily> VaPi<M> {
    /// Creates the step of networks on a device without autodiff.
    ///
    /// # Errors
    /// The errors of [`VaPiConfig::validate`] for the images of the tokenizer's schedule.
    pub fn new(config: VaPiConfig, tokenizer: M::Tokenizer, rewards: Rewards) -> Result<Self> {
        let image = tokenizer.image_shape(tokenizer.scales());
        config.validate(image, M::CREDITS)?;
        rewards.check(image)?;
        let credit = config.credit.unwrap_or(M::CREDITS[0]);
        let through = match config.estimator {
            Estimator::StraightThrough(_) => Some((tokenizer.clone().train().no_grad(), rewards.on_graph())),
            Estimator::Grpo => None,
        };
        Ok(Self { config, credit, tokenizer, rewards, through })
    }

    /// Returns the settings.
    pub fn config(&self) -> &VaPiConfig {
        &self.config
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &M::Tokenizer {
        &self.tokenizer
    }

    /// Returns the input of the teacher-forced pass: true tokens, those before others replaced by random ones with the
    /// configured probability. `rngs` has one stream per image.
    ///
    /// # Errors
    /// The errors of [`VaPi::context_of`].
    pub fn context(&self, truth: &TokenPyramid, rngs: &mut [Rng]) -> Result<TeacherInput> {
        if self.config.noise == 0.0 {
            return Ok(TeacherInput::of(&self.tokenizer, truth));
        }
        let scales = truth.scales();
        let (tokens, vocabulary) = (scales.tokens(), self.tokenizer.vocabulary().size);
        let before = scales.range(scales.len() - 1).start;
        let (mut replaced, mut random) = (Vec::new(), Vec::new());
        for rng in rngs {
            for at in 0..tokens {
                // Both are drawn at every token, so that a draw depends on nothing but its place.
                replaced.push(rng.uniform() < self.config.noise && at < before);
                random.push(rng.below(vocabulary) as i64);
            }
        }
        let (shape, device) = ([truth.batch(), tokens], truth.map(0).device());
        let replaced = Tensor::from_data(TensorData::new(replaced, shape), &device);
        self.context_of(truth, replaced, Tensor::from_data(TensorData::new(random, shape), &device))
    }

    /// Returns the input of the teacher-forced pass with random tokens in given places, `[batch, tokens]` each.
    ///
    /// # Errors
    /// [`burn_var::Error::Shape`] for another number of tokens.
    pub fn context_of(
        &self,
        truth: &TokenPyramid,
        replaced: Tensor<2, Bool>,
        random: Tensor<2, Int>,
    ) -> Result<TeacherInput> {
        let noisy = noisy_context(truth.sequence(), replaced, random);
        let noisy = TokenPyramid::from_sequence(truth.scales().clone(), noisy)?;
        Ok(TeacherInput::of(&self.tokenizer, &noisy))
    }

    /// Draws the samples of a batch, every token by itself, from logits `[batch, tokens, vocabulary]` off the graph. `rngs`
    /// has one stream per image.
    ///
    /// # Errors
    /// The errors of [`Sampler::filter`] and [`Sampler::draw`].
    pub fn draw(&self, logits: Tensor<3>, rngs: &mut [Rng]) -> Result<Draw> {
        let (shape @ [.., vocabulary], device) = (logits.dims(), logits.device());
        let VaPiConfig { group, top_k, top_p, loss, .. } = &self.config;
        let mut values = logits.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read logits"))?;
        let filter = Sampler {
            top_k: *top_k,
            top_p: *top_p,
            top_p_rule: TopPRule::Descending,
            temperature: loss.temperature,
            ..Sampler::default()
        };
        // Once for all samples; the draws below filter nothing.
        values.par_chunks_mut(vocabulary).try_for_each(|row| filter.filter(row))?;
        let support = self.config.is_filtered().then(|| {
            let kept: Vec<bool> = values.iter().map(|logit| *logit > f32::NEG_INFINITY).collect();
            Tensor::from_data(TensorData::new(kept, shape), &device)
        });
        let (plain, codes) = (Sampler { top_k: 0, top_p: 0.0, ..Sampler::default() }, self.tokenizer.codebook());
        let samples = (0..*group).map(|_| {
            let noise: Vec<Noise> = rngs.iter_mut().map(Noise::new).collect();
            Ok(plain.draw(values.clone(), shape, &noise, 0.0, &codes)?.ids)
        });
        Ok(Draw { ids: Tensor::stack(samples.collect::<Result<Vec<_>>>()?, 2), support })
    }

    /// Returns the final canvas of ids, `[batch, tokens]`.
    fn canvas(&self, ids: Tensor<2, Int>, scales: &Scales) -> Tensor<4> {
        M::canvas(&self.tokenizer, self.tokenizer.lookup(ids), scales)
    }

    /// Decodes ids, `[batch, tokens]`, to images.
    pub fn decode(&self, ids: Tensor<2, Int>, scales: &Scales) -> Tensor<4> {
        M::decode(&self.tokenizer, self.canvas(ids, scales))
    }

    /// Returns the images that samples are compared with, and what the terms need of them.
    ///
    /// # Errors
    /// Images of another shape than the tokenizer's.
    pub fn targets(&self, images: Tensor<4>, truth: &TokenPyramid) -> Result<Targets> {
        let shown = match self.rewards.config().target {
            RewardTarget::Image => images.clone(),
            RewardTarget::Reconstruction => self.decode(truth.sequence(), truth.scales()),
        };
        self.rewards.targets(shown, || M::latent(&self.tokenizer, images))
    }

    /// Decodes samples, `[batch, tokens, samples]`, in pieces, and computes their rewards.
    ///
    /// # Errors
    /// The errors of [`Rewards::terms`]; a device that fails.
    pub fn judge(&self, targets: &Targets, truth: &TokenPyramid, ids: &Tensor<3, Int>) -> Result<Judgment> {
        let [batch, tokens, group] = ids.dims();
        let (scales, count) = (truth.scales(), batch * group);
        let ids = ops::swap(ids.clone(), 1, 2).reshape([count, tokens]);
        let truth = truth.sequence();
        let mut rewards: Vec<Vec<f64>> = Vec::new();
        let mut terms = Vec::new();
        for first in (0..count).step_by(self.config.decode_batch) {
            let piece = first..count.min(first + self.config.decode_batch);
            let images: Vec<i64> = piece.clone().map(|row| (row / group) as i64).collect();
            let images = Tensor::<1, Int>::from_data(TensorData::from(&images[..]), &ids.device());
            let own = ids.clone().narrow(0, piece.start, piece.len());
            let (by_scale, of) =
                self.judge_piece(&targets.select(&images), truth.clone().select(0, images.clone()), own, scales)?;
            rewards.resize(by_scale.len(), Vec::new());
            for (all, piece) in rewards.iter_mut().zip(by_scale) {
                let piece = piece.try_into_vec_as::<f64>().map_err(burn_var::Error::device("read rewards"))?;
                all.extend(piece);
            }
            terms.push(of);
        }
        let none = || Error::from(burn_var::Error::shape("samples", "at least one", [0]));
        Ok(Judgment { rewards, terms: Terms::join(terms).ok_or_else(none)? })
    }

    /// Returns the rewards of some samples, by scale or one for all, and the terms of the last.
    fn judge_piece(
        &self,
        targets: &Targets,
        truth: Tensor<2, Int>,
        own: Tensor<2, Int>,
        scales: &Scales,
    ) -> Result<(Vec<Tensor<1>>, Terms)> {
        let terms_of = |ids: Tensor<2, Int>| {
            let canvas = self.canvas(ids, scales);
            self.rewards.terms(M::decode(&self.tokenizer, canvas.clone()), canvas, targets.clone())
        };
        // Samples whose other scales are true.
        let mixed = |is_own: &dyn Fn(usize) -> bool| {
            let map = |k: usize| {
                let (of, range) = (if is_own(k) { &own } else { &truth }, scales.range(k));
                of.clone().narrow(1, range.start, range.len())
            };
            Tensor::cat((0..scales.len()).map(map).collect(), 1)
        };
        let each = |ids: &dyn Fn(usize) -> Tensor<2, Int>| -> Result<Vec<Terms>> {
            (0..scales.len()).map(|k| terms_of(ids(k))).collect()
        };
        let mut all = match self.credit {
            Credit::Shared | Credit::LastScale => vec![terms_of(own.clone())?],
            Credit::PrefixSwap => each(&|k| mixed(&|j| j <= k))?,
            Credit::OnlyScale => each(&|k| mixed(&|j| j == k))?,
            Credit::LeaveOneScale => each(&|k| mixed(&|j| j != k))?,
            Credit::PerScaleDecode => {
                return Ok(self.judge_scales(targets, own, scales));
            }
        };
        let mut rewards: Vec<Tensor<1>> = all.iter().map(|terms| self.rewards.weighted(terms).neg()).collect();
        if self.credit == Credit::LeaveOneScale {
            let whole = terms_of(own)?;
            let reward = self.rewards.weighted(&whole).neg();
            rewards = rewards.into_iter().map(|without| reward.clone() - without).collect();
            all.push(whole);
        }
        let last = all.pop().ok_or_else(|| Error::config("scale schedule", scales, "at least one map"))?;
        Ok((rewards, last))
    }

    /// Returns the rewards of each scale by itself, and the terms of the last.
    fn judge_scales(&self, targets: &Targets, own: Tensor<2, Int>, scales: &Scales) -> (Vec<Tensor<1>>, Terms) {
        let config = self.rewards.config();
        let error_at = |at: burn_var::scales::ScaleAt<'_>| {
            let range = at.range();
            let codes = self.tokenizer.lookup(own.clone().narrow(1, range.start, range.len()));
            let blank = self.tokenizer.blank(own.dims()[0], scales);
            let image = M::decode(&self.tokenizer, self.tokenizer.paint(blank, at, codes));
            let image = if config.clamp { image.clamp(-1.0, 1.0) } else { image };
            let [.., height, width] = image.dims();
            config.error.of(image, Resize::Area.apply(targets.images.clone(), MapSize { height, width }))
        };
        let errors: Vec<Tensor<1>> = scales.iter().map(error_at).collect();
        let last = errors[errors.len() - 1].clone();
        let rewards = errors.into_iter().map(|error| error * -config.pixels).collect();
        (rewards, Terms { pixels: last, lpips: None, embedding: None, features: None })
    }

    /// Returns what the policy term needs of samples: log-probabilities under `logits`, off the graph, advantages, and the
    /// share of each token. `reference` has the logits of the reference model; `counted` is false for the tokens that are left
    /// out, by sample.
    ///
    /// # Errors
    /// [`Error::Config`] for rewards that are not whole groups.
    pub fn samples(
        &self,
        logits: Tensor<3>,
        draw: Draw,
        judgment: &Judgment,
        reference: Option<Tensor<3>>,
        counted: Option<&[Vec<bool>]>,
        scales: &Scales,
    ) -> Result<Samples> {
        let Draw { ids, support } = draw;
        let log_probs_of = |logits| log_probs(logits, ids.clone(), self.config.loss.temperature, support.clone());
        Ok(Samples {
            old: log_probs_of(logits),
            reference: reference.map(log_probs_of),
            advantages: self.advantages(judgment, &ids, scales)?,
            weights: self.weights(scales, counted, &ids),
            ids: ids.clone(),
            support: support.clone(),
        })
    }

    /// Returns the advantages of samples, `[batch, 1, samples]`, or `[batch, tokens, samples]` if scales have their own.
    fn advantages(&self, judgment: &Judgment, ids: &Tensor<3, Int>, scales: &Scales) -> Result<Tensor<3>> {
        let [batch, _, group] = ids.dims();
        let columns: Vec<Tensor<3>> = judgment
            .rewards
            .iter()
            .map(|rewards| {
                let found = advantages(rewards, group, self.config.loss.advantage_floor)?;
                let found: Vec<f32> = found.into_iter().map(|advantage| advantage as f32).collect();
                Ok(Tensor::from_data(TensorData::new(found, [batch, 1, group]), &ids.device()))
            })
            .collect::<Result<_>>()?;
        if columns.len() == 1 {
            return Ok(Tensor::cat(columns, 1));
        }
        let per_token = columns.into_iter().enumerate().map(|(k, column)| column.repeat_dim(1, scales.range(k).len()));
        Ok(Tensor::cat(per_token.collect(), 1))
    }

    /// Returns the share of each token in the policy term of its sample; `None` if all have the same.
    fn weights(&self, scales: &Scales, counted: Option<&[Vec<bool>]>, ids: &Tensor<3, Int>) -> Option<Tensor<3>> {
        let [batch, tokens, group] = ids.dims();
        let last = scales.range(scales.len() - 1);
        let share = |k: usize| match (self.credit, self.config.mean) {
            (Credit::LastScale, _) => f64::from(scales.range(k) == last),
            (_, PolicyMean::Tokens) => 1.0,
            (_, PolicyMean::Scales) => 1.0 / scales.range(k).len() as f64,
        };
        let plain: Vec<f64> = scales.levels().into_iter().map(share).collect();
        let uniform = plain.iter().all(|share| *share == plain[0]);
        let Some(counted) = counted else {
            let values = normalized(&plain);
            let values = || Tensor::from_data(TensorData::new(values, [1, tokens, 1]), &ids.device());
            return (!uniform).then(values);
        };
        let row = |counted: &Vec<bool>| -> Vec<f32> {
            let mut row: Vec<f64> =
                plain.iter().zip(counted).map(|(share, counted)| if *counted { *share } else { 0.0 }).collect();
            // As released: a sample without any keeps its first token.
            let first = plain.iter().position(|share| *share > 0.0);
            if let (true, Some(first)) = (row.iter().all(|share| *share == 0.0), first) {
                row[first] = 1.0;
            }
            normalized(&row)
        };
        let rows: Vec<f32> = counted.iter().flat_map(row).collect();
        Some(ops::swap(Tensor::from_data(TensorData::new(rows, [batch, group, tokens]), &ids.device()), 1, 2))
    }

    /// Draws the tokens of each sample that count in the policy term: those of an image side by side, all if none is left
    /// out. `rngs` has one stream per image.
    pub(super) fn counted(&self, tokens: usize, rngs: &mut [Rng]) -> Option<Vec<Vec<bool>>> {
        let VaPiConfig { group, token_dropout, .. } = self.config;
        let row = |rng: &mut Rng| (0..tokens).map(|_| rng.uniform() >= token_dropout).collect();
        let rows = |rng: &mut Rng| -> Vec<Vec<bool>> { (0..group).map(|_| row(rng)).collect() };
        (token_dropout > 0.0).then(|| rngs.iter_mut().flat_map(rows).collect())
    }

    /// Draws the Gumbel noise of the straight-through estimator, `[batch, tokens, vocabulary]`. `rngs` has one stream per
    /// image.
    pub(super) fn gumbel(&self, tokens: usize, rngs: &mut [Rng]) -> Tensor<3> {
        let vocabulary = self.tokenizer.vocabulary().size;
        let mut noise = vec![0.0; rngs.len() * tokens * vocabulary];
        let images = noise.par_chunks_mut(tokens * vocabulary).zip(rngs.par_iter_mut());
        images.for_each(|(noise, rng)| noise.iter_mut().for_each(|value| *value = rng.gumbel() as f32));
        Tensor::from_data(TensorData::new(noise, [rngs.len(), tokens, vocabulary]), &self.tokenizer.device())
    }

    /// Computes the loss of the straight-through estimator: the terms of a sample that is decoded from the hard choices of a
    /// Gumbel-softmax, whose gradient is that of the soft ones. Cross-entropy is computed from `dropout`, the logits of a pass
    /// with dropout, if there are any. Of the arguments, logits alone lie on the graph.
    ///
    /// # Errors
    /// [`Error::Config`] if another estimator is configured; those of [`Rewards::terms`].
    pub fn straight_through(
        &self,
        logits: Tensor<3>,
        dropout: Option<Tensor<3>>,
        gumbel: Tensor<3>,
        targets: Targets,
        truth: &TokenPyramid,
    ) -> Result<StraightThroughLoss> {
        let config = &self.config.loss;
        let (Estimator::StraightThrough(StraightThrough { tau, codes }), Some((tokenizer, rewards))) =
            (self.config.estimator, &self.through)
        else {
            return Err(Error::config("va_pi.estimator", "grpo", "straight-through, for this loss"));
        };
        let noisy = logits.clone() / config.temperature + Tensor::from_inner(gumbel);
        let ids = noisy.clone().inner().argmax(2).squeeze_dim::<2>(2);
        let codebook = match codes {
            Codes::Used => tokenizer.codebook(),
            Codes::Stored => M::stored_codes(tokenizer),
        };
        let [batch, tokens] = ids.dims();
        let hard = codebook.clone().select(0, Tensor::from_inner(ids.clone()).reshape([batch * tokens]));
        let soft = soft_codes(noisy, codebook, tau);
        let hard = hard.reshape(soft.dims());
        let straight = hard - soft.clone().detach() + soft;
        let canvas = M::canvas(tokenizer, straight, truth.scales());
        let images = M::decode(tokenizer, canvas.clone());
        let terms = rewards.terms(images.clone(), canvas, targets.on_graph())?;
        let apart = rewards.weighted(&terms).mean();
        let truth = Tensor::from_inner(truth.sequence());
        let cross_entropy = match config.cross_entropy > 0.0 {
            true => ops::cross_entropy(dropout.unwrap_or(logits), truth, 0.0).mean(),
            false => apart.zeros_like(),
        };
        let total = apart + cross_entropy.clone() * config.cross_entropy;
        Ok(StraightThroughLoss { total, terms, cross_entropy, ids, images: images.inner() })
    }
}

/// Returns shares whose sum is 1.
fn normalized(shares: &[f64]) -> Vec<f32> {
    let sum: f64 = shares.iter().sum();
    shares.iter().map(|share| (share / sum) as f32).collect()
}
