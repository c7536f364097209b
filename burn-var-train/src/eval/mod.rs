//! Evaluation: sets of images, the networks that compute their features, and the measures that compare them.

mod copies;
mod features;
mod identity;
mod images;
mod judged;
mod npz;
mod recognition;
mod scores;
mod shard;
mod statistics;
mod table;

pub use copies::{Copies, evenly};
pub use features::{ClassifierExtractor, FeatureExtractor, Features, InceptionExtractor, JudgeExtractor, VitExtractor};
pub use identity::NetworkIdentity;
pub use images::{DataImages, ImageSet, PngFolder};
pub use judged::{Distance, MethodDistances, Ratios, geometric_mean};
pub use npz::{NpzBuilder, NpzFile, SampleFile, write_samples};
pub use recognition::{ClassRecognition, Recognition, confidences};
pub use scores::{Comparison, Interval, Options, Reference, Scores, frechet_by_class, resampled_frechet, score};
pub use shard::{SampleShard, Shard, merge_samples, write_shard};
pub use statistics::Statistics;
pub use table::FeatureTable;
