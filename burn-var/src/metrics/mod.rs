//! Measures of pictures and of features, on the host and in double precision where sums get long.

mod frechet;
mod image;
mod inception_score;
mod iscs;
mod kid;
mod lpips;
mod manifold;
mod neighbours;
mod rows;
mod spectrum;

pub use frechet::{FeatureStats, Gaussian, frechet_distance};
pub use image::{MeanPsnr, psnr, ssim};
pub use inception_score::{InceptionScore, Splits};
pub use iscs::{Iscs, IscsScore, Side, Transition};
pub use kid::{Kid, Subsets};
pub use lpips::Lpips;
pub use manifold::{Manifold, Membership, PrecisionRecall};
pub use neighbours::{NearCopies, NeighbourIndex, Neighbours};
pub use spectrum::Spectrum;
