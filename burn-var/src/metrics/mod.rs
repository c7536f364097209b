//! Measures of pictures and of features: pure functions of what they are given, on the host, in double precision
//! where sums get long.

mod eigen;
mod frechet;
mod image;

pub use frechet::{FeatureStats, Gaussian, frechet_distance};
pub use image::{MeanPsnr, psnr, ssim};
