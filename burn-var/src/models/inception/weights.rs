//! The weights file of FID's Inception, `pt_inception-2015-12-05-6726825d.pth`.

use burn::tensor::Device;

use super::{KeyMap, LoadOptions, StateDict, load};
use crate::Result;
use crate::encoder::Inception;

/// The names in pytorch-fid's file: those of the module itself.
pub fn inception_keys() -> KeyMap {
    KeyMap::new("FID Inception v3", &["num_batches_tracked"], str::to_owned)
}

/// The network with the weights of a file, strictly.
///
/// # Errors
/// [`crate::Error::Weights`] if they do not fit, as those of torchvision's own Inception; see [`load`].
pub fn load_inception(dict: &StateDict, device: &Device) -> Result<Inception> {
    Ok(load(Inception::init_zeros(device), dict, &inception_keys(), LoadOptions::default())?.0)
}
