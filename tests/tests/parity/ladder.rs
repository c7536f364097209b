//! The golden cases in each precision on the CPU, which rounds the inputs of products: the rungs of a ladder, on which a
//! tolerance is that of the case and a fixed number of roundings, [`ROUNDINGS`], for all cases.
//!
//! `BURN_VAR_LADDER=show cargo test --release --workspace --test parity ladder -- --nocapture` prints the errors.

use burn::tensor::Device;
use burn_var::ops::Precision;
use burn_var_tests::checks::{Checks, ROUNDINGS};
use burn_var_tests::golden;

use super::precision::{EXACT, ROUNDED};
use super::{READERS, report};

/// The precisions that round, from the most exact to the least.
const RUNGS: [Precision; 3] = [Precision::Tf32, Precision::F16, Precision::Bf16];

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

/// Returns `true` if there is a case of a kind, as for all kinds in the repository's folder.
fn is_present(kind: &str) -> bool {
    golden::is_default_folder() || golden::cases().iter().any(|case| case.kind() == kind)
}

#[test]
fn precision_does_not_touch_what_is_exact() {
    for kind in EXACT.iter().filter(|kind| is_present(kind)) {
        for precision in RUNGS {
            let Outcome { beyond, failures, .. } = outcome(kind, precision);
            assert!(failures.is_empty(), "{}", failures.join("\n"));
            assert_eq!(beyond, 0, "`{kind}` misses the tolerance of its case in {precision}");
        }
    }
}

/// Each rung keeps its tolerance, and moves each kind beyond that of its cases.
#[test]
fn precision_keeps_the_tolerance_of_its_bits() {
    for (kind, last) in ROUNDED.iter().filter(|(kind, _)| is_present(kind)) {
        for precision in RUNGS.into_iter().take_while(|rung| *rung as usize <= *last as usize) {
            let Outcome { beyond, failures, .. } = outcome(kind, precision);
            assert!(failures.is_empty(), "{}", failures.join("\n"));
            assert!(beyond > 0 || !golden::is_default_folder(), "{precision} rounds nothing of `{kind}`");
        }
    }
}

/// The tolerance of a rung is its own: what `bf16` does is beyond that of TF32, by a kind for which both keep theirs.
#[test]
fn precision_of_fewer_bits_misses_the_tolerance_of_more() {
    if !golden::is_default_folder() {
        return;
    }
    let [tf32, bf16] = [Precision::Tf32, Precision::Bf16].map(|precision| outcome("llamagen_vq", precision).worst);
    assert!(tf32 > 0.0 && tf32 < ROUNDINGS, "TF32 is off by {tf32} of its roundings");
    // A rounding of `bf16` is eight of TF32.
    assert!(8.0 * bf16 > ROUNDINGS, "`bf16` is off by {bf16} of its roundings");
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
