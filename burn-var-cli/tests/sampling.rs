//! Commands that use a model, as a user runs them.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use burn::tensor::Device;
use burn_var::init::{Init, initialize};
use burn_var::models::aid::{DiscriminatorHeadsConfig, InjectorConfig};
use burn_var::models::classifier::ClassifierConfig;
use burn_var::models::common::LoraConfig;
use burn_var::models::dino::VitConfig;
use burn_var::models::var::{Var, VqVae};
use burn_var::weights::{GenerationConfig, LoadOptions, Pretrained, SaveOptions, StateDict, save};
use serde_json::Value;
use support::{
    assert_same_weights, colour_image, command, fails, half, json, noise, ok, save_injector, save_var, tiny_model,
};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_model(folder.path(), 3);
    folder
}

fn arrays(path: &Path) -> (Vec<u64>, Vec<u8>, Vec<i64>) {
    let mut file = npyz::npz::NpzArchive::open(path).expect("an npz file");
    let images = file.by_name("arr_0").expect("readable").expect("arr_0");
    let shape = images.shape().to_vec();
    assert_eq!(images.dtype().descr(), "'|u1'", "images are bytes");
    let images = images.into_vec().expect("bytes");
    let labels = file.by_name("arr_1").expect("readable").expect("arr_1").into_vec().expect("int64");
    (shape, images, labels)
}

#[test]
fn without_arguments_the_compiled_model_makes_an_image() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let text = ok(folder.path(), &["sample"]);
    assert!(text.contains("burn-var-sample.png"), "says where it is: {text}");
    let sheet = image::open(folder.path().join("burn-var-sample.png")).expect("an image");
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
        json(at, &["sample", "--model", ".", "--class", "NEWT", "--class", "0,red p", "--count", "7", "--stages"]);
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
fn images_do_not_depend_on_the_batch() {
    let folder = folder();
    let at = folder.path();
    for batch in ["1", "3", "32"] {
        let name = format!("{batch}.npz");
        ok(at, &["sample", "--model", ".", "--count", "8", "--seed", "5", "--batch", batch, "--npz", &name]);
    }
    let [one, three, all] = ["1.npz", "3.npz", "32.npz"].map(|name| arrays(&at.join(name)));
    assert_eq!(one.0, [8, 16, 16, 3], "shape");
    assert_eq!(one.2, [0, 1, 2, 0, 1, 2, 0, 1], "labels, in turn");
    assert!(one == three && one == all, "the same images in batches of 1, 3 and 8");
    let size = 16 * 16 * 3;
    assert_ne!(one.1[..size], one.1[3 * size..4 * size], "images of one class differ");
    ok(at, &["sample", "--model", ".", "--count", "8", "--seed", "6", "--npz", "other.npz"]);
    assert_ne!(arrays(&at.join("other.npz")).1, one.1, "another seed, other images");
    assert!(!at.join("burn-var-sample.png").exists(), "no sheet with --npz alone");
}

#[test]
fn each_setting_does_what_it_says() {
    let folder = folder();
    let at = folder.path();
    let sample = |settings: &str| {
        let settings: Vec<&str> = settings.split_whitespace().collect();
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--npz", "sample.npz"], &settings[..]].concat());
        arrays(&at.join("sample.npz")).1
    };
    let write = |text: &str| fs::write(at.join("settings.toml"), text).expect("written");
    let plain = sample("");
    assert_eq!(sample(""), plain, "a function of model, seed and settings");

    // Classifier-free guidance: a ramp from 0 at the first of the three scales to its strength at the last.
    let guided = sample("--cfg 6");
    assert_ne!(guided, plain, "--cfg matters");
    assert_eq!(sample("--cfg-schedule 0,3,6"), guided, "the ramp");
    assert_eq!(sample("--cfg-schedule 0,0,0"), sample("--cfg 0"), "no guidance");
    assert_ne!(sample("--cfg-schedule 0,4,9"), guided, "--cfg-schedule matters");

    // One code alone may be drawn: the same images for every seed.
    let greedy = sample("--top-k 1");
    assert_ne!(greedy, plain, "--top-k matters");
    for settings in ["--top-k 1 --seed 9", "--top-p 1e-9 --seed 9", "--temperature 1e-6 --seed 9"] {
        assert_eq!(sample(settings), greedy, "{settings} leaves the most likely code");
    }
    // The model has 24 codes.
    let all = sample("--top-k 0 --top-p 0");
    assert_eq!(sample("--top-k 24 --top-p 1"), all, "as many as there are, with all of the probability");
    assert_eq!(sample("--top-k 24 --top-p 0 --temperature 1"), all, "a temperature of 1");
    assert_ne!(sample("--top-k 2 --top-p 0"), all, "--top-k 2 matters");
    assert_ne!(sample("--top-k 0 --top-p 0.3"), all, "--top-p 0.3 matters");
    assert_ne!(sample("--top-k 0 --top-p 0 --temperature 3"), all, "--temperature matters");
    // All codes are equally likely at an infinite temperature, whatever the class and the guidance.
    let hot = sample("--top-k 0 --top-p 0 --temperature 1e30 --class newt");
    assert_ne!(hot, sample("--top-k 0 --top-p 0 --class newt"), "a class matters otherwise");
    for settings in ["--class 0", "--class 1 --cfg 9"] {
        assert_eq!(sample(&format!("--top-k 0 --top-p 0 --temperature 1e30 {settings}")), hot, "{settings}");
    }

    // A mixture of codes, which is a code where one alone is left; the images come nearer to it as few are left.
    let smooth = sample("--smooth");
    assert_ne!(smooth, plain, "--smooth matters");
    assert_eq!(sample("--smooth --top-k 1"), greedy, "a mixture of one code");
    assert_ne!(sample("--smooth --seed 1"), smooth, "the noise of the mixture has a seed");
    assert_eq!(sample("--smooth --batch 1"), smooth, "and is the same in every batch");

    // Strengths scale by scale: 4 (1 - k / 3) of Scaled Spatial Guidance, 4 everywhere of visual prefix guidance.
    assert_eq!(sample("--ssg 0"), plain, "no Scaled Spatial Guidance");
    let ssg = sample("--ssg 4");
    assert_ne!(ssg, plain, "--ssg matters");
    write(&format!(
        "[ssg]\nschedule = {{ per-scale = [4.0, {:?}, {:?}] }}",
        4.0 * (2.0 / 3.0),
        4.0 * (1.0 - 2.0 / 3.0)
    ));
    assert_eq!(sample("--settings settings.toml"), ssg, "the decay");
    assert_eq!(sample("--ssg 4 --ssg-order post-cfg"), ssg, "after classifier-free guidance");
    assert_ne!(sample("--ssg 4 --ssg-order cond-only"), ssg, "before it");
    assert_eq!(
        sample("--cfg 0 --ssg 4 --ssg-order cond-only"),
        sample("--cfg 0 --ssg 4"),
        "the order matters only beside classifier-free guidance"
    );
    assert_eq!(sample("--vpg 0"), plain, "no visual prefix guidance");
    let vpg = sample("--vpg 4 --vpg-share 0.5");
    assert_ne!(vpg, plain, "--vpg matters");
    write("[vpg]\nschedule = { per-scale = [0.0, 4.0, 4.0] }\nshare = 0.5");
    assert_eq!(sample("--settings settings.toml"), vpg, "the same strength at every scale, the first has no prefix");
    assert_eq!(sample("--vpg 4 --vpg-share 0.1"), sample("--vpg 4"), "a tenth of the prefix is the default");
    assert_ne!(sample("--vpg 4"), vpg, "--vpg-share matters");
}

#[test]
fn impossible_settings_are_named() {
    let folder = folder();
    let at = folder.path();
    for (settings, expected) in [
        (["--top-p", "1.5"], "top_p"),
        (["--cfg-schedule", "1,2"], "3, one per scale"),
        (["--temperature", "0"], "temperature"),
        (["--ssg", "inf"], "a finite number"),
        (["--ssg-order", "post-cfg"], "--ssg"),
        (["--vpg", "NaN"], "a finite number"),
        (["--vpg-share", "0.2"], "--vpg"),
        (["--aid-weight", "1"], "--aid"),
        (["--device", "cuda"], "--features cuda"),
        (["--count", "0"], "--count"),
    ] {
        let message = fails(at, 2, &[&["sample", "--model", "."], &settings[..]].concat());
        assert!(message.contains(expected), "{message}");
    }
}

/// The adaptive weight of an injector is its largest weight times the uncertainty of the scale before, so nothing where
/// the model is certain. The formula itself has a test of its own, in the crate of tests.
#[test]
fn an_adaptive_weight_is_nothing_where_the_model_is_certain() {
    let folder = folder();
    let at = folder.path();
    let injector = InjectorConfig::paper(64).init(1, &Device::flex()).expect("valid");
    save_injector(&injector, at.join("aid.safetensors"));
    // Logits that are so far apart that one code has all of the probability.
    scale_head(at, "certain.safetensors", 1e4);
    let sample = |transformer: &str, settings: &[&str]| {
        let pair = ["sample", "--tokenizer", "tokenizer.safetensors", "--transformer", transformer];
        ok(at, &[&pair[..], &["--cfg", "0", "--count", "6", "--npz", "sample.npz"], settings].concat());
        arrays(&at.join("sample.npz")).1
    };
    let certain = sample("certain.safetensors", &[]);
    assert_ne!(sample("certain.safetensors", &["--aid", "aid.safetensors"]), certain, "the fixed weight matters");
    for measure in ["entropy", "margin", "entropy-map", "margin-map"] {
        let adaptive = sample("certain.safetensors", &["--aid", "aid.safetensors", "--aid-adaptive", measure]);
        assert_eq!(adaptive, certain, "a certain model needs no correction by {measure}");
    }
}

/// Writes the transformer with its head multiplied by a factor.
fn scale_head(folder: &Path, name: &str, factor: f32) {
    let dict = StateDict::open(folder.join("transformer.safetensors")).expect("a checkpoint");
    let config = Var::config_of(&dict, None).expect("sizes");
    let usage = GenerationConfig::of(&dict).expect("readable").expect("inside");
    let shapes: Vec<_> =
        dict.keys().map(|key| (key.to_owned(), dict.shape(key).unwrap_or_default().to_vec())).collect();
    let scaled = StateDict::generated("scaled", shapes, move |key, _| {
        let factor = if key.starts_with("head.") { factor } else { 1.0 };
        let values = dict.tensor(key).expect(key).try_into_vec_as::<f32>().expect("numbers");
        values.into_iter().map(|value| value * factor).collect()
    });
    let options = LoadOptions::default();
    let model = Var::load_with(&scaled.expect("tensors"), &config, options, &Device::flex()).expect("fits");
    save_var(&model, &usage, folder.join(name));
}

#[test]
fn settings_from_a_file_are_those_of_flags() {
    let folder = folder();
    let at = folder.path();
    let sample = |settings: &[&str]| {
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--npz", "made.npz"], settings].concat());
        arrays(&at.join("made.npz")).1
    };
    let write = |text: &str| fs::write(at.join("settings.toml"), text).expect("written");
    write(
        "cfg = { ramp = 6.0 }\ntop_k = 7\n[vpg]\nschedule = { constant = 4.0 }\nshare = 0.5\n[ssg]\nschedule = { decay = 2.0 }\n",
    );
    let flags = ["--cfg", "6", "--top-k", "7", "--vpg", "4", "--vpg-share", "0.5", "--ssg", "2"];
    let by_file = sample(&["--settings", "settings.toml"]);
    assert_eq!(by_file, sample(&flags), "the same by flags");
    assert_ne!(by_file, sample(&["--settings", "settings.toml", "--top-k", "1"]), "flags go before the file");
    assert_ne!(by_file, sample(&flags[..8]), "its last part matters");
    write("[ssg]\nschedule = { decay = 2.0 }\norder = \"per-branch\"\n");
    assert_ne!(sample(&["--settings", "settings.toml"]), sample(&["--ssg", "2"]), "before classifier-free guidance");
    let message = fails(at, 2, &["sample", "--model", ".", "--settings", "settings.toml", "--vpg", "1"]);
    assert!(message.contains("ssg order") && message.contains("vpg"), "says why they contradict each other: {message}");
    write("[spg]\nschedule = { decay = 2.0 }\n");
    let message = fails(at, 1, &["sample", "--model", ".", "--settings", "settings.toml"]);
    assert!(message.contains("settings.toml") && message.contains("`spg`") && message.contains("`ssg`"), "{message}");
}

#[test]
fn edits_a_part_of_an_image() {
    let folder = folder();
    let at = folder.path();
    colour_image(40, 3).save(at.join("photo.png")).expect("written");
    let edit = |more: &[&str]| {
        json(
            at,
            &[&["edit", "photo.png", "--model", ".", "--count", "2", "--folder", "made", "--top-k", "1"], more]
                .concat(),
        )
    };
    let pixels = |name: &str| image::open(at.join("made").join(name)).expect("an image").into_rgb8();
    let report = edit(&["--redraw", "0,0,8,16", "--class", "newt,1"]);
    let drawn: Vec<u64> = report["drawn_tokens"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
    assert_eq!(report["pictures"], 4, "two of each class: {report}");
    assert!(drawn[0] == 0 && drawn[2] > 0, "the coarsest is kept whole: {drawn:?}");
    let newt = pixels("class-2-0000.png");
    assert!(newt != pixels("class-1-0000.png"), "classes differ");

    edit(&["--redraw", "0,0,8,16", "--class", "newt", "--paste"]);
    let pasted = pixels("class-2-0000.png");
    let whole = edit(&["--complete", "2"]);
    assert_eq!(whole["drawn_tokens"][0], 0, "{whole}");
    assert!(at.join("made/any-0001.png").is_file(), "without a class");
    let (side, _) = pasted.dimensions();
    let same = |x: u32, y: u32| pasted.get_pixel(x, y) == newt.get_pixel(x, y);
    assert!((0..side).all(|y| (0..8).all(|x| same(x, y))), "what was redrawn is as without --paste");
    assert!((0..side).any(|y| (8..side).any(|x| !same(x, y))), "the rest is the image's own");

    let mut mask = image::GrayImage::new(40, 40);
    for (x, _, pixel) in mask.enumerate_pixels_mut() {
        pixel.0 = [if x < 20 { 255 } else { 0 }];
    }
    mask.save(at.join("mask.png")).expect("written");
    let boxed = edit(&["--redraw", "0,0,8,16", "--class", "0"]);
    let masked = edit(&["--mask", "mask.png", "--class", "0"]);
    assert_eq!(boxed["drawn_tokens"], masked["drawn_tokens"], "half of the image either way");

    for (more, expected) in [
        (&["--complete", "3"][..], "1 to 2 of this model's 3 scales"),
        (&["--complete", "0"], "1 to 2"),
        (&["--redraw", "10,0,8,8"], "does not lie in an image of 16x16"),
        (&["--redraw", "1,2,3"], "left, top, width and height"),
        (&["--redraw", "0,0,1,1"], "nothing would be drawn"),
        (&["--redraw", "0,0,8,8", "--class", "dragon"], "dragon"),
        (&["--redraw", "0,0,8,8", "--complete", "1"], "cannot be used with"),
        (&[], "--redraw"),
    ] {
        let message = fails(at, 2, &[&["edit", "photo.png", "--model", "."], more].concat());
        assert!(message.contains(expected), "{more:?}: {message}");
    }
    let message = fails(at, 1, &["edit", "photo.png", "--model", ".", "--mask", "none.png"]);
    assert!(message.contains("none.png"), "{message}");
    let message = fails(at, 1, &["edit", "tokenizer.safetensors", "--model", ".", "--complete", "1"]);
    assert!(message.contains("tokenizer.safetensors"), "{message}");
}

#[test]
fn animates_growing_images() {
    use image::AnimationDecoder;

    let folder = folder();
    let at = folder.path();
    ok(at, &["sample", "--model", ".", "--count", "3", "--animate", "grow.gif"]);
    let file = std::io::BufReader::new(fs::File::open(at.join("grow.gif")).expect("a file"));
    let decoder = image::codecs::gif::GifDecoder::new(file).expect("a GIF");
    let frames = decoder.into_frames().collect_frames().expect("frames");
    assert_eq!(frames.len(), 3, "one a scale");
    assert_ne!(frames[0].buffer(), frames[2].buffer(), "it grows");
    let sheet = image::open(at.join("burn-var-sample.png")).expect("the sheet too");
    assert_eq!(frames[2].buffer().dimensions(), (sheet.width(), sheet.height()), "as large as the sheet");
    assert!(fails(at, 2, &["sample", "--npz", "a.npz", "--animate", "b.gif"]).contains("--animate"));
}

#[test]
fn an_injector_changes_the_images_by_its_weight() {
    let folder = folder();
    let at = folder.path();
    let injector = |width: usize, name: &str| {
        let injector = InjectorConfig::paper(width).init(1, &Device::flex()).expect("valid");
        save_injector(&injector, at.join(name));
    };
    injector(64, "aid.safetensors");
    let sample = |settings: &[&str]| {
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--npz", "made.npz"], settings].concat());
        arrays(&at.join("made.npz")).1
    };
    let plain = sample(&[]);
    assert_eq!(sample(&["--aid", "aid.safetensors", "--aid-weight", "0"]), plain, "weight 0 changes not a bit");
    let fixed = sample(&["--aid", "aid.safetensors"]);
    assert_ne!(fixed, plain, "with the weight in its file");
    let adaptive = ["entropy", "margin", "entropy-map", "margin-map"].map(|measure| {
        let images = sample(&["--aid", "aid.safetensors", "--aid-adaptive", measure]);
        assert!(images != plain && images != fixed, "weights by {measure}");
        images
    });
    assert!(adaptive[0] != adaptive[1] && adaptive[0] != adaptive[2], "each in its own way");
    assert!(fails(at, 2, &["sample", "--model", ".", "--aid-adaptive", "margin"]).contains("--aid"));

    let [alone, both] = [&[][..], &["--compare"]].map(|more| {
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--aid", "aid.safetensors", "--stages"], more].concat());
        image::open(at.join("burn-var-sample.png")).expect("a sheet").height()
    });
    assert!(both > alone + alone / 2, "every image twice: {alone} and {both} pixels high");
    assert!(fails(at, 2, &["sample", "--model", ".", "--compare"]).contains("--aid, --lora, --ssg or --vpg"));

    injector(64, "injector.safetensors");
    assert_eq!(sample(&[]), fixed, "a model's own injector is used unasked");
    assert_eq!(sample(&["--no-aid"]), plain, "unless it is refused");
    assert_ne!(sample(&["--aid-weight", "2"]), fixed, "its weight can be named alone");
    assert!(fails(at, 2, &["sample", "--model", ".", "--no-aid", "--aid-weight", "1"]).contains("--no-aid"));
    ok(at, &["sample", "--model", ".", "--count", "3", "--compare"]);
    let apart = ["--tokenizer", "tokenizer.safetensors", "--transformer", "transformer.safetensors"];
    ok(at, &[&["sample", "--count", "3", "--npz", "made.npz"], &apart[..]].concat());
    assert_eq!(arrays(&at.join("made.npz")).1, plain, "and it goes with the folder, not with the files");
    ok(at, &["convert", "injector.safetensors", "half.safetensors", "--half"]);
    assert_eq!(sample(&["--aid", "half.safetensors"]), fixed, "rounded to half precision, which it was already");
    std::fs::write(at.join("injector.safetensors"), b"cut off").expect("written");
    assert!(fails(at, 1, &["sample", "--model", "."]).contains("injector.safetensors"), "a broken one is named");
    std::fs::remove_file(at.join("injector.safetensors")).expect("there");

    injector(32, "narrow.safetensors");
    let message = fails(at, 1, &["sample", "--model", ".", "--aid", "narrow.safetensors"]);
    assert!(message.contains("32") && message.contains("64, the width of the transformer"), "{message}");
    let message = fails(at, 1, &["sample", "--model", ".", "--aid", "tokenizer.safetensors"]);
    assert!(message.contains("tokenizer.safetensors") && message.contains("injector"), "{message}");
}

#[test]
fn a_lora_changes_the_images_apart_and_merged() {
    let folder = folder();
    let at = folder.path();
    let dict = StateDict::open(at.join("transformer.safetensors")).expect("a file");
    let transformer = Var::load(&dict, &Device::flex()).expect("its weights");
    let lora = LoraConfig::released(&transformer).init(1, &Device::flex()).expect("valid");
    let lora = initialize(lora, 2, |_| Init::Normal(0.3));
    lora.save(at.join("lora.safetensors"), &SaveOptions::default()).expect("written");
    let sample = |settings: &[&str]| {
        ok(at, &[&["sample", "--count", "3", "--npz", "made.npz"], settings].concat());
        arrays(&at.join("made.npz")).1
    };
    let changed = sample(&["--model", ".", "--lora", "lora.safetensors"]);
    assert_ne!(changed, sample(&["--model", "."]), "it is used");
    let sheet = |args: &[&str]| {
        ok(at, &[&["sample", "--model", ".", "--count", "3", "--out", "sheet.png"], args].concat());
        let sheet = image::open(at.join("sheet.png")).expect("a sheet").into_rgb8();
        // Images of 16 pixels are shown four times as large, two pixels apart.
        let (left, rows) = (sheet.width() - 66, sheet.height() / 66);
        (0..rows)
            .map(|row| image::imageops::crop_imm(&sheet, left, 2 + 66 * row, 64, 64).to_image())
            .collect::<Vec<_>>()
    };
    let [without, with] = [&[][..], &["--lora", "lora.safetensors"]].map(sheet);
    let both: Vec<_> = without.into_iter().zip(with).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(both.len(), 6, "three rows each");
    assert!(sheet(&["--lora", "lora.safetensors", "--compare"]) == both, "each image without the LoRA and with it");
    ok(at, &["convert", "transformer.safetensors", "merged.safetensors", "--lora", "lora.safetensors"]);
    let merged = sample(&["--tokenizer", "tokenizer.safetensors", "--transformer", "merged.safetensors"]);
    assert_eq!(merged, changed, "the same in one file");
    let message = fails(at, 1, &["sample", "--model", ".", "--lora", "tokenizer.safetensors"]);
    assert!(message.contains("tokenizer.safetensors") && message.contains("another model than a LoRA"), "{message}");
    assert!(fails(at, 2, &["convert", "tokenizer.safetensors", "x", "--lora", "lora.safetensors"]).contains("--lora"));
}

#[test]
fn spectra_say_what_guidance_does_to_frequencies() {
    let folder = folder();
    let at = folder.path();
    let spectra = |guidance: &[&str]| {
        let report = json(at, &[&["eval", "spectra", "--model", ".", "--count", "5"], guidance].concat());
        let scales = report["scales"].as_array().expect("a list").clone();
        let change = |scale: &Value| -> Vec<f64> {
            scale["change"].as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
        };
        scales.iter().map(change).collect::<Vec<_>>()
    };
    let twice = spectra(&["--ssg", "1", "--plot", "spectra.svg"]);
    assert_eq!(twice.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4], "the frequencies of maps of 2 and 4");
    assert!(at.join("spectra.svg").is_file());
    assert!(twice[0][1] > 0.1, "what the scale before does not have becomes stronger: {twice:?}");
    assert!(twice[0][1] > twice[0][0], "more than what it has: {twice:?}");
    let none = spectra(&["--ssg", "0"]);
    assert!(none.iter().flatten().all(|change| change.abs() < 1e-6), "strength 0 changes nothing: {none:?}");
    let batches = spectra(&["--ssg", "1", "--batch", "2"]);
    let far = twice.iter().flatten().zip(batches.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far < 1e-4, "in any batch: {far}");
    assert!(fails(at, 2, &["eval", "spectra", "--model", "."]).contains("--ssg"));
}

#[test]
fn measures_consistency_between_scales() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    noise(at, [20, 90]);
    let injector = InjectorConfig::paper(64).init(1, &Device::flex()).expect("valid");
    save_injector(&injector, at.join("aid.safetensors"));
    let vit: VitConfig = serde_json::from_value(serde_json::json!({
        "image_size": 16, "image_channels": 1, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "mean": [0.5], "std": [0.5],
    }))
    .expect("sizes");
    let vit = vit.init(1, &Device::flex()).expect("valid");
    vit.save(at.join("dino.safetensors"), &SaveOptions::default()).expect("written");
    let iscs = ["eval", "iscs", "--model", ".", "--data", ".", "--count", "60"];
    let tokens = json(at, &[&iscs[..], &["--feature", "vae-tokens"]].concat());
    assert_eq!(
        (&tokens["pictures"], &tokens["real_pictures"], &tokens["guided"]),
        (&60.into(), &60.into(), &Value::Null)
    );
    let dino = [&iscs[..], &["--dino", "dino.safetensors", "--aid", "aid.safetensors", "--plot", "iscs.svg"]].concat();
    let report = json(at, &dino);
    for side in ["baseline", "guided"] {
        let transitions = report[side]["transitions"].as_array().expect("a list");
        assert_eq!(transitions.len(), 2, "between three scales: {report}");
        assert!(transitions.iter().all(|transition| transition["score"].as_f64() > Some(0.0)), "{report}");
    }
    assert_ne!(report["baseline"]["total"], report["guided"]["total"], "the injector is seen");
    let changed = report["tokens_changed"].as_f64().expect("a share");
    assert!(changed > 0.0 && changed < 1.0, "some tokens are others: {changed}");
    let none = json(at, &[&dino[..], &["--aid-weight", "0"]].concat());
    assert_eq!(none["tokens_changed"].as_f64(), Some(0.0), "weight 0 changes none");
    let again = json(at, &[&dino[..], &["--batch", "7"]].concat());
    let totals = [&report, &again].map(|report| report["guided"]["total"].as_f64().expect("a number"));
    assert!((totals[0] - totals[1]).abs() < 1e-3 * totals[0], "in any batch: {totals:?}");
    assert!(fs::read_to_string(at.join("iscs.svg")).expect("a chart").contains("guided"));
    assert!(fails(at, 2, &iscs).contains("--dino"), "a network is wanted");
    assert!(fails(at, 2, &[&iscs[..], &["--feature", "vae-tokens", "--dino", "x"]].concat()).contains("dino-cls"));
}

#[test]
fn grey_models_write_three_channels() {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_model(folder.path(), 1);
    ok(folder.path(), &["sample", "--model", ".", "--count", "3", "--npz", "grey.npz"]);
    let (shape, images, _) = arrays(&folder.path().join("grey.npz"));
    assert_eq!(shape, [3, 16, 16, 3], "three channels");
    assert!(images.chunks(3).all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2]), "grey");
}

#[test]
fn reconstructs_and_measures() {
    let folder = folder();
    let at = folder.path();
    colour_image(40, 1).save(at.join("one.png")).expect("written");
    colour_image(23, 2).save(at.join("two.webp")).expect("written");
    let report = json(at, &["reconstruct", "one.png", "two.webp", "--tokenizer", "tokenizer.safetensors", "--stages"]);
    for image in report["pictures"].as_array().expect("list") {
        let (psnr, ssim) = (image["psnr"].as_f64().expect("dB"), image["ssim"].as_f64().expect("a number"));
        assert!(psnr > 0.0 && psnr < 60.0 && ssim.abs() <= 1.0, "{image}");
    }
    image::open(at.join("burn-var-reconstruction.png")).expect("an image");
    fs::write(at.join("broken.png"), b"no image").expect("written");
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
    let heads = DiscriminatorHeadsConfig::aid(4).init(1, &Device::flex()).expect("valid");
    heads.save(at.join("heads.safetensors"), &SaveOptions::default()).expect("written");
    assert_eq!(json(at, &["convert", "heads.safetensors", "heads-2.safetensors"])["part"], "heads");
    assert_same_weights(&at.join("heads.safetensors"), &at.join("heads-2.safetensors"), "converted heads");
    let again = StateDict::open(at.join("again.safetensors")).expect("a checkpoint");
    let config = VqVae::config_of(&again, None).expect("inside");
    assert_eq!(config, VqVae::config_of(&dict, None).expect("inside"), "the configuration");
    VqVae::load_with(&again, &config, LoadOptions::default(), &Device::flex()).expect("loads");

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
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-mnist/transformer.safetensors");
    let message = fails(at, 1, &sample(good, other));
    assert!(message.contains("`tokenizer.safetensors`") && message.contains(other), "both files: {message}");
    assert!(fails(at, 1, &["sample", "--model", ".", "--out", "none/x.png"]).contains("there is no folder `none`"));
    assert!(fails(at, 1, &["info", "text.safetensors"]).contains("text.safetensors"));
    fs::create_dir(at.join("empty")).expect("created");
    assert!(fails(at, 2, &["sample", "--model", "empty"]).contains("tokenizer.safetensors"));
    assert!(fails(at, 1, &["info", "empty"]).contains("neither a checkpoint nor a training run"));
    assert!(fails(at, 2, &["sample", "--transformer", "transformer.safetensors"]).contains("belong together"));
}

#[test]
fn measures_models_against_real_images() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    noise(at, [60, 1120]);
    let report = json(at, &["eval", "tokenizer", "--model", ".", "--data", "."]);
    assert_eq!(report["pictures"], 1120, "{report}");
    let share = report["codes_in_use"].as_f64().expect("a share");
    assert!(share > 0.0 && share <= 1.0 && report["psnr"].as_f64().expect("dB") > 0.0, "{report}");
}

/// A classifier of 16x16 grey images in three classes.
fn classifier(path: &Path) {
    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    config.init(1, &Device::flex()).expect("valid").save(path, &half()).expect("written");
}

/// A folder with an untrained grey model, an untrained classifier, and noise as real images.
fn judged(counts: [usize; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_model(folder.path(), 1);
    noise(folder.path(), counts);
    classifier(&folder.path().join("classifier.safetensors"));
    folder
}

const GENERATED: [&str; 5] = ["eval", "generated", "--classifier", "classifier.safetensors", "--data"];

#[test]
fn measures_generated_images() {
    let folder = judged([200, 1120]);
    let at = folder.path();
    let generated = |more: &[&str]| json(at, &[&GENERATED[..], &[".", "--model", ".", "--count", "90"], more].concat());
    let figures = |report: &Value| ["scores", "recognised", "floor"].map(|name| report[name].clone());

    let report = generated(&["--copies", "--mirror", "--per-class"]);
    assert_eq!(
        (report["scores"]["count"].as_u64(), report["scores"]["reference_count"].as_u64()),
        (Some(90), Some(1120))
    );
    let [made, floor] = ["scores", "floor"].map(|name| report[name]["frechet"].as_f64().expect("a distance"));
    assert!(made > floor, "untrained images are farther from noise than noise: {report}");
    let classes = report["classes"].as_array().expect("class by class");
    let images: Option<u64> = classes.iter().map(|class| class["recognised"]["pictures"].as_u64()).sum();
    assert_eq!((classes.len(), &classes[0]["name"], images), (3, &Value::from("red fox"), Some(90)), "{report}");
    assert!(classes.iter().all(|class| class["frechet"].as_f64() > Some(0.0)), "{report}");
    assert_eq!(report["copies_in_pixels"]["compared"], 90, "{report}");
    assert!(report["copies_in_pixels"]["generated"].as_f64().is_some_and(|share| share < 0.5), "{report}");

    for batch in ["1", "7"] {
        assert_eq!(figures(&generated(&["--batch", batch])), figures(&report), "images {batch} at a time");
    }
    let samples = ["sample", "--model", ".", "--count", "90", "--npz", "made.npz"];
    ok(at, &samples);
    let from_file = json(at, &[&GENERATED[..], &[".", "--samples", "made.npz"]].concat());
    assert_eq!(figures(&from_file), figures(&report), "the same images from a file");

    // Killed in the middle: what is in the folder is gone on with.
    let args = [&GENERATED[..], &[".", "--model", ".", "--count", "90", "--batch", "2", "--out", "a"]].concat();
    let mut child = command(at, &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let begun = || fs::metadata(at.join("a/features/features.f32")).is_ok_and(|file| file.len() > 0);
    while !begun() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("a child");
    let resumed = generated(&["--out", "a", "--report", "page.html", "--resamples", "20"]);
    assert_eq!(resumed["scores"]["frechet"], report["scores"]["frechet"], "after a kill");
    let interval = &resumed["scores"]["frechet_interval"];
    assert!(interval["low"].as_f64() < interval["high"].as_f64(), "{interval}");
    let page = fs::read_to_string(at.join("page.html")).expect("a page");
    assert!(page.contains("red fox") && page.contains("data:image/png;base64,") && page.contains("lowest confidence"));

    generated(&["--out", "b", "--seed", "1"]);
    let same = json(at, &["eval", "compare", "a", "b"]);
    assert_eq!(same["outside_chance"], false, "two seeds of a model: {same}");
    generated(&["--out", "cold", "--temperature", "0.05"]);
    let other = json(at, &["eval", "compare", "a", "cold"]);
    assert_eq!(other["outside_chance"], true, "nearly the same image again and again: {other}");
    ok(at, &["eval", "report", "a", "b", "cold", "--out", "all.html"]);
    let page = fs::read_to_string(at.join("all.html")).expect("a page");
    assert!(page.contains("<svg") && ["a", "b", "cold"].iter().all(|name| page.contains(&format!("<th>{name}</th>"))));
}

#[test]
fn sweeps_over_settings_and_seeds() {
    let folder = judged([20, 120]);
    let at = folder.path();
    let write = |methods: &str| {
        fs::write(at.join("sweep.toml"), format!("count = 30\nseeds = [0, 5]\n{methods}")).expect("written");
    };
    write(
        "[[method]]\nname = 'VAR'\nvary = { temperature = [1.0, 3.0] }\n[[method]]\nname = 'SSG'\nsettings = { ssg = { schedule = { decay = 4.0 } } }\n",
    );
    let args = "eval sweep sweep.toml --data . --model . --classifier classifier.safetensors --out sweep";
    let args: Vec<&str> = args.split(' ').collect();
    let report = json(at, &[&args[..], &["--plot", "frontier.svg"]].concat());
    let measured = report["measured"].as_array().expect("a list");
    let names: Vec<&str> = measured.iter().filter_map(|found| found["varied"].as_str()).collect();
    assert_eq!(names, ["temperature 1.0", "temperature 3.0", ""], "{report}");
    let plot = fs::read_to_string(at.join("frontier.svg")).expect("a plot");
    assert!(plot.contains("SSG") && plot.contains("recognized class"), "both methods by name");

    // The same figures as of the command for one setting, and a second time without drawing anything.
    let one =
        "eval generated --data . --model . --classifier classifier.safetensors --count 30 --seed 5 --temperature 3";
    let one = json(at, &one.split(' ').collect::<Vec<_>>());
    assert_eq!(measured[1]["figures"][1]["scores"]["frechet"], one["scores"]["frechet"], "{report}");
    assert_eq!(measured[1]["figures"][1]["recognised"], one["recognised"], "{report}");
    assert_eq!(json(at, &args), report, "kept figures, timings among them");
    let table = ok(at, &args);
    assert_eq!(table.lines().filter(|line| line.starts_with("| VAR")).count(), 2, "{table}");

    write("[[method]]\nname = 'VAR'\nsettings = { temprature = 1.0 }\n");
    let message = fails(at, 2, &args);
    assert!(message.contains("`VAR`") && message.contains("temprature"), "{message}");
    write(
        "[[method]]\nname = 'both'\nsettings = { vpg = { schedule = { constant = 1.0 } }, ssg = { schedule = { decay = 1.0 }, order = 'cond-only' } }\n",
    );
    let message = fails(at, 2, &args);
    assert!(message.contains("`both`") && message.contains("ssg order"), "a contradiction names its method: {message}");
}

#[test]
fn compares_files_of_images_and_of_statistics() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    classifier(&at.join("classifier.safetensors"));
    for (name, seed, count) in [("a.npz", "0", "60"), ("b.npz", "1", "80")] {
        ok(at, &["sample", "--model", ".", "--count", count, "--seed", seed, "--npz", name]);
    }
    let eval = ["eval", "generated", "--classifier", "classifier.safetensors", "--samples", "a.npz", "--reference"];
    let whole = json(at, &[&eval[..], &["b.npz", "--out", "run"]].concat());
    assert!(whole["scores"]["precision"].as_f64().is_some_and(|share| share > 0.5), "one model: {whole}");
    let statistics = json(at, &[&eval[..], &["run/reference.npz"]].concat());
    assert_eq!(statistics["scores"]["frechet"], whole["scores"]["frechet"], "the statistics that were kept");
    assert_eq!(statistics["scores"]["precision"], Value::Null, "needs images");
    let itself = json(at, &[&eval[..], &["a.npz"]].concat());
    assert!(itself["scores"]["frechet"].as_f64().is_some_and(|distance| distance < 1e-6), "{itself}");

    let fails_with = |code, args: &[&str], expected: &str| {
        let message = fails(at, code, args);
        assert!(message.contains(expected), "{message}");
    };
    fails_with(2, &[&eval[..], &["b.npz", "--dino", "x"]].concat(), "cannot be used with");
    fails_with(2, &eval[..6], "--data");
    fs::write(at.join("cut.npz"), &fs::read(at.join("a.npz")).expect("there")[..500]).expect("written");
    fails_with(1, &[&eval[..], &["cut.npz"]].concat(), "cut.npz");
    fs::create_dir(at.join("empty")).expect("created");
    fails_with(1, &[&eval[..], &["empty"]].concat(), "no PNG file");
    colour_image(16, 1).save(at.join("empty/1.png")).expect("written");
    colour_image(17, 1).save(at.join("empty/2.png")).expect("written");
    fails_with(1, &[&eval[..], &["empty"]].concat(), "2.png");
    colour_image(20, 1).save(at.join("empty/1.png")).expect("written");
    colour_image(20, 2).save(at.join("empty/2.png")).expect("written");
    fails_with(1, &[&eval[..], &["empty"]].concat(), "[batch, 1, 16, 16]");
    fails_with(1, &["eval", "compare", "run", "empty"], "empty");
    let one = ["eval", "generated", "--classifier", "classifier.safetensors", "--reference", "b.npz", "--samples"];
    ok(at, &["sample", "--model", ".", "--count", "1", "--npz", "one.npz"]);
    fails_with(1, &[&one[..], &["one.npz", "--quiet"]].concat(), "2 rows or more");
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

/// ndarray is the other device of this build: it has none of the kernels for Flex.
#[test]
fn a_device_is_checked_beside_the_cpu() {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path(), 1);
    let check = ["bench", "--check", "--model", "."];
    let report = json(folder.path(), &[&check[..], &["--device", "ndarray"]].concat());
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["ok"] == true), "{report}");
    let of =
        |start: &str| rows.iter().filter(|row| row["name"].as_str().is_some_and(|it| it.starts_with(start))).count();
    assert_eq!(of("logits of scale"), 3);
    assert_eq!(of("images"), 1);
    assert_eq!(of("training the transformer") + of("training the tokenizer"), 12, "loss and norm of three steps each");
    assert!(of("gradient of blocks") > 10 && of("gradient of head") > 0, "{report}");
    assert!(rows.iter().any(|row| row["difference"].as_f64() > Some(0.0)), "the devices add in another order");

    let message = fails(folder.path(), 2, &check);
    assert!(message.contains("choose another with --device"), "{message}");
}

/// Exact products are the default on the CPU; others make other images, and say so.
#[test]
fn images_in_each_precision() {
    let folder = folder();
    let at = folder.path();
    let sample = |options: &[&str]| {
        let report = json(at, &[&["sample", "--model", ".", "--count", "3", "--npz", "a.npz"], options].concat());
        (report["settings"]["precision"].clone(), arrays(&at.join("a.npz")).1)
    };
    let (none, default) = sample(&[]);
    assert!(none.is_null(), "not recorded: {none}");
    assert_eq!(sample(&["--precision", "exact"]), (none, default.clone()), "the default on the CPU");
    for name in ["tf32", "f16", "bf16"] {
        let (recorded, images) = sample(&["--precision", name]);
        assert_eq!(recorded, name);
        assert_ne!(images, default, "{name} moves pixels");
    }
    fs::write(at.join("settings.toml"), "precision = \"bf16\"\n").expect("written");
    assert_eq!(sample(&["--settings", "settings.toml"]), sample(&["--precision", "bf16"]), "from a file");
    // A weight that is rounded already is multiplied as one that is rounded on the way.
    let stored = sample(&["--precision", "bf16", "--weights", "bf16"]);
    assert_eq!(stored, sample(&["--precision", "bf16"]), "weights in the type of the products");
    assert!(fails(at, 2, &["sample", "--precision", "f8"]).contains("bf16"), "names what there is");
}
