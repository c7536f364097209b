//! `burn-var info`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn_var::Scales;
use burn_var::weights::{AnyModel, GenerationConfig, StateDict};
use burn_var_train::checkpoint::Checkpoint;
use serde::Serialize;
use serde_json::Value;

use crate::models::schedule;
use crate::output::{Output, bytes, count};

/// Show what is in a checkpoint or a folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A checkpoint, or a folder: of a model, of a training run, or one step of it.
    path: PathBuf,
    /// List every tensor with its shape and type.
    #[arg(long)]
    tensors: bool,
    /// The scale schedule of a file that does not record it: sizes of the token maps.
    #[arg(long, value_name = "SIZES", alias = "patch-nums", value_parser = schedule)]
    scales: Option<Scales>,
}

/// A checkpoint file.
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

/// A model in a file.
#[derive(Debug, Serialize)]
struct ModelInfo {
    name: String,
    tensors: usize,
    /// Number of elements, buffers of public checkpoints included.
    elements: usize,
    /// True if the configuration is in the file, false if it is inferred from the shapes.
    config_in_file: bool,
    /// The configuration by the name of the kind.
    config: Option<Value>,
    /// The reason why there is no configuration.
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
    if args.path.is_dir() {
        let folder = folder(&args.path, args.tensors, args.scales.as_ref())?;
        return output.result(&folder, || folder_text(&folder));
    }
    let file = file(&args.path, args.tensors, args.scales.as_ref())?;
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
        bail!("`{}` has neither a checkpoint nor a training run", path.display());
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

/// Describes the models in a file.
fn models(dict: &StateDict, scales: Option<&Scales>) -> Result<Vec<ModelInfo>> {
    let usage = GenerationConfig::of(dict)?;
    let config_in_file = dict.kind_name()?.is_some();
    let describe = |model: &'static dyn AnyModel| {
        let kind = model.kind();
        let part = dict.section(kind)?;
        let (config, problem) = match model.config(dict, scales) {
            Ok(config) => (Some(serde_json::json!({ kind.name: config })), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (tensors, elements, usage) = (part.len(), part.num_elements(), usage.clone());
        Ok(ModelInfo { name: kind.title.to_owned(), tensors, elements, config_in_file, config, problem, usage })
    };
    dict.models()?.into_iter().map(describe).collect()
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
        let source = if model.config_in_file { "in the file" } else { "inferred from the shapes" };
        text += &format!("  {}: {} elements in {} tensors", model.name, count(model.elements), model.tensors);
        match (&model.config, &model.problem) {
            (Some(config), _) => {
                text += &format!("; configuration {source}:\n");
                config
                    .as_object()
                    .into_iter()
                    .flat_map(|models| models.values())
                    .for_each(|config| lines(&mut text, config));
            }
            (None, Some(problem)) => text += &format!("\n    no configuration: {problem}\n"),
            (None, None) => text += "\n",
        }
        if let Some(usage) = &model.usage {
            if !usage.class_names.is_empty() {
                text += &format!("    classes: {}\n", usage.class_names.join(", "));
            }
            lines(&mut text, &serde_json::json!({ "cfg": usage.cfg, "sampler": usage.sampler }));
        }
    }
    for TensorInfo { name, shape, dtype } in file.list.iter().flatten() {
        text += &format!("  {name}  {shape:?} {dtype}\n");
    }
    text
}

fn lines(text: &mut String, value: &Value) {
    for (name, value) in value.as_object().into_iter().flatten() {
        *text += &format!("    {name}: {value}\n");
    }
}
