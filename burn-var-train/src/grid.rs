//! Many pictures on one sheet.

use std::io::Cursor;
use std::path::Path;

use burn::tensor::Tensor;
use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, ImageFormat, Rgb, RgbImage, imageops};

use crate::fs::atomic_write;
use crate::{Error, Result};

/// Milliseconds that a picture of an animation is shown, and the last one.
const FRAME: u32 = 300;
const LAST_FRAME: u32 = 1500;
/// How coarsely the 256 colours of a picture are searched for, from 1; the crate's own suggestion.
const GIF_SPEED: i32 = 10;

/// What a tensor's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Black is 0, white is 1.
    Unit,
    /// Black is -1, white is 1: what VAR's networks take and give.
    Signed,
}

/// The pictures of a batch `[batch, channels, height, width]` with 1 or 3 channels; numbers beyond the range are cut off.
///
/// # Errors
/// `burn_var::Error::Shape` for another number of channels, `NonFinite` for a number that is none, `Device` if the
/// tensor cannot be read.
pub fn pictures(batch: Tensor<4>, range: Range) -> Result<Vec<RgbImage>> {
    let shape @ [_, channels, height, width] = batch.dims();
    let data = batch
        .try_into_data()
        .map_err(|e| burn_var::Error::Device { action: "read pictures", reason: e.to_string() })?;
    let values = data.iter::<f32>().collect::<Vec<_>>();
    if channels != 1 && channels != 3 {
        return Err(burn_var::Error::shape("pictures", "[batch, 1 or 3, height, width]", shape).into());
    }
    if let Some(&found) = values.iter().find(|v| !v.is_finite()) {
        let hint = "the network that made it has diverged";
        return Err(burn_var::Error::NonFinite { what: "a picture".into(), found: found.into(), hint }.into());
    }
    let byte = |value: f32| {
        let unit = if range == Range::Signed { (value + 1.0) / 2.0 } else { value };
        (unit.clamp(0.0, 1.0) * 255.0).round() as u8
    };
    let plane = height * width;
    let picture = |values: &[f32]| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let pixel = y as usize * width + x as usize;
            Rgb([0, 1, 2].map(|channel| byte(values[channel.min(channels - 1) * plane + pixel])))
        })
    };
    Ok(values.chunks_exact((channels * plane).max(1)).map(picture).collect())
}

/// How pictures lie on a sheet: in rows, each in a cell as large as the largest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// Pictures in a row.
    pub columns: usize,
    /// Pixels between pictures and around them.
    pub padding: u32,
    /// How many pixels wide a pixel is drawn.
    pub zoom: u32,
    /// The colour between pictures.
    pub background: [u8; 3],
}

impl Grid {
    /// White lines of two pixels, no zoom.
    pub fn new(columns: usize) -> Self {
        Self { columns, padding: 2, zoom: 1, background: [255; 3] }
    }

    /// Lays the pictures out.
    ///
    /// # Errors
    /// [`Error::Config`] without a column or a zoom, or for a sheet of more than `u32::MAX` pixels a side.
    pub fn sheet(&self, pictures: &[RgbImage]) -> Result<RgbImage> {
        if self.columns == 0 || self.zoom == 0 {
            return Err(Error::config("columns, zoom", format!("{}, {}", self.columns, self.zoom), "1 or more each"));
        }
        let zoom = |size: u32| size.checked_mul(self.zoom);
        let largest = |size: fn(&RgbImage) -> u32| pictures.iter().map(size).max().unwrap_or(0);
        let columns = self.columns.min(pictures.len());
        let rows = pictures.len().div_ceil(self.columns);
        let side = |cells: usize, size: u32| -> Option<(u32, u32)> {
            let pitch = zoom(size)?.checked_add(self.padding)?;
            Some((pitch, pitch.checked_mul(u32::try_from(cells).ok()?)?.checked_add(self.padding)?))
        };
        let sides = side(columns, largest(RgbImage::width)).zip(side(rows, largest(RgbImage::height)));
        let Some(((pitch_x, width), (pitch_y, height))) = sides else {
            return Err(Error::config("picture grid", format!("{columns} x {rows}"), "a smaller number of pictures"));
        };
        let mut sheet = RgbImage::from_pixel(width, height, Rgb(self.background));
        for (index, picture) in pictures.iter().enumerate() {
            let x = (index % self.columns) as u32 * pitch_x + self.padding;
            let y = (index / self.columns) as u32 * pitch_y + self.padding;
            let (w, h) = (picture.width() * self.zoom, picture.height() * self.zoom);
            let drawn = imageops::resize(picture, w, h, imageops::FilterType::Nearest);
            imageops::replace(&mut sheet, &drawn, x.into(), y.into());
        }
        Ok(sheet)
    }

    /// Lays the pictures out and writes them as a PNG file, atomically.
    ///
    /// # Errors
    /// Those of [`sheet`](Self::sheet) and [`write_png`].
    pub fn write(&self, path: impl AsRef<Path>, pictures: &[RgbImage]) -> Result<()> {
        write_png(path, &self.sheet(pictures)?)
    }
}

/// Writes a PNG file, atomically.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for a picture that PNG cannot hold (one of no size).
pub fn write_png(path: impl AsRef<Path>, picture: &RgbImage) -> Result<()> {
    let path = path.as_ref();
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::format(path, e.to_string()))?;
    atomic_write(path, bytes.get_ref())
}

/// Writes pictures of one size as an animated GIF file that begins anew at its end.
///
/// # Errors
/// [`Error::Io`] if it can't be written, [`Error::Format`] if GIF can't hold it: no picture, or one too large.
pub fn write_gif(path: impl AsRef<Path>, frames: Vec<RgbImage>) -> Result<()> {
    let path = path.as_ref();
    let wrong = |reason: String| Error::format(path, format!("cannot be drawn: {reason}"));
    let Some(last) = frames.len().checked_sub(1) else { return Err(wrong("there is no picture".to_owned())) };
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, GIF_SPEED);
    encoder.set_repeat(Repeat::Infinite).map_err(|error| wrong(error.to_string()))?;
    for (i, picture) in frames.into_iter().enumerate() {
        let delay = Delay::from_numer_denom_ms(if i == last { LAST_FRAME } else { FRAME }, 1);
        let frame = Frame::from_parts(DynamicImage::from(picture).into_rgba8(), 0, 0, delay);
        encoder.encode_frame(frame).map_err(|error| wrong(error.to_string()))?;
    }
    drop(encoder);
    atomic_write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn channels_and_ranges_become_bytes() {
        let device = Device::flex();
        // Two pictures of 1 x 2 x 3.
        let values = [-2.0, -1.0, 0.0, 0.5, 1.0, 9.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
        let gray = Tensor::<1>::from_data(values, &device).reshape([2, 1, 2, 3]);
        let signed = pictures(gray.clone(), Range::Signed).expect("signed");
        let reds = |p: &RgbImage| p.pixels().map(|p| p[0]).collect::<Vec<_>>();
        assert_eq!((signed.len(), signed[0].dimensions()), (2, (3, 2)), "two pictures, width by height");
        assert_eq!(reds(&signed[0]), [0, 0, 128, 191, 255, 255], "-1 to 1, cut off beyond");
        assert_eq!(reds(&pictures(gray, Range::Unit).expect("unit")[1]), [0, 51, 102, 153, 204, 255], "0 to 1");

        let color = Tensor::<1>::from_data(values, &device).reshape([2, 3, 2, 1]);
        let color = pictures(color, Range::Unit).expect("colour");
        assert_eq!(color[1].get_pixel(0, 1), &Rgb([51, 153, 255]), "planes become the channels of a pixel");
    }

    #[test]
    fn wrong_tensors_are_refused() {
        let device = Device::flex();
        let error = pictures(Tensor::zeros([2, 4, 3, 5], &device), Range::Unit).expect_err("four channels");
        assert!(error.to_string().contains("[2, 4, 3, 5]"), "names the shape: {error}");
        let error = pictures(Tensor::full([1, 1, 2, 2], f32::NAN, &device), Range::Unit).expect_err("not a number");
        assert!(error.to_string().contains("picture"), "names it: {error}");
    }

    #[test]
    fn the_sheet_has_rows_padding_and_zoom() {
        let pictures = [1, 2, 3, 4, 5].map(|v| RgbImage::from_pixel(3, 2, Rgb([v * 10; 3])));
        let grid = Grid { columns: 2, padding: 1, zoom: 4, background: [7, 8, 9] };
        let sheet = grid.sheet(&pictures).expect("laid out");
        assert_eq!(sheet.dimensions(), (2 * 13 + 1, 3 * 9 + 1), "two columns, three rows, padding around");
        for (x, y, expected) in [(1, 1, 10), (12, 8, 10), (14, 1, 20), (1, 10, 30), (26 - 1, 18 - 1, 40), (12, 26, 50)]
        {
            assert_eq!(sheet.get_pixel(x, y), &Rgb([expected; 3]), "pixel {x}, {y}");
        }
        for (x, y) in [(0, 0), (13, 3), (3, 9), (20, 22)] {
            assert_eq!(sheet.get_pixel(x, y), &Rgb([7, 8, 9]), "background at {x}, {y}");
        }
        Grid::new(0).sheet(&pictures).expect_err("no columns");
    }

    #[test]
    fn written_pictures_read_back() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("grid.png");
        let pictures = [RgbImage::from_fn(5, 3, |x, y| Rgb([x as u8 * 50, y as u8 * 100, 7]))];
        let grid = Grid::new(4);
        grid.write(&path, &pictures).expect("written");
        let read = image::open(&path).expect("readable").to_rgb8();
        assert_eq!(read, grid.sheet(&pictures).expect("laid out"), "the same pixels");
    }
}
