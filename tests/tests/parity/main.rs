//! Parity with the original implementations, on every golden case and every backend of this build.
//!
//! `cargo test --release --workspace parity` runs these. `BURN_VAR_GOLDEN=<folder>` runs the cases of another folder,
//! whatever their sizes and flags. There, a kind without a reader is reported as not covered and a reader without a case as
//! such; the tests fail if no case at all can be compared. The cases in the repository must cover every reader.
//!
//! `BURN_VAR_PRECISION=bf16` (`tf32`, `f16`) computes in that precision, with the tolerances of `ladder.rs`: for GPUs.

mod aid_guided;
mod aid_injector;
mod aid_train_forward;
mod checkpoints;
mod dino;
mod disc;
mod flexvae;
mod flexvar;
mod frechet;
mod grpo;
mod inception_fid;
mod inception_score;
mod interp;
mod iscs;
#[cfg(feature = "flex")]
mod ladder;
mod llamagen;
mod llamagen_sample;
mod llamagen_vq;
mod lpips;
mod phi_select;
mod precision;
mod precision_recall;
mod sampling;
mod sar;
mod scalear_forward;
mod scalear_sample;
mod sf_schedules;
mod ssg;
mod va_pi;
mod vapi_flexvar;
mod vapi_llamagen;
mod vapi_var;
mod var;
mod vqvae;

use std::io::Write;

use burn::tensor::Device;
use burn_var_tests::checks::Checks;
use burn_var_tests::coverage::Coverage;
use burn_var_tests::golden::{self, Case};

/// Compares a case with what this crate computes on a device.
type Reader = fn(&Case, &Device, &mut Checks<'_>) -> burn_var::Result<()>;

/// Passes the kinds of cases to another macro, each as the name of its tests and the module of its reader, which is the
/// kind's name. A new kind is a new line here.
macro_rules! every_kind {
    ($macro:ident $($argument:ident)?) => {
        $macro! {
            $($argument)?;
            parity_interp interp,
            parity_sampling sampling,
            parity_phi_select phi_select,
            parity_vqvae vqvae,
            parity_var var,
            parity_flexvae flexvae,
            parity_flexvar flexvar,
            parity_llamagen llamagen,
            parity_llamagen_vq llamagen_vq,
            parity_llamagen_sample llamagen_sample,
            parity_checkpoints checkpoints,
            parity_frechet frechet,
            parity_lpips lpips,
            parity_dino dino,
            parity_inception_fid inception_fid,
            parity_inception_score inception_score,
            parity_precision_recall precision_recall,
            parity_disc disc,
            parity_iscs iscs,
            parity_ssg ssg,
            parity_aid_injector aid_injector,
            parity_aid_guided aid_guided,
            parity_aid_train_forward aid_train_forward,
            parity_sar sar,
            parity_sf_schedules sf_schedules,
            parity_scalear_forward scalear_forward,
            parity_scalear_sample scalear_sample,
            parity_grpo grpo,
            parity_vapi_llamagen vapi_llamagen,
            parity_vapi_var vapi_var,
            parity_vapi_flexvar vapi_flexvar,
        }
    };
}

macro_rules! readers {
    (; $($test:ident $kind:ident,)*) => {
        /// The reader of each kind of case.
        const READERS: &[(&str, Reader)] = &[$((stringify!($kind), $kind::read)),*];
    };
}

every_kind!(readers);

/// Returns the kinds that have a reader.
fn kinds() -> Vec<&'static str> {
    READERS.iter().map(|(kind, _)| *kind).collect()
}

/// Runs all cases of a kind on a device, and fails with every difference.
fn run(kind: &str, device: &Device) {
    let (_, reader) = READERS.iter().find(|(name, _)| *name == kind).expect("a kind with a reader");
    let cases = golden::cases();
    let coverage = Coverage::new(&cases, &kinds());
    let cases: Vec<&Case> = cases.iter().filter(|case| case.kind() == kind).collect();
    if cases.is_empty() {
        coverage.check(golden::is_default_folder()).unwrap_or_else(|problem| panic!("{problem}\n{coverage}"));
        report(&format!("no case of kind `{kind}` in `{}`: nothing was compared", golden::folder().display()));
    }
    let precision = precision::asked();
    if !precision::is_judged(kind, precision) {
        return report(&format!("`{kind}` has no tolerance in {precision}: it is not compared"));
    }
    let mut failures = Vec::new();
    for case in cases {
        let mut checks = Checks::in_precision(case, precision);
        if let Err(error) = precision.scope(|| reader(case, device, &mut checks)) {
            checks.fail(format!("error: {error}"));
        }
        if let Err(differences) = checks.finish() {
            failures.push(format!("case `{}` on {device:?}:\n{differences}", case.name()));
        }
    }
    assert!(failures.is_empty(), "{} cases of kind `{kind}` fail\n{}", failures.len(), failures.join("\n"));
}

/// Writes to the terminal past the test harness, which hides the output of tests that pass.
fn report(text: &str) {
    let _ = std::io::stderr().write_all(format!("\n{text}\n").as_bytes());
}

/// Creates one test per kind, so that a failure names the kind and the kinds run in parallel.
macro_rules! on_device {
    ($device:ident; $($test:ident $kind:ident,)*) => {
        mod $device {
            $(
                #[test]
                fn $test() {
                    super::run(stringify!($kind), &super::$device());
                }
            )*
        }
    };
}

#[cfg(feature = "flex")]
fn flex() -> Device {
    Device::flex()
}

/// Far too slow for use, and deprecated for it; but its arithmetic is independent of Flex's, which makes it a good
/// second opinion.
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "only parity is tested on it")]
fn ndarray() -> Device {
    Device::ndarray()
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Device {
    Device::wgpu(Default::default())
}

#[cfg(feature = "cuda")]
fn cuda() -> Device {
    Device::cuda(0)
}

#[cfg(feature = "flex")]
every_kind!(on_device flex);
#[cfg(feature = "ndarray")]
every_kind!(on_device ndarray);
#[cfg(feature = "wgpu")]
every_kind!(on_device wgpu);
#[cfg(feature = "cuda")]
every_kind!(on_device cuda);

/// Runs the tests on Flex again with its kernels off, in a process of its own: they are switched off when it starts.
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

/// Reports every kind in the folder and every reader without a case. Fails if nothing can be compared, and in the
/// repository's folder if a reader has no case or a kind has no reader.
#[test]
fn parity_coverage() {
    let coverage = Coverage::new(&golden::cases(), &kinds());
    report(&format!("golden cases in `{}`:\n{coverage}", golden::folder().display()));
    coverage.check(golden::is_default_folder()).unwrap_or_else(|problem| panic!("{problem}"));
}

/// A folder with cases of unknown kinds only must fail, also where one kind alone is asked for.
#[cfg(feature = "flex")]
#[test]
fn parity_fails_where_nothing_is_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("other")).expect("a folder");
    std::fs::write(folder.path().join("other/case.json"), r#"{ "kind": "other" }"#).expect("written");
    for filter in ["parity_coverage", "flex::parity_var"] {
        let mut command = std::process::Command::new(std::env::current_exe().expect("the program that runs"));
        let output = command.args([filter, "--exact"]).env(golden::FOLDER_VARIABLE, folder.path()).output();
        let output = output.expect("the same program runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains("nothing was compared"), "{filter}: {said}");
    }
}
