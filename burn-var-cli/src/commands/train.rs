//! `burn-var train`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var_train::aid::{AidTrainConfig, train_aid};
use burn_var_train::classifier::{ClassifierSummary, ClassifierTrainConfig, train_classifier};
use burn_var_train::config::{read_toml, read_toml_over};
use burn_var_train::dino::{DinoSummary, DinoTrainConfig, train_dino};
use burn_var_train::tokenizer::{TokenizerConfig, train_tokenizer};
use burn_var_train::var::{VarTrainConfig, train_var};
use serde::Serialize;

use crate::output::Output;
use crate::progress::TrainProgress;

/// What to train.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The tokenizer: pictures to tokens and back.
    Tokenizer(Args),
    /// The transformer, on the tokens of a tokenizer.
    Var(Args),
    /// The classifier that judges generated pictures.
    Classifier(Args),
    /// A vision transformer without labels, by self-distillation: features for evaluation and for discriminators.
    Dino(Args),
    /// AID-VAR's guidance injector, which corrects a transformer that stays as it is.
    Aid(Args),
}

/// A run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's configuration, a TOML file.
    config: PathBuf,
    /// The folder of the run. What is there already is gone on with.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Steps of the whole run, in place of `run.steps` of the configuration. A run may be made longer, not shorter.
    #[arg(long, value_name = "STEPS")]
    steps: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The weights; `None` if the run was stopped before its end.
    file: Option<PathBuf>,
    steps: u64,
    stopped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knn_accuracy: Option<f64>,
}

pub(crate) fn run(command: &Command, device: &Device, output: Output) -> Result<()> {
    let mut progress = TrainProgress::new(output.quiet);
    let (Command::Tokenizer(args)
    | Command::Var(args)
    | Command::Classifier(args)
    | Command::Dino(args)
    | Command::Aid(args)) = command;
    let Args { config, out, steps } = args;
    let (mut test_accuracy, mut knn_accuracy) = (None, None);
    let file = match command {
        Command::Tokenizer(_) => {
            let mut config: TokenizerConfig = read_toml(config)?;
            config.run.steps = steps.unwrap_or(config.run.steps);
            train_tokenizer(config, out, device, &mut progress)?
        }
        Command::Var(_) => {
            let mut config: VarTrainConfig = read_toml(config)?;
            config.run.steps = steps.unwrap_or(config.run.steps);
            train_var(config, out, device, &mut progress)?
        }
        Command::Classifier(_) => {
            let mut config: ClassifierTrainConfig = read_toml(config)?;
            config.run.steps = steps.unwrap_or(config.run.steps);
            let summary = train_classifier(config, out, device, &mut progress)?;
            test_accuracy = summary.as_ref().map(|summary| summary.test_accuracy);
            summary.map(|ClassifierSummary { file, .. }| file)
        }
        Command::Dino(_) => {
            let mut config: DinoTrainConfig = read_toml(config)?;
            config.run.steps = steps.unwrap_or(config.run.steps);
            let summary = train_dino(config, out, device, &mut progress)?;
            knn_accuracy = summary.as_ref().map(|summary| summary.knn_accuracy);
            summary.map(|DinoSummary { file, .. }| file)
        }
        Command::Aid(_) => {
            let mut config: AidTrainConfig = read_toml_over(config, &AidTrainConfig::PRESETS)?;
            config.run.steps = steps.unwrap_or(config.run.steps);
            train_aid(config, out, device, &mut progress)?
        }
    };
    let report = Report { file, steps: progress.step, stopped: progress.stopped, test_accuracy, knn_accuracy };
    output.result(&report, || {
        let file = report.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        let share = |who: &str, share: f64| format!("{who} {:.2}% of the test pictures\n", 100.0 * share);
        let accuracy = report.test_accuracy.map(|found| share("recognises", found));
        let accuracy = accuracy.or(report.knn_accuracy.map(|found| share("its nearest neighbours recognise", found)));
        let stopped = "stopped, with a checkpoint: the same command goes on from here\n";
        format!("{}{}{file}", if report.stopped { stopped } else { "" }, accuracy.unwrap_or_default())
    })
}
