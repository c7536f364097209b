//! Files of the classifier, which only this project writes.

use std::path::Path;

use burn::tensor::Device;

use super::{KeyMap, LoadOptions, ModelConfig, SaveOptions, StateDict, export, load, save};
use crate::classifier::Classifier;
use crate::{Error, Result};

fn keys() -> KeyMap {
    KeyMap::identity("classifier of burn-var")
}

/// A classifier with the configuration and the weights of a file written by [`save_classifier`], strictly.
///
/// # Errors
/// [`Error::Format`] if the file holds no configuration of a classifier; [`Error::Weights`] if the weights do not fit
/// it; see [`load`].
pub fn load_classifier(dict: &StateDict, device: &Device) -> Result<Classifier> {
    let Some(ModelConfig::Classifier(config)) = ModelConfig::of(dict)? else {
        return Err(Error::format(dict.origin(), "it is no classifier: `burn-var train classifier` makes one"));
    };
    Ok(load(config.init_zeros(device)?, dict, &keys(), LoadOptions::default())?.0)
}

/// Writes a classifier as safetensors, its configuration inside; `half` rounds to half precision.
///
/// # Errors
/// As [`save`].
pub fn save_classifier(model: &Classifier, path: impl AsRef<Path>, half: bool) -> Result<()> {
    let metadata = ModelConfig::Classifier(model.config().clone()).metadata()?;
    save(&export(model, &keys())?, path, &SaveOptions { half, metadata })
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::classifier::ClassifierConfig;

    #[test]
    fn a_file_gives_the_classifier_back() {
        let device = Device::default();
        let config = ClassifierConfig { image_channels: 1, image_size: [9, 8], classes: 3, ch: 32 };
        let model = config.init(5, &device).expect("valid");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("classifier.safetensors");
        let scores = |model: &Classifier| -> Vec<f32> {
            let scores = model.forward(Tensor::ones([1, 1, 9, 8], &device)).expect("right shape");
            scores.into_data().try_into_vec().expect("f32")
        };
        for half in [false, true] {
            save_classifier(&model, &path, half).expect("written");
            let back = load_classifier(&StateDict::open(&path).expect("written"), &device).expect("loads");
            assert_eq!(back.config(), &config, "the configuration came along");
            for (a, b) in scores(&back).iter().zip(scores(&model)) {
                let tolerance = if half { 1e-3 } else { 0.0 };
                assert!((a - b).abs() <= tolerance, "score {b} came back as {a}, half: {half}");
            }
        }
        assert!(std::fs::metadata(&path).expect("written").len() < 1_000_000, "half a megabyte in half precision");
    }
}
