//! A small convolutional classifier that scores generated images where Inception's features mean little.

mod network;
mod weights;

pub(super) use network::Unit;
pub use network::{Classifier, ClassifierConfig};
