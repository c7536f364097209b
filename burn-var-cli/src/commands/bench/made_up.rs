//! Random models and images to measure with.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Device;
use burn_var::models::common::{Lora, LoraTarget};
use burn_var::models::flexvar::{FlexVae, FlexVaeConfig, FlexVar, FlexVarConfig, FlexVarPreset};
use burn_var::models::llamagen::{LlamaGen, LlamaGenConfig, LlamaGenPreset, LlamaGenVq, LlamaGenVqConfig};
use burn_var::models::var::{Var, VarConfig, VarInit, VarPreset, VqVae, VqVaeConfig};
use burn_var::pipeline::{ModelPair, Pipeline};
use burn_var::rng::Rng;
use burn_var::weights::{FloatType, GenerationConfig, Pretrained, StateDict, cast_linear};
use burn_var::{Scales, TeacherForced, Tokenizer};
use burn_var_train::data::{BatchLoader, ImageShape, Split, TokenCache, TokenCacheSpec, TokenCacheWriter, View};
use burn_var_train::engine::Trainer;
use burn_var_train::flexvar::{FlexVarMethod, FlexVarTrainConfig};
use burn_var_train::grid::write_png;
use burn_var_train::llamagen::{LlamaGenMethod, LlamaGenTrainConfig};
use burn_var_train::run::RunConfig;
use burn_var_train::tokenizer::{TokenizerMethod, TokenizerSizes, TokenizerTrainConfig, TrainedTokenizer};
use burn_var_train::transformer::TransformerMethod;
use burn_var_train::var::{VarMethod, VarTrainConfig};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::output::usage;

/// A published size of a family.
#[derive(Debug, Clone, Copy)]
pub(super) enum Preset {
    Var(VarPreset),
    FlexVar(FlexVarPreset),
    LlamaGen(LlamaGenPreset),
}

impl Preset {
    /// Returns the name on the command line: `d16` for VAR's, `flexvar-d16` for FlexVAR's, `gpt-b` for LlamaGen's.
    pub(super) fn name(self) -> String {
        match self {
            Self::Var(preset) => preset.name().to_owned(),
            Self::FlexVar(preset) => format!("flexvar-{}", preset.name()),
            Self::LlamaGen(preset) => preset.name().to_owned(),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        let residual = VarPreset::ALL.into_iter().map(Self::Var);
        let whole = FlexVarPreset::ALL.into_iter().map(Self::FlexVar);
        residual.chain(whole).chain(LlamaGenPreset::ALL.into_iter().map(Self::LlamaGen))
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::all().find(|preset| preset.name() == name).ok_or_else(|| {
            let names: Vec<String> = Self::all().map(Self::name).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// Returns a pipeline of a published size with random weights, over its own scale schedule or another.
pub(super) fn pipeline(
    preset: Preset,
    scales: Option<Scales>,
    weights: FloatType,
    lora: Option<&Path>,
    device: &Device,
) -> Result<Pipeline> {
    weights.check(device)?;
    match preset {
        Preset::Var(preset) => {
            let own = preset.config();
            let config = VarConfig { patch_nums: scales.unwrap_or_else(|| own.patch_nums.clone()), ..own };
            let tokenizer = VqVaeConfig::public(config.patch_nums.clone()).init(1, device)?;
            let transformer = config.init(VarInit::default(), 1, device)?;
            assembled(tokenizer, transformer, GenerationConfig::default(), weights, lora)
        }
        Preset::FlexVar(preset) => {
            let own = preset.config();
            let config = FlexVarConfig { patch_nums: scales.unwrap_or_else(|| own.patch_nums.clone()), ..own };
            let tokenizer = FlexVaeConfig::public(config.patch_nums.clone()).init(1, device)?;
            let transformer = config.init(VarInit::default(), 1, device)?;
            assembled(tokenizer, transformer, FlexVarPreset::evaluation(), weights, lora)
        }
        Preset::LlamaGen(_) if lora.is_some() => {
            Err(usage("--lora is for the transformers of VAR and FlexVAR, and this preset is LlamaGen's"))
        }
        Preset::LlamaGen(preset) => {
            let own = preset.config();
            let config = LlamaGenConfig { patch_nums: scales.unwrap_or_else(|| own.patch_nums.clone()), ..own };
            let tokenizer = LlamaGenVqConfig::vq16(config.patch_nums.clone()).init(1, device)?;
            let transformer = cast_linear(config.init(1, device)?, weights);
            Ok(Pipeline::new(ModelPair::new(tokenizer, transformer)?, preset.evaluation())?)
        }
    }
}

fn assembled<T, M>(
    tokenizer: T,
    transformer: M,
    config: GenerationConfig,
    weights: FloatType,
    lora: Option<&Path>,
) -> Result<Pipeline>
where
    T: Tokenizer + Send + Sync + 'static,
    M: LoraTarget + Module + Send + Sync + 'static,
{
    let mut transformer = cast_linear(transformer, weights);
    if let Some(lora) = lora {
        transformer = Lora::load(&StateDict::open(lora)?, &tokenizer.device())?.merge(transformer)?;
    }
    Ok(Pipeline::new(ModelPair::new(tokenizer, transformer)?, config)?)
}

/// Sizes that VAR and FlexVAR share.
const TRUNK_SIZES: [&str; 6] = ["depth", "embed_dim", "num_heads", "mlp_ratio", "shared_aln", "attn_l2_norm"];

/// A transformer that this command can train on the tokens of its tokenizer.
pub(super) trait Trainable: TeacherForced + Pretrained {
    type Sizes: TokenizerSizes<Model = Self::Tokenizer>;
    type Tokenizer: TrainedTokenizer<Config = Self::Sizes>;

    /// Names of the sizes that a training's configuration has, of those in the model's.
    const SIZES: &'static [&'static str];

    /// Returns the training by a configuration, in which the settings that only this family has are missing.
    fn method(
        &self,
        config: Value,
        tokenizer: Self::Tokenizer,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<TransformerMethod<Self::Tokenizer, Self>>;
}

impl Trainable for Var {
    type Sizes = VqVaeConfig;
    type Tokenizer = VqVae;

    const SIZES: &'static [&'static str] = &TRUNK_SIZES;

    fn method(
        &self,
        config: Value,
        tokenizer: VqVae,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<VarMethod> {
        let config: VarTrainConfig = serde_json::from_value(config)?;
        Ok(VarMethod::new(config, tokenizer, tokens, folder, device)?)
    }
}

impl Trainable for FlexVar {
    type Sizes = FlexVaeConfig;
    type Tokenizer = FlexVae;

    const SIZES: &'static [&'static str] = &TRUNK_SIZES;

    /// Every step has the default schedule, so that all runs do the same work.
    fn method(
        &self,
        mut config: Value,
        tokenizer: FlexVae,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<FlexVarMethod> {
        config["positions"] = json!(self.config().positions);
        config["scales"] = json!({ "default_share": 1.0 });
        let config: FlexVarTrainConfig = serde_json::from_value(config)?;
        Ok(FlexVarMethod::new(config, tokenizer, tokens, folder, device)?)
    }
}

impl Trainable for LlamaGen {
    type Sizes = LlamaGenVqConfig;
    type Tokenizer = LlamaGenVq;

    const SIZES: &'static [&'static str] = &["dim", "n_layer", "n_head", "n_kv_head", "ffn_hidden"];

    fn method(
        &self,
        config: Value,
        tokenizer: LlamaGenVq,
        tokens: TokenCache,
        folder: &Path,
        device: &Device,
    ) -> Result<LlamaGenMethod> {
        let config: LlamaGenTrainConfig = serde_json::from_value(config)?;
        Ok(LlamaGenMethod::new(config, tokenizer, tokens, folder, device)?)
    }
}

/// Returns a tokenizer's trainer, of the sizes of another tokenizer and over a scale schedule that it accepts.
pub(super) fn tokenizer_trainer<T>(
    tokenizer: &T,
    scales: &Scales,
    folder: &Path,
    batch: usize,
    device: &Device,
) -> Result<Trainer<TokenizerMethod<T::Config>>>
where
    T: TrainedTokenizer<Config: TokenizerSizes<Model = T>>,
{
    let tokenizer = over(tokenizer, scales, device)?;
    let data = noise_images(folder, &tokenizer, batch)?;
    let config: TokenizerTrainConfig<T::Config> =
        serde_json::from_value(configuration(batch, &data, json!(tokenizer.config())))?;
    let run = config.run.clone();
    Ok(Trainer::new(TokenizerMethod::new(config, folder, device)?, &run)?)
}

/// Returns a transformer's trainer, of the sizes of another transformer and over a scale schedule that it accepts.
pub(super) fn transformer_trainer<M: Trainable>(
    pair: &ModelPair<M::Tokenizer, M>,
    scales: &Scales,
    folder: &Path,
    batch: usize,
    device: &Device,
) -> Result<Trainer<TransformerMethod<M::Tokenizer, M>>> {
    let tokenizer = over(&pair.tokenizer, scales, device)?;
    let data = noise_images(folder, &tokenizer, batch)?;
    let own = json!(pair.transformer.config());
    let sizes = M::SIZES.iter().map(|name| ((*name).to_owned(), own[name].clone()));
    let sizes: serde_json::Map<_, _> = sizes.filter(|(_, size)| !size.is_null()).collect();
    let mut config = configuration(batch, &data, sizes.into());
    // A name only: the trainer gets the tokenizer itself.
    config["tokenizer"] = json!("tokenizer.safetensors");
    let run: RunConfig = serde_json::from_value(config["run"].clone())?;
    let tokens = tokens(&data, &tokenizer, &folder.join("tokens.safetensors"))?;
    Ok(Trainer::new(pair.transformer.method(config, tokenizer, tokens, folder, device)?, &run)?)
}

/// Returns the configuration of a run.
fn configuration(batch: usize, data: &Path, model: Value) -> Value {
    json!({ "run": { "steps": 1_000_000, "batch_size": batch }, "data": { "path": data }, "model": model })
}

/// Returns a copy of a tokenizer over a scale schedule.
fn over<T: TrainedTokenizer>(tokenizer: &T, scales: &Scales, device: &Device) -> Result<T> {
    let config = T::with_scales(tokenizer.config().clone(), scales);
    Ok(T::init_zeros(&config, device)?.load_record(tokenizer.clone().into_record()))
}

/// Returns random tokens. The time does not depend on them.
fn tokens(data: &Path, tokenizer: &impl Tokenizer, path: &Path) -> Result<TokenCache> {
    let source = burn_var_train::data::open_images(data, Split::Train, &Default::default())?;
    let [channels, height, width] = tokenizer.image_shape(tokenizer.scales());
    let loader = BatchLoader::new(source, ImageShape::new(height, width, channels)?);
    let (scales, vocab) = (tokenizer.scales().clone(), tokenizer.vocabulary().size);
    let length = scales.tokens();
    let view = vec![View::Fixed { mirrored: false }];
    let spec = TokenCacheSpec::new(&**loader.source(), loader.shape(), view, scales, vocab, "random".to_owned())?;
    let mut writer = TokenCacheWriter::create(path, spec)?;
    for image in 0..loader.source().len() {
        let mut rng = Rng::new(1, "bench tokens", image as u64);
        let row: Vec<u32> = (0..length).map(|_| rng.below(vocab) as u32).collect();
        writer.push(loader.source().label(image), &[row])?;
    }
    Ok(writer.finish()?)
}

/// Writes a folder of noise in two classes, of the size of the model's images.
fn noise_images(folder: &Path, tokenizer: &impl Tokenizer, batch: usize) -> Result<PathBuf> {
    // A batch of each class, so that one is left for training when some are set aside for tests.
    let count = batch.max(2);
    let [_, height, width] = tokenizer.image_shape(tokenizer.scales());
    let data = folder.join("images");
    for class in ["a", "b"] {
        let class_folder = data.join(class);
        std::fs::create_dir_all(&class_folder)
            .with_context(|| format!("cannot create `{}`", class_folder.display()))?;
        for i in 0..count {
            let mut rng = Rng::new(1, class, i as u64);
            let mut image = RgbImage::new(width as u32, height as u32);
            image.pixels_mut().for_each(|pixel| *pixel = Rgb([(); 3].map(|()| rng.below(256) as u8)));
            write_png(class_folder.join(format!("{i}.png")), &image)?;
        }
    }
    Ok(data)
}
