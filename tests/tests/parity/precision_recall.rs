//! Improved precision and recall, against the guided-diffusion evaluator's `ManifoldEstimator` in double precision.

use burn::tensor::Device;
use burn_var::Result;
use burn_var::metrics::{Manifold, PrecisionRecall};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case, Tolerance};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let k: usize = case.get("/k");
    let rows = |name: &str| {
        let Array { shape, values } = case.array(name);
        (values.iter().map(|x| *x as f32).collect::<Vec<f32>>(), shape[1])
    };
    let sets = case.arrays_of_role("input");
    for set in sets.iter().filter_map(|name| name.strip_suffix(".reference")) {
        let about = |what: &str| format!("{set}.{what}");
        let ((real, dim), (fake, _)) = (rows(&about("reference")), rows(&about("samples")));
        for (balls, others, radii, inside) in [
            (&real, &fake, "radii2_reference", "sample_in_reference"),
            (&fake, &real, "radii2_samples", "reference_in_samples"),
        ] {
            let manifold = Manifold::new(balls, dim, k, device)?;
            checks.array(&about(radii), &about(radii), flat(manifold.radii().to_vec()));
            let located = manifold.locate(others)?.balls;
            let located = located.into_iter().map(|balls| f64::from(u8::from(balls > 0)));
            checks.array(&about(inside), &about(inside), flat(located.collect()));
        }
        let found = PrecisionRecall::of(&real, &fake, dim, k, device)?;
        for (name, value) in [("precision", found.precision), ("recall", found.recall)] {
            checks.scalar(&about(name), case.get(&format!("/expected/{set}/{name}")), value, Tolerance::EXACT);
        }
        let itself = PrecisionRecall::of(&real, &real, dim, k, device)?;
        checks.require((itself.precision, itself.recall) == (1.0, 1.0), || format!("{set} of itself: {itself:?}"));
    }
    Ok(())
}

fn flat(values: Vec<f64>) -> Array {
    Array { shape: vec![values.len()], values }
}
