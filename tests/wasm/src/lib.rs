//! Generates one image with the model that ships and compares it with a stored result. The native test and the
//! WebAssembly module, which `run.mjs` loads, run the same check: inference uses no threads, files or clocks there.
#![cfg_attr(not(any(test, target_family = "wasm")), allow(dead_code, reason = "the test and the module use it"))]

use std::ops::ControlFlow;

use burn::tensor::Device;
use burn_var::guidance::Cfg;
use burn_var::pretrained::{StateDict, Usage, load_var, load_vqvae, var_config, vqvae_config};
use burn_var::{Request, Result, Tokenizer, generate};
use serde::{Deserialize, Serialize};

/// An ankle boot.
const LABEL: usize = 9;
/// Side of the square whose mean stands for its pixels, in pixels.
const CELL: usize = 4;

/// What is compared.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// The tokens of all scales.
    tokens: Vec<u32>,
    /// Mean of each [`CELL`] x [`CELL`] square of the image, row by row, in `[-1, 1]`.
    cells: Vec<f32>,
}

fn generate_image() -> Result<Outcome> {
    let device = Device::flex();
    let tokenizer = include_bytes!("../../../models/fashion-mnist/tokenizer.safetensors").as_slice();
    let tokenizer = StateDict::from_safetensors("tokenizer", tokenizer)?;
    let tokenizer = load_vqvae(&tokenizer, &vqvae_config(&tokenizer, None)?, &device)?;
    let transformer = include_bytes!("../../../models/fashion-mnist/transformer.safetensors").as_slice();
    let transformer = StateDict::from_safetensors("transformer", transformer)?;
    let usage = Usage::of(&transformer)?.unwrap_or_default();
    let transformer = load_var(&transformer, &var_config(&transformer, None)?, &device)?;

    let request = Request { sampler: usage.sampler, ..Request::new(&[LABEL], 1) };
    let mut guidance = [Box::new(Cfg { schedule: usage.cfg }) as _];
    let generated = generate(&tokenizer, &transformer, &mut guidance, &request, &mut |_| ControlFlow::Continue(()))?;
    let tokens = generated.tokens.to_rows()?.concat();
    let image = tokenizer.decode(generated.canvas);
    let [_, _, height, width] = image.dims();
    let cells = image.reshape([height / CELL, CELL, width / CELL, CELL]).mean_dim(1).mean_dim(3);
    let cells = cells.try_into_vec_as::<f32>().map_err(burn_var::Error::device("read an image"))?;
    Ok(Outcome { tokens, cells })
}

/// Generates the image and compares it with `expected.json`.
///
/// # Panics
/// If they differ.
fn check() -> String {
    let expected: Outcome = serde_json::from_str(include_str!("../expected.json")).expect("stored in this folder");
    let found = generate_image().expect("the model that ships generates an image");
    let as_json = || serde_json::to_string(&found).expect("numbers are JSON");
    assert_eq!(found.tokens, expected.tokens, "tokens differ; found {}", as_json());
    assert_eq!(found.cells.len(), expected.cells.len());
    let error = found.cells.iter().zip(&expected.cells).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error <= 1e-4, "the image differs by {error}; found {}", as_json());
    format!("{} tokens agree, and the image to {error:.1e}", found.tokens.len())
}

/// What the host of the module calls and provides.
#[cfg(target_family = "wasm")]
mod host {
    use burn_var::pretrained::StateDict;

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
