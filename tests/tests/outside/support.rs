//! Parts that the toys share: logits that leave no choice, one way to run a request in all ways, and a tiny executor.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use burn::tensor::{Int, TensorData};
use burn_var::generation::{Generation, generate};
use burn_var::prelude::*;
use burn_var::weights::GenerationConfig;

/// The device of all toys.
pub(crate) fn device() -> Device {
    Device::default()
}

/// Logits `[sequences, tokens, symbols * size]` under which `ids`, `[sequences, tokens * symbols]`, are certain.
pub(crate) fn sharp(ids: Tensor<2>, vocabulary: Vocabulary) -> Tensor<3> {
    let [sequences, symbols] = ids.dims();
    let choices = Tensor::<1, Int>::arange(0..vocabulary.size as i64, &ids.device()).float();
    let choices = choices.reshape([1, 1, vocabulary.size]).expand([sequences, symbols, vocabulary.size]);
    let chosen = ids.unsqueeze_dim::<3>(2).expand([sequences, symbols, vocabulary.size]).equal(choices);
    chosen.float().mul_scalar(100.0).reshape([sequences, symbols / vocabulary.symbols, vocabulary.logits()])
}

/// A column of numbers, one per sequence: `[sequences, 1]`.
pub(crate) fn column(values: &[f32]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len(), 1]), &device())
}

/// The class of each condition as a number; -1 without one.
pub(crate) fn class_numbers(conditions: &[Condition], classes: usize) -> burn_var::Result<Tensor<2>> {
    let rows = Condition::class_rows(conditions, classes)?;
    Ok(column(&rows.into_iter().map(|row| if row == classes { -1.0 } else { row as f32 }).collect::<Vec<_>>()))
}

/// Runs a future that never waits for anything but this thread.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

/// A pipeline of a toy.
pub(crate) fn pipeline<T, M>(tokenizer: &T, model: &M) -> Pipeline
where
    T: Tokenizer + Clone + Send + Sync + 'static,
    M: NextScale + Clone + Send + Sync + 'static,
{
    // Guidance that no toy asks for would only add a branch.
    let config = GenerationConfig { cfg: Schedule::Constant(0.0), ..GenerationConfig::default() };
    Pipeline::new(ModelPair::new(tokenizer.clone(), model.clone()).expect("a pair"), config).expect("a pipeline")
}

/// Generates in every way: the function, the loop by hand, the loop without blocking, the steps of a pipeline and its
/// whole images, with and without blocking. All have to agree; returns the tokens and the first red pixel of each image.
pub(crate) fn everywhere<T, M>(tokenizer: &T, model: &M, request: &Request) -> (Vec<Vec<u32>>, Vec<u8>)
where
    T: Tokenizer + Clone + Send + Sync + 'static,
    M: NextScale + Clone + Send + Sync + 'static,
{
    let batch = || BatchRequest {
        first: request.first,
        scales: request.scales.clone(),
        known: request.known.clone(),
        ..BatchRequest::new(request.conditions.clone(), request.seed)
    };
    let mut scales = Vec::new();
    let mut observer = |done: &burn_var::generation::ScaleDone| {
        scales.push(done.k);
        ControlFlow::Continue(())
    };
    let generated = generate(tokenizer, model, Vec::new(), batch(), &mut observer).expect("an image");
    assert_eq!(scales, (0..generated.tokens.scales().len()).collect::<Vec<_>>(), "every scale is observed");
    let tokens = generated.tokens.to_rows().expect("tokens");

    let mut by_hand = Generation::new(tokenizer, model, Vec::new(), batch()).expect("a batch");
    while by_hand.next_scale().expect("a scale").is_some() {}
    assert_eq!(by_hand.finish().expect("all scales").tokens.to_rows().expect("tokens"), tokens, "by hand");

    let mut waiting = Generation::new(tokenizer, model, Vec::new(), batch()).expect("a batch");
    block_on(async { while waiting.next_scale_async().await.expect("a scale").is_some() {} });
    assert_eq!(waiting.finish().expect("all scales").tokens.to_rows().expect("tokens"), tokens, "without blocking");

    let pipeline = pipeline(tokenizer, model);
    let images = pipeline.generate(request).expect("images");
    assert_eq!(images.len(), request.conditions.len(), "an image per condition");
    assert_eq!(images, pipeline.images(generated.canvas).expect("images"), "the pipeline's images");
    assert_eq!(images, block_on(pipeline.generate_async(request)).expect("images"), "without blocking");

    let mut steps = pipeline.steps(request).expect("steps");
    let mut preview = Vec::new();
    for step in &mut steps {
        preview = step.expect("a step").images().expect("previews");
    }
    assert_eq!(preview, images, "the last preview is the image");
    assert_eq!(steps.finish().expect("all scales").tokens.to_rows().expect("tokens"), tokens, "by steps");
    (tokens, images.iter().map(|image| image.get_pixel(0, 0).0[0]).collect())
}
