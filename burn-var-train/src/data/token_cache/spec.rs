use std::collections::HashMap;

use burn_var::Scales;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::super::{Fingerprint, ImageShape, ImageSource, View};
use crate::{Error, Result};

/// The number of the file's format.
const FORMAT: u32 = 1;

/// The metadata entry that makes a safetensors file a cache of tokens.
const ENTRY: &str = "token_cache";

/// The images, tokenizer and views of the tokens in a cache. A cache is used only if all are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCacheSpec {
    /// The scale schedule.
    pub scales: Scales,
    /// Tokens lie in `0..vocab_size`.
    pub vocab_size: usize,
    /// Names of the classes; labels are indices into these.
    pub class_names: Vec<String>,
    /// Number of images.
    #[serde(rename = "pictures")]
    pub images: usize,
    /// The views of each image whose tokens are stored, for instance plain and mirrored.
    pub variants: Vec<View>,
    /// [`Fingerprint`] of the tokenizer's weights and configuration.
    pub tokenizer: String,
    /// [`Fingerprint`] of the images, their labels and their shape.
    pub data: String,
}

impl TokenCacheSpec {
    /// Describes the tokens of all images of `source`, brought to `shape`. `tokenizer` is the fingerprint of the
    /// tokenizer's weights and configuration.
    ///
    /// # Errors
    /// The errors of [`ImageSource::fingerprint_like`].
    pub fn new(
        source: &dyn ImageSource,
        shape: ImageShape,
        variants: Vec<View>,
        scales: Scales,
        vocab_size: usize,
        tokenizer: String,
    ) -> Result<Self> {
        let ImageShape { height, width, channels } = shape;
        let shape = format!("{channels}x{height}x{width}");
        // In the form of the tokenizer's fingerprint.
        let data = Fingerprint::like(&tokenizer).field(source.fingerprint_like(&tokenizer)?.as_bytes());
        Ok(Self {
            scales,
            vocab_size,
            class_names: source.class_names().to_vec(),
            images: source.len(),
            variants,
            tokenizer,
            data: data.field(shape.as_bytes()).finish(),
        })
    }

    /// The key of the cache among others: it changes with everything that the tokens depend on.
    ///
    /// # Errors
    /// [`Error::Config`] if the description cannot be written down.
    pub fn key(&self) -> Result<String> {
        let text =
            serde_json::to_vec(self).map_err(|e| Error::config("token cache", e, "a spec that JSON can hold"))?;
        Ok(Fingerprint::new().field(&FORMAT.to_le_bytes()).field(&text).finish())
    }

    /// Tokens stored for one image: all variants of all scales.
    pub(super) fn row(&self) -> usize {
        self.variants.len() * self.scales.tokens()
    }

    /// Bytes of one token or label.
    pub(super) fn width(&self) -> usize {
        if self.vocab_size.max(self.class_names.len()) <= 1 << 16 { 2 } else { 4 }
    }

    /// Returns the first field that differs, in words; `None` if the tokens are the same.
    pub(super) fn difference(&self, wanted: &Self) -> Option<String> {
        let fields = [
            ("token maps", self.scales.to_string(), wanted.scales.to_string()),
            ("vocabulary size", self.vocab_size.to_string(), wanted.vocab_size.to_string()),
            ("classes", self.class_names.join(", "), wanted.class_names.join(", ")),
            ("number of images", self.images.to_string(), wanted.images.to_string()),
            ("variants", format!("{:?}", self.variants), format!("{:?}", wanted.variants)),
            ("fingerprint of the tokenizer", self.tokenizer.clone(), wanted.tokenizer.clone()),
            ("fingerprint of the images", self.data.clone(), wanted.data.clone()),
        ];
        let (name, found, wanted) = fields.into_iter().find(|(_, found, wanted)| found != wanted)?;
        Some(format!("its {name}: {found}; this run's: {wanted}"))
    }

    /// Returns the beginning of the file, up to the first token.
    pub(super) fn header(&self) -> Result<Vec<u8>> {
        self.check()?;
        let size = |elements: Option<usize>| elements.and_then(|count| count.checked_mul(self.width()));
        let (tokens, labels) = (size(self.images.checked_mul(self.row())), size(Some(self.images)));
        let (Some(tokens), Some(labels)) = (tokens, labels) else {
            return Err(Error::config("images", self.images, "as many as a file can hold the tokens of"));
        };
        let shape = vec![self.images, self.variants.len(), self.scales.tokens()];
        let dtype = self.dtype();
        let entry = Entry { format: FORMAT, spec: self.clone() };
        let json = |error: serde_json::Error| Error::config("token cache", error, "what can be written as JSON");
        let metadata = HashMap::from([(ENTRY.to_owned(), serde_json::to_string(&entry).map_err(json)?)]);
        let tensors = vec![
            ("tokens".to_owned(), TensorInfo { dtype, shape, data_offsets: (0, tokens) }),
            (
                "labels".to_owned(),
                TensorInfo { dtype, shape: vec![self.images], data_offsets: (tokens, tokens + labels) },
            ),
        ];
        let metadata = Metadata::new(Some(metadata), tensors)
            .map_err(|error| Error::config("token cache", error, "what a safetensors file can hold"))?;
        let mut text = serde_json::to_vec(&metadata).map_err(json)?;
        // The tensors begin at a multiple of 8, as the format recommends.
        text.resize(text.len().next_multiple_of(8), b' ');
        Ok([(text.len() as u64).to_le_bytes().as_slice(), &text].concat())
    }

    /// The spec in a file's metadata, if the tensors are those that it calls for; else what is wrong.
    pub(super) fn of(metadata: &Metadata) -> Result<Self, String> {
        let no_cache = || "it is no cache of tokens".to_owned();
        let json = metadata.metadata().as_ref().and_then(|entries| entries.get(ENTRY)).ok_or_else(no_cache)?;
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| format!("its description is damaged ({error})");
        let Format { format } = serde_json::from_str(json).map_err(damaged)?;
        if format != FORMAT {
            return Err(format!("it has format {format}, and this version reads format {FORMAT}"));
        }
        let Entry { spec, .. } = serde_json::from_str(json).map_err(damaged)?;
        spec.check().map_err(|error| format!("its description is damaged ({error})"))?;
        let expected =
            [("tokens", vec![spec.images, spec.variants.len(), spec.scales.tokens()]), ("labels", vec![spec.images])];
        for (name, shape) in expected {
            match metadata.info(name) {
                Some(info) if info.shape == shape && info.dtype == spec.dtype() => {}
                Some(info) => {
                    let wanted = spec.dtype();
                    return Err(format!("`{name}` is {} {:?}, expected {wanted} {shape:?}", info.dtype, info.shape));
                }
                None => return Err(format!("it has no `{name}`")),
            }
        }
        Ok(spec)
    }

    fn dtype(&self) -> Dtype {
        if self.width() == 2 { Dtype::U16 } else { Dtype::U32 }
    }

    fn check(&self) -> Result<()> {
        let limit = u32::MAX as usize;
        let counts = [
            ("vocab_size", self.vocab_size, limit),
            ("class_names", self.class_names.len(), limit),
            ("images", self.images, usize::MAX),
            ("variants", self.variants.len(), limit),
        ];
        match counts.into_iter().find(|&(_, count, limit)| count == 0 || count > limit) {
            Some((name, count, limit)) => Err(Error::config(name, count, format!("a number from 1 to {limit}"))),
            None => Ok(()),
        }
    }
}

/// Content of the metadata entry.
#[derive(Serialize, Deserialize)]
struct Entry {
    format: u32,
    spec: TokenCacheSpec,
}
