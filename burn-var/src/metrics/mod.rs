//! Measures of pictures and of features, on the host and in double precision where sums get long.

mod eigen;
mod frechet;
mod image;
mod lpips;
mod neighbours;
mod rows;

pub use frechet::{FeatureStats, Gaussian, frechet_distance};
pub use image::{MeanPsnr, psnr, ssim};
pub use lpips::Lpips;
pub use neighbours::{NearCopies, NeighbourIndex, Neighbours};
