//! The one loop: every way of making a picture here is this loop with other parts plugged in.

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};

use crate::guidance::{Entering, Given, Guidance, Logits};
use crate::rng::Rng;
use crate::sampler::{Drawn, Sampler};
use crate::transformer::{Label, NextScale, Session};
use crate::{Error, Result, Scales, TokenPyramid, Tokenizer};

/// What to generate.
#[derive(Debug, Clone)]
pub struct Request {
    /// One label a picture.
    pub labels: Vec<Label>,
    /// The seed of the whole set of pictures.
    pub seed: u64,
    /// The number of the first picture in the set. Picture `i` of seed `s` depends on `(s, i)` and its label alone,
    /// not on how the set is cut into batches.
    pub first: u64,
    /// How tokens are drawn.
    pub sampler: Sampler,
}

impl Request {
    /// Pictures of the given classes, the first being number 0, with the paper's sampler.
    pub fn new(labels: &[usize], seed: u64) -> Self {
        let labels = labels.iter().copied().map(Some).collect();
        Self { labels, seed, first: 0, sampler: Sampler::default() }
    }
}

/// A finished scale, as the observer sees it.
#[derive(Debug)]
pub struct ScaleDone<'a> {
    /// Which scale, from 0.
    pub k: usize,
    /// Its guided logits before filtering, `[batch, tokens, vocab]`.
    pub logits: &'a Tensor<3>,
    /// The tokens drawn, `[batch, tokens]`.
    pub ids: &'a Tensor<2, Int>,
    /// The canvas so far; [`Tokenizer::decode`] makes a preview of it.
    pub canvas: &'a Tensor<4>,
}

/// What was generated.
#[derive(Debug)]
pub struct Generated {
    /// The tokens of all scales.
    pub tokens: TokenPyramid,
    /// The final canvas, `[batch, z_channels, height, width]`.
    pub canvas: Tensor<4>,
}

/// Generates a batch of pictures, scale by scale. [`Tokenizer::decode`] turns the canvas into pictures.
///
/// `guidance` is applied in order. `observer` is called after each scale and may stop the loop.
///
/// # Errors
/// [`Error::Label`] and [`Error::Config`] before anything is computed; [`Error::Cancelled`] if the observer stops;
/// [`Error::Shape`] if tokenizer and transformer do not belong together.
pub fn generate(
    tokenizer: &impl Tokenizer,
    transformer: &(impl NextScale + ?Sized),
    guidance: &mut [Box<dyn Guidance>],
    request: &Request,
    observer: &mut dyn FnMut(ScaleDone<'_>) -> ControlFlow<()>,
) -> Result<Generated> {
    check_pair(tokenizer, transformer)?;
    request.sampler.validate()?;
    let scales = transformer.scales();
    guidance.iter().try_for_each(|part| part.check(scales))?;

    let batch = request.labels.len();
    let mut rngs: Vec<Rng> = (0..batch as u64).map(|i| Rng::new(request.seed, "sample", request.first + i)).collect();
    // A branch runs up to the last scale that uses it: its cache has to be complete until then.
    let scales_of = |needs: fn(&dyn Guidance, usize, &Scales) -> bool| {
        let last = (0..scales.len()).rev().find(|&k| guidance.iter().any(|part| needs(&**part, k, scales)));
        last.map_or(0, |k| k + 1)
    };
    let null_scales = scales_of(|part, k, scales| part.needs_null(k, scales));
    let corrupted_scales = scales_of(|part, k, scales| part.needs_corrupted(k, scales));
    let mut labels = request.labels.clone();
    if null_scales > 0 {
        labels.resize(2 * batch, None);
    }

    let codebook = tokenizer.codebook();
    let mut session = transformer.begin(&labels)?;
    let mut corrupted = (corrupted_scales > 0).then(|| session.clone());
    let mut canvas = tokenizer.blank(batch);
    let mut previous: Option<Tensor<3>> = None;
    let mut maps = Vec::with_capacity(scales.len());
    for k in 0..scales.len() {
        if k == null_scales && session.batch() > batch {
            session = session.truncate(batch);
            corrupted = corrupted.map(|session| session.truncate(batch));
        }
        if k == corrupted_scales {
            corrupted = None;
        }
        let input = match session.batch() / batch {
            1 => tokenizer.next_input(&canvas, k),
            branches => tokenizer.next_input(&canvas, k).repeat_dim(0, branches),
        };
        let mut hidden = transformer.embed(&session, k, input);
        let entering = Entering { k, scales, previous: previous.as_ref() };
        for part in guidance.iter_mut() {
            hidden = part.inject(entering, hidden)?;
        }
        let mut beside = None;
        if let Some(session) = &mut corrupted {
            let mut hidden = hidden.clone();
            for part in guidance.iter_mut() {
                hidden = part.corrupt(entering, request, hidden)?;
            }
            beside = Some(Box::new(branches(transformer, session, hidden, batch)));
        }
        let mut logits = Logits { corrupted: beside, ..branches(transformer, &mut session, hidden, batch) };
        for part in guidance.iter_mut() {
            logits = part.steer(k, scales, logits)?;
        }
        let logits = logits.cond;
        let Drawn { mut ids, mut codes } =
            request.sampler.draw(logits.clone(), &mut rngs, scales.ratio(k), &codebook)?;
        for Given { ids: given, mask } in guidance.iter_mut().filter_map(|part| part.given(k)) {
            ids = ids.mask_where(mask.clone(), given.clone());
            codes = codes.map(|codes| {
                let given = tokenizer.lookup(given);
                codes.clone().mask_where(mask.unsqueeze_dim::<3>(2).expand(codes.dims()), given)
            });
        }
        let looked_up = tokenizer.lookup(ids.clone());
        canvas = tokenizer.paint(canvas, k, codes.unwrap_or_else(|| looked_up.clone()));
        previous = Some(looked_up);
        let done = ScaleDone { k, logits: &logits, ids: &ids, canvas: &canvas };
        if observer(done).is_break() {
            return Err(Error::Cancelled { scale: k });
        }
        maps.push(ids);
    }
    Ok(Generated { tokens: TokenPyramid::new(scales.clone(), maps)?, canvas })
}

/// One step of the transformer, its sequences cut into those with a class and those without.
fn branches(transformer: &(impl NextScale + ?Sized), session: &mut Session, hidden: Tensor<3>, batch: usize) -> Logits {
    let logits = transformer.step(session, hidden);
    let sequences = logits.dims()[0];
    if sequences == batch {
        return Logits::cond(logits);
    }
    let null = logits.clone().narrow(0, batch, sequences - batch);
    Logits { null: Some(null), ..Logits::cond(logits.narrow(0, 0, batch)) }
}

/// Whether a transformer speaks a tokenizer's language.
///
/// # Errors
/// [`Error::Config`] naming what differs.
pub fn check_pair(tokenizer: &impl Tokenizer, transformer: &(impl NextScale + ?Sized)) -> Result<()> {
    if tokenizer.scales() != transformer.scales() {
        let expected = format!("`{}`, the tokenizer's", tokenizer.scales());
        return Err(Error::config("patch_nums of the transformer", transformer.scales(), expected));
    }
    if tokenizer.vocab_size() != transformer.vocab_size() {
        let expected = format!("{}, the tokenizer's", tokenizer.vocab_size());
        return Err(Error::config("vocab_size of the transformer", transformer.vocab_size(), expected));
    }
    Ok(())
}
