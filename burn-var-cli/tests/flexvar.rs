//! FlexVAR in the commands that measure, as a user runs them.

mod support;

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use burn_var::models::aid::InjectorConfig;
use burn_var::models::classifier::ClassifierConfig;
use burn_var::models::dino::VitConfig;
use burn_var::weights::{Pretrained, SaveOptions};
use serde_json::Value;
use support::{fails, half, json, noise, ok, save_injector, tiny_flexvar};

/// A folder with an untrained FlexVAR and noise as real images.
fn folder(counts: [usize; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    tiny_flexvar(folder.path());
    noise(folder.path(), counts);
    folder
}

fn classifier(path: &Path) {
    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    config.init(1, &Device::flex()).expect("valid").save(path, &half()).expect("written");
}

#[test]
fn all_of_it_is_benchmarked() {
    let folder = folder([2, 2]);
    let at = folder.path();
    let bench = ["bench", "--model", ".", "--runs", "1", "--train-batch", "2", "--batch", "2"];
    let only = "sample,encode,decode,train-tokenizer,train-var,injector,ssg";
    for size in [&[][..], &["--size", "32x24"], &["--scales", "1,3,4"]] {
        let report = json(at, &[&bench[..], &["--only", only, "--profile"], size].concat());
        let results = report["results"].as_array().expect("a list");
        let names: Vec<_> = results.iter().filter_map(|result| result["name"].as_str()).collect();
        let expected = [
            "sampling",
            "sampling: transformer",
            "sampling: decoder",
            "images to tokens",
            "canvas to images",
            "tokenizer training",
            "transformer training",
            "AID-VAR's injector",
            "Scaled Spatial Guidance",
        ];
        assert_eq!(names, expected, "{size:?}");
        assert!(results.iter().all(|result| result["median"].as_f64() > Some(0.0)), "{size:?}: {report}");
        assert!(results[0]["profile"].as_array().is_some_and(|shares| shares.len() > 3), "{size:?}: {report}");
    }
    let message = fails(at, 2, &["bench", "--preset", "flexvar-d30"]);
    assert!(message.contains("d16, d20, d24, d30, d36, flexvar-d16, flexvar-d20, flexvar-d24"), "{message}");
}

#[test]
fn consistency_is_measured_between_images_of_any_schedule() {
    let folder = folder([20, 90]);
    let at = folder.path();
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
    let features = [&["--feature", "vae-tokens"][..], &["--dino", "dino.safetensors", "--aid", "aid.safetensors"]];
    for (feature, scales, transitions) in
        [(features[0], "1,2,4", 2), (features[0], "1,2,3,4", 3), (features[1], "1,2,3,4", 3)]
    {
        let report = json(at, &[&iscs[..], feature, &["--scales", scales]].concat());
        for side in ["baseline", "guided"].into_iter().filter(|side| !report[side].is_null()) {
            let found = report[side]["transitions"].as_array().expect("a list");
            assert_eq!(found.len(), transitions, "{scales}: {report}");
            assert!(found.iter().all(|transition| transition["score"].as_f64() > Some(0.0)), "{report}");
        }
        assert_eq!(report["guided"].is_null(), feature == features[0], "{report}");
        assert_eq!(report["settings"]["scales"].as_array().map(Vec::len), Some(transitions + 1), "{report}");
    }
}

#[test]
fn spectra_have_the_frequencies_of_the_schedule() {
    let folder = folder([2, 2]);
    let spectra = ["eval", "spectra", "--model", ".", "--count", "5", "--scales", "1,3,4"];
    let spectra = |strength: &str| {
        let report = json(folder.path(), &[&spectra[..], &["--ssg", strength]].concat());
        let scales = report["scales"].as_array().expect("a list").clone();
        let change = |scale: &Value| -> Vec<f64> {
            scale["change"].as_array().expect("a list").iter().map(|value| value.as_f64().expect("a number")).collect()
        };
        scales.iter().map(change).collect::<Vec<_>>()
    };
    let changes = spectra("1");
    assert_eq!(changes.iter().map(Vec::len).collect::<Vec<_>>(), [3, 4], "the frequencies of maps of 3 and 4");
    assert!(changes[0][2] > changes[0][0], "more of what the scale before lacks: {changes:?}");
    assert!(spectra("0").iter().flatten().all(|change| change.abs() < 1e-6), "strength 0 changes nothing");
}

#[test]
fn generated_images_are_evaluated_and_swept() {
    let folder = folder([20, 120]);
    let at = folder.path();
    classifier(&at.join("classifier.safetensors"));
    let generated = ["eval", "generated", "--classifier", "classifier.safetensors", "--data", ".", "--model", "."];
    let generated = [&generated[..], &["--count", "30", "--out", "a"]].concat();
    let report = json(at, &generated);
    assert!(report["scores"]["frechet"].as_f64() > Some(0.0), "{report}");
    assert_eq!(json(at, &generated)["scores"]["frechet"], report["scores"]["frechet"], "what is saved");
    let other = [&generated[..], &["--scales", "1,3,4"]].concat();
    let message = fails(at, 1, &other);
    assert!(message.contains("a/features") || message.contains("`a`"), "images of another schedule: {message}");

    fs::write(at.join("sweep.toml"), "count = 30\nseeds = [0]\n[[method]]\nname = 'FlexVAR'\n").expect("written");
    let sweep = ["eval", "sweep", "sweep.toml", "--data", ".", "--model", ".", "--classifier"];
    let sweep = [&sweep[..], &["classifier.safetensors", "--out", "sweep"]].concat();
    let swept = json(at, &sweep);
    let frechet =
        |report: &Value| report["measured"][0]["figures"][0]["scores"]["frechet"].as_f64().expect("a distance");
    let other = json(at, &[&sweep[..], &["--scales", "1,3,4"]].concat());
    assert_ne!(frechet(&swept), frechet(&other), "measured anew over another schedule");
    ok(at, &sweep);
}
