//! A small convolutional classifier that judges generated images where Inception has nothing to say.

mod network;
mod weights;

pub use network::{Classifier, ClassifierConfig};
