//! The tokens of a run's images, from a cache that any number of runs share.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use burn_var::math::Resize;
use burn_var::weights::Pretrained;
use burn_var::{MapSize, Scales, TokenPyramid, Tokenizer};
use serde::{Deserialize, Serialize};

use super::{BatchLoader, Fingerprint, ImageShape, ImageSource, TokenCache, TokenCacheSpec, TokenCacheWriter, View};
use crate::engine::progress::Progress;
use crate::engine::run::DataConfig;
use crate::fs::folder_of;
use crate::{Error, Result};

/// Images that are encoded together.
const ENCODE_BATCH: usize = 64;

/// The cache of older versions, in the folder of the run.
const OWN: &str = "tokens.safetensors";

/// The image that the tokens of a scale stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Supervision {
    /// The whole image: its latent is resized to the scale, as published.
    #[default]
    Latent,
    /// The image, area-resized to the pixels that the scale decodes to, then encoded.
    Image,
}

/// The part of an image that is encoded, and the maps of its tokens.
pub(crate) struct Encoding {
    /// The maps. A tokenizer whose maps do not depend on one another serves any schedule of these.
    pub(crate) scales: Scales,
    /// Shape of the images.
    pub(crate) shape: ImageShape,
    /// The image of each scale.
    pub(crate) supervision: Supervision,
}

impl Encoding {
    /// Returns the maps and images of a tokenizer's default schedule.
    pub(crate) fn default_of(tokenizer: &impl Tokenizer) -> Result<Self> {
        let scales = tokenizer.scales().clone();
        let [channels, height, width] = tokenizer.image_shape(&scales);
        let shape = ImageShape::new(height, width, channels)?;
        Ok(Self { scales, shape, supervision: Supervision::Latent })
    }
}

/// Returns the tokens of all images of `source`, and of their mirror images if the run mirrors.
///
/// They come from the cache in the run's folder that older versions made, if it fits, else from the shared cache
/// ([`DataConfig::cache`]), which is made first if it is not there. A cache belongs to images, tokenizer and views: its
/// name has their fingerprint. Of two runs that need the same one at once, one waits for the other.
pub(crate) fn cached_tokens<T: Tokenizer + Pretrained>(
    source: Arc<dyn ImageSource>,
    data: &DataConfig,
    tokenizer: &T,
    Encoding { scales, shape, supervision }: Encoding,
    run: &Path,
    device: &Device,
    progress: &mut dyn Progress,
) -> Result<TokenCache> {
    let sizes = serde_json::to_vec(tokenizer.config())
        .map_err(|e| Error::config("tokenizer", e, "sizes that JSON can hold"))?;
    let views: &[bool] = if data.mirror { &[false, true] } else { &[false] };
    let variants: Vec<View> = views.iter().map(|&mirrored| View::Fixed { mirrored }).collect();
    let vocab = tokenizer.vocabulary().size;
    // The fingerprints in a spec have the form of `recorded`, or that of this version.
    let spec_like = |recorded: &str| -> Result<TokenCacheSpec> {
        let mut fingerprint = Fingerprint::like(recorded).field(&sizes).module(tokenizer)?;
        if supervision == Supervision::Image {
            fingerprint = fingerprint.field(b"image supervision");
        }
        TokenCacheSpec::new(&*source, shape, variants.clone(), scales.clone(), vocab, fingerprint.finish())
    };

    let own = run.join(OWN);
    if own.exists() {
        let opened = TokenCache::open(&own)
            .and_then(|cache| TokenCache::open_matching(&own, &spec_like(&cache.spec().tokenizer)?));
        match opened {
            Ok(cache) => return Ok(cache),
            Err(error) => progress.note(&format!("does not use a token cache of an older version: {error}")),
        }
    }
    let spec = spec_like("")?;
    let path = shared_path(data, run, &spec)?;
    if path.exists() {
        return TokenCache::open_matching(&path, &spec);
    }
    let _lock = wait_for_lock(&path, progress)?;
    // Another run may have made it meanwhile.
    if path.exists() {
        return TokenCache::open_matching(&path, &spec);
    }
    progress.note(&format!("encodes {} images once, into {}", source.len(), path.display()));
    encode(&BatchLoader::new(source, shape), tokenizer, supervision, spec, &path, device)
}

/// Returns the path of the shared cache, whose folder exists.
fn shared_path(data: &DataConfig, run: &Path, spec: &TokenCacheSpec) -> Result<PathBuf> {
    let folder = data.cache.clone().unwrap_or_else(|| folder_of(run).join(".cache"));
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    Ok(folder.join(format!("tokens-{}.safetensors", spec.key()?)))
}

/// Waits until no other run makes the same cache. The system frees the lock when the process ends.
fn wait_for_lock(cache: &Path, progress: &mut dyn Progress) -> Result<Option<File>> {
    let path = cache.with_extension("lock");
    let lock = File::create(&path).map_err(Error::io("create", &path))?;
    if lock.try_lock().is_ok() {
        return Ok(Some(lock));
    }
    progress.note(&format!("another run may be making {}; waits for it", cache.display()));
    match lock.lock() {
        Ok(()) => Ok(Some(lock)),
        // Some network file systems have no locks. Two runs then do the same work; the file is whole all the same.
        Err(error) => {
            tracing::warn!("cannot lock `{}`: {error}", path.display());
            Ok(None)
        }
    }
}

/// Encodes images at each scale for itself, area-resized to the pixels of the scale.
fn encode_resized(tokenizer: &impl Tokenizer, images: &Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
    let map = |size: MapSize| -> Result<Tensor<2, Int>> {
        let single = Scales::new(vec![size])?;
        let [_, height, width] = tokenizer.image_shape(&single);
        let resized = Resize::Area.apply(images.clone(), MapSize { height, width });
        Ok(tokenizer.encode(resized, &single)?.map(0))
    };
    let maps = scales.sizes().iter().map(|size| map(*size)).collect::<Result<_>>()?;
    Ok(TokenPyramid::new(scales.clone(), maps)?)
}

/// Encodes all images, which are decoded ahead, and writes their tokens.
fn encode(
    loader: &BatchLoader,
    tokenizer: &impl Tokenizer,
    supervision: Supervision,
    spec: TokenCacheSpec,
    path: &Path,
    device: &Device,
) -> Result<TokenCache> {
    let (variants, scales) = (spec.variants.clone(), spec.scales.clone());
    let mut writer = TokenCacheWriter::create(path, spec)?;
    let count = loader.source().len();
    let parts = move || (0..count).step_by(ENCODE_BATCH).map(move |first| first..count.min(first + ENCODE_BATCH));
    let views = variants.clone();
    let batches = parts().flat_map(move |part| {
        let views = views.clone();
        views.into_iter().map(move |view| (part.clone().collect::<Vec<usize>>(), view))
    });
    let mut batches = loader.prefetch(batches)?;
    let ended = || Error::LoaderEnded { path: loader.source().path().to_path_buf() };
    for part in parts() {
        let mut rows = vec![Vec::with_capacity(variants.len()); part.len()];
        for _ in &variants {
            let images = batches.next().ok_or_else(ended)??.upload(device).images;
            let tokens = match supervision {
                Supervision::Latent => tokenizer.encode(images, &scales)?,
                Supervision::Image => encode_resized(tokenizer, &images, &scales)?,
            };
            let tokens = tokens.to_rows()?;
            rows.iter_mut().zip(tokens).for_each(|(rows, row)| rows.push(row));
        }
        for (index, rows) in part.zip(&rows) {
            writer.push(loader.source().label(index), rows)?;
        }
    }
    writer.finish()
}
