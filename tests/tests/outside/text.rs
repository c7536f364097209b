//! Features of a text in place of a class, as in LlamaGen's and Infinity's text-to-image models.

use burn_var::generation::ScaleInput;
use burn_var::prelude::*;
use burn_var::{Error, Result};

use crate::replace::{Classes, Gray, Raise, toy};
use crate::support::{column, device, everywhere, pipeline};

/// A model that reads its gray level from a text: the number of tokens.
#[derive(Clone)]
struct Told(Raise);

impl NextScale for Told {
    type State = Classes;

    fn scales(&self) -> &Scales {
        self.0.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.0.vocabulary()
    }

    fn num_classes(&self) -> usize {
        0
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> Result<Classes> {
        let level = |condition: &Condition| match condition {
            Condition::Text(features) => Ok(features.dims()[0] as f32),
            Condition::Null => Ok(0.0),
            _ => Err(Error::unsupported("a class condition", "this model is conditioned on text features")),
        };
        Ok(Classes(column(&conditions.iter().map(level).collect::<Result<Vec<_>>>()?)))
    }

    fn embed(&self, state: &Classes, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        self.0.embed(state, at, input)
    }

    fn step(&self, state: &mut Classes, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.0.step(state, at, hidden)
    }
}

fn text(tokens: usize) -> Condition {
    Condition::Text(Tensor::ones([tokens, 5], &device()))
}

fn told() -> (Gray, Told) {
    let (tokenizer, model) = toy(&[1, 2]);
    (tokenizer, Told(model))
}

#[test]
fn texts_of_different_lengths_share_a_batch() {
    let (tokenizer, model) = told();
    let request = Request::new([text(2), text(5), Condition::Null]);
    let (tokens, _) = everywhere(&tokenizer, &model, &request);
    assert_eq!(tokens, [[2, 5, 5, 5, 5], [5, 3, 3, 3, 3], [0, 1, 1, 1, 1]]);
}

#[test]
fn a_class_is_refused_by_name() {
    let (tokenizer, model) = told();
    let pipeline = pipeline(&tokenizer, &model);
    let error = pipeline.generate(&Request::classes([0])).expect_err("a class").to_string();
    assert!(error.contains("a class condition") && error.contains("text features"), "{error}");
    let error = pipeline.classes().find("3").expect_err("no classes").to_string();
    assert!(error.contains("3"), "{error}");
    // And a text by a model of classes.
    let (tokenizer, model) = toy(&[1, 2]);
    let error = crate::support::pipeline(&tokenizer, &model).generate(&Request::new([text(1)])).expect_err("a text");
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}
