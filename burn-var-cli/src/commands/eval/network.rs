//! The networks through which images are compared.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::models::classifier::Classifier;
use burn_var::models::dino::Vit;
use burn_var::models::inception::{Inception, InceptionInput};
use burn_var::models::judge::Judge;
use burn_var::weights::{Kind, Pretrained, StateDict};
use burn_var_train::eval::{ClassifierExtractor, FeatureExtractor, InceptionExtractor, JudgeExtractor, VitExtractor};
use clap::ValueEnum;

use crate::output::usage;

/// The network through which images are compared.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Network")]
pub(super) struct NetworkArgs {
    /// FID's Inception network, `pt_inception-2015-12-05-6726825d.pth`.
    #[arg(long, value_name = "FILE")]
    pub(super) inception: Option<PathBuf>,
    /// A classifier from `burn-var train classifier`; it also measures how often the requested class is recognized.
    #[arg(long, value_name = "FILE")]
    pub(super) classifier: Option<PathBuf>,
    /// A DINO vision transformer.
    #[arg(long, value_name = "FILE")]
    dino: Option<PathBuf>,
    /// The preprocessing for the Inception network.
    #[arg(long, value_enum, default_value_t, requires = "inception")]
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Protocol {
    /// The guided-diffusion evaluator, which the VAR papers use.
    #[default]
    GuidedDiffusion,
    /// The pytorch-fid evaluator.
    PytorchFid,
}

impl From<Protocol> for InceptionInput {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::GuidedDiffusion => Self::Tf1,
            Protocol::PytorchFid => Self::Torch,
        }
    }
}

impl NetworkArgs {
    /// Loads the network, if one is named.
    pub(super) fn load(&self, device: &Device) -> Result<Option<Box<dyn FeatureExtractor>>> {
        if let Some(file) = &self.inception {
            return Ok(Some(inception(&StateDict::open(file)?, self.protocol, device)?));
        }
        if let Some(file) = &self.classifier {
            return Ok(Some(classifier(&StateDict::open(file)?, device)?));
        }
        if let Some(file) = &self.dino {
            return Ok(Some(vit(&StateDict::open(file)?, device)?));
        }
        Ok(None)
    }

    fn file(&self) -> Option<&PathBuf> {
        self.inception.as_ref().or(self.classifier.as_ref()).or(self.dino.as_ref())
    }
}

/// Several networks that evaluate the same images.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
pub(super) struct JudgeArgs {
    /// A judge: another network through which the same images are compared, one by which no setting was chosen. Repeatable.
    /// A file of `burn-var train judges`, a classifier, a DINO vision transformer or FID's Inception (by the
    /// guided-diffusion protocol); a folder stands for all safetensors files in it. Without another network the
    /// first judge also gives the measures that need one.
    #[arg(long = "judge", value_name = "PATH")]
    judges: Vec<PathBuf>,
}

/// A network with its name in tables.
pub(super) struct NamedNetwork {
    pub(super) name: String,
    pub(super) network: Box<dyn FeatureExtractor>,
}

/// The networks of an evaluation.
pub(super) struct Networks {
    /// The network of all measures, then the judges. Without a network of its own it is the first judge.
    pub(super) all: Vec<NamedNetwork>,
    /// The index of the first judge: 0 if it is also the network of all measures, else 1.
    pub(super) first_judge: usize,
    /// Tells if the first network is a classifier of the images' classes, which measures recognized images.
    pub(super) recognizes: bool,
}

impl Networks {
    /// Loads the network that `args` names and all judges.
    pub(super) fn load(args: &NetworkArgs, judges: &JudgeArgs, device: &Device) -> Result<Self> {
        let main = args.load(device)?;
        let first_judge = usize::from(main.is_some());
        let mut files: Vec<PathBuf> = args.file().cloned().into_iter().collect();
        let mut networks: Vec<_> = main.into_iter().collect();
        for path in &judges.judges {
            for file in judge_files(path)? {
                networks.push(load_any(&file, device)?);
                files.push(file);
            }
        }
        for (i, network) in networks.iter().enumerate() {
            if let Some(j) = networks[..i].iter().position(|other| other.identity() == network.identity()) {
                let [a, b] = [&files[j], &files[i]].map(|file| file.display());
                return Err(usage(format!("`{a}` and `{b}` are one network: name it once")));
            }
        }
        let all: Vec<NamedNetwork> =
            names(&files).into_iter().zip(networks).map(|(name, network)| NamedNetwork { name, network }).collect();
        let Some(first) = all.first() else {
            return Err(usage("name a network: --inception, --classifier, --dino or --judge"));
        };
        let judge_recognizes = first_judge == 0 && !first.network.identity().is_fid() && first.network.dims()[2] > 0;
        Ok(Self { recognizes: args.classifier.is_some() || judge_recognizes, all, first_judge })
    }

    /// Returns the network of all measures.
    pub(super) fn main(&self) -> &dyn FeatureExtractor {
        &*self.all[0].network
    }

    /// Returns the judges.
    pub(super) fn judges(&self) -> &[NamedNetwork] {
        &self.all[self.first_judge..]
    }
}

/// Returns a file, or the safetensors files of a folder in the order of their names.
fn judge_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let cannot = || format!("cannot read `{}`", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(cannot)? {
        let file = entry.with_context(cannot)?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(usage(format!("`{}` holds no safetensors file: name a judge", path.display()))),
        false => Ok(files),
    }
}

/// Returns a name for each file: the file's without folder and ending, or the whole path where two have the same.
fn names(files: &[PathBuf]) -> Vec<String> {
    let stem = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let stems: Vec<String> = files.iter().map(stem).collect();
    let unique = |name: &String| stems.iter().filter(|other| *other == name).count() == 1;
    let name = |(file, stem): (&PathBuf, &String)| if unique(stem) { stem.clone() } else { file.display().to_string() };
    files.iter().zip(&stems).map(name).collect()
}

/// Loads a network of any kind that evaluates images.
fn load_any(file: &Path, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
    let dict = StateDict::open(file)?;
    let found: Vec<Kind> = dict.models()?.iter().map(|model| model.kind()).collect();
    if found.contains(&Judge::KIND) {
        return Ok(Box::new(JudgeExtractor::new(Judge::load(&dict, device)?, device)?));
    }
    if found.contains(&Classifier::KIND) {
        return classifier(&dict, device);
    }
    if found.contains(&Vit::KIND) {
        return vit(&dict, device);
    }
    if found.contains(&Inception::KIND) {
        return inception(&dict, Protocol::default(), device);
    }
    let what = match &found[..] {
        [] => "no model that is known".to_owned(),
        [kind, ..] => kind.with_article(),
    };
    Err(usage(format!(
        "`{}` holds {what}, expected a network that evaluates images: a judge (`burn-var train judges`), a classifier, \
         a DINO vision transformer or FID's Inception",
        file.display()
    )))
}

fn inception(dict: &StateDict, protocol: Protocol, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
    Ok(Box::new(InceptionExtractor::new(Inception::load(dict, device)?, protocol.into(), device)?))
}

fn classifier(dict: &StateDict, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
    Ok(Box::new(ClassifierExtractor::new(Classifier::load(dict, device)?, device)?))
}

fn vit(dict: &StateDict, device: &Device) -> Result<Box<dyn FeatureExtractor>> {
    Ok(Box::new(VitExtractor::new(Vit::load(dict, device)?, device)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_of_one_name_are_told_apart_by_their_paths() {
        let names = |files: &[&str]| names(&files.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["a/x.safetensors", "a/y.safetensors"]), ["x", "y"]);
        assert_eq!(names(&["a/x.pth", "b/x.pth", "b/y.pth"]), ["a/x.pth", "b/x.pth", "y"]);
    }
}
