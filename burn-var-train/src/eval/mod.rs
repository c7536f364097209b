//! Evaluation: sets of pictures, what networks see in them, and the figures that compare them.

mod features;
mod npz;
mod pictures;
mod statistics;
mod table;

pub use features::{ClassifierFeatures, FeatureSource, Features, InceptionFeatures, VitFeatures};
pub use npz::{NpzBuilder, NpzFile, SampleFile, write_samples};
pub use pictures::{DataPictures, PictureSet, PngFolder};
pub use statistics::Statistics;
pub use table::FeatureTable;
