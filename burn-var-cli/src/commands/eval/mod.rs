//! `burn-var eval`

mod compare;
mod generated;
mod iscs;
mod network;
mod page;
mod report;
mod spectra;
mod sweep;
mod tokenizer;

use anyhow::Result;
use burn::tensor::Device;

use crate::output::Output;
use crate::shards::ShardArgs;

/// An evaluation.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
pub(crate) enum Command {
    /// Evaluate images, of the model or of a file: distance to real ones, recognized classes, near copies.
    Generated(generated::Args),
    /// Measure whether images change from scale to scale as real ones do: AID-VAR's inter-scale consistency score.
    Iscs(iscs::Args),
    /// Measure which frequencies of the logits guidance strengthens.
    Spectra(spectra::Args),
    /// Evaluate the tokenizer: quality of reconstructed test images, and use of the codebook.
    Tokenizer(tokenizer::Args),
    /// Evaluate many settings alike: tune settings, compare methods and trainings.
    Sweep(sweep::Args),
    /// Compare two evaluated sets of images: do they differ by more than chance?
    Compare(compare::Args),
    /// Write a page about one or several evaluated sets of images.
    Report(report::Args),
}

impl Command {
    /// Returns the parts of the images of a command that several processes can share.
    pub(crate) fn shards(&self) -> Result<Option<&ShardArgs>> {
        match self {
            Self::Generated(args) => args.shards().map(Some),
            Self::Sweep(args) => Ok(Some(&args.shards)),
            _ => Ok(None),
        }
    }
}

pub(crate) fn run(command: &Command, device: &Device, output: Output) -> Result<()> {
    match command {
        Command::Generated(args) => generated::run(args, device, output),
        Command::Iscs(args) => iscs::run(args, device, output),
        Command::Spectra(args) => spectra::run(args, device, output),
        Command::Tokenizer(args) => tokenizer::run(args, device, output),
        Command::Sweep(args) => sweep::run(args, device, output),
        Command::Compare(args) => compare::run(args, output),
        Command::Report(args) => report::run(args, output),
    }
}
