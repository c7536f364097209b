//! Models that load from files and save to them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::{KeyMap, Kind, LoadOptions, SaveOptions, StateDict, export, load, note, save};
use crate::{Error, Result, Scales};

/// Name of the configuration in a file's metadata: JSON that maps the name of the kind to the configuration.
const NOTE: &str = "burn_var";

/// A model that loads from checkpoints, published ones included, and saves itself with its configuration.
///
/// ```no_run
/// use burn::tensor::Device;
/// use burn_var::models::var::Var;
/// use burn_var::weights::{Pretrained, SaveOptions, StateDict};
///
/// # fn main() -> burn_var::Result<()> {
/// let dict = StateDict::open("var_d16.pth")?;
/// let model = Var::load(&dict, &Device::default())?;
/// model.save("var_d16.safetensors", &SaveOptions::default())?;
/// # Ok(())
/// # }
/// ```
pub trait Pretrained: Module {
    /// Kind of the model.
    const KIND: Kind;

    /// Sizes of the model, which are saved in the metadata of its files.
    type Config: Clone + PartialEq + Serialize + DeserializeOwned;

    /// Returns the configuration.
    fn config(&self) -> &Self::Config;

    /// Returns the names of the parameters in checkpoints.
    fn keys(config: &Self::Config) -> KeyMap;

    /// Creates a model of zeros, to be loaded.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid.
    fn init_zeros(config: &Self::Config, device: &Device) -> Result<Self>;

    /// Infers the configuration from the shapes of a file without one; `dict` is the result of
    /// [`Pretrained::weights`].
    ///
    /// `scales` is the scale schedule, for models whose shapes do not determine it.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is not of this kind, or shapes do not determine the configuration, as is the
    /// default.
    fn infer(dict: &StateDict, scales: Option<&Scales>) -> Result<Self::Config> {
        let _ = scales;
        let reason = format!(
            "it is not {}: its metadata has no configuration, and its shapes do not determine one; {}",
            Self::KIND.with_article(),
            Self::KIND.source
        );
        Err(Error::format(dict.origin(), reason))
    }

    /// Returns the tensors of this model in a checkpoint: its section of a trainer's checkpoint, else all.
    ///
    /// # Errors
    /// [`Error::Format`] if this is a trainer's checkpoint without this kind.
    fn weights(dict: &StateDict) -> Result<StateDict> {
        dict.section(Self::KIND)
    }

    /// Returns true if a file without a configuration is of this kind: by default, if it has the kind's landmark.
    fn recognizes(dict: &StateDict) -> bool {
        Self::KIND.landmark.is_some_and(|key| dict.contains(key))
    }

    /// Returns the configuration of a file for the scale schedule `scales`. Models whose weights are valid for one
    /// schedule only return it unchanged, as is the default.
    fn with_scales(config: Self::Config, scales: &Scales) -> Self::Config {
        let _ = scales;
        config
    }

    /// Returns the metadata besides the configuration that a converted file keeps; none by default.
    ///
    /// # Errors
    /// [`Error::Format`] if the metadata is invalid.
    fn notes(dict: &StateDict) -> Result<BTreeMap<String, String>> {
        let _ = dict;
        Ok(BTreeMap::new())
    }

    /// Returns the configuration in the metadata of a file, or `None` if this crate did not write the file.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is of another kind, or its configuration is invalid.
    fn config_in(dict: &StateDict) -> Result<Option<Self::Config>> {
        let kind = Self::KIND;
        let Some(found) = dict.kind_name()? else { return Ok(None) };
        if found != kind.name {
            let wanted = kind.with_article();
            let reason = format!("it holds another model than {wanted}: its metadata says `{found}`; {}", kind.source);
            return Err(Error::format(dict.origin(), reason));
        }
        let configs: Option<BTreeMap<String, Self::Config>> = note::read(dict, NOTE)?;
        Ok(configs.and_then(|mut configs| configs.remove(kind.name)))
    }

    /// Returns the configuration of a file: the one in its metadata, else the one that its shapes determine.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is of another kind; [`Error::Config`] if `scales` is needed.
    fn config_of(dict: &StateDict, scales: Option<&Scales>) -> Result<Self::Config> {
        let dict = Self::weights(dict)?;
        match (Self::config_in(&dict)?, scales) {
            (Some(config), Some(scales)) => Ok(Self::with_scales(config, scales)),
            (Some(config), None) => Ok(config),
            (None, scales) => Self::infer(&dict, scales),
        }
    }

    /// Loads a model with the configuration of the file, strictly and in single precision.
    ///
    /// # Errors
    /// The errors of [`Pretrained::config_of`] and [`load()`].
    fn load(dict: &StateDict, device: &Device) -> Result<Self> {
        Self::load_with(dict, &Self::config_of(dict, None)?, LoadOptions::default(), device)
    }

    /// Loads a model with a given configuration.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is invalid; else as [`load()`].
    fn load_with(dict: &StateDict, config: &Self::Config, options: LoadOptions, device: &Device) -> Result<Self> {
        options.linear.check(device)?;
        let weights = Self::weights(dict)?;
        let module = Self::init_zeros(config, device)?;
        let (module, _) = load(module, &weights, &Self::keys(config), options)?;
        Ok(module)
    }

    /// Writes the model as safetensors under the names of its published checkpoints, with its configuration.
    ///
    /// # Errors
    /// The errors of [`save()`].
    fn save(&self, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let config = Pretrained::config(self);
        let mut options = options.clone();
        note::insert(&mut options.metadata, NOTE, &BTreeMap::from([(Self::KIND.name, config)]))?;
        save(&export(self, &Self::keys(config))?, path, &options)
    }
}

impl StateDict {
    /// Returns the name of the kind of model in the metadata, or `None` if this crate did not write the file.
    ///
    /// # Errors
    /// [`Error::Format`] if the metadata is invalid.
    pub fn kind_name(&self) -> Result<Option<String>> {
        let Some(configs) = note::read::<BTreeMap<String, IgnoredAny>>(self, NOTE)? else { return Ok(None) };
        let count = configs.len();
        match configs.into_keys().next() {
            Some(name) if count == 1 => Ok(Some(name)),
            _ => Err(Error::format(
                self.origin(),
                format!("`{NOTE}` in its metadata has {count} configurations, expected 1"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "training")]
    use crate::models::aid::DiscriminatorHeads;
    use crate::models::aid::Injector;
    use crate::models::classifier::Classifier;
    use crate::models::common::Lora;
    use crate::models::dino::Vit;
    use crate::models::var::{Var, VqVae};
    use crate::weights::FloatType;

    const VQVAE: &str = r#"{"vqvae":{"image_channels":1,"ch":32,"ch_mult":[1],"num_res_blocks":1,"z_channels":2,"vocab_size":4,"patch_nums":[1,2],"quant_resi":0.5,"share_quant_resi":4,"using_znorm":false,"quant_conv_ks":3,"beta":0.25}}"#;
    const VAR: &str = r#"{"var":{"depth":1,"embed_dim":64,"num_heads":1,"mlp_ratio":4.0,"norm_eps":1e-6,"shared_aln":true,"attn_l2_norm":true,"vocab_size":4,"z_channels":2,"num_classes":3,"patch_nums":[1,2],"drop_path_rate":0.0}}"#;
    const LORA: &str = r#"{"lora":{"depth":1,"embed_dim":16,"hidden_dim":32,"attention":{"rank":2,"alpha":4.0},"feed_forward":{"rank":2,"alpha":4.0}}}"#;
    const CLASSIFIER: &str = r#"{"classifier":{"image_channels":1,"image_size":[8,8],"classes":2,"ch":32}}"#;
    const INJECTOR: &str = r#"{"injector":{"input_dim":16,"embed_dim":16,"num_layers":1,"num_heads":8,"resize":"spatial","broadcast":false}}"#;
    #[cfg(feature = "training")]
    const HEADS: &str =
        r#"{"heads":{"heads":1,"channels":8,"variant":"aid","condition":0,"condition_map":64,"virtual_batch":8}}"#;
    const VIT: &str = r#"{"vit":{"image_size":16,"image_channels":1,"patch_size":8,"embed_dim":8,"depth":1,"num_heads":2,"mlp_ratio":2.0,"norm_eps":1e-6,"mean":[0.5],"std":[0.5]}}"#;

    /// Writes a file of zeros as earlier versions did, with the literal text of the configuration.
    fn write_old<M: Pretrained>(path: &Path, text: &str, precision: Option<FloatType>) {
        let configs: BTreeMap<String, M::Config> = serde_json::from_str(text).unwrap();
        let config = &configs[M::KIND.name];
        let module = M::init_zeros(config, &Device::flex()).unwrap();
        let metadata = [("burn_var".to_owned(), text.to_owned())].into();
        save(&export(&module, &M::keys(config)).unwrap(), path, &SaveOptions { precision, metadata }).unwrap();
    }

    /// Loads an old file and saves the model again, which must give the same file.
    fn round_trip<M: Pretrained>(text: &str) {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old.safetensors", "new.safetensors"].map(|name| folder.path().join(name));
        for precision in [None, Some(FloatType::F16)] {
            write_old::<M>(&old, text, precision);
            let model = M::load(&StateDict::open(&old).unwrap(), &Device::flex()).unwrap();
            model.save(&new, &SaveOptions { precision, ..Default::default() }).unwrap();
            let [old, new] = [&old, &new].map(|path| std::fs::read(path).unwrap());
            assert!(old == new, "another file of {} with {precision:?}", M::KIND);
        }
    }

    #[test]
    fn files_of_earlier_versions_load_and_give_the_same_file() {
        round_trip::<VqVae>(VQVAE);
        round_trip::<Var>(VAR);
        round_trip::<Lora>(LORA);
        round_trip::<Classifier>(CLASSIFIER);
        round_trip::<Injector>(INJECTOR);
        #[cfg(feature = "training")]
        round_trip::<DiscriminatorHeads>(HEADS);
        round_trip::<Vit>(VIT);
    }

    #[test]
    fn metadata_of_the_caller_is_saved_beside_the_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        write_old::<Classifier>(&path, CLASSIFIER, None);
        let model = Classifier::load(&StateDict::open(&path).unwrap(), &Device::flex()).unwrap();
        let metadata = [("author".to_owned(), "me".to_owned())].into();
        model.save(&path, &SaveOptions { metadata, ..Default::default() }).unwrap();
        let dict = StateDict::open(&path).unwrap();
        assert_eq!(dict.metadata()["author"], "me");
        assert_eq!(dict.metadata()["burn_var"], CLASSIFIER);
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var.safetensors");
        write_old::<Var>(&path, VAR, None);
        let dict = StateDict::open(&path).unwrap();
        let errors =
            [VqVae::load(&dict, &Device::flex()).unwrap_err(), Classifier::load(&dict, &Device::flex()).unwrap_err()];
        for (error, kind) in errors.iter().zip([VqVae::KIND, Classifier::KIND]) {
            let expected = format!("another model than {}: its metadata says `var`", kind.with_article());
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_configuration_is_refused_where_shapes_do_not_tell() {
        let dict = StateDict::generated("x.pth", [("a".to_owned(), vec![1])], |_, _| vec![0.0]).unwrap();
        let error = Classifier::load(&dict, &Device::flex()).unwrap_err().to_string();
        assert!(error.contains("x.pth") && error.contains("not a classifier"), "{error}");
    }

    #[test]
    fn damaged_metadata_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let dict = StateDict::generated("x", [("a".to_owned(), vec![1])], |_, _| vec![0.0]).unwrap();
        for (text, expected) in [
            ("{", "not understood"),
            ("{}", "has 0 configurations"),
            (r#"{"var":{},"vqvae":{}}"#, "has 2 configurations"),
            (r#"{"var":{"depth":1}}"#, "not understood"),
        ] {
            let metadata = [("burn_var".to_owned(), text.to_owned())].into();
            save(&dict, &path, &SaveOptions { metadata, ..Default::default() }).unwrap();
            let error = Var::config_of(&StateDict::open(&path).unwrap(), None).unwrap_err().to_string();
            assert!(error.contains("x.safetensors") && error.contains(expected), "{text}: {error}");
        }
    }
}
