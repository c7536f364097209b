//! Parity with the original implementations, on every golden case and every backend of this build.
//!
//! `cargo test --release --workspace parity` runs these. `BURN_VAR_GOLDEN=<folder>` runs the cases of another folder,
//! whatever their sizes and flags; a kind without a reader is named as not covered, and does not fail.

mod aid_guided;
mod aid_injector;
mod aid_train_forward;
mod checkpoints;
mod dino;
mod disc;
mod frechet;
mod inception_fid;
mod inception_score;
mod interp;
mod iscs;
mod lpips;
mod phi_select;
mod precision_recall;
mod sampling;
mod ssg;
mod var;
mod vqvae;

use std::collections::BTreeMap;
use std::io::Write;

use burn::tensor::Device;
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{self, Case};

/// Compares a case with what this project computes on a device.
type Reader = fn(&Case, &Device, &mut Checks<'_>) -> burn_var::Result<()>;

/// Kinds of cases by name.
const READERS: [(&str, Reader); 18] = [
    ("interp", interp::read),
    ("sampling", sampling::read),
    ("phi_select", phi_select::read),
    ("vqvae", vqvae::read),
    ("var", var::read),
    ("checkpoints", checkpoints::read),
    ("frechet", frechet::read),
    ("lpips", lpips::read),
    ("dino", dino::read),
    ("inception_fid", inception_fid::read),
    ("inception_score", inception_score::read),
    ("precision_recall", precision_recall::read),
    ("disc", disc::read),
    ("iscs", iscs::read),
    ("ssg", ssg::read),
    ("aid_injector", aid_injector::read),
    ("aid_guided", aid_guided::read),
    ("aid_train_forward", aid_train_forward::read),
];

/// Runs all cases of a kind on a device, and fails with all that differs.
fn run(kind: &str, device: &Device) {
    let (_, reader) = READERS.iter().find(|(name, _)| *name == kind).expect("a kind with a reader");
    let mut failures = Vec::new();
    for case in golden::cases().iter().filter(|case| case.kind() == kind) {
        let mut checks = Checks::new(case);
        if let Err(error) = reader(case, device, &mut checks) {
            checks.fail(format!("error: {error}"));
        }
        if let Err(differences) = checks.finish() {
            failures.push(format!("case `{}` on {device:?}:\n{differences}", case.name()));
        }
    }
    assert!(failures.is_empty(), "{} cases of kind `{kind}` fail\n{}", failures.len(), failures.join("\n"));
}

/// Far too slow for use, and deprecated for it; but its arithmetic is nobody else's, which makes it a good second opinion.
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "only parity is tested on it")]
fn ndarray() -> Device {
    Device::ndarray()
}

/// One test a kind, so that a failure names it and they run side by side.
macro_rules! on_device {
    ($module:ident, $device:expr) => {
        mod $module {
            #[test]
            fn parity_interp() {
                super::run("interp", &$device);
            }

            #[test]
            fn parity_sampling() {
                super::run("sampling", &$device);
            }

            #[test]
            fn parity_phi_select() {
                super::run("phi_select", &$device);
            }

            #[test]
            fn parity_vqvae() {
                super::run("vqvae", &$device);
            }

            #[test]
            fn parity_var() {
                super::run("var", &$device);
            }

            #[test]
            fn parity_checkpoints() {
                super::run("checkpoints", &$device);
            }

            #[test]
            fn parity_frechet() {
                super::run("frechet", &$device);
            }

            #[test]
            fn parity_dino() {
                super::run("dino", &$device);
            }

            #[test]
            fn parity_lpips() {
                super::run("lpips", &$device);
            }

            #[test]
            fn parity_inception_fid() {
                super::run("inception_fid", &$device);
            }

            #[test]
            fn parity_inception_score() {
                super::run("inception_score", &$device);
            }

            #[test]
            fn parity_precision_recall() {
                super::run("precision_recall", &$device);
            }

            #[test]
            fn parity_disc() {
                super::run("disc", &$device);
            }

            #[test]
            fn parity_iscs() {
                super::run("iscs", &$device);
            }

            #[test]
            fn parity_ssg() {
                super::run("ssg", &$device);
            }

            #[test]
            fn parity_aid_injector() {
                super::run("aid_injector", &$device);
            }

            #[test]
            fn parity_aid_guided() {
                super::run("aid_guided", &$device);
            }

            #[test]
            fn parity_aid_train_forward() {
                super::run("aid_train_forward", &$device);
            }
        }
    };
}

#[cfg(feature = "flex")]
on_device!(flex, burn::tensor::Device::flex());
#[cfg(feature = "ndarray")]
on_device!(ndarray, super::ndarray());
#[cfg(feature = "wgpu")]
on_device!(wgpu, burn::tensor::Device::wgpu(Default::default()));

#[cfg(feature = "cuda")]
on_device!(cuda, burn::tensor::Device::cuda(0));

/// Flex without its kernels, in a process of its own, for which they are off from the start.
#[cfg(feature = "flex")]
#[test]
fn parity_flex_without_kernels() {
    let tests = std::env::current_exe().expect("the program that runs");
    let mut command = std::process::Command::new(tests);
    let output = command.arg("flex::").env("BURN_VAR_KERNELS", "generic").output().expect("the same program runs");
    let [said, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains(&format!("{} passed", READERS.len())), "a test for every kind, not\n{said}");
}

/// The folder can be read, and says what it holds. Kinds without a reader are named on the terminal even though the
/// test passes, which is why this writes past the harness.
#[test]
fn parity_coverage() {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for case in golden::cases() {
        kinds.entry(case.kind().to_owned()).or_default().push(case.name().to_owned());
    }
    let mut text = format!("\ngolden cases in `{}`:\n", golden::folder().display());
    for (kind, cases) in kinds {
        let covered = READERS.iter().any(|(name, _)| *name == kind);
        let note = if covered { "" } else { " not covered (no reader for this kind):" };
        text += &format!("  {kind}:{note} {}\n", cases.join(", "));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
