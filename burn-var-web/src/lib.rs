//! The model in a browser: what the page's worker calls. `build.sh` makes a folder for any static host; see `docs/web.md`.
//!
//! [`Model`] is plain Rust over the pipeline, and is tested natively; `bindings` exports it to JavaScript.

#[cfg(target_family = "wasm")]
pub mod bindings;
mod description;
mod model;
mod wanted;

pub use description::Description;
pub use model::{Canvas, Model, Stage};
pub use wanted::Wanted;
