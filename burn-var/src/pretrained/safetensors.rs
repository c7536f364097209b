//! Reading and writing safetensors files, one tensor at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::tensor::{BoolStore, DType, TensorData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use tempfile::NamedTempFile;

use super::StateDict;
use super::state_dict::Entry;
use crate::{Error, Result};

/// Length of the header's length field, in bytes.
const PREFIX: u64 = 8;
/// Longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

type Contents = (Vec<(String, Entry)>, BTreeMap<String, String>);

/// Returns true if a file that begins with `head` is a safetensors file: a length, then JSON.
pub(super) fn is_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|length| length <= MAX_HEADER) && head.get(8) == Some(&b'{')
}

/// Reads the header of a file.
///
/// Tensors are read at their offsets and not memory-mapped: a file that is overwritten while in use then gives an error,
/// where a map would end the program.
pub(super) fn open(path: &Path) -> Result<Contents> {
    let io = || Error::io("read", path);
    let mut file = File::open(path).map_err(io())?;
    let length = file.metadata().map_err(io())?.len();
    let mut number = [0; PREFIX as usize];
    file.read_exact(&mut number).map_err(io())?;
    let header_length = u64::from_le_bytes(number);
    if header_length > MAX_HEADER || header_length > length.saturating_sub(PREFIX) {
        return Err(Error::format(path, "its header is longer than the file; is the download complete?"));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(io())?;
    let data_start = PREFIX + header_length;
    let metadata = parse(path, &header, length - data_start)?;

    let file = Arc::new(Mutex::new(file));
    Ok(contents(metadata, move |start, end| {
        let mut bytes = vec![0; end - start];
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(data_start + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }))
}

/// Reads the header of a file in memory.
pub(super) fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Contents> {
    let cut = || Error::format(name, "its header is longer than the data");
    let number = bytes.first_chunk::<8>().ok_or_else(cut)?;
    let data_start = usize::try_from(u64::from_le_bytes(*number).saturating_add(PREFIX)).map_err(|_| cut())?;
    let header = bytes.get(PREFIX as usize..data_start).ok_or_else(cut)?;
    let metadata = parse(name, header, (bytes.len() - data_start) as u64)?;
    Ok(contents(metadata, move |start, end| Ok(bytes[data_start + start..data_start + end].to_vec())))
}

/// Parses a header. The parser checks that tensors are contiguous, and that shapes and lengths agree.
fn parse(path: &Path, header: &[u8], data_length: u64) -> Result<Metadata> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| Error::format(path, format!("its safetensors header is damaged: {error}")))?;
    if metadata.data_len() as u64 != data_length {
        let expected = metadata.data_len();
        return Err(Error::format(
            path,
            format!(
                "its header lists {expected} bytes of tensors, but it holds {data_length}; is the download complete?"
            ),
        ));
    }
    Ok(metadata)
}

fn contents<F>(metadata: Metadata, read: F) -> Contents
where
    F: Fn(usize, usize) -> std::result::Result<Vec<u8>, String> + Send + Sync + 'static,
{
    let read = Arc::new(read);
    let mut entries = Vec::new();
    for (key, info) in metadata.tensors() {
        let Some(dtype) = from_file(info.dtype) else {
            tracing::warn!("tensor `{key}` is skipped: element type {} is not supported", info.dtype);
            continue;
        };
        let (read, name, shape, (start, end)) = (read.clone(), key.clone(), info.shape.clone(), info.data_offsets);
        let read = move || {
            let bytes = read(start, end).map_err(|reason| format!("tensor `{name}` cannot be read: {reason}"))?;
            TensorData::try_from_bytes_vec(bytes, shape.clone(), dtype)
                .map_err(|error| format!("tensor `{name}` is damaged: {error}"))
        };
        entries.push((key, Entry { shape: info.shape.clone(), dtype, read: Arc::new(read) }));
    }
    let notes = metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    (entries, notes)
}

/// How [`save`] writes a file.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Rounds floats to half precision.
    pub half: bool,
    /// Entries for the metadata of the header. Models of this project store their configuration as JSON in `burn_var`.
    pub metadata: BTreeMap<String, String>,
}

/// Writes tensors as a safetensors file, one by one, so that at most one is copied in memory.
///
/// The file takes its name only when it is complete and synced; until then, and after an error, a file that was there
/// before stays as it was.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] if a tensor cannot be read from its own file.
pub fn save(dict: &StateDict, path: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
    let path = path.as_ref();
    // The rename would put a file in the place of `/dev/null`.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is a folder or a device, not a file");
        return Err(Error::io("write", path)(reason));
    }
    let mut file = BufWriter::new(temporary_beside(path).map_err(Error::io("create", path))?);
    write(dict, path, &mut file, options)?;
    let file = file.into_inner().map_err(|error| error.into_error());
    let synced = file.and_then(|file| file.as_file().sync_all().map(|()| file));
    synced.and_then(|file| Ok(file.persist(path)?)).map_err(Error::io("write", path))?;
    Ok(())
}

/// Creates a hidden file in the folder of `path`, which is removed on drop unless it is renamed.
fn temporary_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".burn-var-").suffix(".tmp");
    // By default only the owner may read it. The file that it becomes gets what the umask allows, as any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Serializes with sorted keys: metadata comes from a hash map, and the same model must give the same file.
fn sorted_json(metadata: &Metadata) -> serde_json::Result<Vec<u8>> {
    let entries: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_value(serde_json::to_value(metadata)?)?;
    serde_json::to_vec(&entries)
}

/// Writes the contents of the file that will be called `path`.
fn write(dict: &StateDict, path: &Path, file: &mut impl Write, options: &SaveOptions) -> Result<()> {
    let target = |dtype: DType| match dtype {
        DType::F64 | DType::F32 | DType::BF16 if options.half => DType::F16,
        dtype => dtype,
    };
    let mut infos = Vec::new();
    let mut end = 0;
    // Wide elements go first, so that every tensor is aligned to its element size.
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

fn from_file(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
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
        StateDict::generated("made", shapes.map(|(key, shape)| (key.to_owned(), shape)), |key, shape| {
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
    fn a_saved_file_reads_back_with_its_notes() {
        let folder = tempfile::tempdir().unwrap();
        let options = SaveOptions { half: false, metadata: [("burn_var".to_owned(), "{}".to_owned())].into() };
        let path = saved(folder.path(), &options);
        let bytes = std::fs::read(&path).unwrap();
        for read in [StateDict::open(&path).unwrap(), StateDict::from_safetensors("memory", bytes).unwrap()] {
            assert_eq!(read.keys().collect::<Vec<_>>(), ["a.weight", "b", "scalar"], "names");
            assert_eq!(read.shape("a.weight"), Some([2, 3].as_slice()), "shape");
            assert_eq!(read.metadata()["burn_var"], "{}", "the notes");
            for key in read.keys() {
                assert_eq!(read.tensor(key).unwrap(), dict().tensor(key).unwrap(), "values of {key}");
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no remains of the partial file");
    }

    #[test]
    fn the_same_model_gives_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = ('a'..='h').map(|note| (note.to_string(), note.to_string())).collect();
        let options = SaveOptions { half: false, metadata };
        let bytes = |name: &str| {
            let path = folder.path().join(name);
            save(&dict(), &path, &options).unwrap();
            std::fs::read(path).unwrap()
        };
        assert!(bytes("first") == bytes("second"), "two files of one dictionary with eight notes differ");
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
        File::create(&plain).unwrap();
        assert_eq!(mode(&saved(folder.path(), &SaveOptions::default())), mode(&plain), "what the umask allows");
    }

    #[test]
    fn half_precision_halves_floats() {
        let folder = tempfile::tempdir().unwrap();
        let read = StateDict::open(saved(folder.path(), &SaveOptions { half: true, ..Default::default() })).unwrap();
        assert_eq!(read.dtype("b"), Some(DType::F16), "element type");
        let values = read.tensor("b").unwrap().try_into_vec_as::<f32>().unwrap();
        assert_eq!(values, [-1.0, -0.5, 0.0, 0.5, 1.0], "values that half precision holds exactly");
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
        assert!(error.contains("`a` was made with 1 values"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "the good file is intact");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no remains of the partial file");
        assert!(save(&dict(), folder.path().join("none/m.safetensors"), &SaveOptions::default()).is_err(), "no folder");
    }
}
