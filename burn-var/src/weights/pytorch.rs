//! Reads checkpoints in the formats of `torch.save`.

use std::path::Path;
use std::sync::Arc;

use burn::store::bridge;
use burn::store::pytorch_reader::{PytorchError, PytorchReader};

use super::entry::Entry;
use crate::{Error, Result};

/// Returns the tensors of a `.pth` file under their dotted path through the file's dictionaries. Reads only the pickle;
/// a tensor is read when it is asked for.
pub(super) fn open(path: &Path) -> Result<Vec<(String, Entry)>> {
    let reader = PytorchReader::new(path).map_err(|error| describe(path, error))?;
    let entries = reader.into_tensors().into_iter().map(|(key, tensor)| {
        let tensor = bridge::from_pytorch(tensor);
        let (shape, dtype) = (tensor.shape.to_vec(), tensor.dtype);
        let read = move || bridge::to_data(&tensor).map_err(|error| error.to_string());
        (key, Entry { shape, dtype, read: Arc::new(read) })
    });
    Ok(entries.collect())
}

fn describe(path: &Path, error: PytorchError) -> Error {
    match error {
        PytorchError::Io(source) => Error::Io { action: "read", path: path.into(), source },
        PytorchError::Zip(error) => {
            Error::format(path, format!("its zip archive cannot be read ({error}); is the download complete?"))
        }
        PytorchError::Pickle(error) => {
            let advice = "save the model's `state_dict()` (tensors by name) rather than the model itself";
            Error::format(path, format!("its pickle cannot be read ({error}); if the file is complete, {advice}"))
        }
        error => Error::format(path, error.to_string()),
    }
}
