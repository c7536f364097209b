//! One file a subcommand.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod edit;
pub(crate) mod eval;
pub(crate) mod info;
pub(crate) mod merge;
pub(crate) mod reconstruct;
pub(crate) mod sample;
pub(crate) mod train;

use std::time::Duration;

use anyhow::Result;

use crate::cli::{Cli, Command};
use crate::output::Output;
use crate::shards::ShardArgs;

/// Runs the command.
pub(crate) fn run(cli: Cli, output: Output) -> Result<()> {
    let (mut training, mut number, mut launched) = (false, None, Duration::ZERO);
    if let Command::Train(command) = &cli.command {
        let ranks = &command.args().ranks;
        // The ranks open the devices, not the process that starts them.
        if ranks.launch()? {
            return Ok(());
        }
        (training, number) = (true, ranks.device());
    }
    if let Some(shards) = shards(&cli.command)? {
        number = shards.device();
        cli.device.check_number(number)?;
        launched = shards.launch()?;
    }
    let device = cli.device.open(!cli.no_fusion, training, number)?;
    match cli.command {
        Command::Sample(args) => sample::run(&args, &device, launched, output),
        Command::Merge(args) => merge::run(&args, output),
        Command::Edit(args) => edit::run(&args, &device, output),
        Command::Reconstruct(args) => reconstruct::run(&args, &device, output),
        Command::Train(command) => train::run(&command, &device, output),
        Command::Eval(command) => eval::run(&command, &device, output),
        Command::Info(args) => info::run(&args, output),
        Command::Convert(args) => convert::run(&args, output),
        Command::Bench(args) => bench::run(&args, &device, output),
        Command::Completions(args) => completions::run(&args),
    }
}

/// Returns the parts of the images of a command that several processes can share.
fn shards(command: &Command) -> Result<Option<&ShardArgs>> {
    match command {
        Command::Sample(args) => args.shards().map(Some),
        Command::Eval(command) => command.shards(),
        _ => Ok(None),
    }
}
