//! AID-VAR: a guidance injector that corrects a frozen transformer from scale to scale, and its discriminator.

#[cfg(feature = "training")]
mod augment;
mod guidance;
#[cfg(feature = "training")]
mod heads;
#[cfg(feature = "training")]
mod heads_weights;
mod injector;
#[cfg(feature = "training")]
mod projector;
#[cfg(feature = "training")]
mod r1;
mod safe_norm;
mod soft;
mod weights;

#[cfg(feature = "training")]
pub use augment::Augment;
pub use guidance::{Aid, AidWeight, Uncertainty};
#[cfg(feature = "training")]
pub use heads::{DiscriminatorHeads, DiscriminatorHeadsConfig, HeadVariant, HingeReduction, generator_loss};
pub use injector::{Injector, InjectorConfig, InjectorDropout, InjectorResize};
#[cfg(feature = "training")]
pub use projector::{Projector, VitProjector};
pub use safe_norm::SafeLayerNorm;
pub use soft::{SoftCanvas, soft_codes};
