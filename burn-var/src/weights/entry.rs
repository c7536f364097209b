//! Tensors of a file that are not read yet.

use std::sync::Arc;

use burn::tensor::{DType, TensorData};

/// Reads one tensor; the error describes the defect of the file.
pub(super) type ReadTensor = dyn Fn() -> std::result::Result<TensorData, String> + Send + Sync;

/// One tensor of a file, not read yet.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) read: Arc<ReadTensor>,
}
