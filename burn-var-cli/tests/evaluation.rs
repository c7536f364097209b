//! Evaluations through different networks, as a user runs them.

mod support;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use burn_var::models::classifier::ClassifierConfig;
use burn_var::weights::Pretrained;
use burn_var_train::eval::{NpzBuilder, NpzFile};
use serde_json::Value;
use support::{fails, half, json, ok, tiny_model};

/// Writes a model, two classifiers of one width, images and real images.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    for (name, seed) in [("a.safetensors", 1), ("b.safetensors", 2)] {
        let classifier = config.init(seed, &Device::flex()).expect("valid");
        classifier.save(at.join(name), &half()).expect("written");
    }
    for (name, seed, count) in [("images.npz", "0", "30"), ("real.npz", "1", "40")] {
        ok(at, &["sample", "--model", ".", "--count", count, "--seed", seed, "--npz", name]);
    }
    folder
}

fn generated<'a>(classifier: &'a str, reference: &'a str, out: &'a str) -> Vec<&'a str> {
    let network = ["eval", "generated", "--classifier", classifier, "--samples", "images.npz"];
    [&network[..], &["--reference", reference, "--out", out]].concat()
}

fn without(path: &Path, key: &str) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON");
    assert!(value.as_object_mut().expect("an object").remove(key).is_some(), "`{key}` is saved");
    fs::write(path, value.to_string()).expect("written");
}

#[test]
fn networks_of_equal_width_are_not_mixed() {
    let folder = folder();
    let at = folder.path();
    let [a, b] = ["a", "b"].map(|name| {
        let report = json(at, &generated(&format!("{name}.safetensors"), "real.npz", name));
        report["network"].as_str().expect("a description").to_owned()
    });
    assert_ne!(a, b, "the weights differ");
    let refused = |args: &[&str], advice: &str| {
        let message = fails(at, 1, args);
        for part in [&a, &b, advice] {
            assert!(message.contains(part), "{args:?} should mention `{part}`: {message}");
        }
    };
    refused(&generated("b.safetensors", "a/reference.npz", "c"), "compute the statistics again");
    assert!(!at.join("c").exists(), "refused before any work");
    refused(&generated("b.safetensors", "real.npz", "a"), "name another folder");
    refused(&["eval", "compare", "a", "b"], "compute both with one network");
    refused(&["eval", "report", "a", "b"], "compute both with one network");
    // With one reference file in both folders only the identities tell them apart.
    fs::copy(at.join("a/reference.npz"), at.join("b/reference.npz")).expect("copied");
    refused(&["eval", "compare", "b", "b"], "compute the statistics again");
    ok(at, &["eval", "compare", "a", "a", "--resamples", "20"]);
}

#[test]
fn results_of_older_versions_say_how_to_compute_them_again() {
    let folder = folder();
    let at = folder.path();
    ok(at, &generated("a.safetensors", "real.npz", "a"));
    let mut old = NpzFile::open(at.join("a/reference.npz")).expect("statistics");
    let mut file = NpzBuilder::create(at.join("old.npz")).expect("created");
    for name in ["mu", "sigma"] {
        let (shape, numbers) = old.floats(name).expect("numbers");
        file.array(name, &shape, &numbers).expect("written");
    }
    file.finish().expect("written");
    let message = fails(at, 1, &generated("a.safetensors", "old.npz", "b"));
    for part in ["`old.npz` from an unknown network", "compute them again from the reference images", "Inception"] {
        assert!(message.contains(part), "{message}");
    }

    ok(at, &generated("a.safetensors", "real.npz", "new"));
    without(&at.join("a/report.json"), "network_identity");
    ok(at, &["eval", "report", "a"]);
    assert!(fails(at, 2, &["eval", "report", "a", "new"]).contains("evaluate both again"));
    without(&at.join("a/features/features.json"), "network");
    for args in [&generated("a.safetensors", "real.npz", "a")[..], &["eval", "compare", "a", "new"]] {
        let message = fails(at, 1, args);
        assert!(message.contains("older version") && message.contains("compute them again"), "{message}");
    }
}

#[test]
fn a_sweep_keeps_to_one_network() {
    let folder = folder();
    let at = folder.path();
    for (prefix, count) in [("train", 2_u8), ("t10k", 12)] {
        let pixels = (0..usize::from(count) * 256).map(|i| (i * i % 251) as u8).collect();
        let images = [vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 16, 0, 0, 0, 16], pixels].concat();
        let labels = [vec![0, 0, 8, 1, 0, 0, 0, count], (0..count).map(|i| i % 2).collect()].concat();
        fs::write(at.join(format!("{prefix}-images-idx3-ubyte")), images).expect("written");
        fs::write(at.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("written");
    }
    fs::write(at.join("sweep.toml"), "count = 12\nseeds = [0]\n[[method]]\nname = 'VAR'\n").expect("written");
    let sweep = |classifier| {
        let network = ["eval", "sweep", "sweep.toml", "--data", ".", "--model", ".", "--classifier", classifier];
        [&network[..], &["--out", "sweep"]].concat()
    };
    let report = json(at, &sweep("a.safetensors"));
    let network = &report["measured"][0]["figures"][0]["network"];
    assert!(network["kind"].is_string() && network["weights"].is_string(), "saved with the measures: {network}");
    let message = fails(at, 1, &sweep("b.safetensors"));
    assert!(message.contains("different networks") && message.contains("name another folder"), "{message}");
    without(&at.join("sweep/test/features.json"), "network");
    assert!(fails(at, 1, &sweep("a.safetensors")).contains("compute them again"));
}
