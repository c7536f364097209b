//! The `burn-var` command.

mod caption;
mod classes;
mod cli;
mod commands;
mod device;
mod failure;
mod generator;
mod memory;
mod models;
mod output;
mod processes;
mod progress;
#[cfg(test)]
mod reference;
mod settings;
mod shards;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::failure::Situation;
use crate::output::{Output, UsageError};

fn main() -> ExitCode {
    memory::keep_freed_blocks();
    let cli = Cli::parse();
    let output = Output { json: cli.json, quiet: cli.quiet };
    let level = if cli.quiet { tracing::Level::ERROR } else { tracing::Level::WARN };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).without_time().init();
    let situation = Situation::of(&cli);
    match situation.run(|| commands::run(cli, output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<UsageError>() {
            Some(usage) => {
                // The format and exit code of clap's own errors.
                let _ = clap::Error::raw(ErrorKind::ValueValidation, format!("{usage}\n")).print();
                ExitCode::from(2)
            }
            None => {
                eprintln!("error: {}", output::chain(&error));
                ExitCode::FAILURE
            }
        },
    }
}
