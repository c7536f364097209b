//! Trains a tokenizer on a folder with one sub-folder of images per class, for a few steps on images made here.
//!
//! `cargo run --release -p burn-var-train --example train_folder [FOLDER OF IMAGES]`

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_var_train::tokenizer::train_tokenizer;

/// Writes twelve images of disks and stripes.
fn make_images(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for (class, name) in ["disks", "stripes"].into_iter().enumerate() {
        std::fs::create_dir_all(folder.join(name))?;
        for i in 0..6u32 {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                let disk = x.abs_diff(8).pow(2) + y.abs_diff(8).pow(2) < (i + 3).pow(2);
                let on = if class == 0 { disk } else { (x + i) % 6 < 3 };
                image::Rgb([if on { 230 } else { 20 }; 3])
            });
            image.save(folder.join(name).join(format!("{i}.png")))?;
        }
    }
    Ok(())
}

/// Trains in `folder`, and returns the file of the tokenizer. The same call resumes a run that was stopped.
pub(crate) fn run(images: Option<&Path>, folder: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let images = match images {
        Some(images) => images.to_owned(),
        None => folder.join("images"),
    };
    if !images.exists() {
        make_images(&images)?;
    }
    let config = format!(
        "[run]\nsteps = 4\nbatch_size = 4\nsave_every = 4\nlog_every = 1\nsample_every = 4\n\
         [data]\npath = {images:?}\n[data.options]\nholdout = 0.25\n\
         [model]\nimage_channels = 1\nch = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nz_channels = 4\n\
         vocab_size = 16\npatch_nums = [1, 2, 4, 8]\n\
         [learning_rate]\npeak = 0.001\n"
    );
    // A run's settings are usually a file: `burn_var_train::config::read_toml("tokenizer.toml")?`.
    let file = train_tokenizer(toml::from_str(&config)?, &folder.join("run"), &Device::default(), &mut ())?;
    file.ok_or_else(|| "the run was stopped".into())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = std::env::args().nth(1).map(PathBuf::from);
    run(images.as_deref(), Path::new("burn-var-train-example"))?;
    Ok(())
}
