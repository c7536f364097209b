//! Evaluation: sets of pictures, what networks see in them, and the figures that compare them.

mod copies;
mod features;
mod npz;
mod pictures;
mod recognition;
mod scores;
mod statistics;
mod table;

pub use copies::{Copies, evenly};
pub use features::{ClassifierFeatures, FeatureSource, Features, InceptionFeatures, VitFeatures};
pub use npz::{NpzBuilder, NpzFile, SampleFile, write_samples};
pub use pictures::{DataPictures, PictureSet, PngFolder};
pub use recognition::{ClassRecognition, Recognition, confidences};
pub use scores::{
    Comparison, Interval, Options, Reference, Scores, frechet_by_class, resampled_frechet, score, statistics,
};
pub use statistics::Statistics;
pub use table::FeatureTable;
