//! The `burn-var` command.

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::Device;
use burn_var_train::config::read_toml;
use burn_var_train::progress::{Progress, StepReport};
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(subcommand)]
    Train(Train),
}

#[derive(Subcommand)]
enum Train {
    Tokenizer { config: PathBuf, out: PathBuf },
    Var { config: PathBuf, out: PathBuf },
}

struct Lines;

impl Progress for Lines {
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()> {
        if !report.figures.is_empty() {
            let figures: Vec<String> =
                report.figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            println!(
                "{}/{} {:.2}/s left {:.0?} {}",
                report.step,
                report.steps,
                report.per_second.unwrap_or(0.0),
                report.remaining.unwrap_or_default(),
                figures.join(" ")
            );
        }
        ControlFlow::Continue(())
    }

    fn note(&mut self, text: &str) {
        println!("{text}");
    }
}

fn main() -> anyhow::Result<()> {
    let device = Device::flex();
    let path = match Cli::parse().command {
        Command::Train(Train::Tokenizer { config, out }) => {
            burn_var_train::tokenizer::train_tokenizer(read_toml(config)?, &out, &device, &mut Lines)?
        }
        Command::Train(Train::Var { config, out }) => {
            burn_var_train::var::train_var(read_toml(config)?, &out, &device, &mut Lines)?
        }
    };
    println!("{}", path.display());
    Ok(())
}
