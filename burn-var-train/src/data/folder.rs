//! A folder with one sub-folder per class.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::random::{Purpose, keyed};
use super::{Fingerprint, ImageOptions, ImageShape, ImageSource, SkippedImage, Split, View, decode};
use crate::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// The largest accepted [`ImageOptions::resize_ratio`].
const MAX_RATIO: f64 = 8.0;

/// PNG, JPEG and WebP files of any size, in one sub-folder per class.
///
/// Opening a folder reads names and lengths of the files, not their content: an image is decoded each time it is loaded,
/// and not kept in memory. [`ImageOptions::check`] decodes all images once at opening.
#[derive(Debug)]
pub struct FolderImages {
    root: PathBuf,
    class_names: Vec<String>,
    images: Vec<ImageFile>,
    resize_ratio: f64,
    fingerprint: String,
    run_fingerprint: String,
    skipped: Vec<SkippedImage>,
    ignored: usize,
}

#[derive(Debug, Clone)]
struct ImageFile {
    path: PathBuf,
    label: usize,
}

impl FolderImages {
    /// Lists the images of a split.
    ///
    /// With a sub-folder `train` that holds the classes, images to train on are in there, those to test on in
    /// `test` or `val`. Without `test` and `val`, or without `train`, a share of each class is kept for testing
    /// ([`ImageOptions::holdout`]), at least one image. Classes are sorted by the names of their folders.
    /// Files that are not PNG, JPEG or WebP by their name, hidden files, and folders inside a class are ignored.
    ///
    /// # Errors
    /// [`Error::Io`] for a folder that cannot be read; [`Error::Format`] without classes and for a class without
    /// a usable image; [`Error::BrokenImage`] if [`ImageOptions::strict`]; [`Error::Config`] for unusable options.
    pub fn open(root: &Path, split: Split, options: &ImageOptions) -> Result<Self> {
        check(options)?;
        let layout = Layout::of(root)?;
        let mut ignored = 0;
        let folders = subfolders(&layout.train, &mut ignored)?;
        let mut images = Vec::new();
        if let (Split::Test, Some(test)) = (split, &layout.test) {
            ignored = 0;
            for name in subfolders(test, &mut ignored)? {
                let Some(label) = folders.iter().position(|folder| *folder == name) else {
                    let reason = format!("`{}` has no class of that name", layout.train.display());
                    return Err(Error::format(test.join(name), reason));
                };
                images.extend(listed(&test.join(name), label, &mut ignored)?);
            }
        } else {
            for (label, name) in folders.iter().enumerate() {
                let folder = layout.train.join(name);
                let mut class = listed(&folder, label, &mut ignored)?;
                if class.is_empty() {
                    return Err(Error::format(folder, "it holds no image (PNG, JPEG, WebP); remove it or fill it"));
                }
                if layout.test.is_none() {
                    class = held_out(class, label, split, options);
                }
                images.extend(class);
            }
        }
        if images.is_empty() {
            return Err(Error::format(root, format!("there is no image for the {split} split")));
        }
        let class_names = match &options.class_names {
            Some(names) if names.len() == folders.len() => names.clone(),
            Some(names) => {
                let expected = format!("{}, one for each class folder of `{}`", folders.len(), layout.train.display());
                return Err(Error::config("class_names", format!("{} names", names.len()), expected));
            }
            None => folders,
        };
        let source = Self {
            root: root.to_path_buf(),
            class_names,
            images,
            resize_ratio: options.resize_ratio,
            fingerprint: String::new(),
            run_fingerprint: String::new(),
            skipped: Vec::new(),
            ignored,
        };
        let source = if options.check || options.strict { source.checked(split, options.strict)? } else { source };
        source.identified()
    }

    /// Takes the fingerprints, from the names and labels of the files, with and without their lengths.
    fn identified(mut self) -> Result<Self> {
        let lengths: Vec<Result<u64>> = self.images.par_iter().map(|image| length(&image.path)).collect();
        let mut names = Fingerprint::new().field(b"files").field(&self.resize_ratio.to_le_bytes());
        for name in &self.class_names {
            names = names.field(name.as_bytes());
        }
        for image in &self.images {
            let name = image.path.strip_prefix(&self.root).unwrap_or(&image.path);
            names = names.field(&image.label.to_le_bytes()).field(name.to_string_lossy().as_bytes());
        }
        self.run_fingerprint = names.finish();
        let mut whole = names;
        for length in lengths {
            whole = whole.field(&length?.to_le_bytes());
        }
        self.fingerprint = whole.finish();
        Ok(self)
    }

    /// Decodes all images and leaves the broken ones out.
    fn checked(mut self, split: Split, strict: bool) -> Result<Self> {
        let verdicts: Vec<Result<(), String>> = self.images.par_iter().map(|image| check_one(&image.path)).collect();
        let classes: BTreeSet<usize> = self.images.iter().map(|image| image.label).collect();
        let mut usable = Vec::new();
        for (image, verdict) in self.images.drain(..).zip(verdicts) {
            match verdict {
                Ok(()) => usable.push(image),
                Err(reason) => self.skipped.push(SkippedImage { path: image.path, reason }),
            }
        }
        if let Some(first) = self.skipped.first().filter(|_| strict) {
            let reason = format!("{}; broken images in all: {}", first.reason, self.skipped.len());
            return Err(Error::BrokenImage { path: first.path.clone(), reason });
        }
        let left: BTreeSet<usize> = usable.iter().map(|image| image.label).collect();
        if let Some(&label) = classes.difference(&left).next() {
            let reason = format!("all images of class `{}` ({split}) are broken", self.class_names[label]);
            return Err(Error::format(self.root, reason));
        }
        self.images = usable;
        Ok(self)
    }
}

impl ImageSource for FolderImages {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn label(&self, index: usize) -> usize {
        self.images[index].label
    }

    fn load(&self, index: usize, shape: ImageShape, view: View, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), shape.elements(), "room for one image");
        let path = &self.images[index].path;
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let broken = |reason| Error::BrokenImage { path: path.clone(), reason };
        let image = decode::decode(&bytes).map_err(broken)?;
        decode::crop(&image, shape, self.resize_ratio, view.draw(index), out);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        format!("`{}`", self.images[index].path.display())
    }

    fn path(&self) -> &Path {
        &self.root
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn run_fingerprint(&self) -> String {
        self.run_fingerprint.clone()
    }

    /// For a fingerprint of an earlier version, which covers the content of the images, reads all files.
    fn fingerprint_like(&self, recorded: &str) -> Result<String> {
        if !Fingerprint::is_old(recorded) {
            return Ok(self.fingerprint());
        }
        let content = |image: &ImageFile| -> Result<String> {
            let bytes = std::fs::read(&image.path).map_err(Error::io("read", &image.path))?;
            Ok(Fingerprint::like(recorded).field(&bytes).finish())
        };
        let contents = self.images.par_iter().map(content).collect::<Result<Vec<_>>>()?;
        let mut whole = Fingerprint::like(recorded).field(b"folder").field(&self.resize_ratio.to_le_bytes());
        for name in &self.class_names {
            whole = whole.field(name.as_bytes());
        }
        for (image, content) in self.images.iter().zip(&contents) {
            whole = whole.field(&image.label.to_le_bytes()).field(content.as_bytes());
        }
        Ok(whole.finish())
    }

    fn skipped(&self) -> &[SkippedImage] {
        &self.skipped
    }

    fn ignored(&self) -> usize {
        self.ignored
    }
}

/// The class folders.
struct Layout {
    train: PathBuf,
    /// `None`: the test images are taken from those in `train`.
    test: Option<PathBuf>,
}

impl Layout {
    fn of(root: &Path) -> Result<Self> {
        let train = root.join("train");
        // A class of trains is a folder `train` without folders inside.
        if !train.is_dir() || subfolders(&train, &mut 0).is_err() {
            return Ok(Self { train: root.to_path_buf(), test: None });
        }
        let test = ["test", "val"].map(|name| root.join(name)).into_iter().find(|path| path.is_dir());
        Ok(Self { train, test })
    }
}

fn check(options: &ImageOptions) -> Result<()> {
    if !(1.0..=MAX_RATIO).contains(&options.resize_ratio) {
        return Err(Error::config("resize_ratio", options.resize_ratio, format!("1 to {MAX_RATIO}")));
    }
    if !(0.0..1.0).contains(&options.holdout) {
        return Err(Error::config("holdout", options.holdout, "a share of at least 0 and below 1"));
    }
    Ok(())
}

/// Reads and decodes an image; fails with the reason if it is broken.
fn check_one(path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
    decode::decode(&bytes).map(|_| ())
}

/// Returns the length of a file. A link to nowhere has none.
fn length(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len())
}

/// Lists a folder, sorted: names, and true for folders. Hidden entries are counted and left out.
fn entries(folder: &Path, ignored: &mut usize) -> Result<Vec<(String, bool)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::format(entry.path(), "its name is not UTF-8; rename it"));
        };
        if name.starts_with('.') {
            *ignored += 1;
        } else {
            // Follows links, unlike the type in the entry. A link to nowhere counts as a file and is found broken.
            names.push((name, entry.path().is_dir()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The sorted names of the class folders, at least one; files beside them are counted.
fn subfolders(folder: &Path, ignored: &mut usize) -> Result<Vec<String>> {
    let (folders, files): (Vec<_>, Vec<_>) =
        entries(folder, ignored)?.into_iter().partition(|(_, is_folder)| *is_folder);
    *ignored += files.len();
    if folders.is_empty() {
        let reason = "it has no sub-folder; the images of each class belong in a folder named after the class";
        return Err(Error::format(folder, reason));
    }
    Ok(folders.into_iter().map(|(name, _)| name).collect())
}

/// Lists the images of one class folder, sorted by name; all else is counted.
fn listed(folder: &Path, label: usize, ignored: &mut usize) -> Result<Vec<ImageFile>> {
    let entries = entries(folder, ignored)?;
    let count = entries.len();
    let is_image = |name: &str| {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
    };
    let images: Vec<_> = entries
        .into_iter()
        .filter(|(name, is_folder)| !is_folder && is_image(name))
        .map(|(name, _)| ImageFile { path: folder.join(name), label })
        .collect();
    *ignored += count - images.len();
    Ok(images)
}

/// Returns the part of a class that belongs to the split, in the same order.
///
/// Broken images take part, so that repairing one moves no other to the other side.
fn held_out(class: Vec<ImageFile>, label: usize, split: Split, options: &ImageOptions) -> Vec<ImageFile> {
    let count = class.len();
    // One image of each class stays on either side, if there are two and any are wanted for testing.
    let wanted = (count as f64 * options.holdout).round() as usize;
    let kept = if options.holdout > 0.0 { wanted.max(1).min(count - 1) } else { 0 };
    let order = keyed(Purpose::Holdout, options.seed, [label, 0]).permutation(count);
    let test: BTreeSet<usize> = order.into_iter().take(kept).collect();
    let mine = |index: &usize| test.contains(index) == (split == Split::Test);
    class.into_iter().enumerate().filter(|(index, _)| mine(index)).map(|(_, image)| image).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};

    use super::*;

    /// A folder of images, each of its own colour; a name that ends in `!` is a broken image, in `/` a folder.
    fn folder(paths: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, path) in paths.iter().enumerate() {
            let full = folder.path().join(path.trim_end_matches('!'));
            fs::create_dir_all(if path.ends_with('/') { &full } else { full.parent().unwrap() }).unwrap();
            if path.ends_with('!') || full.extension().is_some_and(|extension| extension == "txt") {
                fs::write(&full, b"not an image").unwrap();
            } else if !path.ends_with('/') {
                RgbImage::from_pixel(5 + i as u32, 7, Rgb([i as u8 * 10, 0, 255])).save(&full).unwrap();
            }
        }
        folder
    }

    fn open(folder: &tempfile::TempDir, split: Split, options: ImageOptions) -> Result<FolderImages> {
        FolderImages::open(folder.path(), split, &options)
    }

    fn all() -> ImageOptions {
        ImageOptions { holdout: 0.0, ..Default::default() }
    }

    fn names(source: &FolderImages) -> Vec<String> {
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        source.images.iter().map(|image| name(&image.path)).collect()
    }

    #[test]
    fn classes_and_images_are_sorted_and_labelled() {
        let folder =
            folder(&["shoe/b.png", "shoe/a.JPG", "bag/c.webp", "bag/notes.txt", "readme.txt", ".git/", "bag/old/"]);
        let source = open(&folder, Split::Train, all()).unwrap();
        assert_eq!(source.class_names(), ["bag", "shoe"], "sorted classes");
        assert_eq!(names(&source), ["c", "a", "b"], "class by class, sorted");
        assert_eq!([0, 1, 2].map(|i| source.label(i)), [0, 1, 1], "labels");
        assert_eq!(source.ignored(), 4, "two texts, a hidden folder, a folder in a class");
        assert!(source.skipped().is_empty(), "nothing broken");
        let shape = ImageShape::new(4, 4, 3).unwrap();
        let mut out = vec![0.0; shape.elements()];
        source.load(0, shape, View::Fixed { mirrored: false }, &mut out).unwrap();
        assert!(
            (out[0] - (20.0 / 127.5 - 1.0)).abs() < 0.01 && (out[47] - 1.0).abs() < 0.01,
            "the colour of c: {out:?}"
        );
    }

    #[test]
    fn broken_images_are_named_and_left_out_or_stop_the_run() {
        let folder = folder(&["a/1.png", "a/2.png!", "a/3.png", "b/4.jpg!", "b/5.jpg"]);
        let checked = || ImageOptions { check: true, ..all() };
        let source = open(&folder, Split::Train, checked()).unwrap();
        assert_eq!(names(&source), ["1", "3", "5"], "the sound ones");
        let skipped: Vec<_> = source.skipped().iter().map(|skipped| skipped.path.clone()).collect();
        assert_eq!(skipped, [folder.path().join("a/2.png"), folder.path().join("b/4.jpg")], "both are named");
        assert!(source.skipped()[0].reason.contains("neither PNG"), "with the reason");
        let message = open(&folder, Split::Train, ImageOptions { strict: true, ..all() }).unwrap_err().to_string();
        assert!(message.contains("2.png") && message.contains("in all: 2"), "strict: {message}");
    }

    #[test]
    fn a_class_of_broken_images_is_an_error() {
        let folder = folder(&["a/1.png", "b/4.jpg!"]);
        let checked = ImageOptions { check: true, ..all() };
        let message = open(&folder, Split::Train, checked).unwrap_err().to_string();
        assert!(message.contains("`b`") && message.contains("broken"), "{message}");
    }

    #[test]
    fn train_and_test_folders_are_the_splits() {
        for test in ["test", "val"] {
            let folder = folder(&["train/a/1.png", "train/b/2.png", &format!("{test}/b/3.png")]);
            let source = |split| open(&folder, split, ImageOptions::default()).unwrap();
            assert_eq!(names(&source(Split::Train)), ["1", "2"], "all of the train folder");
            assert_eq!(names(&source(Split::Test)), ["3"], "the {test} folder");
            assert_eq!(source(Split::Test).label(0), 1, "labels are those of the train folder");
        }
        let folder = folder(&["train/a/1.png", "test/c/3.png"]);
        let message = open(&folder, Split::Test, all()).unwrap_err().to_string();
        assert!(message.contains("no class of that name"), "an unknown class: {message}");
    }

    #[test]
    fn a_class_may_be_called_train() {
        let folder = folder(&["bus/1.png", "train/2.png"]);
        assert_eq!(open(&folder, Split::Train, all()).unwrap().class_names(), ["bus", "train"], "both are classes");
    }

    #[test]
    fn a_share_of_each_class_is_held_out() {
        let paths: Vec<String> =
            (0..10).map(|i| format!("a/{i}.png")).chain((10..13).map(|i| format!("b/{i}.png"))).collect();
        let folder = folder(&paths.iter().map(String::as_str).collect::<Vec<_>>());
        let split = |split, seed| names(&open(&folder, split, ImageOptions { seed, holdout: 0.2, ..all() }).unwrap());
        let (train, test) = (split(Split::Train, 4), split(Split::Test, 4));
        assert_eq!((train.len(), test.len()), (10, 3), "two of ten and one of three");
        assert!(test.iter().all(|name| !train.contains(name)), "no image is in both");
        assert_eq!(split(Split::Test, 4), test, "the same seed, the same images");
        assert!((5..10).any(|seed| split(Split::Test, seed) != test), "other seeds, other images");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let empty = folder(&["a.txt"]);
        let message = open(&empty, Split::Train, all()).unwrap_err().to_string();
        assert!(message.contains("no sub-folder"), "no class: {message}");
        let message = open(&folder(&["a/1.png", "b/x.txt"]), Split::Train, all()).unwrap_err().to_string();
        assert!(message.contains("/b`") && message.contains("no image"), "an empty class: {message}");
        let message = open(&folder(&["a/1.png"]), Split::Test, all()).unwrap_err().to_string();
        assert!(message.contains("test split"), "nothing is held out: {message}");
        let missing = FolderImages::open(&empty.path().join("no"), Split::Train, &all()).unwrap_err().to_string();
        assert!(missing.contains("cannot list"), "no folder: {missing}");
    }

    #[test]
    fn unusable_options_are_refused() {
        let folder = folder(&["a/1.png"]);
        for (options, name) in [
            (ImageOptions { resize_ratio: 0.9, ..all() }, "resize_ratio"),
            (ImageOptions { resize_ratio: f64::NAN, ..all() }, "resize_ratio"),
            (ImageOptions { holdout: 1.0, ..all() }, "holdout"),
            (ImageOptions { class_names: Some(vec![]), ..all() }, "class_names"),
        ] {
            let message = open(&folder, Split::Train, options).unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
    }

    #[test]
    fn the_fingerprint_sees_images_labels_and_ratio() {
        let folder = folder(&["a/1.png", "a/2.png", "b/3.png"]);
        let print = |options| open(&folder, Split::Train, options).unwrap().fingerprint();
        let before = print(all());
        assert_eq!(print(all()), before, "nothing has changed");
        assert_ne!(print(ImageOptions { resize_ratio: 1.5, ..all() }), before, "another ratio");
        fs::rename(folder.path().join("a/2.png"), folder.path().join("b/2.png")).unwrap();
        assert_ne!(print(all()), before, "another label");
        fs::rename(folder.path().join("b/2.png"), folder.path().join("a/2.png")).unwrap();
        RgbImage::from_fn(15, 7, |x, y| Rgb([(x * 9) as u8, (y * 31) as u8, 9]))
            .save(folder.path().join("a/1.png"))
            .unwrap();
        assert_ne!(print(all()), before, "another image");
    }

    #[test]
    fn opening_reads_names_only_and_a_broken_image_names_itself_later() {
        let folder = folder(&["a/1.png", "a/2.png!", "b/3.jpg!"]);
        let source = open(&folder, Split::Train, all()).unwrap();
        assert_eq!((names(&source).len(), source.skipped().len()), (3, 0), "nothing was decoded");
        let shape = ImageShape::new(4, 4, 1).unwrap();
        let load = |index| source.load(index, shape, View::Fixed { mirrored: false }, &mut [0.0; 16]);
        load(0).unwrap();
        let error = load(1).unwrap_err();
        assert!(matches!(&error, Error::BrokenImage { path, .. } if path.ends_with("a/2.png")), "{error}");
        let message = error.to_string();
        assert!(message.contains("neither PNG") && message.contains("data.options.check"), "what to do: {message}");

        RgbImage::from_pixel(9, 9, Rgb([3, 4, 5])).save(folder.path().join("a/2.png")).unwrap();
        let repaired = open(&folder, Split::Train, all()).unwrap();
        assert_eq!(repaired.run_fingerprint(), source.run_fingerprint(), "a run resumes with a repaired image");
        assert_ne!(repaired.fingerprint(), source.fingerprint(), "its tokens are made anew");
    }
}
