//! Sheets of images, and files of images.

use std::io::Cursor;
use std::path::Path;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, ImageFormat, Rgb, RgbImage, imageops};

use crate::fs::atomic_write;
use crate::{Error, Result};

/// Milliseconds that a frame of an animation is shown.
const FRAME: u32 = 300;
/// Milliseconds that the last frame is shown.
const LAST_FRAME: u32 = 1500;
/// Speed of the search for the 256 colors of a frame, from 1 (best) to 30; the `gif` crate suggests 10.
const GIF_SPEED: i32 = 10;

/// The layout of a sheet: images in rows, in cells of the size of the largest image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Images per row.
    pub columns: usize,
    /// Pixels between images and around them.
    pub padding: u32,
    /// Integer magnification of the images.
    pub zoom: u32,
    /// Color between images, red, green and blue.
    pub background: [u8; 3],
}

impl Grid {
    /// Creates a layout with white lines of two pixels, without magnification.
    pub fn new(columns: usize) -> Self {
        Self { columns, padding: 2, zoom: 1, background: [255; 3] }
    }

    /// Lays images out.
    ///
    /// # Errors
    /// [`Error::Config`] if `columns` or `zoom` is 0, or for a sheet with a side of more than `u32::MAX` pixels.
    pub fn sheet(&self, images: &[RgbImage]) -> Result<RgbImage> {
        if self.columns == 0 || self.zoom == 0 {
            return Err(Error::config("columns, zoom", format!("{}, {}", self.columns, self.zoom), "1 or more each"));
        }
        let zoom = |size: u32| size.checked_mul(self.zoom);
        let largest = |size: fn(&RgbImage) -> u32| images.iter().map(size).max().unwrap_or(0);
        let columns = self.columns.min(images.len());
        let rows = images.len().div_ceil(self.columns);
        let side = |cells: usize, size: u32| -> Option<(u32, u32)> {
            let pitch = zoom(size)?.checked_add(self.padding)?;
            Some((pitch, pitch.checked_mul(u32::try_from(cells).ok()?)?.checked_add(self.padding)?))
        };
        let sides = side(columns, largest(RgbImage::width)).zip(side(rows, largest(RgbImage::height)));
        let Some(((pitch_x, width), (pitch_y, height))) = sides else {
            return Err(Error::config("image grid", format!("{columns} x {rows}"), "fewer or smaller images"));
        };
        let mut sheet = RgbImage::from_pixel(width, height, Rgb(self.background));
        for (index, image) in images.iter().enumerate() {
            let x = (index % self.columns) as u32 * pitch_x + self.padding;
            let y = (index / self.columns) as u32 * pitch_y + self.padding;
            let (w, h) = (image.width() * self.zoom, image.height() * self.zoom);
            let zoomed = imageops::resize(image, w, h, imageops::FilterType::Nearest);
            imageops::replace(&mut sheet, &zoomed, x.into(), y.into());
        }
        Ok(sheet)
    }

    /// Lays images out and writes the sheet as a PNG file, atomically.
    ///
    /// # Errors
    /// The errors of [`sheet`](Self::sheet) and [`write_png`].
    pub fn write(&self, path: impl AsRef<Path>, images: &[RgbImage]) -> Result<()> {
        write_png(path, &self.sheet(images)?)
    }
}

/// Writes a PNG file, atomically.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] for an image without pixels, which PNG cannot hold.
pub fn write_png(path: impl AsRef<Path>, image: &RgbImage) -> Result<()> {
    let path = path.as_ref();
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::format(path, e.to_string()))?;
    atomic_write(path, bytes.get_ref())
}

/// Writes frames of one size as an animated GIF file that repeats, atomically.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Format`] without a frame, or for a frame too large for GIF.
pub fn write_gif(path: impl AsRef<Path>, frames: Vec<RgbImage>) -> Result<()> {
    let path = path.as_ref();
    let wrong = |reason: String| Error::format(path, format!("cannot be encoded: {reason}"));
    let Some(last) = frames.len().checked_sub(1) else { return Err(wrong("there is no frame".to_owned())) };
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, GIF_SPEED);
    encoder.set_repeat(Repeat::Infinite).map_err(|error| wrong(error.to_string()))?;
    for (i, image) in frames.into_iter().enumerate() {
        let delay = Delay::from_numer_denom_ms(if i == last { LAST_FRAME } else { FRAME }, 1);
        let frame = Frame::from_parts(DynamicImage::from(image).into_rgba8(), 0, 0, delay);
        encoder.encode_frame(frame).map_err(|error| wrong(error.to_string()))?;
    }
    drop(encoder);
    atomic_write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sheet_has_rows_padding_and_zoom() {
        let images = [1, 2, 3, 4, 5].map(|v| RgbImage::from_pixel(3, 2, Rgb([v * 10; 3])));
        let grid = Grid { columns: 2, padding: 1, zoom: 4, background: [7, 8, 9] };
        let sheet = grid.sheet(&images).expect("laid out");
        assert_eq!(sheet.dimensions(), (2 * 13 + 1, 3 * 9 + 1), "two columns, three rows, padding around");
        for (x, y, expected) in [(1, 1, 10), (12, 8, 10), (14, 1, 20), (1, 10, 30), (26 - 1, 18 - 1, 40), (12, 26, 50)]
        {
            assert_eq!(sheet.get_pixel(x, y), &Rgb([expected; 3]), "pixel {x}, {y}");
        }
        for (x, y) in [(0, 0), (13, 3), (3, 9), (20, 22)] {
            assert_eq!(sheet.get_pixel(x, y), &Rgb([7, 8, 9]), "background at {x}, {y}");
        }
        Grid::new(0).sheet(&images).expect_err("no columns");
    }

    #[test]
    fn written_sheets_read_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("grid.png");
        let images = [RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 100, 7]))];
        let grid = Grid::new(4);
        grid.write(&path, &images).expect("written");
        let read = image::open(&path).expect("readable").to_rgb8();
        assert_eq!(read, grid.sheet(&images).expect("laid out"), "the same pixels");
    }
}
