//! Writes safetensors files, one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use burn::tensor::{BoolStore, DType};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::safetensors::PREFIX;
use super::{FloatType, StateDict};
use crate::{Error, Result};

/// Options of [`save()`]. The default keeps every tensor as it is and writes no metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SaveOptions {
    /// Element type of the floats in the file; `None` keeps the type of each tensor.
    pub precision: Option<FloatType>,
    /// Metadata for the file's header, by name.
    pub metadata: BTreeMap<String, String>,
}

/// Writes tensors as a safetensors file, one at a time, so that at most one copy is in memory.
///
/// The file gets its name when it is complete and synced. Until then, and after an error, a file that had this name
/// before is unchanged.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; [`Error::Format`] if a tensor cannot be read from its source.
pub fn save(dict: &StateDict, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
    let path = path.as_ref();
    replace(path, |file| write(dict, path, file, options))
}

/// Replaces a file by what `fill` writes, once it is complete.
#[cfg(not(target_family = "wasm"))]
fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    // A rename would replace `/dev/null` by a file.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file but a folder or a device");
        return Err(Error::io("write", path)(reason));
    }
    let mut file = std::io::BufWriter::new(temporary_beside(path).map_err(Error::io("create", path))?);
    fill(&mut file)?;
    let file = file.into_inner().map_err(|error| Error::io("write", path)(error.into_error()))?;
    file.as_file().sync_all().map_err(Error::io("write", path))?;
    file.persist(path).map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}

/// Returns an error: a browser has no files.
#[cfg(target_family = "wasm")]
fn replace(path: &Path, _fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    Err(Error::io("write", path)(std::io::ErrorKind::Unsupported.into()))
}

/// Creates a hidden file in the folder of `path`, which is removed on drop unless it is renamed.
#[cfg(not(target_family = "wasm"))]
fn temporary_beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".burn-var-").suffix(".tmp");
    // By default only the owner may read it. The file that it becomes gets what the umask allows, as any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Returns JSON with sorted keys: the metadata comes from a hash map, but the same model must give the same file.
fn sorted_json(metadata: &Metadata) -> serde_json::Result<Vec<u8>> {
    let entries: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_value(serde_json::to_value(metadata)?)?;
    serde_json::to_vec(&entries)
}

/// Writes the contents of the file that will be called `path`.
fn write(dict: &StateDict, path: &Path, file: &mut dyn Write, options: &SaveOptions) -> Result<()> {
    let target = |dtype: DType| match dtype {
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => options.precision.map_or(dtype, FloatType::dtype),
        dtype => dtype,
    };
    let mut infos = Vec::new();
    let mut end = 0;
    // Wide elements first keeps every tensor aligned to its element.
    let mut order: Vec<_> = dict.entries().iter().collect();
    order.sort_by_key(|(_, entry)| std::cmp::Reverse(target(entry.dtype).size()));
    for (key, entry) in &order {
        let dtype = target(entry.dtype);
        let start = end;
        end += entry.shape.iter().product::<usize>() * dtype.size();
        let dtype = to_file(dtype).ok_or_else(|| {
            Error::format(dict.origin(), format!("`{key}` has element type {dtype:?}, which cannot be saved"))
        })?;
        infos.push(((*key).clone(), TensorInfo { dtype, shape: entry.shape.clone(), data_offsets: (start, end) }));
    }
    let notes: HashMap<_, _> = options.metadata.clone().into_iter().collect();
    let damaged = |error: String| Error::format(dict.origin(), error);
    let metadata = Metadata::new((!notes.is_empty()).then_some(notes), infos).map_err(|e| damaged(e.to_string()))?;
    let mut header = sorted_json(&metadata).map_err(|e| damaged(e.to_string()))?;
    header.resize(header.len().next_multiple_of(PREFIX as usize), b' ');

    let io = || Error::io("write", path);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    file.write_all(&header).map_err(io())?;
    for (key, entry) in order {
        let data = dict.tensor(key)?.try_cast(target(entry.dtype)).map_err(|e| damaged(format!("`{key}`: {e}")))?;
        file.write_all(data.as_bytes()).map_err(io())?;
    }
    Ok(())
}

fn to_file(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native) => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn dict() -> StateDict {
        let shapes = [("a.weight", vec![2, 3]), ("b", vec![5]), ("scalar", vec![])];
        StateDict::generated("test", shapes.map(|(key, shape)| (key.to_owned(), shape)), |key, shape| {
            (0..shape.iter().product()).map(|i| i as f32 * 0.5 - key.len() as f32).collect()
        })
        .unwrap()
    }

    fn saved(folder: &Path, options: &SaveOptions) -> PathBuf {
        let path = folder.join("m.safetensors");
        save(&dict(), &path, options).unwrap();
        path
    }

    #[test]
    fn a_saved_file_reads_back_with_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let options = SaveOptions { precision: None, metadata: [("burn_var".to_owned(), "{}".to_owned())].into() };
        let path = saved(folder.path(), &options);
        let bytes = std::fs::read(&path).unwrap();
        for read in [StateDict::open(&path).unwrap(), StateDict::from_safetensors("memory", bytes).unwrap()] {
            assert_eq!(read.keys().collect::<Vec<_>>(), ["a.weight", "b", "scalar"], "names");
            assert_eq!(read.shape("a.weight"), Some([2, 3].as_slice()), "shape");
            assert_eq!(read.metadata()["burn_var"], "{}", "the metadata");
            for key in read.keys() {
                assert_eq!(read.tensor(key).unwrap(), dict().tensor(key).unwrap(), "values of {key}");
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn the_same_model_gives_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = ('a'..='h').map(|name| (name.to_string(), name.to_string())).collect();
        let options = SaveOptions { precision: None, metadata };
        let bytes = |name: &str| {
            let path = folder.path().join(name);
            save(&dict(), &path, &options).unwrap();
            std::fs::read(path).unwrap()
        };
        assert!(bytes("first") == bytes("second"), "two files of one dictionary with eight entries of metadata differ");
    }

    #[test]
    fn names_may_have_the_length_that_the_system_allows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a".repeat(255));
        save(&dict(), &path, &SaveOptions::default()).unwrap();
        assert!(StateDict::open(&path).is_ok(), "a name of 255 bytes");
    }

    #[test]
    #[cfg(unix)]
    fn permissions_are_those_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        let plain = folder.path().join("plain");
        std::fs::File::create(&plain).unwrap();
        assert_eq!(mode(&saved(folder.path(), &SaveOptions::default())), mode(&plain), "what the umask allows");
    }

    #[test]
    fn floats_are_rounded_to_the_precision_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let types = [(FloatType::F32, DType::F32), (FloatType::F16, DType::F16), (FloatType::Bf16, DType::BF16)];
        for (precision, dtype) in types {
            let options = SaveOptions { precision: Some(precision), ..Default::default() };
            let read = StateDict::open(saved(folder.path(), &options)).unwrap();
            assert_eq!(read.dtype("b"), Some(dtype), "element type");
            let values = read.tensor("b").unwrap().try_into_vec_as::<f32>().unwrap();
            assert_eq!(values, [-1.0, -0.5, 0.0, 0.5, 1.0], "values that {dtype:?} holds exactly");
        }
    }

    #[test]
    fn without_a_precision_every_tensor_keeps_its_type() {
        let folder = tempfile::tempdir().unwrap();
        let half = SaveOptions { precision: Some(FloatType::F16), ..Default::default() };
        let read = StateDict::open(saved(folder.path(), &half)).unwrap();
        let again = folder.path().join("again.safetensors");
        save(&read, &again, &SaveOptions::default()).unwrap();
        assert_eq!(StateDict::open(again).unwrap().dtype("b"), Some(DType::F16), "still half precision");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path(), &SaveOptions::default());
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = StateDict::open(&path).err().unwrap_or_else(|| panic!("{length} bytes were accepted"));
            assert!(error.to_string().contains("m.safetensors"), "the file is named: {error}");
            let error = StateDict::from_safetensors("memory", bytes[..length].to_vec());
            assert!(error.is_err(), "{length} bytes in memory were accepted");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path(), &SaveOptions::default());
        let before = std::fs::read(&path).unwrap();
        let broken = StateDict::generated("broken", [("a".to_owned(), vec![3])], |_, _| vec![0.0]).unwrap();
        let error = save(&broken, &path, &SaveOptions::default()).unwrap_err().to_string();
        assert!(error.contains("`a` was generated with 1 values"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "the good file is intact");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial file is left");
        assert!(save(&dict(), folder.path().join("none/m.safetensors"), &SaveOptions::default()).is_err(), "no folder");
    }
}
