//! Runs the examples of the crates on the model that ships, and checks the files that they write.
#![allow(dead_code, reason = "each example is a program, whose `main` is not called here")]

use std::error::Error;
use std::path::{Path, PathBuf};

use burn_var::prelude::*;

#[path = "../../burn-var/examples/custom_model.rs"]
mod custom_model;
#[path = "../../burn-var/examples/edit.rs"]
mod edit;
#[path = "../../burn-var/examples/generate.rs"]
mod generate;
#[path = "../../burn-var/examples/guidance.rs"]
mod guidance;
#[path = "../../burn-var/examples/preview.rs"]
mod preview;
#[path = "../../burn-var-train/examples/train_folder.rs"]
mod train_folder;

/// The entry point of an example: a model's folder and the folder that it writes to.
type Example = fn(&Path, &Path) -> Result<(), Box<dyn Error>>;

/// The folder of the model that ships.
fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/fashion-mnist")
}

/// Runs an example in an empty folder, and returns the images that it wrote there, by name.
fn images(run: Example) -> Vec<(String, image::RgbImage)> {
    let folder = tempfile::tempdir().expect("a folder");
    run(&model(), folder.path()).unwrap_or_else(|error| panic!("{error}"));
    let files = std::fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("a file").path());
    let open = |path: PathBuf| {
        let image = image::open(&path).expect("an image").to_rgb8();
        assert_eq!(image.dimensions(), (32, 32), "{}", path.display());
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), image)
    };
    let mut images: Vec<_> = files.map(open).collect();
    images.sort_by(|a, b| a.0.cmp(&b.0));
    images
}

fn names(images: &[(String, image::RgbImage)]) -> Vec<&str> {
    images.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn generate_writes_an_image_per_class() {
    let found = images(generate::run);
    assert_eq!(names(&found), ["generate-0", "generate-1", "generate-2"]);
    assert_ne!(found[0].1, found[1].1, "two images of one class");
}

#[test]
fn preview_stops_before_the_last_scale() {
    let found = images(preview::run);
    assert_eq!(names(&found), ["preview-0", "preview-1", "preview-2", "preview-3", "preview-4"]);
}

#[test]
fn edit_changes_what_it_should() {
    let found = images(edit::run);
    assert_eq!(names(&found), ["completed", "original", "painted"]);
    assert!(found[0].1 != found[1].1 && found[2].1 != found[1].1, "edited images are others");
    // What stays are tokens, so the painted image is compared with what the tokens of the original decode to.
    let pipeline = Pipeline::from_pretrained(model()).expect("the model that ships");
    let all = KnownTokens::all(pipeline.encode(&found[1].1).expect("tokens"));
    let stays = pipeline.generate(&Request::classes([4]).known(all)).expect("an image").remove(0);
    let distance = |x: std::ops::Range<u32>| -> u32 {
        let pixels = x.flat_map(|x| (0..32).map(move |y| (x, y)));
        pixels.map(|(x, y)| u32::from(stays.get_pixel(x, y).0[0].abs_diff(found[2].1.get_pixel(x, y).0[0]))).sum()
    };
    let [left, right] = [distance(0..16), distance(16..32)];
    assert!(left < right, "the left stays, the right is drawn anew: differences {left} and {right}");
}

#[test]
fn guidance_of_ones_own_makes_an_image() {
    assert_eq!(names(&images(guidance::run)), ["guided"]);
}

#[test]
fn a_custom_model_makes_an_image() {
    let found = images(custom_model::run);
    assert_eq!(names(&found), ["remembered"]);
    assert!(found[0].1.pixels().any(|pixel| pixel.0[0] > 64), "not black");
}

#[test]
fn a_tokenizer_is_trained_on_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = train_folder::run(None, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    let dict = burn_var::weights::StateDict::open(file).expect("a checkpoint");
    assert_eq!(dict.kind_name().expect("a kind").as_deref(), Some("vqvae"));
}
