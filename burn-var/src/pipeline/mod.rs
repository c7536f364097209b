//! The pipeline: from files to images in a few lines.
//!
//! ```no_run
//! use burn_var::prelude::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pipeline = Pipeline::from_pretrained("models/fashion-mnist")?;
//! for (i, image) in pipeline.generate(&Request::classes([3, 3, 7]).seed(42))?.into_iter().enumerate() {
//!     image.save(format!("{i}.png"))?;
//! }
//! # Ok(())
//! # }
//! ```

mod builder;
mod classes;
#[cfg(feature = "hf-hub")]
mod download;
mod family;
mod files;
mod hub;
mod model;
mod request;
mod run;
mod settings;

pub use builder::PipelineBuilder;
pub use classes::ClassNames;
pub use family::load_tokenizer;
pub use files::ModelFiles;
pub use hub::resolve;
pub use model::ModelPair;
pub use request::Request;
pub use run::{Pipeline, Step, Steps};
pub use settings::Settings;
