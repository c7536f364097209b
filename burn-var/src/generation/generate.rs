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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use burn::tensor::Device;

    use super::*;
    use crate::guidance::{Cfg, Schedule, Vpg, VpgConfig};
    use crate::init::{Start, initialise};
    use crate::tokenizer::{VqVae, VqVaeConfig};
    use crate::transformer::{Var, VarConfig};

    fn models() -> (VqVae, Var) {
        let scales = Scales::square(&[1, 2, 3, 4]).unwrap();
        let device = Device::default();
        let tokenizer = VqVaeConfig {
            image_channels: 1,
            ch: 32,
            ch_mult: vec![1, 1],
            num_res_blocks: 1,
            z_channels: 4,
            vocab_size: 7,
            ..VqVaeConfig::public(scales.clone())
        };
        let config: VarConfig = serde_json::from_value(serde_json::json!({
            "depth": 2, "embed_dim": 12, "num_heads": 2, "vocab_size": 7, "z_channels": 4, "num_classes": 3,
            "patch_nums": scales,
        }))
        .unwrap();
        let transformer = initialise(config.init_zeros(&device).unwrap(), 1, |_| Start::Normal(0.3));
        (initialise(tokenizer.init_zeros(&device).unwrap(), 2, |_| Start::Normal(0.3)), transformer)
    }

    /// Which branches there were at each scale, and how far the corrupted ones were from the others.
    type Seen = Rc<RefCell<Vec<[Option<f32>; 2]>>>;

    /// Asks for a corrupted branch up to scale 2, and stretches what enters it.
    struct Spy {
        stretch: f64,
        seen: Seen,
    }

    impl Guidance for Spy {
        fn name(&self) -> &'static str {
            "spy"
        }

        fn needs_corrupted(&self, k: usize, _: &Scales) -> bool {
            k == 2
        }

        fn corrupt(&mut self, _: Entering<'_>, _: &Request, hidden: Tensor<3>) -> Result<Tensor<3>> {
            Ok(hidden * (1.0 + self.stretch))
        }

        fn steer(&mut self, _: usize, _: &Scales, logits: Logits) -> Result<Logits> {
            let apart = |a: &Tensor<3>, b: &Tensor<3>| (a.clone() - b.clone()).abs().max().into_scalar::<f32>();
            let beside = logits.corrupted.as_ref();
            let null = beside.and_then(|beside| beside.null.as_ref()).zip(logits.null.as_ref());
            self.seen
                .borrow_mut()
                .push([beside.map(|beside| apart(&beside.cond, &logits.cond)), null.map(|(a, b)| apart(a, b))]);
            Ok(logits)
        }
    }

    fn run(guidance: Vec<Box<dyn Guidance>>) -> Vec<Vec<u32>> {
        let (tokenizer, transformer) = models();
        let request = Request::new(&[0, 2], 5);
        let mut guidance = guidance;
        let made =
            generate(&tokenizer, &transformer, &mut guidance, &request, &mut |_| ControlFlow::Continue(())).unwrap();
        made.tokens.to_rows().unwrap()
    }

    #[test]
    fn the_corrupted_branch_runs_beside_the_other_as_long_as_it_is_needed() {
        let seen_with = |stretch: f64, cfg: Schedule| {
            let seen = Seen::default();
            let spy = Spy { stretch, seen: seen.clone() };
            let tokens = run(vec![Box::new(spy), Box::new(Cfg { schedule: cfg })]);
            (seen.take(), tokens)
        };
        let ramp = || Schedule::Ramp(2.0);
        let (same, tokens) = seen_with(0.0, ramp());
        assert_eq!(same, [[Some(0.0); 2], [Some(0.0); 2], [Some(0.0); 2], [None; 2]], "uncorrupted, and then gone");
        let (corrupted, others) = seen_with(0.5, ramp());
        let far = |value: &Option<f32>| value.is_some_and(|value| value > 1e-4);
        assert!(corrupted[..3].iter().flatten().all(far), "both branches are corrupted: {corrupted:?}");
        assert_eq!(tokens, others, "nothing but a part that looks at it uses it");
        let (without, _) = seen_with(0.5, Schedule::PerScale(vec![1.0, 1.0, 0.0, 0.0]));
        assert!(far(&without[2][0]) && without[2][1].is_none(), "the null branch ends first: {without:?}");
    }

    #[test]
    fn visual_prefix_guidance_acts_from_the_second_scale_on() {
        let with = |schedule: Schedule| {
            run(vec![Box::new(Cfg::ramp(1.0)), Box::new(Vpg::new(VpgConfig { schedule, share: 0.5 }))])
        };
        let plain = run(vec![Box::new(Cfg::ramp(1.0))]);
        assert_eq!(with(Schedule::Constant(0.0)), plain, "strength 0 changes nothing");
        assert_eq!(with(Schedule::PerScale(vec![9.0, 0.0, 0.0, 0.0])), plain, "nothing comes before the first scale");
        let guided = with(Schedule::Constant(9.0));
        assert_ne!(guided, plain);
        assert!(guided.iter().zip(&plain).all(|(a, b)| a[0] == b[0]), "the first token is as it was");
    }
}
