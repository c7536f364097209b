//! AID-VAR: a guidance injector that corrects a frozen transformer from scale to scale, and its discriminator.

mod augment;
mod guidance;
mod heads;
mod heads_weights;
mod injector;
#[cfg(feature = "metrics")]
mod projector;
mod r1;
mod safe_norm;
mod soft;
mod weights;

pub use augment::Augment;
pub use guidance::{Aid, AidWeight, Uncertainty};
pub use heads::{DiscriminatorHeads, DiscriminatorHeadsConfig, HeadVariant, HingeReduction, generator_loss};
pub use injector::{Injector, InjectorConfig, InjectorDropout, InjectorResize};
#[cfg(feature = "metrics")]
pub use projector::{Projector, VitProjector};
pub use safe_norm::SafeLayerNorm;
pub use soft::{SoftCanvas, soft_codes};
