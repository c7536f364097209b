//! The Inception Score, against the guided-diffusion evaluator and improved-gan.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::metrics::{InceptionScore, Splits};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    size: Option<usize>,
    scores: Vec<f64>,
    mean: f64,
    std: f64,
}

/// Compares scores. They are computed on the host, so the device does not matter.
pub(super) fn read(case: &Case, _: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let tolerance = case.tolerance("float64", "float64");
    let logits = case.array("logits");
    let classes = logits.shape[1];
    let rows: Vec<f32> = logits.values.iter().map(|x| *x as f32).collect();
    let entries: serde_json::Map<String, serde_json::Value> = case.get("/expected");
    for name in entries.keys().filter(|name| name.starts_with("split")) {
        let expected: Expected = case.get(&format!("/expected/{name}"));
        let splits = match (expected.size, name.strip_prefix("splits_").and_then(|count| count.parse().ok())) {
            (Some(size), _) => Splits::Size(size),
            (None, Some(count)) => Splits::Count(count),
            (None, None) => {
                checks.fail(format!("`{name}` is an unknown way of splitting"));
                continue;
            }
        };
        let mut compare = |source: &str, found: InceptionScore| {
            let same = found.scores.len() == expected.scores.len();
            checks.require(same, || format!("{name} of {source}: {} parts", found.scores.len()));
            for (i, (expected, found)) in expected.scores.iter().zip(&found.scores).enumerate() {
                checks.scalar(&format!("{name} of {source}, part {i}"), *expected, *found, tolerance);
            }
            checks.scalar(&format!("{name} of {source}, mean"), expected.mean, found.mean(), tolerance);
            checks.scalar(&format!("{name} of {source}, std"), expected.std, found.std(), tolerance);
        };
        compare("logits", InceptionScore::of(&rows, classes, splits)?);
        let probabilities = case.array("probs").values;
        compare("probabilities", InceptionScore::of_probabilities(&probabilities, classes, splits)?);
    }
    checks.skip("probs");
    let Array { shape, values } = case.array("one_hot");
    let certain = InceptionScore::of_probabilities(&values, shape[1], Splits::Count(1))?.mean();
    checks.scalar("one_hot", case.get("/expected/bounds/classes"), certain, tolerance);
    let uniform = vec![1.0 / shape[1] as f64; 3 * shape[1]];
    let unsure = InceptionScore::of_probabilities(&uniform, shape[1], Splits::Count(1))?.mean();
    checks.scalar("uniform", case.get("/expected/bounds/uniform"), unsure, tolerance);
    Ok(())
}
