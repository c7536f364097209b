//! The IDX files of MNIST and its successors.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::{Fingerprint, ImageOptions, ImageShape, ImageSource, Split, View};
use crate::{Error, Result};

/// The classes of Fashion-MNIST.
pub const FASHION_MNIST_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// Files that claim to hold more than this (before compression) are refused, so that no small file fills the memory.
const MAX_BYTES: usize = 1 << 30;

/// Grey images in IDX files, plain or compressed by gzip: MNIST, Fashion-MNIST, KMNIST, EMNIST.
///
/// Images are put in the middle of black where a larger size is asked for, never resized; views differ in the
/// mirroring only.
#[derive(Debug)]
pub struct IdxImages {
    folder: PathBuf,
    images: PathBuf,
    size: [usize; 2],
    pixels: Vec<u8>,
    labels: Vec<u8>,
    class_names: Vec<String>,
}

impl IdxImages {
    /// Reads `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or the `t10k-` files for [`Split::Test`], with or
    /// without `.gz`. Of `options`, only the names of the classes matter; without them, classes are called by number.
    ///
    /// # Errors
    /// [`Error::Io`] for a missing or unreadable file, [`Error::Format`] for one that is damaged or does not fit the
    /// other.
    pub fn open(folder: &Path, split: Split, options: &ImageOptions) -> Result<Self> {
        let [images, labels] = Self::files(folder, split);
        let ([image_count, height, width], pixels) = read(&images)?;
        let ([label_count], label_bytes) = read(&labels)?;
        if image_count == 0 || height == 0 || width == 0 {
            return Err(Error::format(images, format!("it holds {image_count} images of {height}x{width} pixels")));
        }
        if image_count != label_count {
            let reason =
                format!("it holds {label_count} labels, and `{}` holds {image_count} images", images.display());
            return Err(Error::format(labels, reason));
        }
        let found = label_bytes.iter().max().map_or(0, |&highest| usize::from(highest) + 1);
        let class_names = match &options.class_names {
            Some(names) => names.clone(),
            None => (0..found).map(|label| label.to_string()).collect(),
        };
        if found > class_names.len() {
            let reason = format!("it has label {}, and there are names for {} classes", found - 1, class_names.len());
            return Err(Error::format(labels, reason));
        }
        let folder = folder.to_path_buf();
        Ok(Self { folder, images, size: [height, width], pixels, labels: label_bytes, class_names })
    }

    /// Returns whether the folder holds IDX images for training.
    pub(super) fn found_in(folder: &Path) -> bool {
        Self::files(folder, Split::Train)[0].is_file()
    }

    /// Height and width of the images as stored.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The files of images and labels: the plain one if it is there, else the compressed one.
    fn files(folder: &Path, split: Split) -> [PathBuf; 2] {
        let prefix = match split {
            Split::Train => "train",
            Split::Test => "t10k",
        };
        ["images-idx3", "labels-idx1"].map(|kind| {
            let plain = folder.join(format!("{prefix}-{kind}-ubyte"));
            if plain.is_file() { plain } else { folder.join(format!("{prefix}-{kind}-ubyte.gz")) }
        })
    }
}

impl ImageSource for IdxImages {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn label(&self, index: usize) -> usize {
        usize::from(self.labels[index])
    }

    fn load(&self, index: usize, shape: ImageShape, view: View, out: &mut [f32]) -> Result<()> {
        let [height, width] = self.size;
        if shape.height < height || shape.width < width {
            let expected = format!("at least {height}x{width}, the size of the images in `{}`", self.images.display());
            return Err(Error::config("image_size", format!("{}x{}", shape.height, shape.width), expected));
        }
        assert_eq!(out.len(), shape.elements(), "room for one image");
        let mirrored = view.draw(index).mirrored;
        let [top, left] = [(shape.height - height) / 2, (shape.width - width) / 2];
        let (first, others) = out.split_at_mut(shape.height * shape.width);
        first.fill(-1.0);
        let image = &self.pixels[index * height * width..][..height * width];
        for (y, row) in image.chunks_exact(width).enumerate() {
            let target = &mut first[(top + y) * shape.width + left..][..width];
            for (x, &pixel) in row.iter().enumerate() {
                target[if mirrored { width - 1 - x } else { x }] = f32::from(pixel) / 127.5 - 1.0;
            }
        }
        for channel in others.chunks_exact_mut(first.len()) {
            channel.copy_from_slice(first);
        }
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        format!("image {index} of `{}`", self.images.display())
    }

    fn path(&self) -> &Path {
        &self.folder
    }

    fn fingerprint(&self) -> String {
        self.add_to(Fingerprint::new())
    }

    fn fingerprint_like(&self, recorded: &str) -> Result<String> {
        Ok(self.add_to(Fingerprint::like(recorded)))
    }
}

impl IdxImages {
    fn add_to(&self, start: Fingerprint) -> String {
        let size = format!("{:?}", self.size);
        let names = self.class_names.join("\n");
        let all = [b"idx".as_slice(), size.as_bytes(), names.as_bytes(), &self.labels, &self.pixels];
        all.into_iter().fold(start, Fingerprint::field).finish()
    }
}

/// Reads an IDX file of bytes with `D` dimensions: the dimensions and the data.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
    // By content, not by name: some downloaders unpack a file and leave its name.
    let packed = file.fill_buf().map_err(Error::io("read", path))?.starts_with(&[0x1f, 0x8b]);
    if packed { parse(MultiGzDecoder::new(file), path) } else { parse(file, path) }
}

fn parse<const D: usize>(mut reader: impl Read, path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let bytes = read_up_to(&mut reader, 4 + 4 * D, path)?;
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(Error::format(path, format!("it ends after {} bytes, in its header", bytes.len())));
    };
    let expected = [0, 0, 8, D as u8];
    if *magic != expected {
        let reason = format!("it begins with {magic:02x?}; an IDX file of {D}-dimensional bytes with {expected:02x?}");
        return Err(Error::format(path, reason));
    }
    if rest.len() < 4 * D {
        return Err(Error::format(path, format!("it ends after {} bytes, in its header", bytes.len())));
    }
    let mut dims = [0; D];
    for (dim, bytes) in dims.iter_mut().zip(rest.chunks_exact(4)) {
        *dim = bytes.iter().fold(0, |value, &byte| value << 8 | usize::from(byte));
    }
    let size = dims.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim)).filter(|&size| size <= MAX_BYTES);
    let Some(size) = size else {
        return Err(Error::format(path, format!("its header says {dims:?}, which is more than {MAX_BYTES} bytes")));
    };
    let data = read_up_to(&mut reader, size + 1, path)?;
    if data.len() != size {
        let relation = if data.len() < size { format!("{}", data.len()) } else { "more".to_owned() };
        let reason = format!("its header {dims:?} announces {size} bytes and {relation} follow; get the file anew");
        return Err(Error::format(path, reason));
    }
    Ok((dims, data))
}

/// Reads at most `limit` bytes; memory grows with what is there, not with what the limit allows.
fn read_up_to(reader: &mut impl Read, limit: usize, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match reader.take(limit as u64).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(source) => match source.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
                Err(Error::format(path, format!("its compression is damaged ({source}); get the file anew")))
            }
            _ => Err(Error::Io { action: "read", path: path.to_path_buf(), source }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn idx(dims: &[usize], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|&dim| bytes.extend((dim as u32).to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A training split of the given file contents; those of two 2x3 images where `None`.
    fn folder(images: Option<&[u8]>, labels: Option<&[u8]>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let sound_images = idx(&[2, 2, 3], &[0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6]);
        let sound_labels = idx(&[2], &[1, 0]);
        std::fs::write(folder.path().join("train-images-idx3-ubyte"), images.unwrap_or(&sound_images)).unwrap();
        std::fs::write(folder.path().join("train-labels-idx1-ubyte"), labels.unwrap_or(&sound_labels)).unwrap();
        folder
    }

    fn open(folder: &Path) -> Result<IdxImages> {
        IdxImages::open(folder, Split::Train, &ImageOptions::default())
    }

    fn image(source: &IdxImages, index: usize, shape: [usize; 3], view: View) -> Result<Vec<f32>> {
        let shape = ImageShape::new(shape[0], shape[1], shape[2])?;
        let mut out = vec![f32::NAN; shape.elements()];
        source.load(index, shape, view, &mut out).map(|()| out)
    }

    const PLAIN: View = View::Fixed { mirrored: false };

    #[test]
    fn an_image_lies_in_the_middle_of_black() {
        let folder = folder(None, None);
        let source = open(folder.path()).unwrap();
        assert_eq!((source.len(), source.label(0), source.label(1)), (2, 1, 0), "count and labels");
        assert_eq!(source.class_names(), ["0", "1"], "classes by number");
        let expected = [[-1.0; 5], [-1.0, -1.0, -0.6, -0.2, -1.0], [-1.0, 0.2, 0.6, 1.0, -1.0], [-1.0; 5]].concat();
        let found = image(&source, 0, [4, 5, 3], PLAIN).unwrap();
        for channel in 0..3 {
            for (i, (a, b)) in found[channel * 20..][..20].iter().zip(&expected).enumerate() {
                assert!((a - b).abs() < 1e-6, "channel {channel}, pixel {i}: {a}, expected {b}");
            }
        }
    }

    #[test]
    fn a_mirrored_image_changes_left_and_right() {
        let folder = folder(None, None);
        let source = open(folder.path()).unwrap();
        let plain = image(&source, 1, [2, 3, 1], PLAIN).unwrap();
        let mirrored = image(&source, 1, [2, 3, 1], View::Fixed { mirrored: true }).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5].map(|i| mirrored[i]), [2, 1, 0, 5, 4, 3].map(|i| plain[i]), "rows reversed");
    }

    #[test]
    fn compressed_files_read_the_same_whatever_their_names() {
        let plain = folder(None, None);
        let read = |name: &str| std::fs::read(plain.path().join(name)).unwrap();
        let expected = open(plain.path()).unwrap().fingerprint();
        let packed = tempfile::tempdir().unwrap();
        // The labels are not compressed in spite of the name.
        std::fs::write(packed.path().join("train-images-idx3-ubyte.gz"), gz(&read("train-images-idx3-ubyte"))).unwrap();
        std::fs::write(packed.path().join("train-labels-idx1-ubyte.gz"), read("train-labels-idx1-ubyte")).unwrap();
        assert!(IdxImages::found_in(packed.path()) && !IdxImages::found_in(&packed.path().join("no")));
        assert_eq!(open(packed.path()).unwrap().fingerprint(), expected, "the same images and labels");
    }

    #[test]
    fn every_defect_is_named() {
        let sound = idx(&[2, 2, 3], &[7; 12]);
        let mut huge = idx(&[u32::MAX as usize; 3], &[]);
        huge.extend([0; 64]);
        let packed = gz(&sound);
        let cases: [(&str, Vec<u8>, &str); 11] = [
            ("an empty file", vec![], "in its header"),
            ("a cut header", sound[..9].to_vec(), "ends after 9 bytes"),
            ("another kind of file", b"\x89PNG\r\n\x1a\nxxxxxxxxxxxx".to_vec(), "begins with [89, 50, 4e, 47]"),
            ("labels in place of images", idx(&[2], &[0, 1]), "[00, 00, 08, 03]"),
            ("a cut file", sound[..20].to_vec(), "announces 12 bytes and 4 follow"),
            ("bytes at the end", [sound.clone(), vec![0]].concat(), "announces 12 bytes and more follow"),
            ("an overflowing header", huge, "is more than"),
            ("a header of a gigabyte more", idx(&[2, 1 << 15, 1 << 15], &[]), "is more than"),
            ("no image", idx(&[0, 2, 3], &[]), "0 images"),
            ("a cut compressed file", packed[..packed.len() - 9].to_vec(), "compression is damaged"),
            ("bytes after the compressed data", [packed.clone(), vec![1, 2, 3]].concat(), "compression is damaged"),
        ];
        for (case, bytes, expected) in cases {
            let folder = folder(Some(&bytes), None);
            let error = open(folder.path()).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::Format { .. }), "{case}: a format error, not {message}");
            assert!(message.contains("train-images-idx3-ubyte") && message.contains(expected), "{case}: {message}");
        }
    }

    #[test]
    fn labels_must_fit_the_images_and_the_names() {
        let other_count = folder(None, Some(&idx(&[3], &[0, 1, 0])));
        let message = open(other_count.path()).unwrap_err().to_string();
        assert!(message.contains("3 labels") && message.contains("2 images"), "{message}");

        let sound = folder(None, None);
        let names = |names: &[&str]| ImageOptions {
            class_names: Some(names.iter().map(|&name| name.to_owned()).collect()),
            ..Default::default()
        };
        let message = IdxImages::open(sound.path(), Split::Train, &names(&["bag"])).unwrap_err().to_string();
        assert!(message.contains("label 1") && message.contains("1 classes"), "{message}");
        let named = IdxImages::open(sound.path(), Split::Train, &names(&["bag", "coat", "dress"])).unwrap();
        assert_eq!(named.class_names(), ["bag", "coat", "dress"], "a class may have no image");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = folder(None, None);
        let message = IdxImages::open(folder.path(), Split::Test, &ImageOptions::default()).unwrap_err().to_string();
        assert!(message.contains("cannot open") && message.contains("t10k-images-idx3-ubyte.gz"), "{message}");
    }

    #[test]
    fn images_are_never_cut() {
        let folder = folder(None, None);
        let message = image(&open(folder.path()).unwrap(), 0, [2, 2, 1], PLAIN).unwrap_err().to_string();
        assert!(message.contains("`image_size` is 2x2") && message.contains("at least 2x3"), "{message}");
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            (dims, data) in [1usize..4, 1usize..6, 1usize..6].prop_flat_map(|dims| {
                (Just(dims), proptest::collection::vec(any::<u8>(), dims.iter().product::<usize>()))
            }),
            packed: bool,
        ) {
            let bytes = idx(&dims, &data);
            let bytes = if packed { gz(&bytes) } else { bytes };
            let folder = folder(Some(&bytes), Some(&idx(&dims[..1], &vec![0; dims[0]])));
            let source = open(folder.path()).unwrap();
            prop_assert_eq!(source.size(), [dims[1], dims[2]]);
            for (i, expected) in data.chunks(dims[1] * dims[2]).enumerate() {
                let found = image(&source, i, [dims[1], dims[2], 1], PLAIN).unwrap();
                let found: Vec<u8> = found.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect();
                prop_assert_eq!(&found[..], expected);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let folder = folder(Some(&bytes), None);
            let _ = open(folder.path());
            let folder = self::folder(Some(&[&[0, 0, 8, 3], &bytes[..]].concat()), None);
            let _ = open(folder.path());
        }
    }
}
