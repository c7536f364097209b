//! AID-VAR: a small network that corrects a frozen transformer from scale to scale.

mod augment;
mod heads;
mod injector;
#[cfg(feature = "metrics")]
mod projector;
mod safe_norm;
mod soft;

pub use augment::Augment;
pub use heads::{HeadVariant, Heads, HeadsConfig, HingeReduction, generator_loss};
pub use injector::{Injector, InjectorConfig, InjectorResize};
#[cfg(feature = "metrics")]
pub use projector::{Projector, VitProjector};
pub use safe_norm::SafeLayerNorm;
pub use soft::{SoftCanvas, soft_codes};
