//! Checkpoints of the classifier, a format of this crate.

use burn::tensor::Device;

use super::{Classifier, ClassifierConfig};
use crate::Result;
use crate::weights::{KeyMap, Kind, Pretrained};

impl Pretrained for Classifier {
    const KIND: Kind = Kind {
        name: "classifier",
        role: "classifier",
        title: "classifier",
        source: "`burn-var train classifier` trains one",
        sections: &[],
        landmark: None,
    };

    type Config = ClassifierConfig;

    fn config(&self) -> &ClassifierConfig {
        self.config()
    }

    fn keys(_: &ClassifierConfig) -> KeyMap {
        KeyMap::identity("classifier of burn-var")
    }

    fn init_zeros(config: &ClassifierConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;
    use crate::weights::{FloatType, SaveOptions, StateDict};

    #[test]
    fn a_classifier_round_trips_through_a_file() {
        let device = Device::default();
        let config = ClassifierConfig { image_channels: 1, image_size: [9, 8], classes: 3, ch: 32 };
        let model = config.init(5, &device).expect("valid");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("classifier.safetensors");
        let scores = |model: &Classifier| -> Vec<f32> {
            let scores = model.forward(Tensor::ones([1, 1, 9, 8], &device)).expect("right shape");
            scores.into_data().try_into_vec().expect("f32")
        };
        for (precision, tolerance) in [(FloatType::F32, 0.0), (FloatType::F16, 1e-3)] {
            model.save(&path, &SaveOptions { precision: Some(precision), ..Default::default() }).expect("written");
            let back = Classifier::load(&StateDict::open(&path).expect("written"), &device).expect("loads");
            assert_eq!(back.config(), &config, "the configuration is in the file");
            for (a, b) in scores(&back).iter().zip(scores(&model)) {
                assert!((a - b).abs() <= tolerance, "score {b} came back as {a} in {precision:?}");
            }
        }
        assert!(std::fs::metadata(&path).expect("written").len() < 1_000_000, "half a megabyte in half precision");
    }
}
