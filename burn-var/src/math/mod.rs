//! Fixed linear maps: resizing and the discrete cosine transform.

mod constants;
mod dct;
mod resize;

pub(crate) use constants::Constants;
pub use dct::dct_matrix;
pub use resize::Resize;
