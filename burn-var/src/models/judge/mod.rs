//! Judges: small networks of different kind, whose features evaluate generated images.
//!
//! Settings that were chosen by one network look better to that network than they are. A comparison is therefore made
//! through several networks by which nothing was chosen.

mod config;
mod network;
mod weights;

pub use config::{JudgeConfig, JudgeNetwork};
pub use network::Judge;
