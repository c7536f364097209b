//! Runs and token caches of earlier versions, which recorded FNV-1a fingerprints, are still recognized.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_var::models::var::VqVae;
use burn_var::weights::{Pretrained, StateDict};
use burn_var_train::Result;
use burn_var_train::checkpoint::{Checkpoint, CheckpointDir, Part};
use burn_var_train::data::{Fingerprint, Split, TokenCache, TokenCacheWriter, open_images};
use burn_var_train::progress::{Progress, StepReport};
use burn_var_train::tokenizer::{TokenizerTrainConfig, train_tokenizer};
use burn_var_train::var::{VarTrainConfig, train_var};
use serde_json::json;

/// Stops after a number of steps, and keeps the notes.
struct StopAfter {
    step: u64,
    notes: Vec<String>,
}

impl StopAfter {
    fn new(step: u64) -> Self {
        Self { step, notes: Vec::new() }
    }
}

impl Progress for StopAfter {
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()> {
        if report.step == self.step { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

/// The hash of earlier versions, written down a second time: each field as its length and its bytes.
fn fnv(fields: &[&[u8]]) -> String {
    let bytes = fields.iter().flat_map(|field| [(field.len() as u64).to_le_bytes().to_vec(), field.to_vec()]).flatten();
    let hash = bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul((1 << 88) + 0x13b)
    });
    format!("{hash:032x}")
}

/// IDX files of 16x16 images in three classes; returns labels and pixels of those to train on.
fn images(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let labels: Vec<u8> = (0..9).map(|i| i % 3).collect();
    let pixels: Vec<u8> = (0..9 * 256).map(|i| (i * 31 % 251) as u8).collect();
    for prefix in ["train", "t10k"] {
        let header = [0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 16, 0, 0, 0, 16];
        let write = |name: &str, header: &[u8], data: &[u8]| {
            std::fs::write(folder.join(format!("{prefix}-{name}")), [header, data].concat()).expect("written");
        };
        write("images-idx3-ubyte", &header, &pixels);
        write("labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 9], &labels);
    }
    (labels, pixels)
}

const RUN: &str = "[run]\nsteps = 3\nbatch_size = 2\nsave_every = 1\n[learning_rate]\npeak = 0.001\n";

fn tokenizer_config(data: &Path) -> TokenizerTrainConfig {
    let model = "[model]\nimage_channels = 1\nch = 32\nch_mult = [1, 1]\nnum_res_blocks = 1\nz_channels = 4\n\
                 vocab_size = 8\npatch_nums = [1, 8]\n";
    toml::from_str(&format!("{RUN}[data]\npath = {data:?}\n{model}")).expect("valid")
}

/// Replaces the record of the data in the newest checkpoint, and returns what it was.
fn record(run: &Path, data: &str) -> String {
    let root = run.join("checkpoints");
    let newest = Checkpoint::newest(&root).expect("readable").expect("a checkpoint");
    let parts = newest.parts().filter(|name| *name != "state.json");
    let parts = parts.map(|name| Part::bytes(name, newest.bytes(name).expect("readable"))).collect();
    let before = newest.state::<serde_json::Value>().expect("a state");
    CheckpointDir::open(root).expect("free").save(newest.step(), &json!({ "data": data }), parts).expect("saved");
    before["data"].as_str().expect("text").to_owned()
}

#[test]
fn a_run_of_an_earlier_version_resumes_on_its_own_data_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    let (labels, pixels) = images(&data);
    let names = open_images(&data, Split::Train, &Default::default()).expect("images").class_names().join("\n");
    let old = fnv(&[b"idx", b"[16, 16]", names.as_bytes(), &labels, &pixels]);
    let run = folder.path().join("run");
    let train = |stop: u64| -> Result<Option<PathBuf>> {
        train_tokenizer(tokenizer_config(&data), &run, &Device::default(), &mut StopAfter::new(stop))
    };
    assert_eq!(train(1).expect("trains"), None, "stopped");
    let new = record(&run, &"0".repeat(32));
    assert_eq!(new.len(), 64, "this version records the BLAKE3 hash: {new}");
    let error = train(2).expect_err("other data").to_string();
    assert!(error.contains("other images"), "{error}");
    record(&run, &old);
    assert_eq!(train(2).expect("the data of the earlier version"), None, "stopped");
    assert_eq!(record(&run, &old), new, "the next checkpoint has the new record");
}

#[test]
fn a_folder_has_the_fingerprint_of_the_earlier_version() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut contents = Vec::new();
    for (name, value) in [("bag", 10), ("coat", 200)] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        let path = folder.path().join(name).join("1.png");
        image::RgbImage::from_pixel(8, 8, image::Rgb([value; 3])).save(&path).expect("written");
        contents.push(fnv(&[&std::fs::read(path).expect("readable")]));
    }
    let options = toml::from_str("holdout = 0.0").expect("valid");
    let source = open_images(folder.path(), Split::Train, &options).expect("images");
    let (first, second) = (contents[0].as_bytes(), contents[1].as_bytes());
    let fields = [b"folder", &1.125_f64.to_le_bytes()[..], b"bag", b"coat"];
    let files = [&0_usize.to_le_bytes()[..], first, &1_usize.to_le_bytes()[..], second];
    let old = fnv(&[&fields[..], &files[..]].concat());
    assert_eq!(source.fingerprint_like(&old).expect("readable"), old);
    assert_eq!(source.fingerprint_like(&source.fingerprint()).expect("readable"), source.fingerprint());
}

#[test]
fn a_token_cache_of_an_earlier_version_is_used_with_its_tokenizer_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    images(&data);
    let device = Device::default();
    let tokenizer_run = folder.path().join("tokenizer");
    let file = train_tokenizer(tokenizer_config(&data), &tokenizer_run, &device, &mut ()).expect("trains");
    let file = file.expect("a tokenizer");
    let config = format!(
        "tokenizer = {file:?}\n{RUN}[data]\npath = {data:?}\n[model]\ndepth = 1\nembed_dim = 32\nnum_heads = 1\n"
    );
    let run = folder.path().join("runs/var");
    let train = || {
        let config: VarTrainConfig = toml::from_str(&config).expect("valid");
        let mut stop = StopAfter::new(1);
        train_var(config, &run, &device, &mut stop).expect("trains");
        std::fs::remove_dir_all(run.join("checkpoints")).expect("removed");
        stop.notes.join("\n")
    };
    train();

    // The same cache in the folder of the run, with the fingerprints that an earlier version would have written.
    let shared = folder.path().join("runs/.cache");
    let mut files = std::fs::read_dir(&shared).expect("a folder").map(|entry| entry.expect("readable").path());
    let made = files.find(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    let cache = TokenCache::open(&made.expect("a cache")).expect("readable");
    std::fs::remove_dir_all(&shared).expect("removed");
    let tokenizer = VqVae::load(&StateDict::open(&file).expect("readable"), &device).expect("fits");
    let json = serde_json::to_vec(tokenizer.config()).expect("JSON");
    let form = "0".repeat(32);
    let old = Fingerprint::like(&form).field(&json).module(&tokenizer).expect("readable").finish();
    let source = open_images(&data, Split::Train, &Default::default()).expect("images");
    let images = source.fingerprint_like(&form).expect("in memory");
    let mut spec = cache.spec().clone();
    for (tokenizer, fits) in [(old, true), (form, false)] {
        (spec.tokenizer, spec.data) = (tokenizer, fnv(&[images.as_bytes(), b"1x16x16"]));
        let mut writer = TokenCacheWriter::create(&run.join("tokens.safetensors"), spec.clone()).expect("created");
        for (image, label) in cache.labels().iter().enumerate() {
            let rows = [cache.row(image, 0).expect("tokens")];
            writer.push(*label as usize, &rows).expect("written");
        }
        writer.finish().expect("written");
        let notes = train();
        assert_eq!(!shared.exists(), fits, "tokens of {}: {notes}", spec.tokenizer);
        assert_eq!(!notes.contains("fingerprint of the tokenizer"), fits, "{notes}");
    }
}
