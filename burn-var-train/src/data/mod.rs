//! Images, the order in which training sees them, and caches of their tokens.
//!
//! Nothing here has state that a resumed run would have to restore: the images of a step, their crops and mirrorings
//! depend on the seed and the number of the step alone, whatever the number of threads.

mod batch;
mod decode;
mod fingerprint;
mod folder;
mod idx;
mod part;
mod random;
mod sampler;
mod scale_sampling;
mod source;
mod stream;
mod token_cache;
mod tokens;
mod view;

pub use batch::{BatchLoader, HostBatch, ImageBatch, PrefetchedBatches};
pub use decode::load_image;
pub use fingerprint::Fingerprint;
pub use folder::FolderImages;
pub use idx::{FASHION_MNIST_CLASSES, IdxImages};
pub use part::Part;
pub use sampler::BatchOrder;
pub use scale_sampling::{ScaleSampling, SideGroup};
pub use source::{ImageOptions, ImageShape, ImageSource, SkippedImage, Split, open_images};
pub(crate) use stream::{ImageStream, TokenStream};
pub use token_cache::{TokenBatch, TokenCache, TokenCacheSpec, TokenCacheWriter, VariantChoice};
pub use tokens::Supervision;
pub(crate) use tokens::{Encoding, cached_tokens};
pub use view::View;
