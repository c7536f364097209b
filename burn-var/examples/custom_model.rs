//! A model of your own with the tokenizer of another: it draws the tokens of an image that it was given.
//!
//! `cargo run --release -p burn-var --example custom_model [MODEL]`

use std::path::Path;

use burn::tensor::Int;
use burn_var::models::var::{Var, VqVae};
use burn_var::ops::transpose;
use burn_var::prelude::*;
use burn_var::weights::GenerationConfig;

/// A model that knows one image by heart.
struct Memory {
    tokens: TokenPyramid,
    codes: usize,
}

/// All that a batch carries from scale to scale: here, the number of sequences.
#[derive(Clone)]
struct Sequences(usize);

impl State for Sequences {
    fn sequences(&self) -> usize {
        self.0
    }

    fn keep_first(self, count: usize) -> Self {
        Self(count)
    }

    fn detach(&mut self) {}
}

impl NextScale for Memory {
    type State = Sequences;

    fn scales(&self) -> &Scales {
        self.tokens.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(self.codes)
    }

    fn num_classes(&self) -> usize {
        0
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> burn_var::Result<Sequences> {
        Ok(Sequences(conditions.len()))
    }

    /// A transformer embeds the canvas here. A memory takes it as it is: `[sequences, tokens, channels]`.
    fn embed(&self, _state: &Sequences, _at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        transpose(input.map.flatten::<3>(2, 3))
    }

    /// Returns logits that are large at the remembered token, `[sequences, tokens, codes]`.
    fn step(&self, state: &mut Sequences, at: ScaleAt<'_>, _hidden: Tensor<3>) -> Tensor<3> {
        let ids: Tensor<2, Int> = self.tokens.map(at.k());
        ids.one_hot::<3>(self.codes).float().mul_scalar(100.0).repeat_dim(0, state.0)
    }
}

/// Writes `remembered.png` into `folder`.
pub(crate) fn run(model: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let shipped = Pipeline::from_pretrained(model)?;
    let tokens = shipped.encode(&shipped.generate(&Request::classes([1]).seed(3))?[0])?;
    let tokenizer = shipped.pair::<VqVae, Var>().ok_or("not a VAR model")?.tokenizer.clone();
    let memory = Memory { codes: tokenizer.vocabulary().size, tokens };
    let pipeline = Pipeline::new(ModelPair::new(tokenizer, memory)?, GenerationConfig::default())?;
    pipeline.generate(&Request::unconditional(1))?[0].save(folder.join("remembered.png"))?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/fashion-mnist".into());
    run(Path::new(&model), Path::new("."))
}
