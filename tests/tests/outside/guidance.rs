//! Guidance of one's own: it sees every branch, and acts on hidden states and logits.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use burn_var::generation::generate;
use burn_var::guidance::Cfg;
use burn_var::prelude::*;
use burn_var::{Error, Result};

use crate::replace::toy;
use crate::support::pipeline;

/// The calls of a guidance: scale, and the branches that were there.
type Seen = Arc<Mutex<Vec<(usize, [bool; 3])>>>;

/// Guidance that makes scale `at` one level brighter, and asks for both further branches at that scale.
struct Brighter {
    at: usize,
    seen: Seen,
    batches: usize,
}

impl Brighter {
    fn boxed(at: usize, seen: &Seen) -> Box<dyn Guidance> {
        Box::new(Self { at, seen: seen.clone(), batches: 0 })
    }
}

impl Guidance for Brighter {
    fn name(&self) -> &'static str {
        "brighter"
    }

    fn begin(&mut self, batch: &BatchInfo<'_>) -> Result<()> {
        self.batches += 1;
        assert_eq!((self.batches, batch.images, batch.seed), (1, 2, 5), "one batch of two images");
        match self.at < batch.scales.len() {
            true => Ok(()),
            false => Err(Error::config("brighter", self.at, format!("a scale below {}", batch.scales.len()))),
        }
    }

    fn branches(&self, at: ScaleAt<'_>) -> Branches {
        Branches { null: at.k() == self.at, corrupted: at.k() == self.at }
    }

    /// Raises the hidden states, which are gray levels, by one.
    fn hidden(&mut self, at: ScaleAt<'_>, codes: Option<&Tensor<3>>, hidden: Tensor<3>) -> Result<Tensor<3>> {
        assert_eq!(codes.is_none(), at.is_first(), "the codes of the scale before");
        Ok(if at.k() == self.at { hidden + 1.0 } else { hidden })
    }

    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        let beside = logits.corrupted.as_ref();
        let branches =
            [logits.null.is_some(), beside.is_some(), beside.is_some_and(|corrupted| corrupted.null.is_some())];
        self.seen.lock().expect("not poisoned").push((at.k(), branches));
        Ok(logits)
    }
}

/// Guidance that moves every logit to the next choice, which makes each token the next one.
struct Turn;

impl Guidance for Turn {
    fn name(&self) -> &'static str {
        "turn"
    }

    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
        if !at.is_last() {
            return Ok(logits);
        }
        let [_, _, size] = logits.cond.dims();
        let last = logits.cond.clone().narrow(2, size - 1, 1);
        Ok(Logits { cond: Tensor::cat(vec![last, logits.cond.narrow(2, 0, size - 1)], 2), ..logits })
    }
}

#[test]
fn guidance_from_outside_acts_everywhere() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let request = BatchRequest::classes(&[0, 2], 5);
    let plain = [[vec![0], vec![1; 4], vec![2; 16]].concat(), [vec![2], vec![5; 4], vec![0; 16]].concat()];
    let guided = [[vec![0], vec![2; 4], vec![4; 16]].concat(), [vec![2], vec![6; 4], vec![2; 16]].concat()];

    let seen = Seen::default();
    let chain = || vec![Brighter::boxed(1, &seen), Box::new(Turn) as Box<dyn Guidance>];
    let go_on = &mut |_: &burn_var::generation::ScaleDone| ControlFlow::Continue(());
    let direct = generate(&tokenizer, &model, chain(), request.clone(), go_on).expect("images");
    assert_eq!(direct.tokens.to_rows().expect("tokens"), guided);
    let branches = [(0, [true; 3]), (1, [true; 3]), (2, [false; 3])];
    assert_eq!(*seen.lock().expect("not poisoned"), branches, "branches run up to the last scale that needs them");

    let pipeline = pipeline(&tokenizer, &model);
    let piped = pipeline.start_with(chain(), request.clone()).expect("steps").finish().expect("all");
    assert_eq!(piped.tokens.to_rows().expect("tokens"), guided);
    let unguided = pipeline.start(request.clone()).expect("steps").finish().expect("all");
    assert_eq!(unguided.tokens.to_rows().expect("tokens"), plain, "nothing is left of it");

    let error = pipeline.start_with(vec![Brighter::boxed(3, &seen)], request).map(|_| ()).expect_err("three scales");
    assert!(error.to_string().contains("a scale below 3"), "{error}");
}

#[test]
fn it_composes_with_the_parts_of_the_library() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let pipeline = pipeline(&tokenizer, &model);
    let chain: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(0.5)), Box::new(Turn)];
    let generated = pipeline.start_with(chain, BatchRequest::classes(&[1], 0)).expect("steps").finish().expect("all");
    let tokens = generated.tokens.to_rows().expect("tokens");
    assert_eq!(tokens, [[vec![1], vec![3; 4], vec![6; 16]].concat()], "5 and one more");
}
