//! Checkpoints: reading them by name, filling modules from them strictly, and writing them.
//!
//! A [`StateDict`] is a file seen as named tensors, none of which is read before it is asked for. A [`KeyMap`] says
//! how a format names the parameters of a module, and [`load`] brings the two together: it reports everything that is
//! missing, unused or mis-shaped in one [`LoadReport`], before the first weight is read. Then it reads one tensor at
//! a time, so a checkpoint is in memory once. [`export`] is the way back.

#[cfg(feature = "metrics")]
mod classifier;
mod heads;
#[cfg(feature = "metrics")]
mod inception;
mod injector;
mod key_map;
mod load;
mod lora;
mod model_config;
#[cfg(feature = "pytorch")]
mod pytorch;
mod report;
mod safetensors;
mod state_dict;
mod usage;
mod var;
#[cfg(feature = "metrics")]
mod vit;
mod vqvae;

#[cfg(feature = "metrics")]
pub use classifier::{load_classifier, save_classifier};
pub use heads::{heads_keys, load_heads, save_heads};
#[cfg(feature = "metrics")]
pub use inception::{inception_keys, load_inception};
pub use injector::{injector_config, injector_keys, injector_weight, load_injector, save_injector};
pub use key_map::KeyMap;
pub use load::{LoadOptions, WeightType, cast_linear, export, load};
pub use lora::{load_lora, save_lora};
pub use model_config::ModelConfig;
pub use report::{LoadReport, MisShaped};
pub use safetensors::{SaveOptions, save};
pub use state_dict::{Section, StateDict};
pub use usage::Usage;
pub use var::{load_var, load_var_with, save_var, var_config, var_keys};
#[cfg(feature = "metrics")]
pub use vit::{load_vit, save_vit, vit_config, vit_keys};
pub use vqvae::{load_vqvae, save_vqvae, vqvae_config, vqvae_keys};
