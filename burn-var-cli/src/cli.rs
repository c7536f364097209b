//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::{bench, completions, convert, edit, eval, info, merge, reconstruct, sample, train};
use crate::device::DeviceName;

/// Next-scale autoregressive image generation: sample, reconstruct, train, measure.
///
/// Without a model of your own, every command uses the small one that is compiled in: it generates images of
/// clothes, as in Fashion-MNIST. `burn-var sample` shows some.
#[derive(Debug, Parser)]
#[command(name = "burn-var", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// Command to run.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Device to compute on. GPUs need a build with the feature of the same name.
    #[arg(long, global = true, value_enum, default_value_t = DeviceName::default())]
    pub(crate) device: DeviceName,
    /// On a GPU, run every operation as a kernel of its own: slower, to find out whether a wrong result is due to Burn's
    /// fusion of operations.
    #[arg(long, global = true)]
    pub(crate) no_fusion: bool,
    /// Print results as one JSON value.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print results and errors only, no progress.
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Generate images, class by class.
    Sample(sample::Args),
    /// Put the shards of `sample --npz` together to the file of one run, byte for byte.
    Merge(merge::Args),
    /// Generate a part of an image anew: in-painting, out-painting, another class, completion.
    Edit(edit::Args),
    /// Encode images to tokens and decode them again, and measure the difference: PSNR and SSIM.
    Reconstruct(reconstruct::Args),
    /// Train a model, or resume a run that was interrupted: the same command does both.
    #[command(subcommand)]
    Train(train::Command),
    /// Measure a model against real images.
    #[command(subcommand)]
    Eval(eval::Command),
    /// Show what is in a checkpoint or a folder of a training run.
    Info(info::Args),
    /// Write any readable checkpoint as a safetensors file with its configuration inside.
    Convert(convert::Args),
    /// Measure speed and memory, as medians of several runs.
    Bench(bench::Args),
    /// Print a script that completes this command in a shell.
    Completions(completions::Args),
}
