//! Files of judges, a format of this crate.

use burn::tensor::Device;

use super::{Judge, JudgeConfig};
use crate::Result;
use crate::weights::{KeyMap, Kind, Pretrained};

impl Pretrained for Judge {
    const KIND: Kind = Kind {
        name: "judge",
        role: "judge",
        title: "judge",
        source: "`burn-var train judges` trains some",
        sections: &[],
        landmark: None,
    };

    type Config = JudgeConfig;

    fn config(&self) -> &JudgeConfig {
        self.config()
    }

    /// The name of the variant is left out: `network.Perceptron.head.weight` is `head.weight` in a file.
    fn keys(_: &JudgeConfig) -> KeyMap {
        KeyMap::new("judge of burn-var", &[], |path| {
            let inner = path.strip_prefix("network.").and_then(|rest| rest.split_once('.'));
            inner.map_or(path, |(_, rest)| rest).to_owned()
        })
    }

    fn init_zeros(config: &JudgeConfig, device: &Device) -> Result<Self> {
        config.init_zeros(device)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::super::JudgeNetwork;
    use super::*;
    use crate::weights::{FloatType, SaveOptions, StateDict};

    #[test]
    fn judges_round_trip_through_a_file() {
        let device = Device::default();
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("judge.safetensors");
        let features = |judge: &Judge| -> Vec<f32> {
            let features = judge.features(Tensor::ones([1, 1, 32, 32], &device)).expect("right shape");
            features.into_data().try_into_vec().expect("f32")
        };
        for text in [
            r#"{"convolutional":{"classes":10}}"#,
            r#"{"perceptron":{"classes":10}}"#,
            r#"{"random":{}}"#,
            r#"{"components":{}}"#,
            r#"{"autoencoder":{}}"#,
        ] {
            let network: JudgeNetwork = serde_json::from_str(text).expect("sizes have defaults");
            assert!((64..=128).contains(&network.features()), "{text}: {}", network.features());
            let config = JudgeConfig { image_channels: 1, image_size: [32, 32], network };
            let judge = config.init(5, &device).expect("valid");
            for (precision, tolerance) in [(FloatType::F32, 0.0), (FloatType::F16, 0.02)] {
                judge.save(&path, &SaveOptions { precision: Some(precision), ..Default::default() }).expect("written");
                let dict = StateDict::open(&path).expect("written");
                assert_eq!(dict.models().expect("known")[0].kind(), Judge::KIND);
                assert!(dict.keys().all(|key| !key.starts_with("network.")), "{:?}", dict.keys().collect::<Vec<_>>());
                let back = Judge::load(&dict, &device).expect("loads");
                assert_eq!(back.config(), &config, "the configuration is in the file");
                for (a, b) in features(&back).iter().zip(features(&judge)) {
                    assert!((a - b).abs() <= tolerance, "{text}: {b} came back as {a} in {precision:?}");
                }
            }
            let bytes = std::fs::metadata(&path).expect("written").len();
            assert!(bytes < 1_000_000, "{text}: {bytes} bytes in half precision");
        }
    }
}
