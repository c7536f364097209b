//! Conversion between tensors and 8-bit images.

use burn::tensor::{Device, Tensor, TensorData};
use image::{Rgb, RgbImage, imageops};

use crate::{Error, Result};

/// The range of the values in a tensor of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueRange {
    /// Black is 0, white is 1.
    Unit,
    /// Black is -1, white is 1: the range of the networks.
    Signed,
}

/// Converts a batch `[batch, channels, height, width]` with 1 or 3 channels to images; values beyond the range are
/// clamped.
///
/// # Errors
/// [`Error::Shape`] for another number of channels, [`Error::NonFinite`] for a value that is not finite,
/// [`Error::Device`] if the tensor cannot be read back.
pub fn to_images(batch: Tensor<4>, range: ValueRange) -> Result<Vec<RgbImage>> {
    let shape = batch.dims();
    images(batch.try_into_data().map_err(Error::device("read images"))?, shape, range)
}

/// Converts a batch as [`to_images`] does, without blocking while it is read back.
///
/// # Errors
/// The errors of [`to_images`].
pub async fn to_images_async(batch: Tensor<4>, range: ValueRange) -> Result<Vec<RgbImage>> {
    let shape = batch.dims();
    images(batch.into_data_async().await.map_err(Error::device("read images"))?, shape, range)
}

fn images(data: TensorData, shape: [usize; 4], range: ValueRange) -> Result<Vec<RgbImage>> {
    let [_, channels, height, width] = shape;
    let values = data.iter::<f32>().collect::<Vec<_>>();
    if channels != 1 && channels != 3 {
        return Err(Error::shape("images", "[batch, 1 or 3, height, width]", shape));
    }
    if let Some(&found) = values.iter().find(|value| !value.is_finite()) {
        let hint = "the network that generated it has diverged";
        return Err(Error::NonFinite { what: "an image".into(), found: found.into(), hint });
    }
    let byte = |value: f32| {
        let unit = if range == ValueRange::Signed { (value + 1.0) / 2.0 } else { value };
        (unit.clamp(0.0, 1.0) * 255.0).round() as u8
    };
    let plane = height * width;
    let image = |values: &[f32]| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let pixel = y as usize * width + x as usize;
            Rgb([0, 1, 2].map(|channel| byte(values[channel.min(channels - 1) * plane + pixel])))
        })
    };
    Ok(values.chunks_exact((channels * plane).max(1)).map(image).collect())
}

/// Converts an image to a tensor `[1, channels, height, width]` in `[-1, 1]`: resized (Lanczos) to cover the shape
/// `[channels, height, width]`, then cut at the center. One channel is luminance.
///
/// # Errors
/// [`Error::Shape`] for an empty image, or for a shape with other than 1 or 3 channels.
pub fn from_image(image: &RgbImage, shape: [usize; 3], device: &Device) -> Result<Tensor<4>> {
    let [channels, height, width] = shape;
    let (w, h) = image.dimensions();
    if w == 0 || h == 0 || ![1, 3].contains(&channels) || height == 0 || width == 0 {
        let expected = "a side above 0, converted to 1 or 3 channels";
        return Err(Error::shape("image", expected, [channels, h as usize, w as usize]));
    }
    let scale = (width as f64 / f64::from(w)).max(height as f64 / f64::from(h));
    let cover = |side: u32, least: usize| ((f64::from(side) * scale).round() as u32).max(least as u32);
    let (w, h) = (cover(w, width), cover(h, height));
    let resized = imageops::resize(image, w, h, imageops::FilterType::Lanczos3);
    let (left, top) = ((w - width as u32) / 2, (h - height as u32) / 2);
    let cut = imageops::crop_imm(&resized, left, top, width as u32, height as u32).to_image();
    let pixels = match channels {
        1 => imageops::grayscale(&cut).into_raw(),
        _ => cut.into_raw(),
    };
    let value = |i: usize| {
        let (channel, pixel) = (i / (height * width), i % (height * width));
        f32::from(pixels[pixel * channels + channel]) / 127.5 - 1.0
    };
    let values: Vec<f32> = (0..channels * height * width).map(value).collect();
    Ok(Tensor::from_data(TensorData::new(values, [1, channels, height, width]), device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_there_and_back() {
        let device = Device::default();
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8 * 100, y as u8 * 200, 7]));
        let tensor = from_image(&image, [3, 2, 3], &device).unwrap();
        assert_eq!(to_images(tensor, ValueRange::Signed).unwrap(), std::slice::from_ref(&image), "the same size");
        let wide = RgbImage::from_fn(8, 2, |x, _| if (3..5).contains(&x) { Rgb([255; 3]) } else { Rgb([0; 3]) });
        let center = to_images(from_image(&wide, [1, 2, 2], &device).unwrap(), ValueRange::Signed).unwrap();
        assert_eq!(center[0].as_raw(), &[255; 12], "the center, in one channel shown as three");
        assert!(from_image(&image, [2, 2, 2], &device).is_err(), "two channels");
    }

    #[test]
    fn channels_and_ranges_become_bytes() {
        let device = Device::default();
        // Two images of 1 x 2 x 3.
        let values = [-2.0, -1.0, 0.0, 0.5, 1.0, 9.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
        let gray = Tensor::<1>::from_data(values, &device).reshape([2, 1, 2, 3]);
        let signed = to_images(gray.clone(), ValueRange::Signed).expect("signed");
        let reds = |p: &RgbImage| p.pixels().map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!((signed.len(), signed[0].dimensions()), (2, (3, 2)), "two images, width by height");
        assert_eq!(reds(&signed[0]), [0, 0, 128, 191, 255, 255], "-1 to 1, clamped");
        assert_eq!(reds(&to_images(gray, ValueRange::Unit).expect("unit")[1]), [0, 51, 102, 153, 204, 255], "0 to 1");

        let color = Tensor::<1>::from_data(values, &device).reshape([2, 3, 2, 1]);
        let color = to_images(color, ValueRange::Unit).expect("color");
        assert_eq!(color[1].get_pixel(0, 1), &Rgb([51, 153, 255]), "planes become the channels of a pixel");
    }

    #[test]
    fn wrong_tensors_are_named() {
        let device = Device::default();
        let error = to_images(Tensor::zeros([2, 4, 3, 5], &device), ValueRange::Unit).expect_err("four channels");
        assert!(error.to_string().contains("[2, 4, 3, 5]"), "names the shape: {error}");
        let error =
            to_images(Tensor::full([1, 1, 2, 2], f32::NAN, &device), ValueRange::Unit).expect_err("not a number");
        assert!(error.to_string().contains("an image"), "names it: {error}");
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let tensor = Tensor::<4>::full([1, 1, 2, 2], f32::NAN, &Device::default());
        assert!(matches!(to_images(tensor, ValueRange::Unit), Err(Error::NonFinite { .. })));
    }
}
