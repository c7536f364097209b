//! Checkpoints: reading them by name, loading models from them, and saving models.
//!
//! Models implement [`Pretrained`]: `Var::load(&dict, &device)` loads one with the configuration that is in the file
//! or follows from its shapes, and `model.save(path, &options)` writes one. [`MODELS`] lists all of them, for programs
//! that read any checkpoint.
//!
//! For other modules, [`load()`], [`export()`] and [`save()`] do the same with an explicit [`KeyMap`]. A [`StateDict`] gives
//! access to the tensors of a file by name, and reads a tensor only when asked for it. [`load()`] compares all names and
//! shapes before it reads the first tensor, and reports everything that is missing, unused or mis-shaped in one
//! [`LoadReport`]. It reads one tensor at a time, so a checkpoint is in memory once.

mod entry;
mod float_type;
mod generation_config;
mod key_map;
mod kind;
mod load;
mod models;
pub(crate) mod note;
mod pretrained;
#[cfg(feature = "pytorch")]
mod pytorch;
mod report;
mod safetensors;
mod save;
pub(crate) mod shapes;
mod state_dict;

pub use float_type::FloatType;
pub use generation_config::GenerationConfig;
pub use key_map::KeyMap;
pub use kind::Kind;
pub use load::{LoadOptions, cast_linear, export, load};
pub use models::{AnyModel, MODELS};
pub use pretrained::Pretrained;
pub use report::{LoadReport, MisShaped};
pub use save::{SaveOptions, save};
pub use state_dict::StateDict;
