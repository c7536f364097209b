//! Reads safetensors files, one tensor at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
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
