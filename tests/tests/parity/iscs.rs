//! The inter-scale consistency score, against the distances of AID-VAR's `utils/iscs_utils.py`.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::metrics::{FeatureStats, Gaussian, InceptionScore, Iscs, Side, Splits, frechet_distance};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};

/// Compares scores. They are computed on the host, so the device does not matter.
pub(super) fn read(case: &Case, _: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let (scales, dim): (usize, usize) = (case.get("/config/scales"), case.get("/config/feat_dim"));
    let side = |name: &str| (0..scales).map(|k| rows(case, &format!("{name}_{k}"))).collect::<Vec<_>>();
    let (real, generated) = (side("real"), side("gen"));
    let mut iscs = Iscs::new(scales, dim)?;
    iscs.push(Side::Real, &real)?;
    iscs.push(Side::Generated, &generated)?;
    let score = iscs.score()?;

    let [fd, scores, total] = ["fd", "scores", "total"].map(|name| case.tolerance(name, name));
    for transition in &score.transitions {
        let (from, to) = (transition.to - 1, transition.to);
        let at = |name: &str| format!("/transitions/{from}->{to}/{name}");
        let expected = |name: &str| case.get::<f64>(&at(name));
        checks.scalar(&at("fd_plain"), expected("fd_plain"), transition.distance, fd);
        checks.scalar(&at("score"), expected("score"), transition.score, scores);
        let weight: f64 = case.get(&format!("/weights_normalised/{to}"));
        checks.scalar(&format!("weight of {to}"), weight, transition.weight, total);

        let joint = |side: &[Vec<f32>]| {
            let both = side[from].chunks(dim).zip(side[to].chunks(dim));
            let mut stats = FeatureStats::new(2 * dim);
            stats.push(&both.flat_map(|(a, b)| [a, b].concat()).collect::<Vec<f32>>()).map(|()| stats)
        };
        let (real, generated) = (joint(&real)?, joint(&generated)?);
        let distance = |a: Gaussian, b: Gaussian| frechet_distance(&a.with_ridge(1e-6), &b.with_ridge(1e-6));
        let name = "fd_reference_eps1e-6";
        checks.scalar(&at(name), expected(name), distance(real.gaussian()?, generated.gaussian()?)?, fd);
        let name = "fd_reference_robust_cov_then_eps";
        checks.scalar(&at(name), expected(name), distance(real.robust_gaussian()?, generated.robust_gaussian()?)?, fd);
    }
    let scalar = |name: &str| case.get::<f64>(&format!("/scalars/{name}"));
    checks.scalar("iscs_total", scalar("iscs_total"), score.total, total);
    let doubling: f64 = (1..scales).map(|k| (k as f64).exp2()).sum();
    let name = "iscs_total_unnormalised_weights";
    checks.scalar(name, scalar(name), score.total * doubling, total);

    let single = |rows: &[f32]| -> Result<Gaussian> {
        let mut stats = FeatureStats::new(dim);
        stats.push(rows)?;
        stats.gaussian()
    };
    let name = "single_fd_scale0";
    checks.scalar(name, scalar(name), frechet_distance(&single(&real[0])?, &single(&generated[0])?)?, fd);

    let mut few = FeatureStats::new(case.array("few").shape[1]);
    few.push(&rows(case, "few"))?;
    let shape = case.array("few_robust_cov").shape;
    let values = few.robust_gaussian()?.covariance().to_vec();
    checks.array("few_robust_cov", "cov", Array { shape, values });

    let logits = rows(case, "is_logits");
    let classes = case.array("is_logits").shape[1];
    let of = |parts: usize| InceptionScore::of(&logits, classes, Splits::Count(parts));
    let (whole, parts) = (of(1)?, of(4)?);
    for (name, found) in [
        ("inception_score_1_split", whole.mean()),
        ("inception_score_4_splits_mean", parts.mean()),
        ("inception_score_4_splits_std_population", parts.std()),
    ] {
        checks.scalar(name, scalar(name), found, scores);
    }
    Ok(())
}

fn rows(case: &Case, name: &str) -> Vec<f32> {
    case.array(name).values.into_iter().map(|x| x as f32).collect()
}
