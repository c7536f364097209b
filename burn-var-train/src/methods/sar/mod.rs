//! Post-training on the model's own outputs: SAR (arXiv 2512.06421), and the student forcing that its authors compare with.
//!
//! Both start from a trained transformer of the FlexVAR family, or of VAR's.

mod loss;
mod student_forcing;

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use burn_var::Tokenizer;
use burn_var::generation::check_pair;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVar};
use burn_var::models::var::{Var, VqVae};
use burn_var::rng::Rng;
use burn_var::weights::{LoadOptions, Pretrained, StateDict};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::flexvar;
use super::transformer::{
    Objective, ObjectiveLoss, Pass, Preview, Schedules, Settings, TransformerMethod, default_class_dropout,
    default_optimizer, optimizer,
};
use crate::data::{Encoding, ImageSource, ScaleSampling, Split, Supervision, cached_tokens};
use crate::engine::progress::Progress;
use crate::engine::run::{DataConfig, RunConfig};
use crate::engine::{Placement, TrainConfig, train};
use crate::optim::{EmaConfig, LrSchedule, OptimConfig};
use crate::tensor::scalar;
use crate::{Error, Result};

pub use loss::{
    GuidedLogits, Reduction, Sampling, SarBatch, SarConfig, SarFamily, SarLoss, StudentContext, StudentPass,
    StudentScales, Target, guided_logits, sar_loss,
};
pub use student_forcing::{ForcingBatch, ForcingLoss, ForcingSchedule, StudentForcing, student_forcing_loss};

/// The configuration of a post-training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SarTrainConfig {
    /// Length, batch, seed, intervals.
    pub run: RunConfig,
    /// The images.
    pub data: DataConfig,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The transformer to start from, of VAR or FlexVAR.
    pub init: PathBuf,
    /// Pixels along each side of the images, for FlexVAR; see [`FlexVarTrainConfig`](flexvar::FlexVarTrainConfig).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Rules of the scale schedules, for FlexVAR; those of its training if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scales: Option<ScaleSampling>,
    /// Trains by SAR: `preset = "released"` or `"paper"`, and axes that differ from it. The released preset if neither this
    /// nor `student_forcing` is there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "sar")]
    pub sar: Option<SarConfig>,
    /// Trains by student forcing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub student_forcing: Option<StudentForcing>,
    /// AdamW.
    #[serde(default = "default_optimizer", deserialize_with = "optimizer")]
    pub optimizer: OptimConfig,
    /// Learning rate. The default is the paper's: 1e-4 without a warm-up.
    #[serde(default)]
    pub learning_rate: LrSchedule,
    /// Moving average of the weights, which is the result of the run.
    #[serde(default)]
    pub ema: EmaConfig,
    /// Share of hard targets that is spread over all codes.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Share of labels replaced by the null class, in all passes alike.
    #[serde(default = "default_class_dropout")]
    pub class_dropout: f64,
    /// Settings of the sample grids, which have the default schedule.
    #[serde(default)]
    pub preview: Preview,
}

/// Reads the axes of SAR over those of a preset.
fn sar<'de, D: Deserializer<'de>>(section: D) -> std::result::Result<Option<SarConfig>, D::Error> {
    let mut given = toml::Table::deserialize(section)?;
    let preset = match given.remove("preset") {
        None => SarConfig::released(),
        Some(name) => name.as_str().and_then(SarConfig::preset).ok_or_else(|| {
            D::Error::custom(format!("there is no preset {name}, but {}", SarConfig::PRESETS.join(", ")))
        })?,
    };
    crate::config::over(preset, toml::Value::Table(given)).map(Some).map_err(D::Error::custom)
}

impl SarTrainConfig {
    /// Checks the settings for a model, whose tokens are residual (VAR) or not (FlexVAR).
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self, residual: bool) -> Result<()> {
        self.settings().validate()?;
        match (&self.sar, &self.student_forcing) {
            (Some(_), Some(_)) => return Err(Error::config("student_forcing", "set beside [sar]", "one of the two")),
            (None, Some(forcing)) => forcing.validate(residual)?,
            (sar, None) => sar.clone().unwrap_or_else(SarConfig::released).validate(residual)?,
        }
        if residual {
            let expected = "absent, for VAR: it has one scale schedule";
            if self.scales.is_some() {
                return Err(Error::config("scales", "set", expected));
            }
            if let Some(side) = self.image_size {
                return Err(Error::config("image_size", side, expected));
            }
        }
        Ok(())
    }

    /// Returns the loss of the run; a file that names none means the released preset of SAR.
    fn objective<M: SarFamily>(&self) -> Box<dyn Objective<M::Tokenizer, M>> {
        match (&self.sar, &self.student_forcing) {
            (None, Some(forcing)) => Box::new(forcing.clone()),
            (sar, _) => Box::new(sar.clone().unwrap_or_else(SarConfig::released)),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            run: self.run.clone(),
            optimizer: self.optimizer.clone(),
            learning_rate: self.learning_rate.clone(),
            ema: self.ema.clone(),
            label_smoothing: self.label_smoothing,
            class_dropout: self.class_dropout,
            preview: self.preview.clone(),
        }
    }
}

/// A family that [`train_sar`] trains: how its images are encoded.
trait Encode: SarFamily {
    fn encoding(config: &SarTrainConfig, tokenizer: &Self::Tokenizer) -> Result<Encoding>;
    /// Returns the rules of the scale schedules; `None` for a fixed one.
    fn sampling(config: &SarTrainConfig) -> Option<ScaleSampling>;

    /// Checks that the model can be trained on its own outputs.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

impl Encode for Var {
    fn encoding(_: &SarTrainConfig, tokenizer: &VqVae) -> Result<Encoding> {
        Encoding::default_of(tokenizer)
    }

    fn sampling(_: &SarTrainConfig) -> Option<ScaleSampling> {
        None
    }
}

impl Encode for FlexVar {
    fn encoding(config: &SarTrainConfig, tokenizer: &FlexVae) -> Result<Encoding> {
        flexvar::encoding(tokenizer, &config.scales.clone().unwrap_or_default(), config.image_size, Supervision::Latent)
    }

    fn sampling(config: &SarTrainConfig) -> Option<ScaleSampling> {
        Some(config.scales.clone().unwrap_or_default())
    }

    fn check(&self) -> Result<()> {
        match self.config().first {
            FirstScale::OneShot => Ok(()),
            first => Err(Error::config("first of the transformer", format!("{first:?}"), "one-shot")),
        }
    }
}

/// A configuration for the transformers of one family.
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
struct SarRun<M> {
    config: SarTrainConfig,
    #[serde(skip)]
    family: PhantomData<fn() -> M>,
}

/// The opened inputs of a run.
struct SarInputs<M: SarFamily> {
    tokenizer: M::Tokenizer,
    model: M,
    images: Arc<dyn ImageSource>,
}

impl<M: Encode> TrainConfig for SarRun<M> {
    type Inputs = SarInputs<M>;
    type Method = SarMethod<M>;

    fn run(&self) -> &RunConfig {
        &self.config.run
    }

    /// Names the objective that a file without one means.
    fn normalize(mut self) -> Self {
        if self.config.student_forcing.is_none() {
            self.config.sar.get_or_insert_with(SarConfig::released);
        }
        self
    }

    fn open(&self, device: &Device) -> Result<SarInputs<M>> {
        let config = &self.config;
        config.validate(M::RESIDUAL)?;
        let files = [StateDict::open(&config.tokenizer)?, StateDict::open(&config.init)?];
        let mut tokenizer = M::Tokenizer::load(&files[0], device)?;
        // One of the two decides about the schedule: VAR's tokenizer, FlexVAR's transformer.
        let scales = M::RESIDUAL.then(|| tokenizer.scales().clone());
        let sizes = M::config_of(&files[1], scales.as_ref())?;
        let model = M::load_with(&files[1], &sizes, LoadOptions::default(), &device.clone().autodiff())?;
        if !M::RESIDUAL {
            let sizes = M::Tokenizer::with_scales(tokenizer.config().clone(), model.scales());
            tokenizer = M::Tokenizer::load_with(&files[0], &sizes, LoadOptions::default(), device)?;
        }
        model.check()?;
        check_pair(&tokenizer, &model)?;
        M::encoding(config, &tokenizer)?;
        let images = config.data.open(Split::Train)?;
        let classes = images.class_names().len();
        if classes != model.num_classes() {
            let expected = format!("{classes}, the classes of the images in `{}`", images.path().display());
            return Err(Error::config("classes of the transformer", model.num_classes(), expected));
        }
        Ok(SarInputs { tokenizer, model, images })
    }

    fn start(
        self,
        SarInputs { tokenizer, model, images }: SarInputs<M>,
        folder: &Path,
        device: &Device,
        progress: &mut dyn Progress,
    ) -> Result<SarMethod<M>> {
        let encoding = M::encoding(&self.config, &tokenizer)?;
        let tokens = cached_tokens(images, &self.config.data, &tokenizer, encoding, folder, device, progress)?;
        let schedules = Schedules { default: tokenizer.scales().clone(), sampling: M::sampling(&self.config) };
        let (settings, objective) = (self.config.settings(), self.config.objective());
        SarMethod::<M>::start(settings, schedules, objective, tokenizer, model, tokens, folder, device)
    }
}

/// Post-training of a transformer by SAR or by student forcing.
pub type SarMethod<M> = TransformerMethod<<M as SarFamily>::Tokenizer, M>;

impl<M: SarFamily> Objective<M::Tokenizer, M> for SarConfig {
    fn loss(&self, pass: &Pass<'_, M::Tokenizer, M>) -> Result<ObjectiveLoss> {
        let (piece, tokens) = (pass.piece, pass.tokens);
        let batch = SarBatch {
            tokens,
            conditions: pass.conditions,
            label_smoothing: pass.label_smoothing,
            scales: &self.scales.of(tokens.scales(), &mut Rng::keyed(piece.seed, "sar scale", piece.step, 0)),
            sample: piece.noise("sar sample"),
            drop_path: Some([piece.noise("drop path"), piece.noise("student drop path")]),
        };
        let loss = sar_loss(self, pass.tokenizer, pass.model, batch, None)?;
        let mut of = ObjectiveLoss::new(loss.total, loss.logits, tokens.sequence());
        if pass.measure {
            of.metrics.push(("student_loss".into(), scalar(&loss.student, "read the student's loss")?));
        }
        Ok(of)
    }

    fn charts(&self) -> Vec<(&'static str, Vec<String>)> {
        vec![("student_loss", vec!["student_loss".to_owned()])]
    }
}

impl<M: SarFamily> Objective<M::Tokenizer, M> for StudentForcing {
    fn loss(&self, pass: &Pass<'_, M::Tokenizer, M>) -> Result<ObjectiveLoss> {
        let piece = pass.piece;
        let batch = ForcingBatch {
            tokens: pass.tokens,
            conditions: pass.conditions,
            label_smoothing: pass.label_smoothing,
            step: piece.step,
            seed: Rng::keyed(piece.seed, "student forcing", piece.step, 0).below(usize::MAX) as u64,
            first: piece.images.start as u64,
            drop_path: Some(piece.noise("drop path")),
        };
        let loss = student_forcing_loss(self, pass.tokenizer, pass.model, batch, None)?;
        Ok(ObjectiveLoss::new(loss.loss, loss.logits, loss.targets))
    }
}

/// Post-trains a transformer in `folder`, or resumes what is there, and returns its file; `None` if `progress` stopped the
/// run before the last step.
///
/// # Errors
/// The errors of [`train`].
pub fn train_sar(
    config: SarTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    let dict = StateDict::open(&config.init)?;
    let flexvar = match dict.kind_name()? {
        Some(name) => name == FlexVar::KIND.name,
        None => FlexVar::recognizes(&FlexVar::weights(&dict)?),
    };
    drop(dict);
    match flexvar {
        true => train_family::<FlexVar>(config, folder, place, progress),
        false => train_family::<Var>(config, folder, place, progress),
    }
}

fn train_family<M: Encode>(
    config: SarTrainConfig,
    folder: &Path,
    place: impl Into<Placement>,
    progress: &mut dyn Progress,
) -> Result<Option<PathBuf>> {
    let run = SarRun::<M> { config, family: PhantomData };
    Ok(train(run, folder, place, progress)?.map(|(file, _)| file))
}

#[cfg(test)]
mod tests {
    use burn_var::guidance::Schedule;

    use super::*;

    fn read(sections: &str) -> std::result::Result<SarTrainConfig, toml::de::Error> {
        let files = "tokenizer = \"a\"\ninit = \"b\"\n[run]\nsteps = 1\nbatch_size = 2\n[data]\npath = \"c\"\n";
        toml::from_str(&format!("{files}{sections}"))
    }

    #[test]
    fn axes_replace_those_of_a_preset() {
        let paper =
            read("[sar]\npreset = \"paper\"\nweight = 0.5\ncfg = { constant = 1.0 }\nscales = { one = 2 }").unwrap();
        let expected = SarConfig {
            weight: 0.5,
            cfg: Schedule::Constant(1.0),
            scales: StudentScales::One(2),
            ..SarConfig::paper()
        };
        assert_eq!(paper.sar, Some(expected));
        let text = toml::to_string_pretty(&paper).unwrap();
        assert_eq!(toml::from_str::<SarTrainConfig>(&text).unwrap(), paper, "the resolved file reads back");
        let argmax = read("[sar]\nsampling = \"argmax\"\ntarget = \"gt-requantised\"").unwrap().sar.unwrap();
        assert_eq!((argmax.sampling, argmax.target), (Sampling::Argmax, Target::GtRequantised));
        assert_eq!(argmax.context, StudentContext::ClassOnly, "the rest as released");
        let error = read("[sar]\npreset = \"papers\"").unwrap_err().to_string();
        assert!(error.contains("papers") && error.contains("released, paper"), "{error}");
        assert!(read("[sar]\nwieght = 1.0").unwrap_err().to_string().contains("wieght"));
        let forcing = read("[student_forcing]\nschedule = { hybrid-from = 8 }").unwrap().student_forcing.unwrap();
        assert_eq!(forcing, StudentForcing::new(ForcingSchedule::HybridFrom(8)));
    }

    #[test]
    fn what_a_family_lacks_is_named() {
        let fails = |sections: &str, residual: bool| {
            read(sections).unwrap().validate(residual).expect_err(sections).to_string()
        };
        for (sections, residual, parts) in [
            ("[sar]\npreset = \"released\"", true, ["sar.context", "full"]),
            ("", true, ["sar.context", "full"]),
            ("[sar]\ntarget = \"gt-requantised\"", false, ["target", "FlexVAR"]),
            ("[student_forcing]\nschedule = \"full\"\ntarget = \"tf-soft\"", false, ["student_forcing.target", "gt"]),
            ("[sar]\n[student_forcing]\nschedule = \"full\"", false, ["student_forcing", "one of the two"]),
            ("[sar]\npreset = \"paper\"\n[scales]", true, ["scales", "absent"]),
            ("[sar]\nscales = { one = 0 }", false, ["sar.scales", "first"]),
            ("[sar]\nsampling = { sampler = { more_smooth = true } }", false, ["sar.sampling.more_smooth", "false"]),
        ] {
            let error = fails(sections, residual);
            assert!(parts.iter().all(|part| error.contains(part)), "mentions {parts:?}: {error}");
        }
        read("[sar]\npreset = \"paper\"\ntarget = \"gt-requantised\"").unwrap().validate(true).unwrap();
        read("").unwrap().validate(false).unwrap();
    }
}
