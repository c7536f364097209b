//! Edits an image: draws its right half anew (in-painting by a mask), and keeps only its coarse scales (completion).
//!
//! `cargo run --release -p burn-var --example edit [MODEL]`

use std::path::Path;

use burn_var::prelude::*;

/// Writes `original.png`, `painted.png` and `completed.png` into `folder`.
pub(crate) fn run(model: &Path, folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let pipeline = Pipeline::from_pretrained(model)?;
    // Any image will do, such as `image::open("photo.png")?.to_rgb8()`.
    let original = pipeline.generate(&Request::classes([4]).seed(5))?.remove(0);
    original.save(folder.join("original.png"))?;
    let tokens = pipeline.encode(&original)?;

    // The mask is 1 where the image stays. Its size is free.
    let mask = Tensor::<1>::from_floats([1.0, 0.0], &pipeline.device()).reshape([1, 1, 1, 2]);
    let half = KnownTokens::masked(tokens.clone(), mask)?;
    let painted = pipeline.generate(&Request::classes([4]).seed(6).known(half))?;
    painted[0].save(folder.join("painted.png"))?;

    // The first three scales stay, and another class draws the others.
    let coarse = KnownTokens::first(tokens, 3);
    let completed = pipeline.generate(&Request::classes([6]).seed(6).known(coarse))?;
    completed[0].save(folder.join("completed.png"))?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "models/fashion-mnist".into());
    run(Path::new(&model), Path::new("."))
}
