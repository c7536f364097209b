//! `burn-var convert`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use burn_var::Scales;
use burn_var::models::common::{Lora, LoraTarget};
use burn_var::models::flexvar::{FlexVar, FlexVarPreset};
use burn_var::models::llamagen::{LlamaGen, LlamaGenConfig};
use burn_var::models::var::Var;
use burn_var::weights::{
    AnyModel, FloatType, GenerationConfig, LoadOptions, MODELS, Pretrained, SaveOptions, StateDict,
};
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use serde_json::Value;

use crate::models::{check_target, schedule};
use crate::output::{Output, bytes, usage};

/// Write any readable checkpoint as safetensors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A checkpoint: safetensors or PyTorch, of a model alone or of a trainer.
    input: PathBuf,
    /// The file to write.
    output: PathBuf,
    /// Round weights to half precision: half the size.
    #[arg(long)]
    half: bool,
    /// The model to convert, of a file that holds several.
    #[arg(long, value_parser = roles())]
    part: Option<String>,
    /// Names of a transformer's classes for the new file: a text file with one name per line.
    #[arg(long, value_name = "FILE")]
    class_names: Option<PathBuf>,
    /// A LoRA to merge into a transformer.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// The scale schedule of a file that does not record it: sizes of the token maps.
    #[arg(long, value_name = "SIZES", alias = "patch-nums", value_parser = schedule)]
    scales: Option<Scales>,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    part: &'static str,
    bytes: u64,
    config: Value,
}

/// Accepts the role of any model.
fn roles() -> PossibleValuesParser {
    let mut roles: Vec<&str> = Vec::new();
    for model in MODELS {
        let role = model.kind().role;
        if !roles.contains(&role) {
            roles.push(role);
        }
    }
    PossibleValuesParser::new(roles)
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    check_target(&args.output)?;
    let dict = StateDict::open(&args.input)?;
    let model = choose(&dict, args.part.as_deref())?;
    let kind = model.kind();
    let is_transformer = [Var::KIND, FlexVar::KIND, LlamaGen::KIND].contains(&kind);
    if args.class_names.is_some() && !is_transformer {
        return Err(usage("--class-names is for transformers: other models have no classes by name"));
    }
    if args.lora.is_some() && (!is_transformer || kind == LlamaGen::KIND) {
        return Err(usage("--lora is for the transformers of VAR and FlexVAR: it changes the weights of one"));
    }
    let device = Device::default();
    let path = &args.output;
    let precision = args.half.then_some(FloatType::F16);
    let mut options = SaveOptions { precision, ..Default::default() };
    if let Some(file) = &args.class_names {
        let config = model.config(&dict, args.scales.as_ref())?;
        let classes = config["num_classes"].as_u64().unwrap_or_default() as usize;
        let evaluation = match kind {
            FlexVar::KIND => FlexVarPreset::evaluation(),
            LlamaGen::KIND => serde_json::from_value::<LlamaGenConfig>(config)?.evaluation(),
            _ => GenerationConfig::default(),
        };
        let own = GenerationConfig::of(&dict)?.unwrap_or(evaluation);
        let generation = GenerationConfig { class_names: class_names(file, classes)?, ..own };
        generation.insert(&mut options.metadata)?;
    }
    let config = match &args.lora {
        Some(lora) if kind == FlexVar::KIND => merged::<FlexVar>(args, &dict, lora, options, &device)?,
        Some(lora) => merged::<Var>(args, &dict, lora, options, &device)?,
        None => model.convert(&dict, args.scales.as_ref(), path, &options, &device)?,
    };
    let bytes_written = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?.len();
    let config = serde_json::json!({ kind.name: config });
    let report = Report { file: path.clone(), part: kind.role, bytes: bytes_written, config };
    output.result(&report, || format!("{} ({})", path.display(), bytes(bytes_written)))
}

/// Returns the model of a role, or the only one in the file.
fn choose(dict: &StateDict, role: Option<&str>) -> Result<&'static dyn AnyModel> {
    if let Some(role) = role {
        // Families share roles: the file decides, and if it holds none, the first says what is missing.
        let found = dict.models()?.into_iter().chain(MODELS.iter().copied()).find(|model| model.kind().role == role);
        return found.with_context(|| format!("there is no model `{role}`"));
    }
    match dict.models()?[..] {
        [model] => Ok(model),
        [] => bail!("`{}` holds no model that is known here", dict.origin().display()),
        _ => Err(usage("the file holds several models: choose with --part")),
    }
}

/// Writes a transformer with a LoRA merged into it, and returns its configuration.
fn merged<M: Pretrained + LoraTarget>(
    args: &Args,
    dict: &StateDict,
    lora: &Path,
    mut options: SaveOptions,
    device: &Device,
) -> Result<Value> {
    let config = M::config_of(dict, args.scales.as_ref())?;
    let transformer = M::load_with(dict, &config, LoadOptions::default(), device)?;
    let transformer = Lora::load(&StateDict::open(lora)?, device)?.merge(transformer)?;
    let mut metadata = M::notes(dict)?;
    metadata.append(&mut options.metadata);
    Pretrained::save(&transformer, &args.output, &SaveOptions { metadata, ..options })?;
    serde_json::to_value(&config).context("configuration as JSON")
}

fn class_names(path: &Path, classes: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    if names.len() != classes {
        bail!("`{}` has {} names, the model {classes} classes", path.display(), names.len());
    }
    Ok(names)
}
