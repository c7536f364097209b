//! Images that several processes share, as a user generates them.

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use burn::tensor::Device;
use burn_var::models::classifier::ClassifierConfig;
use burn_var::weights::Pretrained;
use serde_json::Value;
use support::{command, fails, half, json, noise, ok, tiny_model};

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the names of the files in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Seven images of the model that ships, class by class in turn.
fn sample<'a>(npz: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["sample", "--count", "7", "--seed", "3", "--npz", npz], more].concat()
}

#[test]
fn merged_shards_are_the_file_of_one_run() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    ok(at, &sample("whole.npz", &["--batch", "3"]));
    // Two, two and three images; batches do not end where shards do, and may differ.
    for (shard, batch, images) in [("2/3", "3", 2), ("3/3", "2", 3), ("1/3", "3", 2)] {
        let report = json(at, &sample("images.npz", &["--shard", shard, "--batch", batch]));
        assert_eq!(report["pictures"], images, "{report}");
        assert_eq!(report["npz"], format!("images.{}.npz", shard.replace('/', "-of-")), "{report}");
        let of_classes = report["classes"].as_array().expect("classes").iter().map(|class| class["pictures"].as_u64());
        assert_eq!(of_classes.sum::<Option<u64>>(), Some(images), "of this shard: {report}");
    }
    let shards = ["images.3-of-3.npz", "images.1-of-3.npz", "images.2-of-3.npz"];
    let merge = |shards: &[&'static str], out: &'static str| [&["merge", "--out", out], shards].concat();
    let report = json(at, &merge(&shards, "merged.npz"));
    assert_eq!((&report["pictures"], &report["shards"]), (&7.into(), &3.into()), "{report}");
    assert!(bytes(at, "merged.npz") == bytes(at, "whole.npz"), "byte for byte");

    // A shard that is there is kept; one that is damaged, or of another run, is generated again.
    let first = bytes(at, shards[1]);
    let before = fs::metadata(at.join(shards[1])).and_then(|file| file.modified()).expect("a time");
    ok(at, &sample("images.npz", &["--shard", "1/3"]));
    let after = fs::metadata(at.join(shards[1])).and_then(|file| file.modified()).expect("a time");
    assert_eq!(before, after, "not written again");
    fs::write(at.join(shards[1]), &first[..first.len() / 2]).expect("written");
    let message = fails(at, 1, &merge(&shards, "other.npz"));
    assert!(message.contains("images.1-of-3.npz") && message.contains("cut off"), "{message}");
    ok(at, &sample("images.npz", &["--shard", "1/3"]));
    assert!(bytes(at, shards[1]) == first, "generated again");

    let wrong = |shards: &[&'static str], parts: &[&str]| {
        let message = fails(at, 1, &merge(shards, "other.npz"));
        for part in parts {
            assert!(message.contains(part), "`{part}` in: {message}");
        }
        assert!(!at.join("other.npz").exists(), "nothing was written");
    };
    wrong(&shards[..2], &["shard 2/3 is missing", "`--shard 2/3`"]);
    wrong(&[shards[0], shards[1], shards[2], shards[1]], &["are both shard 1/3", "images.1-of-3.npz"]);
    wrong(&[shards[0], "whole.npz", shards[2]], &["`whole.npz`", "no shard"]);
    ok(at, &sample("images.npz", &["--shard", "1/2"]));
    wrong(&[shards[0], shards[1], "images.1-of-2.npz"], &["images.1-of-2.npz` is shard 1/2"]);
    ok(at, &["sample", "--count", "7", "--seed", "4", "--npz", "foreign.npz", "--shard", "2/3"]);
    wrong(&[shards[0], shards[1], "foreign.2-of-3.npz"], &["different runs", "foreign.2-of-3.npz", "\"seed\":4"]);
    ok(at, &sample("cfg.npz", &["--shard", "2/3", "--cfg", "2"]));
    wrong(&[shards[0], shards[1], "cfg.2-of-3.npz"], &["different runs", "cfg.2-of-3.npz"]);
}

#[test]
fn mistakes_about_shards_are_named() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    let refused = |args: &[&str], part: &str| {
        let message = fails(at, 2, args);
        assert!(message.contains(part), "{args:?} should mention `{part}`: {message}");
    };
    for shard in ["0/3", "4/3", "2", "a/b"] {
        refused(&sample("a.npz", &["--shard", shard]), "expected its number and the number of shards");
    }
    refused(&sample("a.npz", &["--shard", "8/8"]), "at most 7, one for each image");
    refused(&["sample", "--shard", "1/2"], "name it with --npz");
    refused(&["sample", "--shards", "2"], "name it with --npz");
    refused(&sample("a.npz", &["--shard", "1/2", "--out", "a.png"]), "leave out --out");
    refused(&sample("a.npz", &["--shard", "1/2", "--shards", "3"]), "contradict");
    refused(&sample("a.npz", &["--devices", "0,1"]), "--devices numbers GPUs");
    refused(&["eval", "generated", "--data", ".", "--shard", "1/2"], "name it with --out");
    assert!(names(at).is_empty(), "nothing was written: {:?}", names(at));
}

#[test]
fn processes_are_started_here() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    ok(at, &sample("whole.npz", &[]));
    let report = json(at, &sample("images.npz", &["--shards", "2", "--quiet"]));
    assert_eq!((&report["pictures"], &report["npz"]), (&7.into(), &"images.npz".into()), "{report}");
    assert!(bytes(at, "images.npz") == bytes(at, "whole.npz"), "byte for byte");
    assert_eq!(names(at), ["images.npz", "whole.npz"], "no shard is left");
    // The shards of a run that failed are kept for the next.
    let message = fails(at, 1, &sample("none/images.npz", &["--shards", "2"]));
    assert!(message.contains("no folder `none`") && message.contains("shard 1/2 has failed"), "{message}");
}

/// An untrained model, two networks, and noise as real images.
fn evaluation() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    let at = folder.path();
    tiny_model(at, 1);
    noise(at, [60, 40]);
    let config = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    for (name, seed) in [("main.safetensors", 1), ("judge.safetensors", 2)] {
        config.init(seed, &Device::flex()).expect("valid").save(at.join(name), &half()).expect("written");
    }
    folder
}

const NETWORKS: [&str; 8] =
    ["--data", ".", "--model", ".", "--classifier", "main.safetensors", "--judge", "judge.safetensors"];

/// Removes what differs from run to run: times.
fn without_times(mut report: Value) -> Value {
    fn remove(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !name.starts_with("seconds"));
                fields.values_mut().for_each(remove);
            }
            Value::Array(values) => values.iter_mut().for_each(remove),
            _ => {}
        }
    }
    remove(&mut report);
    report
}

#[test]
fn an_evaluation_in_shards_is_that_of_one_run() {
    let folder = evaluation();
    let at = folder.path();
    let generated = |out: &'static str, more: &[&'static str]| {
        let count = ["--count", "31", "--batch", "4", "--per-class", "--resamples", "20", "--out", out];
        [&["eval", "generated"], &NETWORKS[..], &count, more].concat()
    };
    let whole = without_times(json(at, &generated("whole", &[])));
    let report = json(at, &generated("shards", &["--shard", "1/3"]));
    assert_eq!(report, serde_json::json!({ "shard": "1/3", "pictures": 10, "out": "shards" }));
    assert_eq!(names(&at.join("shards")), ["features", "judges"], "no real image was read");
    ok(at, &generated("shards", &["--shard", "3/3"]));
    let message = fails(at, 1, &generated("shards", &[]));
    assert!(message.contains("shard 2/3 is missing") && message.contains("`--shard 2/3`"), "{message}");
    // Other settings than those of the shards.
    ok(at, &generated("shards", &["--shard", "2/3", "--seed", "1"]));
    let message = fails(at, 1, &generated("shards", &[]));
    assert!(message.contains("2-of-3/features.json") && message.contains("\"seed\":1"), "{message}");
    for part in ["shards/features", "shards/judges/judge/features"] {
        fs::remove_dir_all(at.join(part).join("2-of-3")).expect("removed");
    }
    ok(at, &generated("shards", &["--shard", "2/3"]));
    assert_eq!(without_times(json(at, &generated("shards", &[]))), whole, "the same measures");
    let files = ["features/features.f32", "features/logits.f32", "reference.npz", "judges/judge/features/features.f32"];
    for name in files {
        let [whole, merged] = ["whole", "shards"].map(|folder| bytes(at, &format!("{folder}/{name}")));
        assert!(whole == merged, "{name}");
    }
    ok(at, &["eval", "compare", "whole", "shards", "--resamples", "20"]);
    let launched = without_times(json(at, &generated("launched", &["--shards", "2"])));
    assert_eq!(launched, whole, "from two processes");

    // Images of a file, too: their features alone are shared.
    ok(at, &["sample", "--model", ".", "--count", "31", "--npz", "images.npz"]);
    let from_file = |out: &'static str, more: &[&'static str]| {
        [&["eval", "generated", "--samples", "images.npz", "--out", out], &NETWORKS[..], more].concat()
    };
    let one = without_times(json(at, &from_file("file", &[])));
    for shard in ["1/2", "2/2"] {
        ok(at, &from_file("file-shards", &["--shard", shard]));
    }
    assert_eq!(without_times(json(at, &from_file("file-shards", &[]))), one, "the same measures");
    assert_eq!(one["scores"]["frechet"], whole["scores"]["frechet"], "the same images");
}

#[test]
fn a_killed_shard_resumes() {
    let folder = evaluation();
    let at = folder.path();
    let generated = |out: &'static str, more: &[&'static str]| {
        [&["eval", "generated"], &NETWORKS[..], &["--count", "600", "--batch", "8", "--out", out], more].concat()
    };
    let whole = without_times(json(at, &generated("whole", &[])));
    ok(at, &generated("shards", &["--shard", "1/2"]));
    let args = generated("shards", &["--shard", "2/2"]);
    let mut child = command(at, &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let state = at.join("shards/features/2-of-2/features.json");
    let saved = || fs::read_to_string(&state).is_ok_and(|text| !text.contains("\"done\": 0"));
    while !saved() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("a child");
    if !fs::read_to_string(&state).expect("a state").contains("\"done\": 300") {
        let message = fails(at, 1, &generated("shards", &[]));
        assert!(message.contains("2-of-2` is not finished") && message.contains("`--shard 2/2`"), "{message}");
    }
    ok(at, &args);
    assert_eq!(without_times(json(at, &generated("shards", &[]))), whole, "after a kill");

    // A killed shard of a file of samples leaves no file of its name, and is generated again.
    let sample = |npz: &'static str, more: &[&'static str]| {
        [&["sample", "--model", ".", "--count", "600", "--batch", "8", "--npz", npz], more].concat()
    };
    ok(at, &sample("whole.npz", &[]));
    let args = sample("images.npz", &["--shard", "2/2"]);
    let mut child = command(at, &args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    std::thread::sleep(Duration::from_millis(100));
    child.kill().expect("killed");
    child.wait().expect("a child");
    ok(at, &args);
    ok(at, &sample("images.npz", &["--shard", "1/2"]));
    ok(at, &["merge", "images.1-of-2.npz", "images.2-of-2.npz", "--out", "images.npz"]);
    assert!(bytes(at, "images.npz") == bytes(at, "whole.npz"), "after a kill");
}

#[test]
fn a_sweep_in_shards_is_that_of_one_run() {
    let folder = evaluation();
    let at = folder.path();
    fs::write(
        at.join("sweep.toml"),
        "count = 31\nseeds = [0, 1]\n[[method]]\nname = 'a'\nvary = { top_k = [2, 9] }\n[[method]]\nname = 'b'\n",
    )
    .expect("written");
    let sweep = |out: &'static str, more: &[&'static str]| {
        [&["eval", "sweep", "sweep.toml", "--out", out, "--resamples", "20"], &NETWORKS[..], more].concat()
    };
    let whole = without_times(json(at, &sweep("whole", &[])));
    let report = json(at, &sweep("shards", &["--shard", "2/2"]));
    assert_eq!(report, serde_json::json!({ "shard": "2/2", "pictures": 6 * 16, "out": "shards" }));
    let message = fails(at, 1, &sweep("shards", &[]));
    assert!(message.contains("the method `a") && message.contains("shard 1/2 is missing"), "{message}");
    ok(at, &sweep("shards", &["--shard", "1/2"]));
    assert_eq!(without_times(json(at, &sweep("shards", &[]))), whole, "the same table");
    // All is measured already: nothing is left for a shard, or for a run.
    ok(at, &sweep("shards", &["--shard", "1/4"]));
    assert_eq!(without_times(json(at, &sweep("shards", &[]))), whole, "measured once");
    assert_eq!(without_times(json(at, &sweep("launched", &["--shards", "3"]))), whole, "from three processes");
}
