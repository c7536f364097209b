//! Reads safetensors files, one tensor at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use burn::tensor::{BoolStore, DType, TensorData};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::entry::Entry;
use crate::{Error, Result};

/// Number of bytes of the header's length, which comes before the header.
pub(super) const PREFIX: u64 = 8;
/// The longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

type Contents = (Vec<(String, Entry)>, BTreeMap<String, String>);

/// Returns true if `head` is the start of a safetensors file: a length, then JSON.
pub(super) fn is_safetensors(head: &[u8]) -> bool {
    let length = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    length.is_some_and(|length| length <= MAX_HEADER) && head.get(8) == Some(&b'{')
}

/// Reads the header of a file. Tensors are read at their offsets rather than through a memory map: if the file is
/// overwritten while in use, a read returns an error, but an access to a map would end the program.
pub(super) fn open(path: &Path) -> Result<Contents> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let length = file.seek(SeekFrom::End(0)).map_err(Error::io("read", path))?;
    let file = Mutex::new(file);
    open_with(path, length, move |range| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        file.seek(SeekFrom::Start(range.start))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    })
}

/// Reads the header of a file in memory.
pub(super) fn from_bytes(name: &Path, bytes: Cow<'static, [u8]>) -> Result<Contents> {
    open_with(name, bytes.len() as u64, move |range| Ok(bytes[range.start as usize..range.end as usize].to_vec()))
}

/// Reads the header of a file of `length` bytes through a function that reads a range of them, never beyond the end.
pub(super) fn open_with<R>(path: &Path, length: u64, read: R) -> Result<Contents>
where
    R: Fn(Range<u64>) -> io::Result<Vec<u8>> + Send + Sync + 'static,
{
    let exact = move |range: Range<u64>| {
        let (bytes, expected) = (read(range.clone())?, range.end - range.start);
        match bytes.len() as u64 == expected {
            true => Ok(bytes),
            false => Err(io::Error::other(format!("{} bytes came for {expected}", bytes.len()))),
        }
    };
    let cut = || Error::format(path, "its header is longer than the file; is the download complete?");
    if length < PREFIX {
        return Err(cut());
    }
    let number = exact(0..PREFIX).map_err(Error::io("read", path))?;
    let number = number.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    let header_length = number.filter(|number| *number <= MAX_HEADER.min(length - PREFIX)).ok_or_else(cut)?;
    let data_start = PREFIX + header_length;
    let header = exact(PREFIX..data_start).map_err(Error::io("read", path))?;
    let metadata = parse(path, &header, length - data_start)?;
    Ok(contents(metadata, move |start, end| {
        exact(data_start + start as u64..data_start + end as u64).map_err(|error| error.to_string())
    }))
}

/// Parses a header. The parser checks that the tensors follow each other without gaps, and that shapes and lengths agree.
fn parse(path: &Path, header: &[u8], data_length: u64) -> Result<Metadata> {
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| Error::format(path, format!("its safetensors header is damaged: {error}")))?;
    if metadata.data_len() as u64 != data_length {
        let expected = metadata.data_len();
        return Err(Error::format(
            path,
            format!("its header lists {expected} bytes of tensors, found {data_length}; is the download complete?"),
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
