//! Guidance of your own: logits that are sharpened more and more towards the last scale, behind classifier-free guidance.
//!
//! `cargo run --release -p burn-var --example guidance [MODEL]`

use std::path::Path;

use burn_var::guidance::Cfg;
use burn_var::prelude::*;

/// Multiplies the logits by a factor that grows from 1 at the first scale to `strength` at the last.
struct Sharpen {
    strength: f64,
}

impl Guidance for Sharpen {
    fn name(&self) -> &'static str {
        "sharpen"
    }

    /// A part may ask for further branches with `branches`, and change hidden states with `hidden`; this one looks at
    /// the logits alone.
    fn logits(&mut self, at: ScaleAt<'_>, logits: Logits) -> burn_var::Result<Logits> {
        let factor = 1.0 + (self.strength - 1.0) * at.ratio();
        Ok(Logits { cond: logits.cond * factor, ..logits })
    }
}

/// Writes `guided.png` into `folder`.
pub(crate) fn run(model: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::from_pretrained(model)?;
    let chain: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(2.0)), Box::new(Sharpen { strength: 1.5 })];
    let generated = pipeline.start_with(chain, BatchRequest::classes(&[9], 7))?.finish()?;
    pipeline.images(generated.canvas)?[0].save(folder.join("guided.png"))?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/fashion-mnist".into());
    run(Path::new(&model), Path::new("."))
}
