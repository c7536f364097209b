//! Models and pictures made up to be measured with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn::tensor::Device;
use burn_var::pretrained::{Usage, WeightType, cast_linear, save_vqvae};
use burn_var::rng::Rng;
use burn_var::tokenizer::{VqVae, VqVaeConfig};
use burn_var::transformer::{VarInit, VarPreset};
use burn_var::{Scales, Tokenizer};
use burn_var_train::data::{BatchLoader, PictureShape, Split, TokenCache, TokenCacheSpec, TokenCacheWriter, View};
use burn_var_train::grid::write_png;
use burn_var_train::tokenizer::{TokenizerConfig, TokenizerTrainer};
use burn_var_train::var::{VarTrainConfig, VarTrainer};
use image::{Rgb, RgbImage};

use crate::models::Pair;

/// A published size with random weights, over its own ladder or another.
pub(super) fn pair(preset: VarPreset, scales: Option<Scales>, weights: WeightType, device: &Device) -> Result<Pair> {
    let mut config = preset.config()?;
    config.patch_nums = scales.unwrap_or(config.patch_nums);
    Ok(Pair {
        tokenizer: VqVaeConfig::public(config.patch_nums.clone()).init(1, device)?,
        transformer: cast_linear(config.init(VarInit::default(), 1, device)?, weights),
        usage: Usage::default(),
        injector: None,
    })
}

/// A tokenizer's trainer, of the sizes of another tokenizer.
pub(super) fn tokenizer_trainer(
    tokenizer: &VqVae,
    folder: &Path,
    batch: usize,
    device: &Device,
) -> Result<TokenizerTrainer> {
    let data = pictures(folder, tokenizer, batch)?;
    let config: TokenizerConfig = toml::from_str(&training(batch, &data, ""))?;
    let config = TokenizerConfig { model: tokenizer.config().clone(), ..config };
    Ok(TokenizerTrainer::new(config, folder, device)?)
}

/// A run's configuration; what is not here is not measured.
fn training(batch: usize, data: &Path, rest: &str) -> String {
    // TOML takes a path as a string in Rust's notation, on Unix and on Windows.
    let model = "[model]\nch = 32\nch_mult = [1]\nnum_res_blocks = 1\nz_channels = 1\nvocab_size = 1\npatch_nums = [1]";
    let model = if rest.is_empty() { model } else { rest };
    format!("[run]\nsteps = 1000000\nbatch_size = {batch}\n[data]\npath = {data:?}\n{model}\n")
}

/// A transformer's trainer, of the sizes of another transformer.
pub(super) fn var_trainer(pair: &Pair, folder: &Path, batch: usize, device: &Device) -> Result<VarTrainer> {
    let data = pictures(folder, &pair.tokenizer, batch)?;
    let file = folder.join("tokenizer.safetensors");
    save_vqvae(&pair.tokenizer, &file, false)?;
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
    Ok(VarTrainer::new(config, pair.tokenizer.clone(), tokens, folder, device)?)
}

/// Tokens drawn at random: which ones makes no difference to the time.
fn tokens(data: &Path, tokenizer: &VqVae, path: &Path) -> Result<TokenCache> {
    let source = burn_var_train::data::open_pictures(data, Split::Train, &Default::default())?;
    let [channels, height, width] = tokenizer.picture_shape();
    let loader = BatchLoader::new(source, PictureShape::new(height, width, channels)?);
    let (scales, vocab) = (tokenizer.scales().clone(), tokenizer.vocab_size());
    let length = scales.tokens();
    let view = vec![View::Fixed { mirrored: false }];
    let spec = TokenCacheSpec::new(&**loader.source(), loader.shape(), view, scales, vocab, "random".to_owned())?;
    let mut writer = TokenCacheWriter::create(path, spec)?;
    for picture in 0..loader.source().len() {
        let mut rng = Rng::new(1, "bench tokens", picture as u64);
        let row: Vec<u32> = (0..length).map(|_| rng.below(vocab) as u32).collect();
        writer.push(loader.source().label(picture), &[row])?;
    }
    Ok(writer.finish()?)
}

/// A folder of noise in two classes, of the size that the model works with.
fn pictures(folder: &Path, tokenizer: &VqVae, batch: usize) -> Result<PathBuf> {
    // A batch of each class, so that one is left for training when some are set aside for tests.
    let pictures = batch.max(2);
    let [_, height, width] = tokenizer.picture_shape();
    let data = folder.join("pictures");
    for class in ["a", "b"] {
        let class_folder = data.join(class);
        std::fs::create_dir_all(&class_folder)
            .with_context(|| format!("cannot create `{}`", class_folder.display()))?;
        for i in 0..pictures {
            let mut rng = Rng::new(1, class, i as u64);
            let mut picture = RgbImage::new(width as u32, height as u32);
            picture.pixels_mut().for_each(|pixel| *pixel = Rgb([(); 3].map(|()| rng.below(256) as u8)));
            write_png(class_folder.join(format!("{i}.png")), &picture)?;
        }
    }
    Ok(data)
}
