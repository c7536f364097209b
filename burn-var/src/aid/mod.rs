//! AID-VAR: a small network that corrects a frozen transformer from scale to scale.

mod heads;
mod injector;
mod safe_norm;
mod soft;

pub use heads::{HeadVariant, Heads, HeadsConfig, HingeReduction, generator_loss};
pub use injector::{Injector, InjectorConfig, InjectorResize};
pub use safe_norm::SafeLayerNorm;
pub use soft::{SoftCanvas, soft_codes};
