//! Pictures for the evaluation tools of others: `arr_0` pictures, `arr_1` labels.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use npyz::WriterBuilder;
use npyz::npz::NpzWriter;
use npyz::zip::write::FileOptions;

/// Writes pictures as they come to a temporary file, which gets its name when all are there.
///
/// `take` is called with a function that writes one picture.
pub(crate) fn write(
    path: &Path,
    labels: &[usize],
    [height, width]: [usize; 2],
    take: impl FnOnce(&mut dyn FnMut(&RgbImage) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = Partial(path.with_file_name(format!(".{name}.{}.partial", std::process::id())));
    let failed = || format!("cannot write `{}`", path.display());
    let mut file = NpzWriter::new(BufWriter::new(File::create(&partial.0).with_context(failed)?));
    // More than 4 GB in one array is usual: 50,000 pictures of 256x256 are 9.8.
    // No time of day either: the same command writes the same bytes.
    let options = FileOptions::default()
        .compression_method(npyz::zip::CompressionMethod::Stored)
        .last_modified_time(npyz::zip::DateTime::default())
        .large_file(true);

    let shape = [labels.len(), height, width, 3].map(|side| side as u64);
    let array = file.array("arr_0", options).with_context(failed)?;
    let mut pictures = array.default_dtype().shape(&shape).begin_nd().with_context(failed)?;
    let mut written = 0;
    take(&mut |picture| {
        written += 1;
        pictures.extend(picture.as_raw().iter().copied()).with_context(failed)
    })?;
    ensure!(written == labels.len(), "{written} pictures were made of {}", labels.len());
    pictures.finish().with_context(failed)?;

    let array = file.array("arr_1", options).with_context(failed)?;
    let mut numbers = array.default_dtype().shape(&[labels.len() as u64]).begin_nd().with_context(failed)?;
    numbers.extend(labels.iter().map(|label| *label as i64)).with_context(failed)?;
    numbers.finish().with_context(failed)?;
    let buffer = file.zip_writer().finish().with_context(failed)?;
    buffer.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).with_context(failed)?;
    std::fs::rename(&partial.0, path).with_context(failed)
}

/// A file that is removed unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Mostly there is none any more.
        let _ = std::fs::remove_file(&self.0);
    }
}
