use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::TokenCacheSpec;
use crate::data::random::{Purpose, keyed};
use crate::{Error, Result};

/// A token cache, mapped into memory: only the rows that are used are read.
#[derive(Debug)]
pub struct TokenCache {
    path: PathBuf,
    map: Mmap,
    spec: TokenCacheSpec,
    /// Offset of the tokens in the file.
    tokens: usize,
    labels: Vec<u32>,
}

/// Tokens of several images, with their classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// One row of L tokens per image, coarsest scale first.
    pub tokens: Vec<Vec<u32>>,
    /// The class of each image.
    pub labels: Vec<usize>,
}

/// The stored variant of an image that a batch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariantChoice {
    /// The first, for evaluation.
    First,
    /// A random one, for training. The choice depends on seed, epoch and image alone.
    Random {
        /// The seed of the run.
        seed: u64,
        /// The epoch, from 0.
        epoch: usize,
    },
}

const AGAIN: &str = "delete the file to have it made again";

impl TokenCache {
    /// Opens a cache.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it is damaged or not a token cache.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: a map is sound as long as no one shortens or rewrites the file meanwhile. This crate never does: a
        // new cache is another file that takes over the name.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))?;
        let unusable = |reason: String| Error::format(path, format!("{reason}; {AGAIN}"));
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| unusable(format!("it is cut short, damaged or no cache of tokens ({error})")))?;
        let spec = TokenCacheSpec::of(&metadata).map_err(unusable)?;
        let start = |name: &str| metadata.info(name).map_or(0, |info| 8 + header + info.data_offsets.0);
        let (tokens, labels) = (start("tokens"), start("labels"));
        let labels = values(&map[labels..], spec.width(), spec.images);
        if let Some(label) = labels.iter().find(|&&label| label as usize >= spec.class_names.len()) {
            let classes = spec.class_names.len();
            return Err(unusable(format!("it is damaged: it has label {label}, and there are {classes} classes")));
        }
        Ok(Self { path: path.to_path_buf(), tokens, labels, map, spec })
    }

    /// Opens a cache that must hold the tokens of `wanted` and no others.
    ///
    /// # Errors
    /// The errors of [`TokenCache::open`], and [`Error::Format`] that names the first difference.
    pub fn open_matching(path: &Path, wanted: &TokenCacheSpec) -> Result<Self> {
        let cache = Self::open(path)?;
        match cache.spec.difference(wanted) {
            Some(difference) => {
                Err(Error::format(path, format!("it was made of something else ({difference}); {AGAIN}")))
            }
            None => Ok(cache),
        }
    }

    /// The description of images, tokenizer and views.
    pub fn spec(&self) -> &TokenCacheSpec {
        &self.spec
    }

    /// Number of images.
    #[allow(clippy::len_without_is_empty, reason = "no cache without an image can be opened")]
    pub fn len(&self) -> usize {
        self.spec.images
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Returns tokens and labels of the given images, in that order.
    ///
    /// # Errors
    /// [`Error::Format`] if a token is not in the vocabulary, since then the file is damaged.
    ///
    /// # Panics
    /// If a number is not below [`TokenCache::len`].
    pub fn batch(&self, images: &[usize], choice: VariantChoice) -> Result<TokenBatch> {
        let tokens = images.iter().map(|&image| {
            let variant = match choice {
                VariantChoice::First => 0,
                VariantChoice::Random { seed, epoch } => {
                    keyed(Purpose::Variant, seed, [epoch, image]).below(self.spec.variants.len())
                }
            };
            self.row(image, variant)
        });
        let labels = images.iter().map(|&image| self.labels[image] as usize).collect();
        Ok(TokenBatch { tokens: tokens.collect::<Result<_>>()?, labels })
    }

    /// Returns the L tokens of one variant of one image, coarsest scale first.
    ///
    /// # Errors
    /// The errors of [`TokenCache::batch`].
    ///
    /// # Panics
    /// If `image` or `variant` is not below its number.
    pub fn row(&self, image: usize, variant: usize) -> Result<Vec<u32>> {
        let (images, variants) = (self.len(), self.spec.variants.len());
        assert!(image < images && variant < variants, "variant {variant} of image {image} is not in the cache");
        let (width, length) = (self.spec.width(), self.spec.scales.tokens());
        let row = values(&self.map[self.tokens + (image * variants + variant) * length * width..], width, length);
        match row.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
            None => Ok(row),
            Some(token) => {
                let reason = format!("image {image} has token {token} of {}: it is damaged", self.spec.vocab_size);
                Err(Error::format(&self.path, format!("{reason}; {AGAIN}")))
            }
        }
    }
}

/// The first `count` little-endian numbers of `width` bytes.
fn values(bytes: &[u8], width: usize, count: usize) -> Vec<u32> {
    let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
    bytes.chunks_exact(width).take(count).map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use burn_var::Scales;
    use proptest::prelude::*;

    use super::*;
    use crate::data::{TokenCacheWriter, View};

    /// Two images with plain and mirrored tokens of maps of 1 and 2x2.
    fn spec(vocab_size: usize) -> TokenCacheSpec {
        TokenCacheSpec {
            scales: Scales::square(&[1, 2]).unwrap(),
            vocab_size,
            class_names: ["bag", "coat", "shoe"].map(str::to_owned).to_vec(),
            images: 2,
            variants: [false, true].map(|mirrored| View::Fixed { mirrored }).to_vec(),
            tokenizer: "aa".to_owned(),
            data: "bb".to_owned(),
        }
    }

    const ROWS: [[[u32; 5]; 2]; 2] = [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], [[10, 11, 12, 13, 14], [15, 16, 17, 18, 99]]];

    fn write(path: &Path, spec: TokenCacheSpec) -> TokenCache {
        let mut writer = TokenCacheWriter::create(path, spec).unwrap();
        for (label, rows) in [2, 0].into_iter().zip(&ROWS) {
            writer.push(label, rows).unwrap();
        }
        writer.finish().unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for vocab_size in [100, 1 << 16, (1 << 16) + 1] {
            let path = folder.path().join("tokens");
            let cache = write(&path, spec(vocab_size));
            assert_eq!(cache.spec(), &spec(vocab_size), "the spec");
            for (image, rows) in ROWS.iter().enumerate() {
                for (variant, row) in rows.iter().enumerate() {
                    assert_eq!(cache.row(image, variant).unwrap(), row, "variant {variant} of image {image}");
                }
            }
            let batch = cache.batch(&[1, 0, 1], VariantChoice::First).unwrap();
            assert_eq!(batch.tokens, [ROWS[1][0], ROWS[0][0], ROWS[1][0]], "a batch, {vocab_size} tokens");
            assert_eq!((batch.labels, cache.labels()), (vec![0, 2, 0], [2, 0].as_slice()), "labels");
            assert!(TokenCache::open_matching(&path, &spec(vocab_size)).is_ok(), "it matches itself");
            assert_eq!(names(folder.path()), ["tokens"], "no other file is left");
        }
    }

    #[test]
    fn variants_are_drawn_by_seed_epoch_and_image() {
        let folder = tempfile::tempdir().unwrap();
        let cache = write(&folder.path().join("tokens"), spec(100));
        let second = |seed, epoch, image: usize| {
            let batch = cache.batch(&[image], VariantChoice::Random { seed, epoch }).unwrap();
            batch.tokens[0] == ROWS[image][1]
        };
        let count = (0..1000).filter(|&epoch| second(1, epoch, 0)).count();
        assert!((430..570).contains(&count), "half of the draws take the second variant: {count} of 1000");
        assert!((0..20).any(|epoch| second(1, epoch, 0) != second(1, epoch, 1)), "images are drawn apart");
        assert!((0..20).any(|epoch| second(1, epoch, 0) != second(2, epoch, 0)), "the seed matters");
        assert!((0..20).all(|epoch| second(1, epoch, 0) == second(1, epoch, 0)), "a draw can be repeated");
    }

    #[test]
    fn an_unfinished_cache_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let mut writer = TokenCacheWriter::create(&path, spec(100)).unwrap();
        writer.push(1, &ROWS[0]).unwrap();
        assert!(!path.exists(), "no file of that name before the end");
        let message = writer.finish().unwrap_err().to_string();
        assert!(message.contains("`images` is 1, expected 2"), "a missing image: {message}");
        assert!(names(folder.path()).is_empty(), "nothing is left");

        let old = write(&path, spec(100));
        drop(TokenCacheWriter::create(&path, spec(200)).unwrap());
        assert_eq!(TokenCache::open(&path).unwrap().spec(), old.spec(), "an old cache stays until there is a new one");
    }

    #[test]
    fn a_cache_takes_only_what_its_spec_allows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let mut writer = TokenCacheWriter::create(&path, spec(16)).unwrap();
        writer.push(0, &ROWS[0]).unwrap();
        let mut refused = |label, rows: &[&[u32]]| writer.push(label, rows).unwrap_err().to_string();
        assert!(refused(3, &[&[0; 5], &[0; 5]]).contains("`label` is 3"), "a class too many");
        assert!(refused(0, &[&[0; 5]]).contains("`variants` is 1"), "a variant is missing");
        assert!(refused(0, &[&[0; 4], &[0; 5]]).contains("is 4, expected 5"), "a token is missing");
        assert!(refused(0, &[&[0, 1, 2, 3, 16], &[0; 5]]).contains("`token` is 16"), "a token too high");
        writer.push(0, &ROWS[0]).unwrap();
        assert!(writer.push(0, &ROWS[0]).unwrap_err().to_string().contains("2 images"), "an image too many");
        for (name, empty) in [
            ("images", TokenCacheSpec { images: 0, ..spec(9) }),
            ("variants", TokenCacheSpec { variants: vec![], ..spec(9) }),
            ("vocab_size", spec(0)),
            ("images", TokenCacheSpec { images: usize::MAX, ..spec(9) }),
        ] {
            let message = TokenCacheWriter::create(&path, empty).unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
        let nowhere = TokenCacheWriter::create(&folder.path().join("no/tokens"), spec(9)).unwrap_err().to_string();
        assert!(nowhere.contains("cannot create"), "{nowhere}");
    }

    #[test]
    fn another_cache_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        write(&path, spec(100));
        for (expected, other) in [
            ("tokenizer: aa; this run's: cc", TokenCacheSpec { tokenizer: "cc".to_owned(), ..spec(100) }),
            ("images: bb; this run's: cc", TokenCacheSpec { data: "cc".to_owned(), ..spec(100) }),
            ("token maps: 1, 2;", TokenCacheSpec { scales: Scales::square(&[2, 1]).unwrap(), ..spec(100) }),
            ("vocabulary size: 100", spec(101)),
            ("number of images: 2", TokenCacheSpec { images: 3, ..spec(100) }),
            ("variants", TokenCacheSpec { variants: vec![View::Fixed { mirrored: false }], ..spec(100) }),
            ("classes", TokenCacheSpec { class_names: vec!["bag".to_owned()], ..spec(100) }),
        ] {
            let message = TokenCache::open_matching(&path, &other).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains(AGAIN), "{expected}: {message}");
        }
    }

    #[test]
    fn every_defect_of_the_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        write(&path, spec(100));
        let sound = fs::read(&path).unwrap();
        let refused = |bytes: &[u8], expected: &str| {
            let path = folder.path().join("damaged");
            fs::write(&path, bytes).unwrap();
            let message = TokenCache::open(&path).unwrap_err().to_string();
            assert!(message.contains("damaged`") && message.contains(AGAIN), "file and remedy: {message}");
            assert!(message.contains(expected), "{expected}: {message}");
        };
        for length in [0, 5, 100, sound.len() - 1] {
            refused(&sound[..length], "cut short");
        }
        refused(&[sound.as_slice(), &[0]].concat(), "cut short");
        refused(b"\xff\xff\xff\xff\xff\xff\xff\xff garbage", "cut short");
        let mut foreign = sound.clone();
        let entry = foreign.windows(11).position(|window| window == b"token_cache").unwrap();
        foreign[entry] = b'T';
        refused(&foreign, "no cache of tokens");
        let mut newer = sound.clone();
        let digit = newer.windows(8).position(|window| window == b"format\\\"").unwrap() + 9;
        newer[digit] = b'2';
        refused(&newer, "format 2");
        let mut label = sound.clone();
        let last = label.len() - 2;
        label[last] = 3;
        refused(&label, "label 3");

        let mut token = sound.clone();
        token[last - 4] = 200;
        fs::write(folder.path().join("token"), token).unwrap();
        let cache = TokenCache::open(&folder.path().join("token")).unwrap();
        let message = cache.row(1, 1).unwrap_err().to_string();
        assert!(message.contains("image 1") && message.contains("token 200"), "{message}");
        assert!(cache.row(1, 0).is_ok(), "the other rows are sound");

        let missing = TokenCache::open(&folder.path().join("no")).unwrap_err().to_string();
        assert!(missing.contains("cannot open"), "{missing}");
    }

    proptest! {
        // Each case waits for the disk.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_tokens_survive(
            vocab_size in prop_oneof![1usize..300, 65_530usize..65_600],
            picks in proptest::collection::vec((any::<u32>(), 0usize..3), 1..7),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let spec = TokenCacheSpec { images: picks.len(), ..spec(vocab_size) };
            let row = |value: u32, offset: u32| {
                [0u32, 1, 2, 3, 4].map(|i| (u64::from(value) * 31 + u64::from(offset * 5 + i)) as u32 % vocab_size as u32)
            };
            let mut writer = TokenCacheWriter::create(&folder.path().join("tokens"), spec).unwrap();
            for &(value, label) in &picks {
                writer.push(label, &[row(value, 0), row(value, 1)]).unwrap();
            }
            let cache = writer.finish().unwrap();
            for (image, &(value, label)) in picks.iter().enumerate() {
                prop_assert_eq!(cache.row(image, 0).unwrap(), row(value, 0));
                prop_assert_eq!(cache.row(image, 1).unwrap(), row(value, 1));
                prop_assert_eq!(cache.labels()[image] as usize, label);
            }
        }

        #[test]
        fn a_damaged_header_never_panics(position in 0usize..900, byte: u8) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tokens");
            write(&path, spec(100));
            let mut bytes = fs::read(&path).unwrap();
            let position = position % bytes.len();
            bytes[position] = byte;
            let damaged = folder.path().join("damaged");
            fs::write(&damaged, bytes).unwrap();
            if let Ok(cache) = TokenCache::open(&damaged) {
                let _ = cache.batch(&[0, 1], VariantChoice::Random { seed: 0, epoch: 0 });
            }
        }
    }
}
