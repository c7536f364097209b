//! Decoding of PNG, JPEG and WebP files, and crops.

use std::io::Cursor;
use std::path::Path;

use image::imageops::{FilterType, resize};
use image::{DynamicImage, ImageDecoder, ImageReader};

use super::view::Drawn;
use super::{ImageShape, View};
use crate::{Error, Result};

/// An image that takes more memory than this when decoded is refused: 134 million pixels of 4 bytes.
const MAX_BYTES: u64 = 512 << 20;

/// An image longer than this many times its width is refused: bringing its shorter side to size would make the longer
/// one huge.
const MAX_ASPECT: u32 = 20;

/// Decodes an image, turned upright as its EXIF data says.
///
/// # Errors
/// The reason, in words.
pub(super) fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    if reader.format().is_none() {
        return Err("it is neither PNG nor JPEG nor WebP".to_owned());
    }
    let mut decoder = reader.into_decoder().map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    if decoder.total_bytes() > MAX_BYTES {
        return Err(format!("its {width}x{height} pixels take more than {} MiB", MAX_BYTES >> 20));
    }
    if width.max(height) / MAX_ASPECT >= width.min(height) {
        return Err(format!("it is {width}x{height} pixels, too long for its width: at most {MAX_ASPECT} to 1"));
    }
    let orientation = decoder.orientation().map_err(|error| error.to_string())?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    if is_cut_jpeg(bytes) {
        return Err("it is a JPEG without its end".to_owned());
    }
    image.apply_orientation(orientation);
    Ok(image)
}

/// Reads one image, resizes it (Lanczos) so that it covers `shape`, and cuts out its middle. Returns it channel by channel
/// and row by row, black as -1 and white as 1.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not an image, or broken, or too large.
pub fn load_image(path: &Path, shape: ImageShape) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let image = decode(&bytes).map_err(|reason| Error::format(path, reason))?;
    let mut out = vec![0.0; shape.elements()];
    crop(&image, shape, 1.0, View::Fixed { mirrored: false }.draw(0), &mut out);
    Ok(out)
}

/// Resizes an image (Lanczos) so that it covers `ratio` times the shape, and cuts out the drawn part.
pub(super) fn crop(image: &DynamicImage, shape: ImageShape, ratio: f64, drawn: Drawn, out: &mut [f32]) {
    let from = [image.height(), image.width()];
    let [height, width] = covering(from, [shape.height, shape.width], ratio);
    let pixels = match shape.channels {
        1 => resize(&image.to_luma8(), width as u32, height as u32, FilterType::Lanczos3).into_raw(),
        _ => resize(&image.to_rgb8(), width as u32, height as u32, FilterType::Lanczos3).into_raw(),
    };
    let [top, left] = drawn.corner([height - shape.height, width - shape.width]);
    for (i, value) in out.iter_mut().enumerate() {
        let (channel, y, x) = (i / (shape.height * shape.width), i / shape.width % shape.height, i % shape.width);
        let x = if drawn.mirrored { shape.width - 1 - x } else { x };
        let pixel = pixels[((top + y) * width + left + x) * shape.channels + channel];
        *value = f32::from(pixel) / 127.5 - 1.0;
    }
}

/// Returns height and width, in the proportions of `from`, of the smallest image that covers `ratio` times `target`.
fn covering(from: [u32; 2], target: [usize; 2], ratio: f64) -> [usize; 2] {
    let scale = |axis: usize| target[axis] as f64 * ratio / f64::from(from[axis]);
    let scale = scale(0).max(scale(1));
    [0, 1].map(|axis| ((f64::from(from[axis]) * scale).round() as usize).max(target[axis]))
}

/// Returns true if a JPEG has no end marker after its last scan. The decoder fills the missing part with gray.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|pair| pair == [0xff, marker]);
    bytes.starts_with(&[0xff, 0xd8]) && last(0xd9) < last(0xda)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};

    use super::super::View;
    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Red grows to the right, green downwards; blue is the same everywhere.
    fn ramp(height: u32, width: u32) -> DynamicImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5) as u8, (y * 5) as u8, 77])).into()
    }

    fn centre(mirrored: bool) -> Drawn {
        View::Fixed { mirrored }.draw(0)
    }

    #[test]
    fn the_shorter_side_covers_the_ratio() {
        assert_eq!(covering([375, 500], [256, 256], 1.125), [288, 384], "the proportions of VAR's 256 pixels");
        assert_eq!(covering([500, 375], [64, 64], 1.0), [85, 64], "no more than needed");
        assert_eq!(covering([10, 10], [64, 32], 1.125), [72, 72], "a crop that is not square, from a small image");
        assert_eq!(covering([7, 140], [9, 9], 1.0), [9, 180], "a long image");
    }

    #[test]
    fn a_crop_without_resizing_takes_the_very_pixels() {
        let image = ramp(9, 13);
        let shape = ImageShape::new(5, 7, 3).unwrap();
        // 9 / 5 is the smaller ratio, 13 / 7 the one that both sides allow.
        let mut out = vec![0.0; shape.elements()];
        crop(&image, shape, 13.0 / 7.0, centre(false), &mut out);
        let pixel = |c: usize, y: usize, x: usize| ((out[(c * 5 + y) * 7 + x] + 1.0) * 127.5).round();
        assert_eq!([pixel(0, 0, 0), pixel(0, 4, 6)], [15.0, 45.0], "red: columns 3 to 9");
        assert_eq!([pixel(1, 0, 0), pixel(1, 4, 6)], [10.0, 30.0], "green: rows 2 to 6");
        assert_eq!(pixel(2, 3, 3), 77.0, "blue");
        let mut mirrored = vec![0.0; shape.elements()];
        crop(&image, shape, 13.0 / 7.0, centre(true), &mut mirrored);
        let row: Vec<f32> = mirrored[..7].iter().rev().copied().collect();
        assert_eq!(row, out[..7], "mirrored is the same row backwards");
    }

    #[test]
    fn random_crops_stay_inside_and_move() {
        let image = ramp(24, 24);
        let shape = ImageShape::new(20, 20, 3).unwrap();
        let mut corners = std::collections::BTreeSet::new();
        for epoch in 0..200 {
            let mut out = vec![0.0; shape.elements()];
            crop(&image, shape, 1.2, View::Random { seed: 1, epoch, mirror: false }.draw(0), &mut out);
            corners.insert([out[400], out[0]].map(|v| ((v + 1.0) * 127.5).round() as u32 / 5));
        }
        let expected: std::collections::BTreeSet<_> = (0..25).map(|i| [i / 5, i % 5]).collect();
        assert_eq!(corners, expected, "all 5x5 corners");
    }

    #[test]
    fn png_jpeg_and_webp_are_read_as_colour_or_grey() {
        let image = ramp(24, 31);
        let shape = |channels| ImageShape::new(24, 31, channels).unwrap();
        for (format, tolerance) in [(ImageFormat::Png, 0.001), (ImageFormat::WebP, 0.001), (ImageFormat::Jpeg, 0.12)] {
            let decoded = decode(&encode(&image, format)).unwrap();
            let mut out = vec![0.0; shape(3).elements()];
            crop(&decoded, shape(3), 1.0, centre(false), &mut out);
            let at = 10 * 31 + 20;
            let found = [out[at], out[24 * 31 + at], out[2 * 24 * 31 + at]];
            for (value, byte) in found.iter().zip([100.0, 50.0, 77.0]) {
                assert!((value - (byte / 127.5 - 1.0)).abs() < tolerance, "{format:?}: {found:?}");
            }
        }
        let grey: DynamicImage = GrayImage::from_pixel(24, 24, Luma([51])).into();
        let mut out = vec![0.0; 3 * 576];
        crop(
            &decode(&encode(&grey, ImageFormat::Png)).unwrap(),
            ImageShape::new(24, 24, 3).unwrap(),
            1.0,
            centre(false),
            &mut out,
        );
        assert!(out.iter().all(|v| (v + 0.6).abs() < 1e-6), "grey in all three channels");
        let mut out = vec![0.0; 576];
        let blue: DynamicImage = RgbImage::from_pixel(24, 24, Rgb([0, 0, 255])).into();
        crop(&blue, ImageShape::new(24, 24, 1).unwrap(), 1.0, centre(false), &mut out);
        assert!(out[0] < -0.8, "blue is dark grey: {}", out[0]);
    }

    #[test]
    fn every_defect_is_put_in_words() {
        let (png, jpeg, webp) = (
            encode(&ramp(40, 40), ImageFormat::Png),
            encode(&ramp(40, 40), ImageFormat::Jpeg),
            encode(&ramp(40, 40), ImageFormat::WebP),
        );
        let half = |bytes: &[u8]| bytes[..bytes.len() * 2 / 3].to_vec();
        let mut bomb = png.clone();
        bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
        // The checksum of the header, too, must fit.
        let crc = bomb[12..29].iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        });
        bomb[29..33].copy_from_slice(&(!crc).to_be_bytes());
        let cases: [(&str, Vec<u8>, &str); 8] = [
            ("nothing", vec![], "empty"),
            ("text", b"<html>404 not found</html>".to_vec(), "neither PNG nor JPEG nor WebP"),
            ("a cut PNG", half(&png), ""),
            ("a cut JPEG", half(&jpeg), ""),
            ("a JPEG without the last two bytes", jpeg[..jpeg.len() - 2].to_vec(), "without its end"),
            ("a cut WebP", half(&webp), ""),
            ("a header of 65536x65536 pixels", bomb, "MiB"),
            ("a line", encode(&ramp(1, 50), ImageFormat::Png), "50x1 pixels"),
        ];
        for (case, bytes, expected) in cases {
            let message = decode(&bytes).map(|_| ()).expect_err(case);
            assert!(!message.is_empty() && message.contains(expected), "{case}: {message}");
        }
        assert!(decode(&[jpeg, vec![1, 2, 3]].concat()).is_ok(), "bytes after a JPEG are common and harmless");
    }
}
