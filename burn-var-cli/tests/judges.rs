//! Evaluation through several judges, as a user runs it.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use burn::tensor::Device;
use burn_var::Scales;
use burn_var::models::classifier::ClassifierConfig;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::FlexVaeConfig;
use burn_var::models::var::{Var, VarInit};
use burn_var::rng::Rng;
use burn_var::weights::{GenerationConfig, Pretrained, SaveOptions, StateDict};
use serde_json::Value;
use support::{command, fails, half, json, ok, run, save_var, tiny_model};

/// IDX files of 16x16 noise in three classes, 60 training and 40 test images.
fn noise(folder: &Path) {
    for (prefix, count) in [("train", 60_u8), ("t10k", 40)] {
        let mut rng = Rng::new(1, prefix, 0);
        let pixels = (0..usize::from(count) * 256).map(|_| rng.below(256) as u8).collect();
        let images = [vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 16, 0, 0, 0, 16], pixels].concat();
        let labels = [vec![0, 0, 8, 1, 0, 0, 0, count], (0..count).map(|i| i % 3).collect()].concat();
        fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("written");
        fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("written");
    }
}

const JUDGES: &str = "image_channels = 1\nimage_size = [16, 16]\n[run]\nsteps = 4\nbatch_size = 8\nsave_every = 1\n\
    [data]\npath = \".\"\n[judge.conv]\nseed = 1\n\
    network = { convolutional = { classes = 3, channels = [32, 32, 32], blocks = 1 } }\n\
    [judge.mlp]\nseed = 2\nnetwork = { perceptron = { classes = 3, width = 16, features = 8 } }\n\
    [judge.random]\nseed = 3\nnetwork = { random = { channels = 2 } }\n\
    [judge.pca]\nnetwork = { components = { features = 6 } }\n\
    [judge.auto]\nseed = 5\nnetwork = { autoencoder = { channels = 32, features = 8 } }\n";

/// Noise as real images, an untrained model and one with other weights, a classifier, and two judges in `judges`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (at, device) = (folder.path(), Device::flex());
    tiny_model(at, 1);
    noise(at);
    let var = Var::load(&StateDict::open(at.join("transformer.safetensors")).expect("there"), &device).expect("loads");
    let other = var.config().init(VarInit { head: 30.0, ..VarInit::default() }, 2, &device).expect("valid");
    save_var(&other, &GenerationConfig::default(), at.join("other.safetensors"));
    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    config.init(1, &device).expect("valid").save(at.join("classifier.safetensors"), &half()).expect("written");
    let judges = JUDGES.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let two = judges.split("[judge.").filter(|part| part.starts_with("random") || part.starts_with("pca"));
    let two: String = two.map(|part| format!("[judge.{part}\n")).collect();
    let head = judges.split("[judge.").next().expect("a head");
    fs::write(at.join("two.toml"), format!("{head}{two}")).expect("written");
    ok(at, &["train", "judges", "two.toml", "--out", "judges"]);
    folder
}

const SWEEP: [&str; 8] = ["eval", "sweep", "sweep.toml", "--data", ".", "--model", ".", "--judge"];

fn sweep<'a>(judge: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&SWEEP[..], &[judge, "--out", out, "--resamples", "20"], more].concat()
}

/// Removes what differs from run to run.
fn without_times(mut report: Value) -> Value {
    for measured in report["measured"].as_array_mut().expect("rows") {
        for figures in measured["figures"].as_array_mut().expect("seeds") {
            figures.as_object_mut().expect("an object").remove("seconds_a_picture");
        }
    }
    report
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

#[test]
fn judges_of_all_kinds_are_trained_by_one_command() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    noise(at);
    fs::write(at.join("judges.toml"), JUDGES).expect("written");
    let report = json(at, &["train", "judges", "judges.toml", "--out", "judges"]);
    let judges = report["judges"].as_array().expect("judges");
    let names: Vec<&str> = judges.iter().filter_map(|judge| judge["name"].as_str()).collect();
    assert_eq!(names, ["auto", "conv", "mlp", "pca", "random"]);
    assert!(judges[1]["test_accuracy"].is_number() && judges[4]["test_accuracy"].is_null(), "{report}");
    for (name, kind) in
        [("auto", "autoencoder"), ("conv", "convolutional"), ("mlp", "perceptron"), ("pca", "components")]
    {
        let info = json(at, &["info", &format!("judges/{name}.safetensors")]);
        assert_eq!(info["models"][0]["name"], "judge", "{info}");
        assert!(info["models"][0]["config"]["judge"]["network"][kind].is_object(), "{info}");
    }
    let read = |name: &&str| fs::read(at.join(format!("judges/{name}.safetensors"))).expect("weights");
    let bytes = || names.iter().map(read).collect::<Vec<_>>();
    let before = bytes();
    let text = ok(at, &["train", "judges", "judges.toml", "--out", "judges"]);
    assert!(text.contains("mlp recognizes") && text.contains("pca\n"), "{text}");
    assert!(bytes() == before, "a finished run is not trained again");
    let longer = run(at, &["train", "judges", "judges.toml", "--out", "judges", "--steps", "6"]);
    let said = String::from_utf8_lossy(&longer.stderr).into_owned();
    assert!(said.contains("judge auto: autoencoder") && said.contains("resumes after step 4"), "{said}");
    let message = fails(at, 1, &["train", "judges", "judges.toml", "--out", "x", "--set", "image_size=[28,28]"]);
    assert!(message.contains("image_size") && message.contains("multiples of 16"), "{message}");
}

#[test]
fn a_sweep_compares_trainings_through_judges() {
    let folder = folder();
    let at = folder.path();
    let text = "count = 24\nseeds = [0, 1]\nbaseline = 'base'\n\
        [[method]]\nname = 'two'\ntransformers = ['transformer.safetensors', 'other.safetensors']\n\
        settings = { temperature = 0.5 }\n[[method]]\nname = 'base'\n";
    fs::write(at.join("sweep.toml"), text).expect("written");
    let more = ["--classifier", "classifier.safetensors", "--bars", "bars.svg"];
    let report = json(at, &sweep("judges", "out", &more));
    assert_eq!((&report["baseline"], &report["seeds"]), (&"base".into(), &2.into()));
    let names: Vec<&str> =
        report["judges"].as_array().expect("judges").iter().map(|j| j["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pca", "random"]);
    let (two, base) = (&report["measured"][0], &report["measured"][1]);
    assert_eq!(base["judged"]["by_judge"], serde_json::json!([1.0, 1.0]), "exactly");
    assert_eq!((&base["judged"]["mean"], &base["judged"]["interval"]), (&1.0.into(), &Value::Null));
    assert_eq!(two["figures"].as_array().expect("runs").len(), 4, "two trainings of two seeds");
    assert_eq!(two["figures"][3]["training"], "other.safetensors");

    // Means over the seeds, then over the trainings, by hand.
    let mean = |a: f64, b: f64| (a + b) / 2.0;
    let of = |figures: &Value, judge: usize| number(&figures["judged"][judge]);
    let mut product = 1.0;
    for judge in 0..2 {
        let runs = &two["figures"];
        let trainings = [0, 2].map(|i| mean(of(&runs[i], judge), of(&runs[i + 1], judge)));
        let own = mean(trainings[0], trainings[1]);
        let found = &two["judged"]["frechet"][judge];
        let std = (trainings[0] - trainings[1]).abs() / 2_f64.sqrt();
        assert!((number(&found["mean"]) - own).abs() < 1e-9 * own, "mean over the trainings: {found}");
        assert!((number(&found["std"]) - std).abs() < 1e-9 * own, "spread of the trainings: {found}");
        let ratio = own / mean(of(&base["figures"][0], judge), of(&base["figures"][1], judge));
        assert!((number(&two["judged"]["by_judge"][judge]) - ratio).abs() < 1e-9, "{two}");
        product *= ratio;
    }
    assert!((number(&two["judged"]["mean"]) - product.sqrt()).abs() < 1e-9, "geometric mean");
    let interval = &two["judged"]["interval"];
    assert!(number(&interval["low"]) < number(&interval["high"]), "{interval}");
    assert!(fs::read_to_string(at.join("bars.svg")).expect("a chart").contains("two"));

    // The same numbers as from single evaluations.
    let single = |seed: &str, transformer: &str, more: &[&str]| {
        let model = ["--tokenizer", "tokenizer.safetensors", "--transformer", transformer, "--seed", seed];
        let start = ["eval", "generated", "--data", ".", "--count", "24", "--classifier", "classifier.safetensors"];
        json(at, &[&start[..], &["--judge", "judges"], &model, more].concat())
    };
    let evaluated = single("1", "other.safetensors", &["--temperature", "0.5", "--out", "single"]);
    for (judge, name) in names.iter().enumerate() {
        let found = &evaluated["judges"][judge];
        assert_eq!(found["name"], **name);
        assert_eq!(found["frechet"], two["figures"][3]["judged"][judge], "{evaluated}");
        assert_eq!(found["floor"], report["judges"][judge]["floor"], "{evaluated}");
    }
    assert_eq!(evaluated["scores"], two["figures"][3]["scores"], "through the classifier");
    let plain = single("0", "transformer.safetensors", &["--out", "plain"]);
    assert_eq!(plain["judges"][0]["frechet"], base["figures"][0]["judged"][0]);
    let compared = json(at, &["eval", "compare", "plain", "single", "--resamples", "20"]);
    let difference = number(&evaluated["judges"][1]["frechet"]) - number(&plain["judges"][1]["frechet"]);
    assert_eq!(compared["judges"][1]["name"], "random");
    assert!((number(&compared["judges"][1]["difference"]) - difference).abs() < 1e-9, "{compared}");

    let text = ok(at, &sweep("judges", "out", &more));
    for part in [
        "| method | varied | pca | random | geometric mean |",
        "| real training images | |",
        "(1.000) | 1.000 |",
        "over the trainings of a method",
    ] {
        assert!(text.contains(part), "`{part}` in {text}");
    }
}

#[test]
fn an_interrupted_sweep_and_more_judges_give_the_same() {
    let folder = folder();
    let at = folder.path();
    fs::write(at.join("sweep.toml"), "count = 30\nseeds = [0, 1]\n[[method]]\nname = 'a'\nvary = { top_k = [2, 9] }\n")
        .expect("written");
    let whole = without_times(json(at, &sweep("judges", "whole", &[])));
    assert!(whole["measured"][1]["judged"]["interval"].is_object(), "{whole}");
    // One judge first: the images are generated again for the other alone.
    let one = json(at, &sweep("judges/pca.safetensors", "steps", &[]));
    assert_eq!(one["judges"].as_array().expect("judges").len(), 1);
    let both = without_times(json(at, &sweep("judges", "steps", &[])));
    assert_eq!(both, whole, "one judge after the other");

    let args = sweep("judges", "killed", &["--batch", "1"]);
    let mut child = command(at, &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let figures = || {
        let folders = fs::read_dir(at.join("killed")).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        files.filter(|file| file.file_name().to_string_lossy().starts_with("judged-")).count()
    };
    while figures() < 1 && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("a child");
    assert_eq!(without_times(json(at, &sweep("judges", "killed", &[]))), whole, "after a kill");
    // Another number of resamples needs no new images.
    let more = json(at, &[&SWEEP[..], &["judges", "--out", "whole", "--resamples", "30"]].concat());
    assert_eq!(more["measured"][1]["judged"]["mean"], whole["measured"][1]["judged"]["mean"]);
    let none = json(at, &[&SWEEP[..], &["judges", "--out", "whole", "--resamples", "0"]].concat());
    assert!(none["measured"][1]["judged"]["interval"].is_null(), "{none}");
}

#[test]
fn settings_are_chosen_by_a_part_of_the_training_images() {
    let folder = folder();
    let at = folder.path();
    let write = |reference: &str| {
        let text = format!("count = 12\nseeds = [0]\nreference = '{reference}'\n[[method]]\nname = 'a'\n");
        fs::write(at.join("sweep.toml"), text).expect("written");
    };
    write("validation");
    let tuned = json(at, &sweep("judges", "out", &["--classifier", "classifier.safetensors"]));
    assert_eq!(tuned["real_images"], "validation");
    assert_eq!(tuned["measured"][0]["figures"][0]["scores"]["reference_count"], 6, "a tenth of 60");
    assert!(tuned["reference"].as_str().expect("text").starts_with("validation images of"), "{tuned}");
    // The test images are not even looked at.
    for name in ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
        fs::rename(at.join(name), at.join(format!("gone-{name}"))).expect("renamed");
    }
    let again = json(at, &sweep("judges", "other", &["--classifier", "classifier.safetensors"]));
    assert_eq!(without_times(again), without_times(tuned.clone()));
    write("test");
    assert!(fails(at, 1, &sweep("judges", "other", &[])).contains("t10k"));
    for name in ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
        fs::rename(at.join(format!("gone-{name}")), at.join(name)).expect("renamed");
    }
    let tested = json(at, &sweep("judges", "out", &["--classifier", "classifier.safetensors"]));
    let [tuned, tested] = [&tuned, &tested].map(|report| &report["measured"][0]["figures"][0]);
    assert_eq!(tested["scores"]["reference_count"], 40, "the same folder, other real images");
    assert_ne!(tested["judged"], tuned["judged"]);
    assert!(tuned["seconds_a_picture"].is_number() && tested["seconds_a_picture"].is_null(), "{tested}");
    write("training");
    assert!(fails(at, 1, &sweep("judges", "other", &[])).contains("expected `test` or `validation`"));
}

#[test]
fn a_method_can_be_a_flexvar() {
    let folder = folder();
    let at = folder.path();
    let vq = VqModelConfig {
        image_channels: 1,
        ch: 32,
        ch_mult: vec![1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        ..VqModelConfig::vq16(32, 8)
    };
    let config = FlexVaeConfig { vq, patch_nums: Scales::square(&[1, 2, 4, 8]).expect("valid") };
    let tokenizer = config.init(1, &Device::flex()).expect("valid");
    tokenizer.save(at.join("flexvae.safetensors"), &SaveOptions::default()).expect("written");
    let flexvar = "tokenizer = \"flexvae.safetensors\"\npositions = 8\n[run]\nsteps = 1\nbatch_size = 4\n\
        [data]\npath = \".\"\n[preview]\nper_class = 1\n\
        [scales]\nfirst = [1, 2]\ngroups = [{ count = 2, from = 3, to = 6 }]\nlast = 8\nmax_tokens = 140\n\
        [model]\ndepth = 2\nembed_dim = 64\nnum_heads = 2\n";
    fs::write(at.join("flexvar.toml"), flexvar).expect("written");
    ok(at, &["train", "flexvar", "flexvar.toml", "--out", "flexvar"]);
    let text = "count = 12\nseeds = [0]\n[[method]]\nname = 'VAR'\n[[method]]\nname = 'FlexVAR'\n\
        tokenizer = 'flexvae.safetensors'\ntransformer = 'flexvar/transformer.safetensors'\n";
    fs::write(at.join("sweep.toml"), text).expect("written");
    let report = json(at, &sweep("judges", "out", &[]));
    let model = ["--tokenizer", "flexvae.safetensors", "--transformer", "flexvar/transformer.safetensors"];
    let start = ["eval", "generated", "--data", ".", "--count", "12", "--judge", "judges"];
    let single = json(at, &[&start[..], &model].concat());
    assert_eq!(single["judges"][1]["frechet"], report["measured"][1]["figures"][0]["judged"][1], "{report}");
    let other = json(at, &[&start[..], &model, &["--scales", "1,2,8"]].concat());
    assert_ne!(other["judges"], single["judges"], "another schedule gives other images of the same weights");
    assert_ne!(other["settings"], single["settings"], "results of one are not taken for those of the other");
}

#[test]
fn mistakes_are_named_before_any_work() {
    let folder = folder();
    let at = folder.path();
    let write =
        |text: &str| fs::write(at.join("sweep.toml"), format!("count = 12\nseeds = [0]\n{text}")).expect("written");
    write("[[method]]\nname = 'a'\n");
    let pca = "judges/pca.safetensors";
    let refused = |code: i32, args: &[&str], parts: &[&str]| {
        let message = fails(at, code, args);
        for part in parts {
            assert!(message.contains(part), "{args:?} should mention `{part}`: {message}");
        }
        assert!(!at.join("out").exists(), "refused before any work: {args:?}");
    };
    refused(2, &sweep(pca, "out", &["--judge", pca]), &[pca, "are one network", "name it once"]);
    fs::copy(at.join(pca), at.join("copy.safetensors")).expect("copied");
    refused(2, &sweep(pca, "out", &["--judge", "copy.safetensors"]), &[pca, "copy.safetensors", "one network"]);
    let both = ["--classifier", "classifier.safetensors"];
    refused(2, &sweep("classifier.safetensors", "out", &both), &["one network"]);
    refused(
        2,
        &sweep("transformer.safetensors", "out", &[]),
        &["transformer.safetensors", "VAR transformer", "expected"],
    );
    refused(1, &sweep("sweep.toml", "out", &[]), &["sweep.toml"]);
    refused(1, &sweep("nothing.safetensors", "out", &[]), &["nothing.safetensors"]);
    fs::create_dir(at.join("empty")).expect("created");
    refused(2, &sweep("empty", "out", &[]), &["`empty` holds no safetensors file"]);
    let [plain, judged] = [&[][..], &["--judge", pca]];
    let of = |more: &[&'static str]| [&["eval", "sweep", "sweep.toml", "--data", ".", "--out", "out"], more].concat();
    refused(2, &of(plain), &["--judge"]);
    refused(2, &of(&["--bars", "x.svg", "--classifier", "classifier.safetensors"]), &["--judge"]);
    refused(2, &[&of(&["--resamples", "3"]), judged].concat(), &["--resamples", "20"]);
    write("baseline = 'b'\n[[method]]\nname = 'a'\n");
    refused(2, &sweep(pca, "out", &[]), &["no method `b`", "but a"]);
    write("[[method]]\nname = 'a'\n[[method]]\nname = 'b'\ntransformer = 'missing.safetensors'\n");
    refused(1, &sweep(pca, "out", &[]), &["method `b`", "missing.safetensors"]);
    ok(at, &["sample", "--model", ".", "--count", "12", "--npz", "images.npz"]);
    let generated = ["eval", "generated", "--samples", "images.npz", "--judge", "judges", "--reference"];
    let report = json(at, &[&generated[..], &["images.npz", "--out", "a"]].concat());
    assert!(number(&report["judges"][1]["frechet"]) < 1e-6 && report["judges"][1]["floor"].is_null(), "{report}");
    refused(2, &[&generated[..], &["a/reference.npz"]].concat(), &["statistics of one network", "--data"]);
}
