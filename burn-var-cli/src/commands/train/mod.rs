//! `burn-var train`

mod ranks;

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::models::flexvar::FlexVaeConfig;
use burn_var::models::llamagen::LlamaGenVqConfig;
use burn_var::ops::Precision;
use burn_var_train::aid::{AidTrainConfig, train_aid};
use burn_var_train::classifier::{ClassifierSummary, ClassifierTrainConfig, train_classifier};
use burn_var_train::config::read_toml_over;
use burn_var_train::dino::{DinoSummary, DinoTrainConfig, train_dino};
use burn_var_train::engine::Placement;
use burn_var_train::flexvar::{FlexVarTrainConfig, train_flexvar};
use burn_var_train::judge::{JudgeSummary, JudgesConfig, train_judges};
use burn_var_train::llamagen::{LlamaGenTrainConfig, train_llamagen};
use burn_var_train::sar::{SarTrainConfig, train_sar};
use burn_var_train::tokenizer::{TokenizerTrainConfig, train_flexvae, train_llamagen_vq, train_tokenizer};
use burn_var_train::va_pi::{VaPiTrainConfig, train_va_pi};
use burn_var_train::var::{VarTrainConfig, train_var};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Value;

use crate::models::PrecisionName;
use crate::output::{Output, usage};
use crate::progress::TrainProgress;

/// The model to train.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// The tokenizer: images to tokens and back.
    Tokenizer(Args),
    /// FlexVAR's tokenizer, whose every scale is a whole image.
    #[command(name = "flexvae")]
    FlexVae(Args),
    /// The transformer, on the tokens of a tokenizer.
    Var(Args),
    /// FlexVAR's transformer, on the tokens of a FlexVAE, over random scale schedules.
    #[command(name = "flexvar")]
    FlexVar(Args),
    /// LlamaGen's tokenizer: one map of tokens per image.
    #[command(name = "llamagen-vq")]
    LlamaGenVq(Args),
    /// LlamaGen's transformer, on the tokens of that tokenizer, row by row.
    #[command(name = "llamagen")]
    LlamaGen(Args),
    /// SAR or student forcing: a trained transformer of FlexVAR or VAR, on its own outputs.
    Sar(Args),
    /// VA-pi: a trained transformer of LlamaGen, VAR or FlexVAR, by the likeness of its decoded samples to images.
    #[command(name = "va-pi")]
    VaPi(Args),
    /// The classifier that judges generated images.
    Classifier(Args),
    /// Several small networks of different kind, through which generated images are compared: a convolutional classifier, a
    /// perceptron, a random network, principal components, an autoencoder.
    Judges(Args),
    /// A vision transformer without labels, by self-distillation: features for evaluation and for discriminators.
    Dino(Args),
    /// AID-VAR's guidance injector, which corrects a frozen transformer.
    Aid(Args),
}

impl Command {
    /// Returns the arguments, which all models share.
    pub(crate) fn args(&self) -> &Args {
        let (Self::Tokenizer(args)
        | Self::FlexVae(args)
        | Self::Var(args)
        | Self::FlexVar(args)
        | Self::LlamaGenVq(args)
        | Self::LlamaGen(args)
        | Self::Sar(args)
        | Self::VaPi(args)
        | Self::Classifier(args)
        | Self::Judges(args)
        | Self::Dino(args)
        | Self::Aid(args)) = self;
        args
    }
}

/// A training run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The run's configuration, a TOML file.
    config: PathBuf,
    /// Folder of the run. A run that is there already is resumed.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// Steps of the whole run, in place of `run.steps` of the configuration. A run can be made longer, not shorter.
    #[arg(long, value_name = "STEPS")]
    steps: Option<u64>,
    /// A value in place of the one in the configuration, `run.seed=2` or `data.path="images"` for instance. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, Value)>,
    /// Type that the inputs of products are rounded to, in place of `run.precision` of the configuration. [default: that
    /// one; without any tf32 on a GPU that has it, which are those of `cuda`; else exact]
    #[arg(long, value_enum, value_name = "TYPE")]
    precision: Option<PrecisionName>,
    #[command(flatten)]
    pub(crate) ranks: ranks::Args,
}

impl Args {
    /// Returns the configuration; flags take precedence over the file.
    fn config<T: DeserializeOwned>(&self, presets: &[(&str, &str)], device: &Device) -> Result<T> {
        let steps = self.steps.map(|steps| i64::try_from(steps).map(|steps| ("run.steps".to_owned(), steps.into())));
        let precision = self.precision.map(Precision::from).or_else(|| self.default_precision(device));
        let precision = precision.map(|precision| (PRECISION.to_owned(), precision.name().into()));
        let set: Vec<_> = self.set.iter().cloned().chain(steps.transpose()?).chain(precision).collect();
        Ok(read_toml_over(&self.config, presets, &set)?)
    }

    /// Returns the precision that suits training on a device, if it is not the one that a configuration without any means,
    /// and this one is without any.
    fn default_precision(&self, device: &Device) -> Option<Precision> {
        let precision = Some(Precision::for_training(device)).filter(|precision| *precision != Precision::default())?;
        // A file that cannot be read is reported by whoever reads all of it.
        let table =
            std::fs::read_to_string(&self.config).unwrap_or_default().parse::<toml::Table>().unwrap_or_default();
        let in_file = table.get("run").and_then(|run| run.get("precision")).is_some();
        let set = self.set.iter().any(|(key, _)| key == PRECISION);
        (!in_file && !set).then_some(precision)
    }
}

/// The key of the precision in a configuration.
const PRECISION: &str = "run.precision";

/// Parses a dotted key and a value in TOML; a value that is not TOML is text.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.split('.').any(|part| part.trim().is_empty()) {
        return Err(format!("`{key}` is not a key: expected names with dots between them, `run.seed` for instance"));
    }
    let table = toml::from_str::<toml::Table>(&format!("value = {value}"));
    let value = table.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| value.into());
    Ok((key.to_owned(), value))
}

#[derive(Debug, Serialize)]
struct Report {
    /// The weights, or the folder of several; `None` if the run was stopped before its end.
    file: Option<PathBuf>,
    steps: u64,
    stopped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    knn_accuracy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    judges: Option<Vec<JudgeSummary>>,
}

pub(crate) fn run(command: &Command, device: &Device, output: Output) -> Result<()> {
    let args = command.args();
    let ranks = args.ranks.join()?;
    let (out, leads) = (&args.out, ranks.leads());
    let mut progress = TrainProgress::new(output.quiet)?;
    let place = Placement { device: device.clone(), ranks };
    let (mut test_accuracy, mut knn_accuracy, mut judges) = (None, None, None);
    let file = match command {
        Command::Tokenizer(_) => {
            train_tokenizer(args.config::<TokenizerTrainConfig>(&[], device)?, out, place, &mut progress)?
        }
        Command::FlexVae(_) => {
            let config = args.config::<TokenizerTrainConfig<FlexVaeConfig>>(&[], device)?;
            train_flexvae(config, out, place, &mut progress)?
        }
        Command::Var(_) => train_var(args.config::<VarTrainConfig>(&[], device)?, out, place, &mut progress)?,
        Command::FlexVar(_) => {
            train_flexvar(args.config::<FlexVarTrainConfig>(&[], device)?, out, place, &mut progress)?
        }
        Command::LlamaGenVq(_) => {
            let config = args.config::<TokenizerTrainConfig<LlamaGenVqConfig>>(&[], device)?;
            train_llamagen_vq(config, out, place, &mut progress)?
        }
        Command::LlamaGen(_) => {
            train_llamagen(args.config::<LlamaGenTrainConfig>(&[], device)?, out, place, &mut progress)?
        }
        Command::Sar(_) => train_sar(args.config::<SarTrainConfig>(&[], device)?, out, place, &mut progress)?,
        Command::VaPi(_) => train_va_pi(args.config::<VaPiTrainConfig>(&[], device)?, out, place, &mut progress)?,
        Command::Classifier(_) => {
            let summary =
                train_classifier(args.config::<ClassifierTrainConfig>(&[], device)?, out, place, &mut progress)?;
            test_accuracy = summary.as_ref().map(|summary| summary.test_accuracy);
            summary.map(|ClassifierSummary { file, .. }| file)
        }
        Command::Judges(_) => {
            if place.ranks.count() > 1 {
                return Err(usage("judges are small networks, each trained by itself: leave --ranks out"));
            }
            judges = train_judges(&args.config::<JudgesConfig>(&[], device)?, out, &place.device, &mut progress)?;
            judges.is_some().then(|| out.clone())
        }
        Command::Dino(_) => {
            let summary = train_dino(args.config::<DinoTrainConfig>(&[], device)?, out, place, &mut progress)?;
            knn_accuracy = summary.as_ref().map(|summary| summary.knn_accuracy);
            summary.map(|DinoSummary { file, .. }| file)
        }
        Command::Aid(_) => {
            train_aid(args.config::<AidTrainConfig>(&AidTrainConfig::PRESETS, device)?, out, place, &mut progress)?
        }
    };
    let stopped = file.is_none();
    let report = Report { file, steps: progress.step, stopped, test_accuracy, knn_accuracy, judges };
    if !leads {
        return Ok(());
    }
    output.result(&report, || {
        let file = report.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        let share = |who: &str, share: f64| format!("{who} {:.2}% of the test images\n", 100.0 * share);
        let accuracy = report.test_accuracy.map(|found| share("recognizes", found));
        let accuracy = accuracy.or(report.knn_accuracy.map(|found| share("its nearest neighbors recognize", found)));
        let judges =
            report.judges.iter().flatten().map(|JudgeSummary { name, test_accuracy, .. }| match test_accuracy {
                Some(found) => format!("{name} {}", share("recognizes", *found)),
                None => format!("{name}\n"),
            });
        let accuracy = accuracy.unwrap_or_default() + &judges.collect::<String>();
        let stopped = "stopped, with a checkpoint: the same command resumes it\n";
        format!("{}{}{file}", if report.stopped { stopped } else { "" }, accuracy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_toml_or_text() {
        let read = |text: &str| setting(text).expect("a setting");
        assert_eq!(read("run.seed=2"), ("run.seed".to_owned(), Value::Integer(2)));
        assert_eq!(read("ema.decay=0.5").1, Value::Float(0.5));
        assert_eq!(read("data.path=a b=c").1, Value::String("a b=c".into()), "not TOML, so text");
        assert_eq!(read("data.path=\"3\"").1, Value::String("3".into()));
        assert!(read("guidance.sampler={ top_p = 1.0 }").1.is_table());
        assert!(setting("run.seed").is_err() && setting("=3").is_err() && setting("run..seed=3").is_err());
    }
}
