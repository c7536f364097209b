//! Failures of a GPU, in words that say what to do.
//!
//! Burn panics where a GPU fails, or returns an error in the words of a driver. Here both become an error of the command.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::cli::{Cli, Command};
use crate::device::DeviceName;
use crate::output::{bytes, chain};

/// A failure of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// There is no such GPU, or no driver for it.
    Missing,
    /// The driver is older than what the program was built for.
    OldDriver,
    /// A file of the CUDA toolkit is missing.
    Toolkit,
    /// The memory is full; the bytes that were asked for, if they are known.
    Memory(Option<u64>),
    /// The GPU has failed, and nothing runs on it until the process ends.
    Lost,
}

/// Words of the messages of Burn's GPU backends and of drivers, and their meaning. The first that occurs decides.
const WORDS: [(&str, Failure); 32] = [
    ("out of device memory allocating", Failure::Memory(None)),
    ("can't allocate buffer of size", Failure::Memory(None)),
    ("Can't allocate", Failure::Memory(None)),
    ("CUDA_ERROR_OUT_OF_MEMORY", Failure::Memory(None)),
    ("Not enough memory left", Failure::Memory(None)),
    ("Out of Memory", Failure::Memory(None)),
    ("Out of memory", Failure::Memory(None)),
    ("libdevice.10.bc was not found", Failure::Toolkit),
    ("CUDA installation not found", Failure::Toolkit),
    ("dynamically load the \"nvrtc\"", Failure::Toolkit),
    ("dynamically load the \"cuda\"", Failure::Missing),
    ("dynamically load the \"nvcuda\"", Failure::Missing),
    ("CUDA_ERROR_NO_DEVICE", Failure::Missing),
    ("CUDA_ERROR_INVALID_DEVICE", Failure::Missing),
    ("No adapter available", Failure::Missing),
    ("adapter index", Failure::Missing),
    ("is unavailable in this build", Failure::Missing),
    ("Missing symbol", Failure::OldDriver),
    ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", Failure::OldDriver),
    ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", Failure::OldDriver),
    ("CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", Failure::OldDriver),
    ("CUDA_ERROR_NO_BINARY_FOR_GPU", Failure::OldDriver),
    ("device is poisoned", Failure::Lost),
    ("device was poisoned", Failure::Lost),
    ("device is lost", Failure::Lost),
    ("Device is lost", Failure::Lost),
    ("CUDA_ERROR_ILLEGAL_ADDRESS", Failure::Lost),
    ("CUDA_ERROR_LAUNCH_FAILED", Failure::Lost),
    ("CUDA_ERROR_LAUNCH_TIMEOUT", Failure::Lost),
    ("CUDA_ERROR_ECC_UNCORRECTABLE", Failure::Lost),
    ("CUDA_ERROR_CONTEXT_IS_DESTROYED", Failure::Lost),
    ("CUDA_ERROR_DEVICE_UNAVAILABLE", Failure::Lost),
];

impl Failure {
    /// Recognizes a failure by its message.
    fn of(message: &str) -> Option<Self> {
        let (words, failure) = WORDS.iter().find(|(words, _)| message.contains(words))?;
        Some(match failure {
            Self::Memory(_) => Self::Memory(message.split_once(words).and_then(|(_, rest)| first_number(rest))),
            failure => *failure,
        })
    }

    /// Says what to do. `training` and `batch` are as in [`Situation`].
    fn advice(self, training: Option<&Training>, batch: Option<u32>) -> String {
        match self {
            Self::Missing => "is its driver installed, and does the GPU exist? `nvidia-smi` (CUDA) or `vulkaninfo --summary` \
                              (Vulkan) lists those that work; in a container, the GPU must be handed through"
                .to_owned(),
            Self::OldDriver => "the driver is too old for this build, or for the CUDA toolkit: update it, or build for its \
                                version of CUDA, with `CUDARC_CUDA_VERSION=12080` in the environment for 12.8, for instance \
                                (`nvidia-smi` shows the version)"
                .to_owned(),
            Self::Toolkit => {
                let path = std::env::var("CUDA_PATH").map_or("is not set".to_owned(), |path| format!("is `{path}`"));
                format!(
                    "a CUDA toolkit, 12 or 13, is needed where the program runs: nvvm/libdevice/libdevice.10.bc, or libnvrtc \
                     and the headers. It was looked for in CUDA_PATH, which {path}, then in /usr/local/cuda, /opt/cuda and \
                     /usr, and libnvrtc in LD_LIBRARY_PATH"
                )
            }
            Self::Memory(asked) => {
                let asked = asked.map_or(String::new(), |asked| format!(", and {} more were asked for", bytes(asked)));
                let lower = match (training, batch) {
                    (Some(Training { batch: Some((size, pieces)), .. }), _) => format!(
                        "run.batch_size is {size} in run.accumulate = {pieces} pieces: raise the latter, a divisor of the \
                         batch, which changes no result beyond rounding (`--set run.accumulate={}`)",
                        next_divisor(*size, *pieces)
                    ),
                    (Some(_), _) => "raise run.accumulate, or lower run.batch_size".to_owned(),
                    (None, Some(batch)) => format!("lower --batch, which is {batch}"),
                    (None, None) => "lower the number of images at a time, with --batch where the command has it".to_owned(),
                };
                format!("the memory of the GPU is full{asked}. {lower}; or end other programs that use the GPU")
            }
            Self::Lost => "the GPU has failed, and this process cannot use it any more. Start the command again; if it happens \
                           again, look at the system's log (`dmesg`), and update the driver"
                .to_owned(),
        }
    }
}

/// Returns the first number in a text.
fn first_number(text: &str) -> Option<u64> {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the next larger number of pieces that a batch can be cut into.
fn next_divisor(size: u64, pieces: u64) -> u64 {
    (pieces + 1..=size).find(|pieces| size.is_multiple_of(*pieces)).unwrap_or(size)
}

/// Returns a message without the program's stack behind it, in one line.
fn brief(message: &str) -> String {
    let message = message.split("Backtrace:").next().unwrap_or(message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A device that does not work, and what to do.
#[derive(Debug)]
pub(crate) struct Unusable {
    device: String,
    reason: String,
}

impl Unusable {
    /// Explains the failure of a device by its message.
    #[cfg_attr(not(any(feature = "wgpu", feature = "vulkan", feature = "cuda")), allow(dead_code, reason = "no GPU"))]
    pub(crate) fn new(device: &str, message: &str) -> Self {
        let advice = Failure::of(message).map(|failure| format!("; {}", failure.advice(None, None)));
        Self { device: device.to_owned(), reason: brief(message) + &advice.unwrap_or_default() }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device `{}` does not work here: {}", self.device, self.reason)
    }
}

impl std::error::Error for Unusable {}

/// Facts about the command that the advice after a failure depends on.
#[derive(Debug)]
pub(crate) struct Situation {
    gpu: bool,
    training: Option<PathBuf>,
    batch: Option<u32>,
}

/// A training run.
struct Training {
    /// Images per step, and the pieces in which they are computed.
    batch: Option<(u64, u64)>,
    /// The run has a checkpoint.
    saved: bool,
}

impl Training {
    fn of(folder: &Path) -> Self {
        let config = std::fs::read_to_string(folder.join("config.toml")).ok();
        let config = config.and_then(|text| text.parse::<toml::Table>().ok());
        let run = config.as_ref().and_then(|config| config.get("run"));
        let number = |key: &str| run?.get(key)?.as_integer()?.try_into().ok();
        let batch = number("batch_size").map(|size| (size, number("accumulate").unwrap_or(1)));
        let checkpoints = std::fs::read_dir(folder.join("checkpoints")).into_iter().flatten().flatten();
        let saved = checkpoints.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"));
        Self { batch, saved }
    }
}

impl Situation {
    /// Reads what is needed from the command line.
    pub(crate) fn of(cli: &Cli) -> Self {
        let gpu = matches!(cli.device, DeviceName::Wgpu | DeviceName::Vulkan | DeviceName::Cuda);
        let training = match &cli.command {
            Command::Train(command) => Some(command.args().out.clone()),
            _ => None,
        };
        let batch = match &cli.command {
            Command::Sample(args) => args.draw.sampling.batch,
            _ => None,
        };
        Self { gpu, training, batch }
    }

    /// Runs the command. A panic becomes an error; one in which a GPU's failure is recognized is not printed.
    pub(crate) fn run(&self, command: impl FnOnce() -> Result<()>) -> Result<()> {
        let (gpu, default) = (self.gpu, std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            if !(gpu && Failure::of(message_of(info.payload())).is_some()) {
                default(info);
            }
        }));
        match catch_unwind(AssertUnwindSafe(command)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => match Failure::of(&chain(&error)).filter(|_| self.gpu && !error.is::<Unusable>()) {
                Some(failure) => Err(self.explained(&chain(&error), failure)),
                None => Err(error),
            },
            Err(panic) => {
                let message = message_of(&*panic);
                match Failure::of(message).filter(|_| self.gpu) {
                    Some(failure) => Err(self.explained(message, failure)),
                    None => Err(anyhow!(
                        "a defect has stopped the program: {}. Please report it, with the lines above{}",
                        brief(message),
                        self.resumes(None)
                    )),
                }
            }
        }
    }

    fn explained(&self, message: &str, failure: Failure) -> anyhow::Error {
        let training = self.training.as_deref().map(Training::of);
        let advice = failure.advice(training.as_ref(), self.batch);
        anyhow!("the GPU fails: {}; {advice}{}", brief(message), self.resumes(training))
    }

    /// Says that a run can be resumed.
    fn resumes(&self, training: Option<Training>) -> &'static str {
        let training = training.or_else(|| self.training.as_deref().map(Training::of));
        match training {
            Some(Training { saved: true, .. }) => ". The same command resumes the run from its last checkpoint",
            Some(Training { saved: false, .. }) => ". The run has no checkpoint yet: the same command starts it again",
            None => "",
        }
    }
}

/// Returns the text of a panic.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages as cudarc, CubeCL, wgpu and the CUDA driver word them.
    #[test]
    fn failures_are_recognized_by_the_words_of_the_backends() {
        let driver = |name: &str, text: &str| {
            format!("called `Result::unwrap()` on an `Err` value: DriverError({name}, \"{text}\")")
        };
        for (message, failure) in [
            (
                "Unable to dynamically load the \"cuda\" shared library - searched for library names: [\"cuda\", \
                 \"libcuda.so\"]. Ensure that `LD_LIBRARY_PATH` has the correct path to the installed library."
                    .to_owned(),
                Failure::Missing,
            ),
            (driver("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"), Failure::Missing),
            (driver("CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"), Failure::Missing),
            (
                "No adapter available for WgpuDevice { kind: DiscreteGpu(99), backend: Vulkan }: No Discrete GPU device found, \
                 adapters []"
                    .to_owned(),
                Failure::Missing,
            ),
            (
                "Missing symbol cuCtxGetDevice_v2: /lib/x86_64-linux-gnu/libcuda.so: undefined symbol: cuCtxGetDevice_v2"
                    .to_owned(),
                Failure::OldDriver,
            ),
            (
                driver(
                    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
                    "the provided PTX was compiled with an unsupported toolchain.",
                ),
                Failure::OldDriver,
            ),
            (
                "A compilation error happened during launch\nCaused by:\n  libdevice.10.bc was not found: the kernel calls a \
                 math function NVPTX has no instruction for"
                    .to_owned(),
                Failure::Toolkit,
            ),
            (
                "Unable to dynamically load the \"nvrtc\" shared library - searched for library names: [\"nvrtc\"]".to_owned(),
                Failure::Toolkit,
            ),
            ("\n        CUDA installation not found.\n        Please ensure that CUDA is installed".to_owned(), Failure::Toolkit),
            (
                "out of device memory allocating 268435456 bytes\nBacktrace:\n 0: main".to_owned(),
                Failure::Memory(Some(268_435_456)),
            ),
            ("can't allocate buffer of size: 5000000000\n".to_owned(), Failure::Memory(Some(5_000_000_000))),
            ("wgpu error: Out of Memory".to_owned(), Failure::Memory(None)),
            (driver("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"), Failure::Memory(None)),
            ("The device is poisoned\nCaused by:\n  Unknown: the driver was reset".to_owned(), Failure::Lost),
            ("wgpu error: Validation Error\n\nCaused by:\n  Parent device is lost".to_owned(), Failure::Lost),
            (driver("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"), Failure::Lost),
        ] {
            assert_eq!(Failure::of(&message), Some(failure), "{message}");
        }
        for other in
            ["index out of bounds: the len is 3 but the index is 3", "`a.safetensors` is not usable: no header"]
        {
            assert_eq!(Failure::of(other), None, "{other}");
        }
    }

    fn situation(training: Option<PathBuf>, gpu: bool) -> Situation {
        Situation { gpu, training, batch: Some(64) }
    }

    fn error_of(situation: &Situation, command: impl FnOnce() -> Result<()>) -> String {
        situation.run(command).expect_err("it fails").to_string()
    }

    #[test]
    fn a_full_memory_says_what_to_lower_and_how_to_resume() {
        let folder = tempfile::tempdir().expect("a folder");
        let full = || panic!("out of device memory allocating 268435456 bytes\nBacktrace:\n 0: main");
        let training = situation(Some(folder.path().to_owned()), true);
        let error = error_of(&training, full);
        assert!(error.contains("268.4 MB") && error.contains("run.batch_size"), "{error}");
        assert!(error.contains("no checkpoint yet") && !error.contains("main"), "{error}");

        std::fs::write(folder.path().join("config.toml"), "[run]\nbatch_size = 48\naccumulate = 4").expect("written");
        std::fs::create_dir_all(folder.path().join("checkpoints/step-00000010")).expect("a checkpoint");
        let error = error_of(&training, full);
        assert!(error.contains("is 48 in run.accumulate = 4") && error.contains("run.accumulate=6"), "{error}");
        assert!(error.ends_with("The same command resumes the run from its last checkpoint"), "{error}");

        let error = error_of(&situation(None, true), full);
        assert!(error.contains("--batch, which is 64") && !error.contains("resume"), "{error}");
    }

    #[test]
    fn errors_of_a_lost_gpu_are_explained_and_others_stay() {
        let lost = || Err(anyhow!("The device is poisoned").context("cannot read the loss"));
        let error = error_of(&situation(None, true), lost);
        assert!(error.contains("Start the command again") && error.contains("cannot read the loss"), "{error}");
        assert_eq!(error_of(&situation(None, false), lost), "cannot read the loss", "a CPU has no such failures");
        let usage = || Err(crate::output::usage("no such class"));
        let error = situation(None, true).run(usage).expect_err("it fails");
        assert!(error.is::<crate::output::UsageError>(), "mistakes stay mistakes");
        let unusable = || Err(Unusable::new("cuda", "DriverError(CUDA_ERROR_NO_DEVICE, \"no device\")").into());
        let error = error_of(&situation(None, true), unusable);
        assert_eq!(error.matches("nvidia-smi").count(), 1, "explained once: {error}");
    }

    #[test]
    fn a_defect_is_an_error_that_asks_for_a_report() {
        let error = error_of(&situation(None, false), || panic!("a defect made for this test"));
        assert!(error.contains("a defect made for this test") && error.contains("report"), "{error}");
    }
}
