//! Distances between an image and its reconstruction: PSNR and SSIM.
//!
//! Both expect the values that a viewer displays, so clamp and round to 8 bits first and pass a range of 255.

use crate::{Error, Result};

/// Gaussian window of SSIM: 11 pixels wide, standard deviation 1.5.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const K1: f64 = 0.01;
const K2: f64 = 0.03;

/// Computes the peak signal-to-noise ratio of one image in dB, `10 log10(range^2 / MSE)`, with the error over all
/// pixels and channels. `range` is the width of the range of values: 255 for 8 bits, 2 for `[-1, 1]`. Identical images
/// give infinity.
///
/// # Errors
/// [`Error::Shape`] if the images differ in length or are empty; [`Error::Config`] if `range` is not positive.
pub fn psnr(a: &[f32], b: &[f32], range: f64) -> Result<f64> {
    check_range(range)?;
    if a.is_empty() || a.len() != b.len() {
        return Err(Error::shape("second image", format!("{} numbers, at least one", a.len()), [b.len()]));
    }
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    Ok(10.0 * (range * range * a.len() as f64 / squares).log10())
}

/// Mean PSNR over images. Identical images, whose PSNR is infinite, are counted apart and left out of the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MeanPsnr {
    sum: f64,
    count: usize,
    identical: usize,
}

impl MeanPsnr {
    /// Adds the PSNR of one image.
    pub fn push(&mut self, psnr: f64) {
        if psnr == f64::INFINITY {
            self.identical += 1;
        } else {
            self.sum += psnr;
            self.count += 1;
        }
    }

    /// Returns the mean in dB over the images that differ from their original; infinity if none does.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { f64::INFINITY } else { self.sum / self.count as f64 }
    }

    /// Returns the number of images that were identical to their original.
    pub fn identical(&self) -> usize {
        self.identical
    }
}

/// Computes the structural similarity of one image, the mean over positions and channels: 1 for identical images.
///
/// Wang et al. 2004, equation 13, with the authors' settings: Gaussian window of 11x11 with standard deviation 1.5, `K1
/// = 0.01`, `K2 = 0.03`, population (co)variances, only positions where the window fits. This is scikit-image's
/// `gaussian_weights=True, use_sample_covariance=False`; its default, a uniform 7x7 window, differs in the third digit.
///
/// `a` and `b` are `[channels, height, width]`; `range` is as for [`psnr`].
///
/// # Errors
/// [`Error::Shape`] if the lengths do not fit or a side is below 11; [`Error::Config`] if `range` is not positive.
pub fn ssim(a: &[f32], b: &[f32], [channels, height, width]: [usize; 3], range: f64) -> Result<f64> {
    check_range(range)?;
    if channels == 0 || height < WINDOW || width < WINDOW {
        let expected = format!("at least one channel of {WINDOW}x{WINDOW} pixels, the window of SSIM");
        return Err(Error::shape("image", expected, [channels, height, width]));
    }
    for (name, image) in [("first image", a), ("second image", b)] {
        if image.len() != channels * height * width {
            let expected = format!("{channels} x {height} x {width} numbers");
            return Err(Error::shape(name, expected, [image.len()]));
        }
    }
    let window = Window { taps: gaussian(), height, width };
    let (c1, c2) = ((K1 * range).powi(2), (K2 * range).powi(2));
    let plane = height * width;
    let mut sum = 0.0;
    for (a, b) in a.chunks_exact(plane).zip(b.chunks_exact(plane)) {
        let mean_of = |f: fn(f64, f64) -> f64| {
            window.means(a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).collect())
        };
        let (mean_a, mean_b) = (mean_of(|a, _| a), mean_of(|_, b| b));
        let (square_a, square_b, product) = (mean_of(|a, _| a * a), mean_of(|_, b| b * b), mean_of(|a, b| a * b));
        for (i, (ma, mb)) in mean_a.iter().zip(&mean_b).enumerate() {
            let (var_a, var_b, cov) = (square_a[i] - ma * ma, square_b[i] - mb * mb, product[i] - ma * mb);
            sum += (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (var_a + var_b + c2));
        }
    }
    Ok(sum / (channels * (height - WINDOW + 1) * (width - WINDOW + 1)) as f64)
}

fn check_range(range: f64) -> Result<()> {
    if range.is_finite() && range > 0.0 {
        return Ok(());
    }
    Err(Error::config("range of the values", range, "a positive number: 255 for 8 bits, 2 for [-1, 1]"))
}

fn gaussian() -> [f64; WINDOW] {
    let tap = |i: usize| (-(i as f64 - (WINDOW / 2) as f64).powi(2) / (2.0 * SIGMA * SIGMA)).exp();
    let sum: f64 = (0..WINDOW).map(tap).sum();
    std::array::from_fn(|i| tap(i) / sum)
}

struct Window {
    taps: [f64; WINDOW],
    height: usize,
    width: usize,
}

impl Window {
    /// Computes weighted means at all positions where the window fits. The window is separable: rows first, then
    /// columns.
    fn means(&self, plane: Vec<f64>) -> Vec<f64> {
        let out_width = self.width - WINDOW + 1;
        let weigh = |values: &mut dyn Iterator<Item = f64>| values.zip(self.taps).map(|(x, w)| x * w).sum::<f64>();
        let rows: Vec<f64> = plane
            .chunks_exact(self.width)
            .flat_map(|row| row.windows(WINDOW).map(|taps| weigh(&mut taps.iter().copied())))
            .collect();
        (0..(self.height - WINDOW + 1) * out_width)
            .map(|i| weigh(&mut rows[i..].iter().step_by(out_width).copied()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [2, 13, 17];

    fn image(salt: usize) -> Vec<f32> {
        (0..SHAPE.iter().product()).map(|i: usize| ((i * 7919 + salt * 104_729) % 256) as f32).collect()
    }

    #[test]
    fn psnr_has_its_closed_form() {
        let a = image(1);
        let b: Vec<f32> = a.iter().enumerate().map(|(i, x)| x + if i % 2 == 0 { 5.0 } else { -5.0 }).collect();
        let found = psnr(&a, &b, 255.0).expect("same size");
        assert!((found - 20.0 * (255.0_f64 / 5.0).log10()).abs() < 1e-12, "every pixel off by 5: {found} dB");
        assert_eq!(psnr(&a, &a, 255.0).expect("same size"), f64::INFINITY, "identical images");
    }

    #[test]
    fn psnr_leaves_identical_images_out_of_the_mean() {
        let mut mean = MeanPsnr::default();
        [20.0, f64::INFINITY, 30.0].into_iter().for_each(|x| mean.push(x));
        assert_eq!((mean.mean(), mean.identical()), (25.0, 1), "mean of two, one identical");
        assert_eq!(MeanPsnr::default().mean(), f64::INFINITY, "nothing differs");
    }

    #[test]
    fn ssim_equals_the_definition() {
        let (a, b) = (image(1), image(2));
        let taps = gaussian();
        let [channels, height, width] = SHAPE;
        let (mut sum, mut count) = (0.0, 0);
        for c in 0..channels {
            for y in 0..=height - WINDOW {
                for x in 0..=width - WINDOW {
                    let mut m = [0.0; 5];
                    for (dy, wy) in taps.iter().enumerate() {
                        for (dx, wx) in taps.iter().enumerate() {
                            let at = (c * height + y + dy) * width + x + dx;
                            let (a, b) = (f64::from(a[at]), f64::from(b[at]));
                            for (m, v) in m.iter_mut().zip([a, b, a * a, b * b, a * b]) {
                                *m += wy * wx * v;
                            }
                        }
                    }
                    let (va, vb, cov) = (m[2] - m[0] * m[0], m[3] - m[1] * m[1], m[4] - m[0] * m[1]);
                    let (c1, c2) = (2.55_f64.powi(2), 7.65_f64.powi(2));
                    let luminance = (2.0 * m[0] * m[1] + c1) / (m[0] * m[0] + m[1] * m[1] + c1);
                    sum += luminance * (2.0 * cov + c2) / (va + vb + c2);
                    count += 1;
                }
            }
        }
        let found = ssim(&a, &b, SHAPE, 255.0).expect("fits");
        assert!(
            (found - sum / f64::from(count)).abs() < 1e-12,
            "{found} against the definition {}",
            sum / f64::from(count)
        );
    }

    #[test]
    fn ssim_has_its_closed_forms() {
        let a = image(1);
        let same = ssim(&a, &a, SHAPE, 255.0).expect("fits");
        assert!((same - 1.0).abs() < 1e-12, "identical images: {same}");
        let constant = |value: f32| vec![value; SHAPE.iter().product()];
        let found = ssim(&constant(0.2), &constant(0.8), SHAPE, 1.0).expect("fits");
        let exact = (2.0 * 0.16 + 1e-4) / (0.04 + 0.64 + 1e-4);
        assert!((found - exact).abs() < 1e-6, "constant images differ by luminance alone: {found}, {exact}");
        let negative: Vec<f32> = a.iter().map(|x| 255.0 - x).collect();
        assert!(ssim(&a, &negative, SHAPE, 255.0).expect("fits") < 0.0, "a negative is anticorrelated");
    }

    #[test]
    fn invalid_inputs_are_errors() {
        let a = image(1);
        assert!(psnr(&a, &a[1..], 255.0).is_err(), "different lengths");
        assert!(psnr(&[], &[], 255.0).is_err(), "empty images");
        assert!(psnr(&a, &a, 0.0).is_err(), "no range");
        assert!(ssim(&a, &a, [2, 17, 12], 255.0).is_err(), "wrong shape");
        assert!(ssim(&a[..100], &a[..100], [1, 10, 10], 255.0).is_err(), "smaller than the window");
    }
}
