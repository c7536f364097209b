//! `burn-var convert`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use burn_var::Scales;
use burn_var::weights::{GenerationConfig, Pretrained, StateDict};
use clap::ValueEnum;
use serde::Serialize;

use crate::models::check_target;
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
    /// Which model to take of a file that holds several.
    #[arg(long, value_enum)]
    part: Option<Part>,
    /// Names of a transformer's classes for the new file: a text file, one name a line.
    #[arg(long, value_name = "FILE")]
    class_names: Option<PathBuf>,
    /// A LoRA to merge into a transformer.
    #[arg(long, value_name = "FILE")]
    lora: Option<PathBuf>,
    /// Sides of the token maps, of a file that does not tell.
    #[arg(long, value_name = "SIDES", value_delimiter = ',')]
    patch_nums: Option<Vec<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Tokenizer,
    Transformer,
    Classifier,
    Injector,
    /// The heads of AID-VAR's discriminator.
    Heads,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    part: Part,
    bytes: u64,
    config: ModelConfig,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    check_target(&args.output)?;
    let dict = StateDict::open(&args.input)?;
    let scales = args.patch_nums.as_deref().map(Scales::square).transpose()?;
    let part = match args.part {
        Some(part) => part,
        None => part_of(&dict)?,
    };
    if args.class_names.is_some() && part != Part::Transformer {
        return Err(usage("--class-names is for transformers: others have no classes by name"));
    }
    if args.lora.is_some() && part != Part::Transformer {
        return Err(usage("--lora is for transformers: it changes the weights of one"));
    }
    let device = Device::default();
    let (path, half) = (&args.output, args.half);
    let config = match part {
        Part::Tokenizer => {
            let config = VqVae::config_of(&dict, scales.as_ref())?;
            save_vqvae(&VqVae::load_with(&dict, &config, LoadOptions::default(), &device)?, path, half)?;
            ModelConfig::VqVae(config)
        }
        Part::Transformer => {
            let config = Var::config_of(&dict, scales.as_ref())?;
            let mut usage = GenerationConfig::of(&dict)?.unwrap_or_default();
            if let Some(file) = &args.class_names {
                usage.class_names = class_names(file, config.num_classes)?;
            }
            let transformer = Var::load_with(&dict, &config, LoadOptions::default(), &device)?;
            let transformer = match &args.lora {
                Some(file) => Lora::load(&StateDict::open(file)?, &device)?.merge(transformer)?,
                None => transformer,
            };
            save_var(&transformer, &usage, path, half)?;
            ModelConfig::Var(config)
        }
        Part::Classifier => {
            let classifier = Classifier::load(&dict, &device)?;
            save_classifier(&classifier, path, half)?;
            ModelConfig::Classifier(classifier.config().clone())
        }
        Part::Injector => {
            let config = Injector::config_of(&dict, None)?;
            let weight = AidWeight::of(&dict)?;
            save_injector(&Injector::load_with(&dict, &config, LoadOptions::default(), &device)?, weight.as_ref(), path, half)?;
            ModelConfig::Injector(config)
        }
        Part::Heads => {
            let heads = DiscriminatorHeads::load(&dict, &device)?;
            save_heads(&heads, path, half)?;
            ModelConfig::Heads(heads.config().clone())
        }
    };
    let length = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?.len();
    let report = Report { file: path.clone(), part, bytes: length, config };
    output.result(&report, || format!("{} ({})", path.display(), bytes(length)))
}

/// Which model a file holds, if it is one only.
fn part_of(dict: &StateDict) -> Result<Part> {
    match ModelConfig::of(dict)? {
        Some(ModelConfig::VqVae(_)) => return Ok(Part::Tokenizer),
        Some(ModelConfig::Var(_)) => return Ok(Part::Transformer),
        Some(ModelConfig::Classifier(_)) => return Ok(Part::Classifier),
        Some(ModelConfig::Injector(_)) => return Ok(Part::Injector),
        Some(ModelConfig::Heads(_)) => return Ok(Part::Heads),
        _ => {}
    }
    let sections = dict.sections();
    let holds = |section: Section, key: &str| sections.contains(&section) || dict.contains(key);
    let parts = [
        (Part::Tokenizer, holds(Section::VqVae, "quantize.embedding.weight")),
        (Part::Transformer, holds(Section::Var, "pos_start")),
        (Part::Injector, holds(Section::Injector, "input_proj.weight")),
    ];
    match parts.iter().filter(|(_, held)| *held).map(|(part, _)| *part).collect::<Vec<_>>()[..] {
        [part] => Ok(part),
        [] => bail!("`{}` holds no model that is known here", dict.origin().display()),
        _ => Err(usage("the file holds several models: choose with --part")),
    }
}

fn class_names(path: &Path, classes: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    if names.len() != classes {
        bail!("`{}` has {} names, the model {classes} classes", path.display(), names.len());
    }
    Ok(names)
}
