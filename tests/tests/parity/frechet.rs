//! The Frechet distance, against a 40-digit calculation and pytorch-fid.

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn_var::Result;
use burn_var::metrics::{FeatureStats, Gaussian, frechet_distance};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case, Tolerance};
use serde::Deserialize;

#[derive(Deserialize)]
struct Pair {
    exact: f64,
    tolerances: Limits,
}

#[derive(Deserialize)]
struct Limits {
    atol: f64,
    rtol: f64,
}

/// Compares distances. They are computed on the host, so the device does not matter.
pub(super) fn read(case: &Case, _: &Device, checks: &mut Checks<'_>) -> Result<()> {
    for (name, Pair { exact, tolerances }) in case.get::<BTreeMap<String, Pair>>("/expected") {
        let tolerance = Tolerance { absolute: tolerances.atol, relative: tolerances.rtol };
        let a = gaussian(case, &name, "a", checks)?;
        let b = gaussian(case, &name, "b", checks)?;
        checks.scalar(&name, exact, frechet_distance(&a, &b)?, tolerance);
        checks.scalar(&format!("{name}, exchanged"), exact, frechet_distance(&b, &a)?, tolerance);
        checks.scalar(&format!("{name}, of itself"), 0.0, frechet_distance(&a, &a)?, tolerance);
    }
    Ok(())
}

/// Fits a Gaussian to feature rows, given in two parts, where the case has rows; otherwise reads it from the case.
fn gaussian(case: &Case, pair: &str, side: &str, checks: &mut Checks<'_>) -> Result<Gaussian> {
    let (rows, mean, covariance) =
        (format!("{pair}.{side}"), format!("{pair}.mu_{side}"), format!("{pair}.sigma_{side}"));
    if !case.has(&rows) {
        return Gaussian::new(case.array(&mean).values, case.array(&covariance).values);
    }
    let Array { shape, values } = case.array(&rows);
    let dim = shape[1];
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let (first, second) = values.split_at(shape[0] / 3 * dim);
    let (mut stats, mut others) = (FeatureStats::new(dim), FeatureStats::new(dim));
    stats.push(first)?;
    others.push(second)?;
    stats.merge(&others)?;
    let found = stats.gaussian()?;
    checks.array(&mean, &mean, Array { shape: vec![dim], values: found.mean().to_vec() });
    checks.array(&covariance, &covariance, Array { shape: vec![dim, dim], values: found.covariance().to_vec() });
    Ok(found)
}
