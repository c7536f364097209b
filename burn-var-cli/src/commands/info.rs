//! `burn-var info`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_var::Scales;
use burn_var::weights::{GenerationConfig, Pretrained, StateDict};
use burn_var_train::checkpoint::Checkpoint;
use serde::Serialize;

use crate::output::{Output, bytes, count};

/// Show what is in a checkpoint or a folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A checkpoint, or a folder: of a model, of a training run, or one step of it.
    path: PathBuf,
    /// List every tensor with its shape and type.
    #[arg(long)]
    tensors: bool,
    /// Sides of the token maps, of a file that does not tell.
    #[arg(long, value_name = "SIDES", value_delimiter = ',')]
    patch_nums: Option<Vec<usize>>,
}

/// A checkpoint's file.
#[derive(Debug, Serialize)]
struct FileInfo {
    path: PathBuf,
    format: &'static str,
    bytes: u64,
    tensors: usize,
    elements: usize,
    /// Number of tensors of each element type.
    types: BTreeMap<String, usize>,
    models: Vec<ModelInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<TensorInfo>>,
}

/// A model in it.
#[derive(Debug, Serialize)]
struct ModelInfo {
    name: String,
    tensors: usize,
    /// Elements of its tensors, buffers of public checkpoints included.
    elements: usize,
    /// Whether the configuration is in the file, or read off the shapes.
    config_in_file: bool,
    config: Option<ModelConfig>,
    /// Why there is no configuration.
    problem: Option<String>,
    usage: Option<GenerationConfig>,
}

#[derive(Debug, Serialize)]
struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    dtype: String,
}

/// A folder.
#[derive(Debug, Serialize)]
struct FolderInfo {
    path: PathBuf,
    /// The newest complete checkpoint of a run.
    checkpoint: Option<CheckpointInfo>,
    files: Vec<FileInfo>,
}

#[derive(Debug, Serialize)]
struct CheckpointInfo {
    path: PathBuf,
    step: u64,
    parts: Vec<String>,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let scales = args.patch_nums.as_deref().map(Scales::square).transpose()?;
    if args.path.is_dir() {
        let folder = folder(&args.path, args.tensors, scales.as_ref())?;
        return output.result(&folder, || folder_text(&folder));
    }
    let file = file(&args.path, args.tensors, scales.as_ref())?;
    output.result(&file, || file_text(&file))
}

fn folder(path: &Path, tensors: bool, scales: Option<&Scales>) -> Result<FolderInfo> {
    let checkpoint = if path.join("manifest.json").is_file() {
        Some(Checkpoint::open(path)?)
    } else if path.join("checkpoints").is_dir() {
        Checkpoint::newest(path.join("checkpoints"))?
    } else {
        None
    };
    let checkpoint = checkpoint.map(|checkpoint| CheckpointInfo {
        path: checkpoint.path().to_path_buf(),
        step: checkpoint.step(),
        parts: checkpoint.parts().map(str::to_owned).collect(),
    });
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read `{}`", path.display()))? {
        paths.push(entry.with_context(|| format!("cannot read `{}`", path.display()))?.path());
    }
    let readable = |path: &PathBuf| {
        path.extension().is_some_and(|end| ["safetensors", "pth", "pt"].map(Into::into).contains(&end.to_owned()))
    };
    paths.retain(readable);
    paths.sort();
    let files = paths.iter().map(|path| file(path, tensors, scales)).collect::<Result<Vec<_>>>()?;
    if files.is_empty() && checkpoint.is_none() {
        bail!("`{}` has neither a checkpoint nor a training run in it", path.display());
    }
    Ok(FolderInfo { path: path.to_path_buf(), checkpoint, files })
}

fn file(path: &Path, tensors: bool, scales: Option<&Scales>) -> Result<FileInfo> {
    let dict = StateDict::open(path)?;
    let length = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?.len();
    let mut head = [0; 9];
    let safetensors = std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut head))
        .is_ok_and(|()| head[8] == b'{');
    let mut types = BTreeMap::new();
    for key in dict.keys() {
        *types.entry(dtype(&dict, key)).or_insert(0) += 1;
    }
    let list = tensors.then(|| {
        let info = |key: &str| TensorInfo {
            name: key.to_owned(),
            shape: dict.shape(key).unwrap_or_default().to_vec(),
            dtype: dtype(&dict, key),
        };
        dict.keys().map(info).collect()
    });
    Ok(FileInfo {
        path: path.to_path_buf(),
        format: if safetensors { "safetensors" } else { "PyTorch" },
        bytes: length,
        tensors: dict.len(),
        elements: dict.num_elements(),
        types,
        models: models(&dict, scales)?,
        list,
    })
}

fn dtype(dict: &StateDict, key: &str) -> String {
    dict.dtype(key).map(|dtype| format!("{dtype:?}").to_lowercase()).unwrap_or_default()
}

/// The models in a file: those of a trainer's sections, or the one that it is.
fn models(dict: &StateDict, scales: Option<&Scales>) -> Result<Vec<ModelInfo>> {
    let inside = ModelConfig::of(dict)?;
    let usage = GenerationConfig::of(dict)?;
    let model = |name: String, dict: &StateDict, config: Option<burn_var::Result<ModelConfig>>| {
        let (config, problem) = match config {
            Some(Ok(config)) => (Some(config), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, None),
        };
        let config_in_file = inside.is_some();
        let (tensors, elements) = (dict.len(), dict.num_elements());
        ModelInfo { name, tensors, elements, config_in_file, config, problem, usage: usage.clone() }
    };
    let inferred = |section: Section, dict: &StateDict| match section {
        Section::Var => Some(Var::config_of(dict, scales).map(ModelConfig::Var)),
        Section::VqVae => Some(VqVae::config_of(dict, scales).map(ModelConfig::VqVae)),
        _ => None,
    };
    if let Some(config) = &inside {
        let name = match config {
            ModelConfig::VqVae(_) => "VQ-VAE",
            ModelConfig::Var(_) => "VAR transformer",
            ModelConfig::Classifier(_) => "classifier",
            _ => "model",
        };
        return Ok(vec![model(name.to_owned(), dict, Some(Ok(config.clone())))]);
    }
    let sections = dict.sections();
    if !sections.is_empty() {
        let named = |section: Section| {
            let part = dict.section(section)?;
            Ok(model(section.to_string(), &part, inferred(section, &part)))
        };
        return sections.into_iter().map(named).collect();
    }
    let bare = [(Section::Var, "pos_start"), (Section::VqVae, "quantize.embedding.weight")];
    let bare = bare.into_iter().find(|(_, key)| dict.contains(key));
    Ok(bare.into_iter().map(|(section, _)| model(section.to_string(), dict, inferred(section, dict))).collect())
}

fn folder_text(folder: &FolderInfo) -> String {
    let mut text = format!("{}\n", folder.path.display());
    if let Some(CheckpointInfo { path, step, parts }) = &folder.checkpoint {
        text += &format!("  newest checkpoint: {} steps, {} ({})\n", step, path.display(), parts.join(", "));
    }
    folder.files.iter().for_each(|file| text += &format!("\n{}", file_text(file)));
    text
}

fn file_text(file: &FileInfo) -> String {
    let types: Vec<String> = file.types.iter().map(|(name, number)| format!("{number} {name}")).collect();
    let mut text = format!(
        "{}\n  {}, {}, {} tensors ({}), {} elements\n",
        file.path.display(),
        file.format,
        bytes(file.bytes),
        file.tensors,
        types.join(", "),
        count(file.elements)
    );
    if file.models.is_empty() {
        text += "  no model that is known here\n";
    }
    for model in &file.models {
        let source = if model.config_in_file { "in the file" } else { "read off the shapes" };
        text += &format!("  {}: {} elements in {} tensors", model.name, count(model.elements), model.tensors);
        match (&model.config, &model.problem) {
            (Some(config), _) => {
                text += &format!("; configuration {source}:\n");
                lines(&mut text, config_of(config));
            }
            (None, Some(problem)) => text += &format!("\n    no configuration: {problem}\n"),
            (None, None) => text += "\n",
        }
        if let Some(usage) = &model.usage {
            if !usage.class_names.is_empty() {
                text += &format!("    classes: {}\n", usage.class_names.join(", "));
            }
            lines(&mut text, serde_json::json!({ "cfg": usage.cfg, "sampler": usage.sampler }));
        }
    }
    for TensorInfo { name, shape, dtype } in file.list.iter().flatten() {
        text += &format!("  {name}  {shape:?} {dtype}\n");
    }
    text
}

fn lines(text: &mut String, value: serde_json::Value) {
    for (name, value) in value.as_object().into_iter().flatten() {
        *text += &format!("    {name}: {value}\n");
    }
}

/// The fields of a configuration, without the name of its model.
fn config_of(config: &ModelConfig) -> serde_json::Value {
    let value = serde_json::to_value(config).unwrap_or_default();
    let inner = value.as_object().and_then(|outer| outer.values().next().cloned());
    inner.unwrap_or(value)
}
