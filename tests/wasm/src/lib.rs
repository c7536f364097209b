//! Generates one image with the model that ships and compares it with a stored result. The native test and the
//! WebAssembly module, which `run.mjs` loads, run the same check: inference uses no threads, files or clocks there.
#![cfg_attr(not(any(test, target_family = "wasm")), allow(dead_code, reason = "the test and the module use it"))]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use burn_var::pipeline::ModelFiles;
use burn_var::prelude::*;
use burn_var::weights::StateDict;
use burn_var::{Error, Result};
use serde::{Deserialize, Serialize};

/// An ankle boot.
const LABEL: usize = 9;
/// Side of the square whose mean stands for its pixels, in pixels.
const CELL: usize = 4;

/// Results that are compared.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// The tokens of all scales.
    tokens: Vec<u32>,
    /// Mean of each [`CELL`] x [`CELL`] square of the image, row by row, in `[-1, 1]`.
    cells: Vec<f32>,
}

/// Generates as a browser does, without a synchronous read-back of logits.
async fn generate_image() -> Result<Outcome> {
    let tokenizer = include_bytes!("../../../models/fashion-mnist/tokenizer.safetensors").as_slice();
    let transformer = include_bytes!("../../../models/fashion-mnist/transformer.safetensors").as_slice();
    let files = ModelFiles {
        tokenizer: StateDict::from_safetensors("tokenizer", tokenizer)?,
        transformer: StateDict::from_safetensors("transformer", transformer)?,
        injector: None,
    };
    let pipeline = Pipeline::builder().files(files).device(&Device::flex()).build()?;
    let mut steps = pipeline.steps(&Request::classes([LABEL]).seed(1))?;
    while let Some(step) = steps.next_async().await? {
        step.images_async().await?;
    }
    let generated = steps.finish()?;
    let tokens = generated.tokens.to_rows()?.concat();
    let image = pipeline.tokenizer().decode(generated.canvas);
    let [_, _, height, width] = image.dims();
    let cells = image.reshape([height / CELL, CELL, width / CELL, CELL]).mean_dim(1).mean_dim(3);
    let cells = cells.try_into_vec_as::<f32>().map_err(Error::device("read an image"))?;
    Ok(Outcome { tokens, cells })
}

/// Runs a future that never waits for anything outside.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// Generates the image and compares it with `expected.json`.
///
/// # Panics
/// If they differ.
fn check() -> String {
    let expected: Outcome = serde_json::from_str(include_str!("../expected.json")).expect("stored in this folder");
    let found = block_on(generate_image()).expect("the model that ships generates an image");
    let as_json = || serde_json::to_string(&found).expect("numbers are JSON");
    assert_eq!(found.tokens, expected.tokens, "tokens differ; found {}", as_json());
    assert_eq!(found.cells.len(), expected.cells.len());
    let error = found.cells.iter().zip(&expected.cells).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= 1e-4, "the image differs by {error}; found {}", as_json());
    format!("{} tokens agree, and the image to {error:.1e}", found.tokens.len())
}

/// Functions that the host of the module calls and provides.
#[cfg(target_family = "wasm")]
mod host {
    use burn_var::weights::StateDict;

    #[link(wasm_import_module = "host")]
    unsafe extern "C" {
        /// Prints UTF-8 text.
        safe fn print(text: *const u8, length: usize);
    }

    fn say(text: &str) {
        print(text.as_ptr(), text.len());
    }

    /// Runs every check; a panic is printed and traps.
    #[unsafe(no_mangle)]
    extern "C" fn run() {
        std::panic::set_hook(Box::new(|panic| say(&panic.to_string())));
        say(&super::check());
        let error = StateDict::open("model.safetensors").expect_err("there are no files here");
        say(&format!("opening a file is an error: {error}"));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_image_is_what_it_was() {
        println!("{}", super::check());
    }
}
