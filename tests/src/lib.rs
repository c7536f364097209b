//! Shared parts of the parity tests: the golden cases, the recipe for their weights, and comparison with tolerances.

pub mod checks;
pub mod coverage;
pub mod golden;
pub mod gradients;
#[cfg(feature = "wgpu")]
pub mod launches;
pub mod tiny;
pub mod weightgen;
