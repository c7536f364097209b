//! Commands that use a model, as a user runs them.

mod support;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use burn_var::classifier::ClassifierConfig;
use burn_var::pretrained::{StateDict, load_vqvae, save, save_classifier, vqvae_config};
use burn_var::rng::Rng;
use support::{assert_same_weights, fails, json, ok, picture, tiny_model};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_model(folder.path(), 3);
    folder
}

fn arrays(path: &Path) -> (Vec<u64>, Vec<u8>, Vec<i64>) {
    let mut file = npyz::npz::NpzArchive::open(path).expect("an npz file");
    let pictures = file.by_name("arr_0").expect("readable").expect("arr_0");
    let shape = pictures.shape().to_vec();
    assert_eq!(pictures.dtype().descr(), "'|u1'", "pictures are bytes");
    let pictures = pictures.into_vec().expect("bytes");
    let labels = file.by_name("arr_1").expect("readable").expect("arr_1").into_vec().expect("int64");
    (shape, pictures, labels)
}

#[test]
fn without_arguments_the_compiled_model_makes_a_picture() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = ok(folder.path(), &["sample"]);
    assert!(text.contains("burn-var-sample.png"), "says where it is: {text}");
    let sheet = image::open(folder.path().join("burn-var-sample.png")).expect("a picture");
    assert!(
        sheet.width() > 8 * 32 && sheet.height() > 10 * 32,
        "rows of classes: {:?}",
        (sheet.width(), sheet.height())
    );
    assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1, "nothing else was written");
}

#[test]
fn classes_by_name_in_equal_parts() {
    let folder = folder();
    let at = folder.path();
    let report =
        json(at, &["sample", "--model", ".", "--class", "NEWT", "--class", "0,red p", "--count", "7", "--scales"]);
    assert_eq!(report["pictures"], 7, "{report}");
    let found: Vec<_> = report["classes"].as_array().expect("list").iter().map(|class| &class["pictures"]).collect();
    assert_eq!(found, [2, 2, 3], "classes 0, 1, 2: the first asked for has the odd one; {report}");
    assert!(at.join("burn-var-sample.png").is_file(), "the sheet");
    for (class, expected) in
        [("red", "can be red fox or Red panda"), ("nwet", "did you mean newt?"), ("3", "3 classes, 0 to 2")]
    {
        let message = fails(at, 2, &["sample", "--model", ".", "--class", class]);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn pictures_do_not_depend_on_the_batch() {
    let folder = folder();
    let at = folder.path();
    for batch in ["1", "3", "32"] {
        let name = format!("{batch}.npz");
        ok(at, &["sample", "--model", ".", "--count", "8", "--seed", "5", "--batch", batch, "--npz", &name]);
    }
    let [one, three, all] = ["1.npz", "3.npz", "32.npz"].map(|name| arrays(&at.join(name)));
    assert_eq!(one.0, [8, 16, 16, 3], "shape");
    assert_eq!(one.2, [0, 0, 0, 1, 1, 1, 2, 2], "labels, in equal parts");
    assert!(one == three && one == all, "the same pictures in batches of 1, 3 and 8");
    let size = 16 * 16 * 3;
    assert_ne!(one.1[..size], one.1[size..2 * size], "pictures of one class differ");
    ok(at, &["sample", "--model", ".", "--count", "8", "--seed", "6", "--npz", "other.npz"]);
    assert_ne!(arrays(&at.join("other.npz")).1, one.1, "another seed, other pictures");
    assert!(!at.join("burn-var-sample.png").exists(), "no sheet with --npz alone");
}

#[test]
fn settings_change_the_pictures() {
    let folder = folder();
    let at = folder.path();
    let sample = |name: &str, settings: &[&str]| {
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--npz", name], settings].concat());
        arrays(&at.join(name)).1
    };
    let plain = sample("plain.npz", &[]);
    for settings in [
        &["--cfg", "6"][..],
        &["--cfg-schedule", "0,4,9"],
        &["--top-k", "1"],
        &["--top-p", "0.2"],
        &["--temperature", "3"],
        &["--smooth"],
    ] {
        assert_ne!(sample("other.npz", settings), plain, "{settings:?} must matter");
    }
    for (settings, expected) in [
        (["--top-p", "1.5"], "top_p"),
        (["--cfg-schedule", "1,2"], "3, one a scale"),
        (["--temperature", "0"], "temperature"),
        (["--device", "cuda"], "--features cuda"),
        (["--count", "0"], "--count"),
    ] {
        let message = fails(at, 2, &[&["sample", "--model", "."], &settings[..]].concat());
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn grey_models_write_three_channels() {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_model(folder.path(), 1);
    ok(folder.path(), &["sample", "--model", ".", "--count", "3", "--npz", "grey.npz"]);
    let (shape, pictures, _) = arrays(&folder.path().join("grey.npz"));
    assert_eq!(shape, [3, 16, 16, 3], "three channels");
    assert!(pictures.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]), "grey");
}

#[test]
fn reconstructs_and_measures() {
    let folder = folder();
    let at = folder.path();
    picture(40, 1).save(at.join("one.png")).expect("written");
    picture(23, 2).save(at.join("two.webp")).expect("written");
    let report = json(at, &["reconstruct", "one.png", "two.webp", "--tokenizer", "tokenizer.safetensors", "--scales"]);
    for picture in report["pictures"].as_array().expect("list") {
        let (psnr, ssim) = (picture["psnr"].as_f64().expect("dB"), picture["ssim"].as_f64().expect("a number"));
        assert!(psnr > 0.0 && psnr < 60.0 && ssim.abs() <= 1.0, "{picture}");
    }
    image::open(at.join("burn-var-reconstruction.png")).expect("a picture");
    fs::write(at.join("broken.png"), b"no picture").expect("written");
    let message = fails(at, 1, &["reconstruct", "broken.png", "--model", "."]);
    assert!(message.contains("broken.png"), "{message}");
}

#[test]
fn tells_what_is_in_a_file() {
    let folder = folder();
    let report = json(folder.path(), &["info", "transformer.safetensors", "--tensors"]);
    let model = &report["models"][0];
    assert_eq!(model["config"]["var"]["num_classes"], 3, "{report}");
    assert_eq!(model["usage"]["class_names"][2], "newt", "{report}");
    assert_eq!(report["types"]["f32"], report["tensors"], "{report}");
    assert_eq!(report["list"].as_array().map(Vec::len), report["tensors"].as_u64().map(|n| n as usize), "all listed");
    let text = ok(folder.path(), &["info", "."]);
    assert!(text.contains("VQ-VAE") && text.contains("VAR transformer") && text.contains("Red panda"), "{text}");
}

#[test]
fn converts_there_and_back() {
    let folder = folder();
    let at = folder.path();
    let dict = StateDict::open(at.join("tokenizer.safetensors")).expect("a checkpoint");
    // As a public file is: without a configuration.
    save(&dict, at.join("bare.safetensors"), &Default::default()).expect("written");
    let message = ok(at, &["convert", "bare.safetensors", "again.safetensors", "--patch-nums", "1,2,4"]);
    assert!(message.contains("again.safetensors"), "{message}");
    assert_same_weights(&at.join("tokenizer.safetensors"), &at.join("again.safetensors"), "converted");
    let again = StateDict::open(at.join("again.safetensors")).expect("a checkpoint");
    let config = vqvae_config(&again, None).expect("inside");
    assert_eq!(config, vqvae_config(&dict, None).expect("inside"), "the configuration");
    load_vqvae(&again, &config, &Device::flex()).expect("loads");

    fs::write(at.join("names.txt"), "a\nb\nc\n").expect("written");
    let convert = ["convert", "transformer.safetensors", "half.safetensors", "--half", "--class-names"];
    let report = json(at, &[&convert[..], &["names.txt"]].concat());
    let before = fs::metadata(at.join("transformer.safetensors")).expect("there").len();
    let after = report["bytes"].as_u64().expect("bytes");
    assert!(after < before * 6 / 10, "half the size: {before} to {after}");
    let tokenizer = ["sample", "--tokenizer", "again.safetensors", "--transformer", "half.safetensors", "--class", "b"];
    assert_eq!(json(at, &tokenizer)["classes"][0]["label"], 1, "the new names are used");
    fs::write(at.join("names.txt"), "a\nb\n").expect("written");
    assert!(fails(at, 1, &[&convert[..], &["names.txt"]].concat()).contains("2 names, the model 3 classes"));
}

#[test]
fn wrong_files_are_named() {
    let folder = folder();
    let at = folder.path();
    let bytes = fs::read(at.join("transformer.safetensors")).expect("there");
    fs::write(at.join("cut.safetensors"), &bytes[..bytes.len() - 1000]).expect("written");
    fs::write(at.join("text.safetensors"), "hello").expect("written");
    let sample = |tokenizer, transformer| ["sample", "--tokenizer", tokenizer, "--transformer", transformer];
    let good = "tokenizer.safetensors";
    for (args, expected) in [
        (sample(good, "cut.safetensors"), "is the download complete?"),
        (sample(good, "text.safetensors"), "text.safetensors"),
        (sample(good, "none.safetensors"), "none.safetensors"),
        (sample("transformer.safetensors", "transformer.safetensors"), "another model than a VQ-VAE"),
        (sample(good, good), "another model than a VAR transformer"),
    ] {
        let message = fails(at, 1, &args);
        assert!(message.contains(expected), "{message}");
    }
    assert!(fails(at, 1, &["sample", "--model", ".", "--out", "none/x.png"]).contains("there is no folder `none`"));
    assert!(fails(at, 1, &["info", "text.safetensors"]).contains("text.safetensors"));
    fs::create_dir(at.join("empty")).expect("created");
    assert!(fails(at, 2, &["sample", "--model", "empty"]).contains("tokenizer.safetensors"));
    assert!(fails(at, 1, &["info", "empty"]).contains("neither a checkpoint nor a training run"));
    assert!(fails(at, 2, &["sample", "--transformer", "transformer.safetensors"]).contains("belong together"));
}

/// IDX files of 16x16 pictures of noise in three classes.
fn noise(folder: &Path, counts: [usize; 2]) {
    for (prefix, count) in ["train", "t10k"].into_iter().zip(counts) {
        let big_endian =
            |numbers: &[usize]| numbers.iter().flat_map(|n| (*n as u32).to_be_bytes()).collect::<Vec<u8>>();
        let mut rng = Rng::new(1, "noise", counts[0] as u64);
        let pixels = (0..count * 256).map(|_| rng.below(256) as u8);
        let images = [vec![0, 0, 8, 3], big_endian(&[count, 16, 16]), pixels.collect()].concat();
        let labels = [vec![0, 0, 8, 1], big_endian(&[count]), (0..count).map(|i| (i % 3) as u8).collect()].concat();
        fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("written");
        fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("written");
    }
}

#[test]
fn measures_models_against_real_pictures() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    noise(at, [60, 1120]);
    let report = json(at, &["eval", "tokenizer", "--model", ".", "--data", "."]);
    assert_eq!(report["pictures"], 1120, "{report}");
    let share = report["codes_in_use"].as_f64().expect("a share");
    assert!(share > 0.0 && share <= 1.0 && report["psnr"].as_f64().expect("dB") > 0.0, "{report}");

    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    let classifier = config.init(1, &Device::flex()).expect("valid");
    save_classifier(&classifier, at.join("classifier.safetensors"), true).expect("written");
    let generated = ["eval", "generated", "--data", ".", "--classifier", "classifier.safetensors", "--count", "9"];
    let report = json(at, &[&generated[..], &["--model", "."]].concat());
    assert_eq!(report["generated"], 9, "{report}");
    let [made, floor] = ["frechet", "frechet_floor"].map(|name| report[name].as_f64().expect("a distance"));
    assert!(made > floor, "untrained pictures are farther from noise than noise: {report}");
    let message = fails(at, 2, &generated);
    assert!(message.contains("the classifier takes pictures of [1, 16, 16]"), "{message}");
}

#[test]
fn measures_speed() {
    let folder = folder();
    let report = json(folder.path(), &["bench", "--model", ".", "--runs", "2", "--train-batch", "2", "--batch", "2"]);
    let results = report["results"].as_array().expect("list");
    assert_eq!(results.len(), 5, "three of sampling, two of training: {report}");
    assert!(results.iter().all(|result| result["median"].as_f64().is_some_and(|median| median > 0.0)), "{report}");
}

#[test]
fn completes_shells() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(folder.path(), &["completions", shell]).contains("reconstruct"), "a script for {shell}");
    }
}
