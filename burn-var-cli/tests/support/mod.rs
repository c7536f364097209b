//! The real binary, tiny models and images to run it on.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::Path;
use std::process::{Command, Output};

use burn::tensor::Device;
use burn_var::Scales;
use burn_var::guidance::AidWeight;
use burn_var::models::aid::Injector;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::{FlexVaeConfig, FlexVarConfig, FlexVarPreset};
use burn_var::models::var::{Var, VarConfig, VarInit, VqVaeConfig};
use burn_var::rng::Rng;
use burn_var::weights::{FloatType, GenerationConfig, Pretrained, SaveOptions, StateDict};
use image::{Rgb, RgbImage};

/// The command, in a folder of its own.
pub(crate) fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burn-var"));
    command.current_dir(folder).args(args);
    command
}

pub(crate) fn run(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().expect("the binary starts")
}

/// Returns the output of a run that must succeed.
pub(crate) fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The same with `--json`.
pub(crate) fn json(folder: &Path, args: &[&str]) -> serde_json::Value {
    let text = ok(folder, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?} printed no JSON ({error}): {text}"))
}

/// Returns the message of a run that must fail with this exit code.
pub(crate) fn fails(folder: &Path, code: i32, args: &[&str]) -> String {
    let output = run(folder, args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "exit code of {args:?}: {message}");
    assert!(message.starts_with("error: "), "{args:?} says what is wrong: {message}");
    assert!(!message.contains("panicked"), "{args:?} must not panic: {message}");
    message
}

/// An untrained model of three classes that makes 16x16 images, in `tokenizer.safetensors` and
/// `transformer.safetensors`.
pub(crate) fn tiny_model(folder: &Path, image_channels: usize) {
    let device = Device::flex();
    let patch_nums = Scales::square(&[1, 2, 4]).expect("valid");
    let tokenizer = VqVaeConfig {
        image_channels,
        ch: 32,
        ch_mult: vec![1, 1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        vocab_size: 24,
        ..VqVaeConfig::public(patch_nums.clone())
    };
    let mut tokenizer = tokenizer.init(1, &device).expect("valid");
    // Codes of a trained size, so that images differ.
    tokenizer.quantize.embedding.weight = tokenizer.quantize.embedding.weight.map(|codes| codes * 24.0);
    tokenizer.save(folder.join("tokenizer.safetensors"), &SaveOptions::default()).expect("written");
    let transformer = VarConfig {
        depth: 2,
        embed_dim: 64,
        num_heads: 2,
        mlp_ratio: 2.0,
        norm_eps: 1e-6,
        shared_aln: true,
        attn_l2_norm: true,
        vocab_size: 24,
        z_channels: 8,
        num_classes: 3,
        patch_nums,
        drop_path_rate: 0.0,
    };
    let class_names = ["red fox", "Red panda", "newt"].map(str::to_owned).to_vec();
    let usage = GenerationConfig { class_names, ..GenerationConfig::default() };
    let transformer = transformer.init(VarInit { head: 30.0, ..VarInit::default() }, 1, &device).expect("valid");
    save_var(&transformer, &usage, folder.join("transformer.safetensors"));
}

/// An untrained FlexVAR of three classes that makes 16x16 grey images, in files of the same names.
pub(crate) fn tiny_flexvar(folder: &Path) {
    let device = Device::flex();
    let patch_nums = Scales::square(&[1, 2, 4]).expect("valid");
    let vq = VqModelConfig {
        image_channels: 1,
        ch: 32,
        ch_mult: vec![1, 1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        ..VqModelConfig::vq16(24, 8)
    };
    let tokenizer = FlexVaeConfig { vq, patch_nums: patch_nums.clone() }.init(1, &device).expect("valid");
    tokenizer.save(folder.join("tokenizer.safetensors"), &SaveOptions::default()).expect("written");
    let transformer = FlexVarConfig {
        depth: 2,
        embed_dim: 64,
        num_heads: 2,
        vocab_size: 24,
        z_channels: 8,
        num_classes: 3,
        patch_nums,
        positions: 8,
        ..FlexVarPreset::D16.config()
    };
    let transformer = transformer.init(VarInit { head: 30.0, ..VarInit::default() }, 1, &device).expect("valid");
    let mut options = SaveOptions::default();
    GenerationConfig::default().insert(&mut options.metadata).expect("JSON");
    transformer.save(folder.join("transformer.safetensors"), &options).expect("written");
}

/// IDX files of 16x16 images of noise in three classes.
pub(crate) fn noise(folder: &Path, counts: [usize; 2]) {
    for (prefix, count) in ["train", "t10k"].into_iter().zip(counts) {
        let big_endian =
            |numbers: &[usize]| numbers.iter().flat_map(|n| (*n as u32).to_be_bytes()).collect::<Vec<u8>>();
        let mut rng = Rng::new(1, "noise", counts[0] as u64);
        let pixels = (0..count * 256).map(|_| rng.below(256) as u8);
        let images = [vec![0, 0, 8, 3], big_endian(&[count, 16, 16]), pixels.collect()].concat();
        let labels = [vec![0, 0, 8, 1], big_endian(&[count]), (0..count).map(|i| (i % 3) as u8).collect()].concat();
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("written");
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("written");
    }
}

/// Saves in half precision.
pub(crate) fn half() -> SaveOptions {
    SaveOptions { precision: Some(FloatType::F16), ..Default::default() }
}

/// Saves an injector in half precision with a weight of 5.
pub(crate) fn save_injector(injector: &Injector, path: impl AsRef<Path>) {
    let mut options = half();
    AidWeight::Constant(5.0).insert(&mut options.metadata).expect("JSON");
    Pretrained::save(injector, path, &options).expect("written");
}

/// Saves a transformer with generation settings.
pub(crate) fn save_var(transformer: &Var, usage: &GenerationConfig, path: impl AsRef<Path>) {
    let mut options = SaveOptions::default();
    usage.insert(&mut options.metadata).expect("JSON");
    Pretrained::save(transformer, path, &options).expect("written");
}

/// A colour image that depends on `salt`.
pub(crate) fn colour_image(side: u32, salt: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| {
        let wave = |a: u32, b: u32| ((x * a + y * b + salt * 37) % 256) as u8;
        Rgb([wave(3, 5), wave(7 + salt % 3, 1), wave(1, 11)])
    })
}

/// Two classes of colour images.
pub(crate) fn image_folder(folder: &Path, side: u32, per_class: u32) {
    for (class, name) in ["stripes", "waves"].into_iter().enumerate() {
        let class_folder = folder.join(name);
        std::fs::create_dir_all(&class_folder).expect("folder");
        for i in 0..per_class {
            colour_image(side, i * 2 + class as u32).save(class_folder.join(format!("{i}.png"))).expect("written");
        }
    }
}

/// All tensors of two files are the same to the bit.
pub(crate) fn assert_same_weights(a: &Path, b: &Path, what: &str) {
    let [a, b] = [a, b].map(|path| StateDict::open(path).expect("a checkpoint"));
    assert!(a.keys().eq(b.keys()), "{what}: names");
    for key in a.keys() {
        let [a, b] = [&a, &b].map(|dict| dict.tensor(key).expect("readable"));
        assert!(a.as_bytes() == b.as_bytes(), "{what}: `{key}` differs");
    }
}
