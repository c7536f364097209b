//! Damaged and mismatched checkpoint files, their errors, and conversion.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use burn_var::models::var::{Var, VarConfig, VqVae};
use burn_var::weights::{LoadOptions, Pretrained, SaveOptions, StateDict, save};
use burn_var::{Error, Scales};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/checkpoints").join(name)
}

fn open(name: &str) -> StateDict {
    StateDict::open(golden(name)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_breaks_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cut.pth");
    let bytes = std::fs::read(golden("vqvae_tiny.pth")).expect("a golden file");
    for length in [0, 1, 3, 30, 1000, bytes.len() / 2, bytes.len() - 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("a file");
        let error = StateDict::open(&path).err().unwrap_or_else(|| panic!("{length} bytes were accepted"));
        assert!(error.to_string().contains("cut.pth"), "the file is named: {error}");
    }
}

#[test]
fn a_damaged_tensor_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("damaged.pth");
    let mut bytes = std::fs::read(golden("vqvae_tiny.pth")).expect("a golden file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&path, &bytes).expect("a file");
    let dict = StateDict::open(&path).expect("names and shapes are whole");
    let scales = Scales::square(&[1, 2, 3, 4]).expect("a scale schedule");
    let config = VqVae::config_of(&dict, Some(&scales)).expect("sizes");
    let loaded = VqVae::load_with(&dict, &config, LoadOptions::default(), &Device::flex());
    let error = loaded.expect_err("a damaged tensor").to_string();
    assert!(error.contains("damaged.pth") && error.contains("checksum"), "{error}");
    assert!(dict.keys().any(|key| error.contains(key)), "the tensor is named: {error}");
}

#[test]
fn the_wrong_file_is_recognized() {
    let scales = Scales::square(&[1, 2, 3, 4]).expect("a scale schedule");
    let error = VqVae::config_of(&open("var_tiny.pth"), Some(&scales)).expect_err("a transformer").to_string();
    assert!(error.contains("not a VQ-VAE"), "{error}");
    let error = Var::config_of(&open("vqvae_tiny.pth"), None).expect_err("a tokenizer").to_string();
    assert!(error.contains("not a VAR transformer"), "{error}");
    let error = open("aid_checkpoint.pth").section(Var::KIND).expect_err("no transformer").to_string();
    assert!(error.contains("it holds: AID injector, AID discriminator"), "{error}");
}

#[test]
fn another_size_is_reported_in_full() {
    let dict = open("var_tiny.pth");
    let config = Var::config_of(&dict, None).expect("sizes");
    let other = VarConfig { depth: 3, num_classes: 5, ..config };
    let Err(Error::Weights(report)) = Var::load_with(&dict, &other, LoadOptions::default(), &Device::flex()) else {
        panic!("weights of another size were accepted")
    };
    assert_eq!(report.mis_shaped.len(), 1, "the class embedding: {report}");
    assert!(report.missing.iter().all(|key| key.starts_with("blocks.2.")), "the third block: {report}");
    assert_eq!(report.missing.len(), 11, "all of it: {report}");
    assert!(report.unused.is_empty(), "everything else has its place: {report}");
}

#[test]
fn a_converted_file_holds_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["vqvae_tiny.pth", "var_trainer.pth"] {
        let dict = open(name).section(VqVae::KIND).expect("a tokenizer");
        let path = folder.path().join("converted.safetensors");
        save(&dict, &path, &SaveOptions::default()).expect("a file");
        let converted = StateDict::open(&path).expect("the file");
        assert!(dict.keys().eq(converted.keys()), "names of {name}");
        for key in dict.keys() {
            assert_eq!(dict.tensor(key).expect(key), converted.tensor(key).expect(key), "`{key}` of {name}");
        }
    }
}

/// `files/*.pth` hold the same Python dictionary, saved once in each of PyTorch's formats.
#[test]
fn every_layout_of_a_tensor_is_read_from_both_formats_of_torch_save() {
    for name in ["archive.pth", "legacy.pth"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("files").join(name);
        let dict = StateDict::open(path).unwrap_or_else(|error| panic!("{error}"));
        let read = |key: &str| {
            let data = dict.tensor(&format!("model.a.{key}")).unwrap_or_else(|error| panic!("{error}"));
            (data.shape().to_vec(), data.try_into_vec_as::<f32>().expect("numbers"))
        };
        let (shape, base) = read("weight");
        assert_eq!(shape, [6, 5], "{name}");
        assert_eq!(base[..2], [-1.125_839_8, -1.152_360_2], "values in {name}");
        assert_eq!(read("view"), (vec![2, 5], base[5..15].to_vec()), "a part of a larger storage in {name}");
        let turned = (0..30).map(|i| base[i % 6 * 5 + i / 6]).collect();
        assert_eq!(read("turned"), (vec![5, 6], turned), "a transposed view in {name}");
        assert_eq!(read("double"), (vec![5], base[..5].to_vec()), "double precision in {name}");
        for (key, error) in [("half", 1e-3), ("bf16", 8e-3)] {
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= error * b.abs();
            assert!(read(key).1.iter().zip(&base).all(near), "{key} in {name}");
        }
        assert_eq!(read("ids"), (vec![4], vec![0.0, 1.0, 2.0, 3.0]), "integers in {name}");
        assert_eq!(read("steps").1, [7.0], "a scalar in {name}");
    }
}
