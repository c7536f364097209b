//! What the parity tests share: the golden cases, the recipe for their weights, and comparing with tolerances.

pub mod checks;
pub mod golden;
pub mod gradients;
pub mod weightgen;
