//! The table of all models, for programs that read any checkpoint.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;

use super::{Kind, LoadOptions, Pretrained, SaveOptions, StateDict};
#[cfg(feature = "training")]
use crate::models::aid::DiscriminatorHeads;
use crate::models::aid::Injector;
#[cfg(feature = "metrics")]
use crate::models::classifier::Classifier;
use crate::models::common::Lora;
#[cfg(feature = "metrics")]
use crate::models::dino::Vit;
use crate::models::flexvar::{FlexVae, FlexVar};
#[cfg(feature = "metrics")]
use crate::models::inception::Inception;
#[cfg(feature = "metrics")]
use crate::models::judge::Judge;
use crate::models::llamagen::{LlamaGen, LlamaGenVq};
use crate::models::var::{Var, VqVae};
use crate::{Error, Result, Scales};

/// A [`Pretrained`] type as a value: what a program does with a checkpoint of any kind.
pub trait AnyModel: fmt::Debug + Send + Sync {
    /// Returns the kind of the model.
    fn kind(&self) -> Kind;

    /// Returns the configuration of a file as JSON; see [`Pretrained::config_of`].
    ///
    /// # Errors
    /// The errors of [`Pretrained::config_of`].
    fn config(&self, dict: &StateDict, scales: Option<&Scales>) -> Result<Value>;

    /// Returns true if a file without a configuration is of this kind; see [`Pretrained::recognizes`].
    fn recognizes(&self, dict: &StateDict) -> bool;

    /// Loads the model strictly and writes it as safetensors with its configuration, the metadata that its kind keeps
    /// ([`Pretrained::notes`]), and the metadata in `options`, which takes precedence. Returns the configuration.
    ///
    /// # Errors
    /// The errors of [`Pretrained::config_of`], [`Pretrained::load_with`] and [`Pretrained::save`].
    fn convert(
        &self,
        dict: &StateDict,
        scales: Option<&Scales>,
        path: &Path,
        options: &SaveOptions,
        device: &Device,
    ) -> Result<Value>;
}

/// All models of this crate, in the order in which a checkpoint is searched for them.
pub static MODELS: &[&dyn AnyModel] = &[
    &Erased::<Var>(PhantomData),
    &Erased::<VqVae>(PhantomData),
    &Erased::<FlexVar>(PhantomData),
    &Erased::<FlexVae>(PhantomData),
    &Erased::<LlamaGen>(PhantomData),
    &Erased::<LlamaGenVq>(PhantomData),
    &Erased::<Injector>(PhantomData),
    #[cfg(feature = "training")]
    &Erased::<DiscriminatorHeads>(PhantomData),
    &Erased::<Lora>(PhantomData),
    #[cfg(feature = "metrics")]
    &Erased::<Classifier>(PhantomData),
    #[cfg(feature = "metrics")]
    &Erased::<Vit>(PhantomData),
    #[cfg(feature = "metrics")]
    &Erased::<Inception>(PhantomData),
    #[cfg(feature = "metrics")]
    &Erased::<Judge>(PhantomData),
];

/// Implements [`AnyModel`] for a [`Pretrained`] type.
struct Erased<M>(PhantomData<fn() -> M>);

impl<M: Pretrained> fmt::Debug for Erased<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(M::KIND.title)
    }
}

fn json<C: serde::Serialize>(config: &C) -> Result<Value> {
    serde_json::to_value(config).map_err(|error| Error::config("configuration", error, "a value that JSON can hold"))
}

impl<M: Pretrained> AnyModel for Erased<M> {
    fn kind(&self) -> Kind {
        M::KIND
    }

    fn config(&self, dict: &StateDict, scales: Option<&Scales>) -> Result<Value> {
        json(&M::config_of(dict, scales)?)
    }

    fn recognizes(&self, dict: &StateDict) -> bool {
        M::recognizes(dict)
    }

    fn convert(
        &self,
        dict: &StateDict,
        scales: Option<&Scales>,
        path: &Path,
        options: &SaveOptions,
        device: &Device,
    ) -> Result<Value> {
        let config = M::config_of(dict, scales)?;
        let model = M::load_with(dict, &config, LoadOptions::default(), device)?;
        let mut metadata = M::notes(dict)?;
        metadata.extend(options.metadata.clone());
        Pretrained::save(&model, path, &SaveOptions { precision: options.precision, metadata })?;
        json(&config)
    }
}

impl StateDict {
    /// Returns the models that this checkpoint holds: the one that its metadata names, else those of a trainer's
    /// sections or recognized by a tensor. Empty if none is known.
    ///
    /// # Errors
    /// [`Error::Format`] if the metadata is invalid, or names a kind that is not known.
    pub fn models(&self) -> Result<Vec<&'static dyn AnyModel>> {
        if let Some(name) = self.kind_name()? {
            let Some(model) = MODELS.iter().copied().find(|model| model.kind().name == name) else {
                let known: Vec<&str> = MODELS.iter().map(|model| model.kind().name).collect();
                let reason = format!(
                    "its metadata says that it holds a `{name}`, expected one of {}; was it written by a newer version?",
                    known.join(", ")
                );
                return Err(Error::format(self.origin(), reason));
            };
            return Ok(vec![model]);
        }
        let sections = self.sections();
        let holds = |model: &dyn AnyModel| sections.contains(&model.kind()) || model.recognizes(self);
        Ok(MODELS.iter().copied().filter(|model| holds(*model)).collect())
    }

    /// Returns the kinds of models in a trainer's checkpoint; empty for the weights of one model.
    ///
    /// Trainers of several kinds use the same name for a section: its tensors then decide. If they fit none, the
    /// section stands for each.
    pub fn sections(&self) -> Vec<Kind> {
        let prefixes: BTreeSet<&str> = MODELS.iter().flat_map(|model| model.kind().sections).copied().collect();
        let mut found: Vec<Kind> = Vec::new();
        for prefix in prefixes {
            let Some(section) = self.strip_prefix(prefix) else { continue };
            let users: Vec<_> = MODELS.iter().filter(|model| model.kind().sections.contains(&prefix)).collect();
            let fits = users.iter().any(|model| model.recognizes(&section));
            found.extend(users.iter().filter(|model| !fits || model.recognizes(&section)).map(|model| model.kind()));
        }
        MODELS.iter().map(|model| model.kind()).filter(|kind| found.contains(kind)).collect()
    }

    /// Returns the tensors of one model: its section of a trainer's checkpoint, else all.
    ///
    /// # Errors
    /// [`Error::Format`] if this is a trainer's checkpoint without that model.
    pub fn section(&self, kind: Kind) -> Result<Self> {
        if let Some(found) = kind.sections.iter().find_map(|prefix| self.strip_prefix(prefix)) {
            return Ok(found);
        }
        let others = self.sections();
        if others.is_empty() {
            return Ok(self.clone());
        }
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        let wanted = kind.with_article();
        let reason = format!("it is a trainer's checkpoint without {wanted}; it holds: {}", others.join(", "));
        Err(Error::format(self.origin(), reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{FloatType, save};

    fn dict(keys: &[&str]) -> StateDict {
        let shapes = keys.iter().map(|key| (key.to_string(), vec![1, 2]));
        StateDict::generated("test", shapes, |_, shape| vec![1.5; shape.iter().product()]).unwrap()
    }

    fn kinds(dict: &StateDict) -> Vec<&'static str> {
        dict.models().unwrap().iter().map(|model| model.kind().name).collect()
    }

    #[test]
    fn names_and_landmarks_are_unique() {
        for (i, a) in MODELS.iter().enumerate() {
            for b in &MODELS[i + 1..] {
                let (a, b) = (a.kind(), b.kind());
                assert!(a.name != b.name && a.title != b.title, "{a} and {b}");
                assert!(a.landmark.is_none() || a.landmark != b.landmark, "{a} and {b}");
            }
        }
    }

    #[test]
    fn sections_of_trainers_are_found_and_bare_dicts_are_whole() {
        let trainer = dict(&[
            "trainer.var_wo_ddp.module.lvl_embed.weight",
            "trainer.vae_local.encoder.down.0.block.0.conv1.weight",
            "trainer.x",
        ]);
        assert_eq!(trainer.sections(), [Var::KIND, VqVae::KIND], "a VAR trainer's checkpoint");
        assert_eq!(kinds(&trainer), ["var", "vqvae"], "its models");
        let var = trainer.section(Var::KIND).unwrap();
        assert_eq!(var.keys().collect::<Vec<_>>(), ["lvl_embed.weight"], "the transformer alone");
        let error = trainer.section(Injector::KIND).unwrap_err().to_string();
        assert!(error.contains("it holds: VAR transformer, VQ-VAE"), "{error}");
        for nested in ["planner_state_dict.a", "planner.a", "a"] {
            let planner = dict(&[nested]).section(Injector::KIND).unwrap();
            assert_eq!(planner.keys().collect::<Vec<_>>(), ["a"], "an injector saved as `{nested}`");
        }
    }

    #[test]
    fn bare_checkpoints_are_recognized_by_a_tensor() {
        assert_eq!(kinds(&dict(&["lvl_embed.weight", "pos_1LC", "x"])), ["var"]);
        assert_eq!(kinds(&dict(&["pos_1LC", "x"])), ["flexvar"]);
        assert_eq!(kinds(&dict(&["trainer.var_wo_ddp.pos_1LC", "trainer.x"])), ["flexvar"], "in a trainer's file");
        assert_eq!(kinds(&dict(&["encoder.down.0.block.0.conv1.weight"])), ["vqvae"]);
        assert_eq!(kinds(&dict(&["model.encoder.conv_blocks.0.res.0.conv1.weight"])), ["flexvae"]);
        assert_eq!(kinds(&dict(&["input_proj.weight"])), ["injector"]);
        assert_eq!(kinds(&dict(&["x"])), [""; 0]);
    }

    #[test]
    fn a_conversion_keeps_configuration_and_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new, other] = ["old", "new", "other"].map(|name| folder.path().join(format!("{name}.safetensors")));
        let config = crate::models::aid::InjectorConfig::paper(16);
        let injector = config.init(1, &Device::flex()).unwrap();
        let mut options = SaveOptions { precision: Some(FloatType::F16), ..Default::default() };
        crate::models::aid::AidWeight::Constant(0.5).insert(&mut options.metadata).unwrap();
        Pretrained::save(&injector, &old, &options).unwrap();

        let dict = StateDict::open(&old).unwrap();
        let [model] = dict.models().unwrap()[..] else { panic!("one model expected") };
        let options = SaveOptions { precision: Some(FloatType::F16), ..Default::default() };
        let found = model.convert(&dict, None, &new, &options, &Device::flex()).unwrap();
        assert_eq!(found, serde_json::to_value(&config).unwrap(), "configuration");
        assert!(std::fs::read(&old).unwrap() == std::fs::read(&new).unwrap(), "another file");

        let metadata = [("burn_var".to_owned(), r#"{"unheard":{}}"#.to_owned())].into();
        save(&dict, &other, &SaveOptions { metadata, ..Default::default() }).unwrap();
        let error = StateDict::open(&other).unwrap().models().unwrap_err().to_string();
        assert!(error.contains("`unheard`") && error.contains("vqvae"), "{error}");
    }
}
