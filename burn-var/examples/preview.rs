//! Shows an image scale by scale while it is generated, and stops before the last scale.
//!
//! `cargo run --release -p burn-var --example preview [MODEL]`

use std::path::Path;

use burn_var::prelude::*;

/// Writes one preview per scale, `preview-0.png` and so on, into `folder`.
pub(crate) fn run(model: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::from_pretrained(model)?;
    let last = pipeline.scales().len() - 1;
    for step in pipeline.steps(&Request::classes([8]).seed(1))? {
        let step = step?;
        step.image()?.save(folder.join(format!("preview-{}.png", step.k())))?;
        if step.k() + 1 == last {
            break; // Dropping the steps stops the work: the last scale is never computed.
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/fashion-mnist".into());
    run(Path::new(&model), Path::new("."))
}
