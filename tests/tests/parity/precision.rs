//! The golden cases in each precision on the CPU, which rounds the inputs of products: the rungs of a ladder, on which a
//! tolerance is that of the case and a fixed number of roundings, [`ROUNDINGS`], for all cases.
//!
//! `BURN_VAR_LADDER=show cargo test --release --workspace --test parity precision -- --nocapture` prints the errors.

use burn::tensor::Device;
use burn_var::ops::Precision;
use burn_var_tests::checks::{Checks, ROUNDINGS};
use burn_var_tests::golden::{self, Case};

use super::{READERS, report};

/// The precisions that round, from the most exact to the least.
const RUNGS: [Precision; 3] = [Precision::Tf32, Precision::F16, Precision::Bf16];

/// Kinds without a product that may be rounded, which keep the tolerance of the case in each precision: filters, draws,
/// resizes, Scaled Spatial Guidance, measures.
const EXACT: &[&str] = &[
    "interp",
    "sampling",
    "phi_select",
    "frechet",
    "inception_score",
    "precision_recall",
    "ssg",
    "sf_schedules",
    "grpo",
];

/// Kinds that compute numbers without a draw between: no token can flip.
const ROUNDED: &[&str] = &["vqvae", "llamagen_vq", "dino", "lpips", "aid_injector"];

/// The outcome of all cases of a kind.
struct Outcome {
    /// The largest error beyond the tolerance of a case, in roundings.
    worst: f64,
    /// Comparisons beyond the tolerance of their case.
    beyond: usize,
    /// Comparisons beyond the tolerance of the precision.
    failures: Vec<String>,
}

fn outcome(kind: &str, precision: Precision) -> Outcome {
    let (_, reader) = READERS.iter().find(|(name, _)| *name == kind).expect("a kind with a reader");
    let device = Device::flex();
    let mut outcome = Outcome { worst: 0.0, beyond: 0, failures: Vec::new() };
    let cases = golden::cases();
    for case in cases.iter().filter(|case| case.kind() == kind) {
        let mut checks = Checks::in_precision(case, precision);
        if let Err(error) = precision.scope(|| reader(case, &device, &mut checks)) {
            checks.fail(format!("error: {error}"));
        }
        outcome.worst = outcome.worst.max(checks.worst());
        outcome.beyond += checks.beyond();
        if let Err(differences) = checks.finish() {
            outcome.failures.push(format!("case `{}` in {precision}:\n{differences}", case.name()));
        }
    }
    if std::env::var_os("BURN_VAR_LADDER").is_some() {
        let Outcome { worst, beyond, failures } = &outcome;
        report(&format!(
            "{kind} in {precision}: {worst:.2} roundings, {beyond} beyond the case\n{}",
            failures.join("\n")
        ));
    }
    outcome
}

/// Returns the kinds of a list of which there is a case, all of them in the repository's folder.
fn present(kinds: &'static [&'static str]) -> Vec<&'static str> {
    let cases: Vec<Case> = golden::cases();
    kinds.iter().copied().filter(|kind| cases.iter().any(|case| case.kind() == *kind)).collect()
}

#[test]
fn precision_does_not_touch_what_is_exact() {
    for kind in present(EXACT) {
        for precision in RUNGS {
            let Outcome { beyond, failures, .. } = outcome(kind, precision);
            assert!(failures.is_empty(), "{}", failures.join("\n"));
            assert_eq!(beyond, 0, "`{kind}` misses the tolerance of its case in {precision}");
        }
    }
}

/// Each rung keeps its tolerance; and each moves results beyond that of the case, so that the ladder can fail.
#[test]
fn precision_keeps_the_tolerance_of_its_bits() {
    for precision in RUNGS {
        let mut moved = 0;
        for kind in present(ROUNDED) {
            let Outcome { beyond, failures, .. } = outcome(kind, precision);
            assert!(failures.is_empty(), "{}", failures.join("\n"));
            moved += beyond;
        }
        assert!(moved > 0 || !golden::is_default_folder(), "{precision} rounds nothing");
    }
}

/// A tolerance of the ladder is one of its precision: what `bf16` does is beyond that of TF32.
#[test]
fn precision_of_fewer_bits_misses_the_tolerance_of_more() {
    if !golden::is_default_folder() {
        return;
    }
    let worst = |precision| outcome("vqvae", precision).worst;
    let (tf32, bf16) = (worst(Precision::Tf32), worst(Precision::Bf16));
    assert!(tf32 > 0.0 && tf32 < ROUNDINGS, "TF32 is off by {tf32} of its roundings");
    // A rounding of `bf16` is eight of TF32.
    assert!(8.0 * bf16 > tf32, "`bf16` is off by {bf16} of its roundings, TF32 by {tf32}");
}

/// Measures every kind, to fill the table of `docs/gpu.md`.
#[test]
#[ignore = "a measurement of minutes"]
fn precision_of_every_kind() {
    for (kind, _) in READERS {
        for precision in RUNGS {
            let Outcome { worst, beyond, failures } = outcome(kind, precision);
            let failures: Vec<String> =
                failures.iter().map(|text| text.lines().take(3).collect::<Vec<_>>().join(" | ")).collect();
            report(&format!(
                "{kind} {precision}: {worst:.2} roundings, {beyond} beyond, fails: {}\n{}",
                failures.len(),
                failures.join("\n")
            ));
        }
    }
}
