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

/// What to measure.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, for the whole run")]
pub(crate) enum Command {
    /// Pictures, of the model or of a file: how far are they from real ones, are they recognised, are they copies.
    Generated(generated::Args),
    /// Do pictures change from scale to scale as real ones do: the inter-scale consistency score of AID-VAR.
    Iscs(iscs::Args),
    /// Which frequencies of the logits guidance strengthens.
    Spectra(spectra::Args),
    /// The tokenizer: how near reconstructed test pictures come to the originals, and how its codes are used.
    Tokenizer(tokenizer::Args),
    /// Many ways to draw pictures from one model, measured alike: tune settings, compare methods.
    Sweep(sweep::Args),
    /// Whether two evaluated sets of pictures differ by more than chance.
    Compare(compare::Args),
    /// A page about one evaluated set of pictures or several.
    Report(report::Args),
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
