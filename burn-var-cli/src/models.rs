//! The model that a command uses.

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::tensor::Device;
use burn_var::ops::Precision;
use burn_var::pipeline::{ModelFiles, Pipeline, PipelineBuilder, load_tokenizer, resolve};
use burn_var::weights::{FloatType, StateDict};
use burn_var::{MapSize, Scales, Tokenizer};
use clap::{Args, ValueEnum};

use crate::output::{asked, usage};

/// Which model to use.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Model (default: the one that is compiled in)")]
pub(crate) struct ModelArgs {
    /// A folder with `tokenizer.safetensors`, `transformer.safetensors` and, if it has one, AID-VAR's
    /// `injector.safetensors`; or one file that holds the first two.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The tokenizer: a safetensors file of this project, or a public `.pth` file.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// The scale schedule: sizes of the token maps, such as `1,2,3,4,5,6,8,10,13,16`, or `1,2x3,4x6` for 2 rows of 3
    /// tokens. FlexVAR generates over any; other models have one, which a public file does not record. That of LlamaGen is
    /// the map that it draws token by token: `raster:16`, or `raster:16x24`.
    #[arg(long, value_name = "SIZES", alias = "patch-nums", value_parser = schedule)]
    pub(crate) scales: Option<Scales>,
    /// Type that the inputs of products are rounded to: in the transformer and the decoder, not where tokens are found.
    /// [default: bf16 on a GPU that has TF32, which are those of `cuda`; else exact]
    #[arg(long, value_enum, value_name = "TYPE")]
    precision: Option<PrecisionName>,
}

/// [`Precision`], as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionName {
    /// `f32`.
    Exact,
    /// `f32` with 10 bits of mantissa instead of 23.
    Tf32,
    /// 10 bits of mantissa, and numbers to 65,504.
    F16,
    /// 7 bits of mantissa.
    Bf16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::Exact => Self::Exact,
            PrecisionName::Tf32 => Self::Tf32,
            PrecisionName::F16 => Self::F16,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}

/// Parses a scale schedule.
pub(crate) fn schedule(text: &str) -> Result<Scales, String> {
    let side = |text: &str| text.trim().parse::<usize>().ok();
    let size = |text: &str| match text.split_once('x') {
        Some((height, width)) => Some(MapSize { height: side(height)?, width: side(width)? }),
        None => side(text).map(MapSize::square),
    };
    let named = |map: &str| {
        let expected = "expected tokens per side, `4` for instance, or `2x3` for 2 rows of 3";
        size(map).ok_or_else(|| format!("`{map}` is not the size of a map: {expected}"))
    };
    if let Some(raster) = text.trim().strip_prefix("raster:") {
        return Scales::raster(named(raster)?).map_err(|error| error.to_string());
    }
    let sizes = text.split(',').map(named).collect::<Result<Vec<_>, String>>()?;
    Scales::new(sizes).map_err(|error| error.to_string())
}

/// Parses a size in pixels, `48x32` for 48 columns and 32 rows.
fn pixels(text: &str) -> Result<[u32; 2], String> {
    let parts = text.split_once('x').and_then(|(width, height)| Some([width.parse().ok()?, height.parse().ok()?]));
    parts.ok_or_else(|| "expected WIDTHxHEIGHT in pixels, `48x32` for instance".to_owned())
}

/// Which transformer to use with the tokenizer.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PairArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The transformer: a safetensors file of this project, or a public `.pth` file.
    #[arg(long, value_name = "FILE")]
    pub(crate) transformer: Option<PathBuf>,
    /// The type in which the transformer's weights are held. Half precision takes half the memory, and changes the images
    /// slightly.
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    pub(crate) weights: Weights,
    /// The size of the images in pixels, for FlexVAR and LlamaGen, which generate any: FlexVAR's schedule is cut or continued
    /// to fit.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = pixels, conflicts_with = "scales")]
    pub(crate) size: Option<[u32; 2]>,
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

impl ModelArgs {
    /// Returns the precision that is asked for, or the one that suits sampling on the device.
    pub(crate) fn precision(&self, device: &Device) -> Precision {
        self.precision.map_or_else(|| Precision::for_sampling(device), Precision::from)
    }

    /// Returns the precision that is asked for, or the one that suits training on the device.
    pub(crate) fn training_precision(&self, device: &Device) -> Precision {
        self.precision.map_or_else(|| Precision::for_training(device), Precision::from)
    }

    /// Loads the tokenizer alone.
    pub(crate) fn load_tokenizer(&self, device: &Device) -> Result<Box<dyn Tokenizer + Send + Sync>> {
        self.check_folder(self.tokenizer.as_ref(), ModelFiles::TOKENIZER)?;
        let dict = match (&self.tokenizer, &self.model) {
            (Some(file), _) => StateDict::open(resolve(file)?)?,
            (None, Some(model)) => ModelFiles::open_part(&resolve(model)?, ModelFiles::TOKENIZER)?,
            (None, None) => compiled_in()?.tokenizer,
        };
        Ok(load_tokenizer(&dict, self.scales.as_ref(), device)?)
    }

    /// Refuses a folder without a part that no flag names.
    fn check_folder(&self, file: Option<&PathBuf>, name: &str) -> Result<()> {
        match &self.model {
            Some(folder) if file.is_none() && folder.is_dir() && !folder.join(name).is_file() => {
                let flag = name.trim_end_matches(".safetensors");
                Err(usage(format!("`{}` has no `{name}`; name the file with --{flag}", folder.display())))
            }
            _ => Ok(()),
        }
    }
}

impl PairArgs {
    /// Opens the files of the model.
    pub(crate) fn open(&self) -> Result<ModelFiles> {
        let ModelArgs { model, tokenizer, .. } = &self.model;
        if model.is_none() && tokenizer.is_some() != self.transformer.is_some() {
            return Err(usage("--tokenizer and --transformer belong together: name both, or a folder with --model"));
        }
        if model.is_none() && tokenizer.is_none() {
            return compiled_in();
        }
        self.model.check_folder(tokenizer.as_ref(), ModelFiles::TOKENIZER)?;
        self.model.check_folder(self.transformer.as_ref(), ModelFiles::TRANSFORMER)?;
        let mut builder = Pipeline::builder();
        if let Some(path) = model {
            builder = builder.model(path);
        }
        if let Some(path) = tokenizer {
            builder = builder.tokenizer(path);
        }
        if let Some(path) = &self.transformer {
            builder = builder.transformer(path);
        }
        Ok(builder.open()?)
    }

    /// Sets the default size of a pipeline's images, if one is asked for.
    pub(crate) fn sized(&self, pipeline: Pipeline) -> Result<Pipeline> {
        Ok(match self.size {
            Some([width, height]) => pipeline.with_size(width, height).map_err(asked)?,
            None => pipeline,
        })
    }

    /// Returns a builder that loads the files of [`PairArgs::open`].
    pub(crate) fn builder(&self, files: &ModelFiles, device: &Device) -> Result<PipelineBuilder> {
        let builder = Pipeline::builder().files(files.clone()).weights(self.weights.into()).device(device);
        let builder = builder.precision(self.model.precision(device));
        Ok(match &self.model.scales {
            Some(scales) => builder.scales(scales.clone()),
            None => builder,
        })
    }
}

/// Opens the model that is compiled into the program.
fn compiled_in() -> Result<ModelFiles> {
    let open = |name: &str, bytes: &'static [u8]| StateDict::from_safetensors(format!("{name} (compiled in)"), bytes);
    Ok(ModelFiles {
        tokenizer: open(ModelFiles::TOKENIZER, include_bytes!("../../models/fashion-mnist/tokenizer.safetensors"))?,
        transformer: open(
            ModelFiles::TRANSFORMER,
            include_bytes!("../../models/fashion-mnist/transformer.safetensors"),
        )?,
        injector: Some(open(ModelFiles::INJECTOR, include_bytes!("../../models/fashion-mnist/injector.safetensors"))?),
    })
}

/// Refuses a path that cannot be written, before hours of work rather than after.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_names_the_map_that_is_wrong() {
        let sizes = schedule("1, 2x3,4").expect("a schedule");
        assert_eq!(sizes.sizes(), [MapSize::square(1), MapSize { height: 2, width: 3 }, MapSize::square(4)]);
        for (text, map) in [("1,x", "x"), ("1,2x,3", "2x"), ("1,,2", ""), ("1,-2", "-2")] {
            let error = schedule(text).expect_err("no schedule");
            assert!(error.contains(&format!("`{map}` is not the size of a map")), "{text}: {error}");
        }
        assert!(schedule("1,0").expect_err("an empty map").contains("at least 1x1 tokens"));
    }
}
