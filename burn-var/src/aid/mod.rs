//! AID-VAR: a small network that corrects a frozen transformer from scale to scale.

mod augment;
mod heads;
mod injector;
mod projector;
mod safe_norm;
mod soft;

pub use augment::Augment;
pub use heads::{HeadVariant, Heads, HeadsConfig, HingeReduction, generator_loss};
pub use injector::{Injector, InjectorConfig, InjectorDropout, InjectorResize};
pub use projector::{Projector, VitProjector};
pub use safe_norm::SafeLayerNorm;
pub use soft::{SoftCanvas, soft_codes};
