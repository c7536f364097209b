//! Metrics of images and features, computed on the host; long sums are in double precision.

mod frechet;
mod image;
mod inception_score;
mod iscs;
mod kid;
mod lpips;
mod manifold;
mod neighbors;
mod rows;
mod spectrum;

pub use frechet::{FeatureStats, Gaussian, frechet_distance};
pub use image::{MeanPsnr, psnr, ssim};
pub use inception_score::{InceptionScore, Splits};
pub use iscs::{Iscs, IscsScore, Side, Transition};
pub use kid::{Kid, Subsets};
pub use lpips::Lpips;
pub use manifold::{Manifold, Membership, PrecisionRecall};
pub use neighbors::{NearCopies, NeighborIndex, Neighbors};
pub use spectrum::Spectrum;
