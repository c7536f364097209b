//! Generates three images of given classes and saves them as PNG files.
//!
//! `cargo run --release -p burn-var --example generate [MODEL]`

use std::path::Path;

use burn_var::prelude::*;

/// Writes `generate-0.png` to `generate-2.png` into `folder`.
pub(crate) fn run(model: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::from_pretrained(model)?;
    // Labels, or names: `pipeline.classes().find("Ankle boot")?` is label 9.
    let request = Request::classes([3, 3, 7]).seed(42);
    for (i, image) in pipeline.generate(&request)?.into_iter().enumerate() {
        image.save(folder.join(format!("generate-{i}.png")))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/fashion-mnist".into());
    run(Path::new(&model), Path::new("."))
}
