//! LlamaGen from the command line: every command that takes a generator, on a tiny untrained pair.

mod support;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use burn_var::init::{Init, initialize};
use burn_var::models::classifier::ClassifierConfig;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::llamagen::{LlamaGenConfig, LlamaGenVqConfig};
use burn_var::weights::{Pretrained, SaveOptions};
use burn_var::{MapSize, Scales};
use serde_json::Value;
use support::{assert_same_weights, colour_image, fails, half, image_folder, json, ok};

const PAIR: [&str; 4] = ["--tokenizer", "tokenizer.safetensors", "--transformer", "transformer.safetensors"];

fn raster(side: usize) -> Scales {
    Scales::raster(MapSize::square(side)).expect("a raster")
}

fn tokenizer() -> LlamaGenVqConfig {
    let vq = VqModelConfig {
        ch: 32,
        ch_mult: vec![1, 1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        ..VqModelConfig::vq16(24, 8)
    };
    LlamaGenVqConfig { vq, patch_nums: raster(4) }
}

/// An untrained model that makes 16x16 images of 4x4 tokens.
fn tiny(folder: &Path, num_classes: usize) {
    let device = Device::flex();
    let options = SaveOptions::default();
    let model = tokenizer().init(1, &device).expect("valid");
    model.save(folder.join("tokenizer.safetensors"), &options).expect("written");
    let config = LlamaGenConfig { vocab_size: 24, num_classes, ..LlamaGenConfig::new(64, 2, 2, raster(4)) };
    let model = config.init_zeros(&device).expect("valid");
    let model = initialize(model, 1, |param| match param.path.ends_with("norm.weight") {
        true => Init::Constant(1.0),
        false => Init::Normal(0.3),
    });
    model.save(folder.join("transformer.safetensors"), &options).expect("written");
}

fn with_pair<'a>(command: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, &PAIR, more].concat()
}

#[test]
fn samples_depend_on_class_and_guidance_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny(at, 3);
    let sample = |more: &[&str]| {
        let report = json(at, &with_pair(&["sample", "--npz", "made.npz", "--count", "6"], more));
        (report, fs::read(at.join("made.npz")).expect("images"))
    };
    let (report, images) = sample(&[]);
    assert_eq!(report["settings"]["cfg"], serde_json::json!({ "constant": 1.0 }), "{report}");
    assert_eq!(report["settings"]["sampler"]["top_p_rule"], "descending", "{report}");
    let (_, again) = sample(&["--batch", "1"]);
    assert!(images == again, "images do not depend on the batch");
    let (report, stronger) = sample(&["--cfg", "3"]);
    assert_eq!(report["settings"]["cfg"], serde_json::json!({ "constant": 3.0 }), "the model's own form: {report}");
    assert!(images != stronger && images != sample(&["--top-k", "3"]).1 && images != sample(&["--seed", "1"]).1);
    fs::write(at.join("cosine.toml"), "cfg = { power-cosine = { strength = 3.0, power = 2.0 } }").expect("written");
    assert!(sample(&["--settings", "cosine.toml"]).1 != stronger, "guidance that sets in later");
    fs::write(at.join("first.toml"), "cfg = { first = { strength = 3.0, scales = 16 } }").expect("written");
    assert!(sample(&["--settings", "first.toml"]).1 == stronger, "guidance of all tokens");

    ok(at, &with_pair(&["sample", "--stages", "--count", "2", "--out", "stages.png"], &["--animate", "grows.gif"]));
    let sheet = image::open(at.join("stages.png")).expect("a sheet");
    assert!(sheet.width() > 4 * 56 && sheet.width() < 8 * 56, "a column per row of tokens: {}", sheet.width());
    for size in [&["--size", "24x16"][..], &["--scales", "raster:4x6"]] {
        json(at, &with_pair(&["sample", "--count", "1", "--npz", "wide.npz"], size));
        let mut file = npyz::npz::NpzArchive::open(at.join("wide.npz")).expect("an npz file");
        let images = file.by_name("arr_0").expect("readable").expect("images");
        assert_eq!(images.shape(), [1, 16, 24, 3], "one image of 24x16");
    }
    for (more, expected) in [
        (&["--scales", "1,2,4"][..], "raster"),
        (&["--ssg", "0.3"], "Scaled Spatial Guidance"),
        (&["--aid", "transformer.safetensors"], "injector"),
    ] {
        let output = support::run(at, &with_pair(&["sample"], more));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expected), "{more:?}: {message}");
    }
}

#[test]
fn edits_continue_the_beginning_of_an_image() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny(at, 3);
    colour_image(40, 3).save(at.join("photo.png")).expect("written");
    let edit = |more: &[&str]| json(at, &with_pair(&["edit", "photo.png", "--count", "2"], more));
    let drawn = |report: &Value| -> u64 {
        report["drawn_tokens"].as_array().expect("a list").iter().filter_map(Value::as_u64).sum()
    };
    assert_eq!(drawn(&edit(&["--redraw", "0,8,16,8", "--class", "1"])), 8, "the lower half");
    assert_eq!(drawn(&edit(&["--keep", "0,0,16,4", "--paste"])), 12, "all but the first row");
    assert_eq!(drawn(&edit(&["--complete", "5"])), 11, "all after five tokens");
    let message = fails(at, 2, &with_pair(&["edit", "photo.png"], &["--redraw", "0,0,8,16"]));
    assert!(message.contains("after token 0") && message.contains("beginning"), "{message}");
}

#[test]
fn files_are_told_converted_and_reconstructed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny(at, 3);
    colour_image(40, 3).save(at.join("photo.png")).expect("written");
    let info = |file: &str| json(at, &["info", file]);
    assert_eq!(info("tokenizer.safetensors")["models"][0]["name"], "LlamaGen tokenizer");
    let transformer = info("transformer.safetensors");
    assert_eq!(transformer["models"][0]["name"], "LlamaGen transformer", "{transformer}");
    assert_eq!(transformer["models"][0]["config"]["llamagen"]["patch_nums"], serde_json::json!({ "raster": 4 }));
    for file in ["tokenizer.safetensors", "transformer.safetensors"] {
        json(at, &["convert", file, "new.safetensors", "--scales", "raster:6"]);
        assert_same_weights(&at.join(file), &at.join("new.safetensors"), file);
    }
    let config = info("new.safetensors");
    assert_eq!(config["models"][0]["config"]["llamagen"]["patch_nums"], serde_json::json!({ "raster": 6 }), "{config}");
    assert_eq!(config["models"][0]["usage"]["cfg"], serde_json::json!({ "constant": 1.0 }), "{config}");
    fs::write(at.join("names.txt"), "ant\nbee\nfly\n").expect("written");
    json(at, &["convert", "transformer.safetensors", "new.safetensors", "--class-names", "names.txt"]);
    assert_eq!(info("new.safetensors")["models"][0]["usage"]["class_names"][1], "bee");
    let message = fails(at, 2, &["convert", "transformer.safetensors", "new.safetensors", "--lora", "x.safetensors"]);
    assert!(message.contains("VAR and FlexVAR"), "{message}");

    let report = json(at, &["reconstruct", "photo.png", "--tokenizer", "tokenizer.safetensors", "--stages"]);
    assert!(report["mean_psnr"].as_f64().is_some(), "{report}");
    let var = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-mnist/tokenizer.safetensors");
    let message = fails(at, 1, &["sample", "--tokenizer", var, "--transformer", "transformer.safetensors"]);
    assert!(message.contains("LlamaGen tokenizer"), "{message}");
}

#[test]
fn generated_images_are_evaluated() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny(at, 2);
    image_folder(&at.join("real"), 16, 60);
    let classifier = ClassifierConfig { image_channels: 3, image_size: [16, 16], classes: 2, ch: 32 };
    let classifier = classifier.init(1, &Device::flex()).expect("valid");
    classifier.save(at.join("classifier.safetensors"), &half()).expect("written");
    let report = json(at, &["eval", "tokenizer", "--tokenizer", "tokenizer.safetensors", "--data", "real"]);
    assert_eq!(report["codes_in_use_by_scale"].as_array().map(Vec::len), Some(1), "one map of tokens: {report}");
    let generated = ["eval", "generated", "--classifier", "classifier.safetensors", "--data", "real", "--count", "20"];
    let report = json(at, &with_pair(&generated, &[]));
    assert_eq!(report["scores"]["count"], 20, "{report}");
    assert!(report["samples"].as_str().is_some_and(|text| text.contains("generated, model")), "{report}");
}

#[test]
fn speed_is_measured() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny(at, 2);
    let only = "sample,encode,decode,train-tokenizer,train-var";
    let bench = ["bench", "--only", only, "--runs", "1", "--batch", "2", "--train-batch", "2"];
    let report = json(at, &with_pair(&bench, &[]));
    let results = report["results"].as_array().expect("a list");
    assert_eq!(results.len(), 7, "sampling in three parts, and the others: {report}");
    assert!(results.iter().all(|result| result["median"].as_f64() > Some(0.0)), "{report}");
    let message = fails(at, 1, &with_pair(&["bench", "--only", "injector"], &[]));
    assert!(message.contains("code vectors"), "{message}");
    let message = fails(at, 2, &["bench", "--quiet", "--preset", "gpt-b", "--lora", "lora.safetensors"]);
    assert!(message.contains("LlamaGen"), "{message}");
}

#[test]
fn both_models_are_trained() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    image_folder(&at.join("pictures"), 16, 8);
    let common = "[run]\nsteps = 2\nbatch_size = 4\nlog_every = 1\nsample_every = 2\n[data]\npath = \"pictures\"\n";
    let vq = "[model]\npatch_nums = { raster = 4 }\n[model.vq]\nch = 32\nch_mult = [1, 1, 1]\nnum_res_blocks = 1\n\
              z_channels = 8\ncodebook_size = 24\ncodebook_embed_dim = 8\n";
    fs::write(at.join("vq.toml"), format!("{common}{vq}")).expect("written");
    let gpt = format!(
        "tokenizer = \"vq/tokenizer.safetensors\"\n{common}[model]\ndim = 64\nn_layer = 2\nn_head = 2\n[preview]\nper_class = 1\n"
    );
    fs::write(at.join("gpt.toml"), gpt).expect("written");
    let report = json(at, &["train", "llamagen-vq", "vq.toml", "--out", "vq"]);
    assert_eq!(report["file"], "vq/tokenizer.safetensors", "{report}");
    let report = json(at, &["train", "llamagen", "gpt.toml", "--out", "gpt"]);
    assert_eq!(report["file"], "gpt/transformer.safetensors", "{report}");
    let log = fs::read_to_string(at.join("gpt/log.jsonl")).expect("a log");
    let last: Value = serde_json::from_str(log.lines().last().expect("a line")).expect("JSON");
    assert!(last["loss_3"].as_f64().is_some() && last.get("loss_4").is_none(), "a loss per row of tokens: {last}");
    let sample = ["sample", "--tokenizer", "vq/tokenizer.safetensors", "--transformer", "gpt/transformer.safetensors"];
    let report = json(at, &[&sample[..], &["--class", "waves", "--count", "2"]].concat());
    assert_eq!(report["classes"][0]["name"], "waves", "{report}");
    assert_eq!(report["settings"]["cfg"], serde_json::json!({ "constant": 1.0 }), "{report}");

    // VA-pi goes on from it, and from a LoRA beside it.
    let va_pi = format!(
        "tokenizer = \"vq/tokenizer.safetensors\"\ninit = \"gpt/transformer.safetensors\"\n{common}\
         [va_pi]\ngroup = 3\n[va_pi.reward]\nlpips = 0.0\n[preview]\nper_class = 1\n"
    );
    fs::write(at.join("va-pi.toml"), va_pi).expect("written");
    for (out, lora) in [("va-pi", None), ("lora", Some("lora={ attention = { rank = 2, alpha = 2.0 } }"))] {
        let set: Vec<&str> = lora.into_iter().flat_map(|lora| ["--set", lora]).collect();
        let report = json(at, &[&["train", "va-pi", "va-pi.toml", "--out", out][..], &set].concat());
        let file = format!("{out}/transformer.safetensors");
        assert_eq!(report["file"], file.as_str(), "{report}");
        let log = fs::read_to_string(at.join(out).join("log.jsonl")).expect("a log");
        let last: Value = serde_json::from_str(log.lines().last().expect("a line")).expect("JSON");
        assert!(last["reward"].as_f64() < Some(0.0) && last["entropy_3"].as_f64() > Some(0.0), "{last}");
        assert!(at.join(out).join("reward.svg").exists() && at.join(out).join("samples/step-00000002.png").exists());
        let sample = ["sample", "--tokenizer", "vq/tokenizer.safetensors", "--transformer", &file, "--class", "waves"];
        assert_eq!(json(at, &sample)["classes"][0]["name"], "waves", "a LlamaGen like any other");
    }
    let wrong = ["train", "va-pi", "va-pi.toml", "--out", "other", "--set", "va_pi.credit=last-scale"];
    let message = fails(at, 1, &wrong);
    assert!(message.contains("va_pi.credit") && message.contains("shared"), "{message}");
    let wrong = ["train", "va-pi", "va-pi.toml", "--out", "other", "--set", "va_pi.preset=papers"];
    assert!(fails(at, 1, &wrong).contains("released-c2i, paper"));
}
