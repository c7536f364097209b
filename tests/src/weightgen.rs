//! The same deterministic weights in any language, so that no weight file needs shipping (recipe v1).
//!
//! A tensor is named by its state-dict key and filled in row-major order. With `seed` the FNV-1a hash of the key and
//! `z` element `i` of splitmix64 from that seed, `t = (z >> 40) / 2^24 * 2 - 1` lies in `[-1, 1)`. Its value follows
//! from the key and the shape, in f64, rounded once to f32.

use std::collections::BTreeMap;

use burn::module::Module;
use burn_var::weights::{KeyMap, StateDict, export};
use serde::Deserialize;

/// Returns the numbers t of the tensor called `key`, without end.
pub fn unit(key: &str) -> impl Iterator<Item = f64> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let seed = key.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    (1u64..).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0
    })
}

/// An exception from the recipe: `offset + scale * t`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Override {
    /// The factor of t.
    #[serde(default = "one")]
    pub scale: f64,
    /// The number that is added.
    #[serde(default)]
    pub offset: f64,
}

/// The recipe for the weights of a module, as cases write it under `weightgen`.
#[derive(Debug, Clone, Deserialize)]
pub struct WeightGen {
    /// The factor of tensors with two axes or more.
    #[serde(default = "one")]
    pub gain: f64,
    /// The text before every key of the module.
    #[serde(default)]
    pub prefix: String,
    /// Exceptions by full key.
    #[serde(default)]
    pub overrides: BTreeMap<String, Override>,
    /// Suffixes of the keys that are left out.
    #[serde(default)]
    pub skip_suffixes: Vec<String>,
}

fn one() -> f64 {
    1.0
}

impl Default for WeightGen {
    fn default() -> Self {
        Self { gain: 1.0, prefix: String::new(), overrides: BTreeMap::new(), skip_suffixes: Vec::new() }
    }
}

impl WeightGen {
    /// Returns the values of the tensor `key`.
    pub fn tensor(&self, key: &str, shape: &[usize]) -> Vec<f32> {
        let key = format!("{}{key}", self.prefix);
        let count = shape.iter().product();
        let fill = |value: &dyn Fn(f64) -> f64| unit(&key).take(count).map(|t| value(t) as f32).collect();
        if let Some(Override { scale, offset }) = self.overrides.get(&key) {
            fill(&|t| offset + scale * t)
        } else if key.ends_with("running_var") {
            fill(&|t| 1.0 + 0.5 * t.abs())
        } else if key.ends_with("running_mean") {
            fill(&|t| 0.1 * t)
        } else if let [_, rest @ ..] = shape
            && !rest.is_empty()
        {
            let factor = self.gain * (3.0 / rest.iter().product::<usize>() as f64).sqrt();
            fill(&|t| factor * t)
        } else if key.ends_with("weight") {
            fill(&|t| 1.0 + 0.1 * t)
        } else {
            fill(&|t| 0.1 * t)
        }
    }

    /// Returns weights for tensors of these names and shapes, each computed when it is read. Names that the recipe
    /// skips are left out.
    pub fn state_dict(&self, tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> StateDict {
        let filled = |key: &str| !self.skip_suffixes.iter().any(|suffix| key.ends_with(suffix));
        let tensors: Vec<_> = tensors.into_iter().filter(|(key, _)| filled(key)).collect();
        let recipe = self.clone();
        StateDict::generated("weightgen", tensors, move |key, shape| recipe.tensor(key, shape))
            .expect("a module has parameters")
    }

    /// Returns weights for every parameter of a module.
    pub fn for_module<M: Module>(&self, module: &M, keys: &KeyMap) -> StateDict {
        let names = export(module, keys).expect("a module has parameters, each of its own name");
        self.state_dict(names.keys().map(|key| (key.to_owned(), names.shape(key).unwrap_or_default().to_vec())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by the recipe's Python version.
    #[test]
    fn known_answers() {
        let plain = WeightGen::default();
        let gain = WeightGen { gain: 2.0, ..Default::default() };
        let exception = Override { scale: 1.5, offset: 0.25 };
        let overrides = WeightGen { overrides: [("k".to_owned(), exception)].into(), ..Default::default() };
        let prefixed = WeightGen { prefix: "blocks.".to_owned(), ..Default::default() };
        let cases: [(&WeightGen, &str, &[usize], &[f64]); 9] = [
            (
                &plain,
                "head.weight",
                &[2, 3],
                &[
                    0.4556694030761719,
                    0.5627137422561646,
                    -0.0017856359481811523,
                    0.7380340099334717,
                    0.5148749351501465,
                    -0.6737847328186035,
                ],
            ),
            (&plain, "blocks.0.norm.weight", &[3], &[0.9634671211242676, 0.9654549956321716, 1.0033693313598633]),
            (&prefixed, "0.norm.weight", &[3], &[0.9634671211242676, 0.9654549956321716, 1.0033693313598633]),
            (&plain, "blocks.0.norm.bias", &[3], &[-0.02658550813794136, 0.035512007772922516, -0.035114385187625885]),
            (&plain, "a.running_var", &[3], &[1.069018006324768, 1.0008671283721924, 1.328176736831665]),
            (&plain, "a.running_mean", &[3], &[0.0020598769187927246, 0.01664748229086399, 0.04113689810037613]),
            (&overrides, "k", &[2], &[-0.9889531135559082, 0.28385448455810547]),
            (&gain, "head.weight", &[1, 2, 1, 3], &[0.6444138288497925, 0.7957974076271057, -0.0025252706836909056]),
            (&plain, "s", &[], &[0.0025251389015465975]),
        ];
        for (recipe, key, shape, expected) in cases {
            for (i, (found, expected)) in recipe.tensor(key, shape).into_iter().zip(expected).enumerate() {
                assert_eq!(found, *expected as f32, "element {i} of `{key}`");
            }
        }
    }

    #[test]
    fn skipped_names_are_left_out() {
        let recipe = WeightGen { skip_suffixes: vec!["zero_k_bias".to_owned()], ..Default::default() };
        let names = ["blocks.0.attn.zero_k_bias", "head.bias"].map(|key| (key.to_owned(), vec![2]));
        assert_eq!(recipe.state_dict(names).keys().collect::<Vec<_>>(), ["head.bias"]);
    }
}
