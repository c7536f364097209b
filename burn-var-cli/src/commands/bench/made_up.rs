//! Random models and images to measure with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::models::common::Lora;
use burn_var::models::var::{Var, VarInit, VarPreset, VqVae, VqVaeConfig};
use burn_var::pipeline::{ModelPair, Pipeline};
use burn_var::rng::Rng;
use burn_var::weights::{FloatType, GenerationConfig, Pretrained, SaveOptions, StateDict, cast_linear};
use burn_var::{Scales, Tokenizer};
use burn_var_train::data::{BatchLoader, ImageShape, Split, TokenCache, TokenCacheSpec, TokenCacheWriter, View};
use burn_var_train::engine::Trainer;
use burn_var_train::grid::write_png;
use burn_var_train::tokenizer::{TokenizerMethod, TokenizerTrainConfig};
use burn_var_train::var::{VarMethod, VarTrainConfig};
use image::{Rgb, RgbImage};

/// Returns a pipeline of a published size with random weights, over its own scale schedule or another.
pub(super) fn pipeline(
    preset: VarPreset,
    scales: Option<Scales>,
    weights: FloatType,
    lora: Option<&Path>,
    device: &Device,
) -> Result<Pipeline> {
    let mut config = preset.config();
    config.patch_nums = scales.unwrap_or(config.patch_nums);
    let tokenizer = VqVaeConfig::public(config.patch_nums.clone()).init(1, device)?;
    weights.check(device)?;
    let mut transformer = cast_linear(config.init(VarInit::default(), 1, device)?, weights);
    if let Some(lora) = lora {
        transformer = Lora::load(&StateDict::open(lora)?, device)?.merge(transformer)?;
    }
    Ok(Pipeline::new(ModelPair::new(tokenizer, transformer)?, GenerationConfig::default())?)
}

/// Returns a tokenizer's trainer, of the sizes of another tokenizer.
pub(super) fn tokenizer_trainer(
    tokenizer: &VqVae,
    folder: &Path,
    batch: usize,
    device: &Device,
) -> Result<Trainer<TokenizerMethod>> {
    let data = noise_images(folder, tokenizer, batch)?;
    let config: TokenizerTrainConfig = toml::from_str(&training(batch, &data, ""))?;
    let config = TokenizerTrainConfig { model: tokenizer.config().clone(), ..config };
    let run = config.run.clone();
    Ok(Trainer::new(TokenizerMethod::new(config, folder, device)?, &run)?)
}

/// Returns the configuration of a run.
fn training(batch: usize, data: &Path, rest: &str) -> String {
    // TOML takes a path as a string in Rust's notation, on Unix and on Windows.
    let model = "[model]\nch = 32\nch_mult = [1]\nnum_res_blocks = 1\nz_channels = 1\nvocab_size = 1\npatch_nums = [1]";
    let model = if rest.is_empty() { model } else { rest };
    format!("[run]\nsteps = 1000000\nbatch_size = {batch}\n[data]\npath = {data:?}\n{model}\n")
}

/// Returns a transformer's trainer, of the sizes of another transformer.
pub(super) fn var_trainer(
    pair: &ModelPair<VqVae, Var>,
    folder: &Path,
    batch: usize,
    device: &Device,
) -> Result<Trainer<VarMethod>> {
    let data = noise_images(folder, &pair.tokenizer, batch)?;
    let file = folder.join("tokenizer.safetensors");
    pair.tokenizer.save(&file, &SaveOptions::default())?;
    let sizes = pair.transformer.config();
    let model = format!(
        "[model]\ndepth = {}\nembed_dim = {}\nnum_heads = {}\nmlp_ratio = {}\nshared_aln = {}\nattn_l2_norm = {}",
        sizes.depth, sizes.embed_dim, sizes.num_heads, sizes.mlp_ratio, sizes.shared_aln, sizes.attn_l2_norm
    );
    let mut config: VarTrainConfig =
        toml::from_str(&format!("tokenizer = {file:?}\n{}", training(batch, &data, &model)))?;
    config.run.batch_size = batch;
    let tokens = tokens(&data, &pair.tokenizer, &folder.join("tokens.safetensors"))?;
    // The trainer owns a tokenizer of its own.
    let run = config.run.clone();
    Ok(Trainer::new(VarMethod::new(config, pair.tokenizer.clone(), tokens, folder, device)?, &run)?)
}

/// Returns random tokens. The time does not depend on them.
fn tokens(data: &Path, tokenizer: &VqVae, path: &Path) -> Result<TokenCache> {
    let source = burn_var_train::data::open_images(data, Split::Train, &Default::default())?;
    let [channels, height, width] = tokenizer.config().image_shape();
    let loader = BatchLoader::new(source, ImageShape::new(height, width, channels)?);
    let (scales, vocab) = (tokenizer.scales().clone(), tokenizer.config().vocab_size);
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
fn noise_images(folder: &Path, tokenizer: &VqVae, batch: usize) -> Result<PathBuf> {
    // A batch of each class, so that one is left for training when some are set aside for tests.
    let count = batch.max(2);
    let [_, height, width] = tokenizer.config().image_shape();
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
