//! Finding and loading models.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::weights::{FloatType, GenerationConfig, LoadOptions, Pretrained, StateDict};
use burn_var::models::var::VqVae;
use burn_var::models::var::{Var, VarConfig};
use burn_var::{Scales, check_pair};
use clap::{Args, ValueEnum};

use crate::classes::Classes;
use crate::output::usage;

/// The names of a model's two files in its folder, which are those that training writes.
pub(crate) const TOKENIZER: &str = "tokenizer.safetensors";
pub(crate) const TRANSFORMER: &str = "transformer.safetensors";
/// The name of a model's own injector there, if it has one.
const INJECTOR: &str = "injector.safetensors";

const SHIPPED_TOKENIZER: &[u8] = include_bytes!("../../models/fashion-mnist/tokenizer.safetensors");
const SHIPPED_TRANSFORMER: &[u8] = include_bytes!("../../models/fashion-mnist/transformer.safetensors");
const SHIPPED_INJECTOR: &[u8] = include_bytes!("../../models/fashion-mnist/injector.safetensors");

/// Which model to use.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Model (default: the one that is compiled in)")]
pub(crate) struct ModelArgs {
    /// A folder with `tokenizer.safetensors`, `transformer.safetensors` and, if it is to be used, AID-VAR's
    /// `injector.safetensors`; or one file that holds the first two.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The tokenizer: a safetensors file of this project, or a public `.pth` file.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Sides of the token maps, `1,2,3,4,5,6,8,10,13,16` for instance, of a file that does not tell.
    #[arg(long, value_name = "SIDES", value_delimiter = ',')]
    pub(crate) patch_nums: Option<Vec<usize>>,
}

/// Which transformer to use with the tokenizer.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PairArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The transformer: a safetensors file of this project, or a public `.pth` file.
    #[arg(long, value_name = "FILE")]
    pub(crate) transformer: Option<PathBuf>,
    /// How the transformer's weights are held: half precision takes half the memory; its pictures differ a little.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub(crate) weights: Weights,
}

/// [`FloatType`], as the command line names it.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Weights {
    #[default]
    F32,
    F16,
    Bf16,
}

impl From<Weights> for FloatType {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F32 => Self::F32,
            Weights::F16 => Self::F16,
            Weights::Bf16 => Self::Bf16,
        }
    }
}

/// A tokenizer and a transformer that fit each other.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) tokenizer: VqVae,
    pub(crate) transformer: Var,
    pub(crate) usage: GenerationConfig,
    /// Its own injector, if it has one.
    pub(crate) injector: Option<StateDict>,
}

impl Pair {
    pub(crate) fn classes(&self) -> Classes<'_> {
        Classes { count: self.transformer.config().num_classes, names: &self.usage.class_names }
    }
}

impl ModelArgs {
    pub(crate) fn scales(&self) -> Result<Option<Scales>> {
        Ok(self.patch_nums.as_deref().map(Scales::square).transpose()?)
    }

    /// The file that holds a part of the model; the compiled one if none was named.
    fn open(&self, file: Option<&PathBuf>, name: &str, shipped: &'static [u8]) -> Result<StateDict> {
        let path = match (file, &self.model) {
            (Some(file), _) => file.clone(),
            (None, Some(folder)) if folder.is_dir() => {
                let path = folder.join(name);
                if !path.is_file() {
                    let flag = name.trim_end_matches(".safetensors");
                    return Err(usage(format!("`{}` has no `{name}`; name the file with --{flag}", folder.display())));
                }
                path
            }
            (None, Some(file)) => file.clone(),
            (None, None) => {
                return Ok(StateDict::from_safetensors(compiled_in(name), shipped)?);
            }
        };
        Ok(StateDict::open(path)?)
    }

    /// The tokenizer alone.
    pub(crate) fn load_tokenizer(&self, device: &Device) -> Result<VqVae> {
        let dict = self.open(self.tokenizer.as_ref(), TOKENIZER, SHIPPED_TOKENIZER)?;
        Ok(load_vqvae(&dict, &VqVae::config_of(&dict, self.scales()?.as_ref())?, device)?)
    }
}

impl PairArgs {
    /// Both parts, and how they are best used.
    pub(crate) fn load(&self, device: &Device) -> Result<Pair> {
        let files = [&self.model.tokenizer, &self.transformer];
        if self.model.model.is_none() && files.iter().filter(|file| file.is_some()).count() == 1 {
            return Err(usage("--tokenizer and --transformer belong together: name both, or a folder with --model"));
        }
        let tokenizer = self.model.open(self.model.tokenizer.as_ref(), TOKENIZER, SHIPPED_TOKENIZER)?;
        let transformer = self.model.open(self.transformer.as_ref(), TRANSFORMER, SHIPPED_TRANSFORMER)?;
        let scales = self.model.scales()?;
        let config = Var::config_of(&transformer, scales.as_ref())?;
        // A public tokenizer's file does not tell the ladder: it is the transformer's.
        let scales = scales.or_else(|| ladder_of(&tokenizer, &config));
        let tokenizer_config = VqVae::config_of(&tokenizer, scales.as_ref())?;
        let options = LoadOptions { linear: self.weights.into(), ..Default::default() };
        let pair = Pair {
            tokenizer: VqVae::load_with(&tokenizer, &tokenizer_config, LoadOptions::default(), device)?,
            transformer: Var::load_with(&transformer, &config, options, device)?,
            usage: GenerationConfig::of(&transformer)?.unwrap_or_default(),
            injector: self.injector()?,
        };
        check_pair(&pair.tokenizer, &pair.transformer)
            .with_context(|| format!("{} and {}", tokenizer.origin().display(), transformer.origin().display()))?;
        Ok(pair)
    }
}

impl PairArgs {
    /// The model's own injector, if it has one. It was trained with the model's transformer and is no use with another.
    fn injector(&self) -> Result<Option<StateDict>> {
        let own = self.model.tokenizer.is_none() && self.transformer.is_none();
        Ok(match &self.model.model {
            _ if !own => None,
            None => Some(StateDict::from_safetensors(compiled_in(INJECTOR), SHIPPED_INJECTOR)?),
            Some(folder) => {
                let path = folder.join(INJECTOR);
                path.is_file().then(|| StateDict::open(path)).transpose()?
            }
        })
    }
}

/// What a file that is compiled in is called in messages.
fn compiled_in(name: &str) -> String {
    format!("{name} (compiled in)")
}

fn ladder_of(tokenizer: &StateDict, config: &VarConfig) -> Option<Scales> {
    matches!(ModelConfig::of(tokenizer), Ok(None)).then(|| config.patch_nums.clone())
}

/// Refuses to write where no file can be, before hours of work rather than after.
pub(crate) fn check_target(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        anyhow::bail!("cannot write `{}`: there is no folder `{}`", path.display(), folder.display());
    }
    if path.is_dir() {
        anyhow::bail!("cannot write `{}`: it is a folder", path.display());
    }
    if path.exists() && !path.is_file() {
        anyhow::bail!("cannot write `{}`: it is a device, and not a file that could be replaced", path.display());
    }
    Ok(())
}
