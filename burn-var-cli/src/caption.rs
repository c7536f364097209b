//! Sheets of images with captions.

use burn_var::Scales;
use font8x8::UnicodeFonts;
use image::{Rgb, RgbImage, imageops};

use anyhow::{Result, bail};

/// Width and height of a letter before magnification.
const LETTER: u32 = 8;
/// Pixels between images and around them.
const GAP: u32 = 2;
/// Least width of an image on the sheet.
const SMALLEST: u32 = 56;
/// Largest sheet; PNG viewers fail far below this.
const MOST_PIXELS: u64 = 400_000_000;

/// A row of a sheet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) caption: String,
    pub(crate) images: Vec<RgbImage>,
}

/// Returns the headings of the stages of a schedule: the sizes of its maps, or the rows of a raster.
pub(crate) fn stage_names(scales: &Scales) -> Vec<String> {
    match scales.raster_size() {
        Some(size) => (1..=size.height).map(|row| format!("row {row}")).collect(),
        None => scales.sizes().iter().map(|size| format!("{}x{}", size.height, size.width)).collect(),
    }
}

/// Lays out rows of images of one size, with captions to the left and `headings` over the columns.
pub(crate) fn sheet(rows: &[Row], headings: &[String]) -> Result<RgbImage> {
    let size = rows.iter().flat_map(|row| &row.images).map(RgbImage::dimensions).next();
    let Some((width, height)) = size else { bail!("there is no image to draw") };
    let zoom = SMALLEST.div_ceil(width);
    let letters = if width * zoom >= 200 { 2 } else { 1 };
    let text_width = |text: &str| text.chars().count() as u32 * LETTER * letters;
    let [cell_x, cell_y] = [width, height].map(|side| side * zoom + GAP);
    let left = rows.iter().map(|row| text_width(&row.caption)).max().map_or(0, |width| width + 4 * GAP);
    let top = if headings.is_empty() { 0 } else { LETTER * letters + 2 * GAP };
    let columns = rows.iter().map(|row| row.images.len()).max().unwrap_or(0);
    let side = |start: u32, cell: u32, cells: usize| u64::from(start + GAP) + u64::from(cell) * cells as u64;
    let (full_width, full_height) = (side(left, cell_x, columns), side(top, cell_y, rows.len()));
    if full_width * full_height > MOST_PIXELS {
        bail!("a sheet of {full_width}x{full_height} pixels is too large: ask for fewer images, or for --npz");
    }
    let mut sheet = RgbImage::from_pixel(full_width as u32, full_height as u32, Rgb([255; 3]));
    for (column, heading) in headings.iter().enumerate() {
        let cell = left + GAP + column as u32 * cell_x;
        let middle = cell + (width * zoom).saturating_sub(text_width(heading)) / 2;
        write(&mut sheet, heading, [middle, 2 * GAP], letters);
    }
    for (line, row) in rows.iter().enumerate() {
        let y = top + GAP + line as u32 * cell_y;
        write(&mut sheet, &row.caption, [2 * GAP, y + (height * zoom).saturating_sub(LETTER * letters) / 2], letters);
        for (column, image) in row.images.iter().enumerate() {
            let x = left + GAP + column as u32 * cell_x;
            let zoomed = imageops::resize(image, width * zoom, height * zoom, imageops::FilterType::Nearest);
            imageops::replace(&mut sheet, &zoomed, x.into(), y.into());
        }
    }
    Ok(sheet)
}

/// Writes text in black; letters that the font lacks become question marks.
fn write(sheet: &mut RgbImage, text: &str, [x, y]: [u32; 2], size: u32) {
    let glyph = |letter: char| {
        let basic = font8x8::BASIC_FONTS.get(letter);
        basic.or_else(|| font8x8::LATIN_FONTS.get(letter)).or_else(|| font8x8::GREEK_FONTS.get(letter))
    };
    for (i, letter) in text.chars().enumerate() {
        let rows = glyph(letter).or_else(|| glyph('?')).unwrap_or_default();
        for (dy, row) in (0..LETTER * size).map(|dy| (dy, rows[(dy / size) as usize])) {
            for dx in (0..LETTER * size).filter(|dx| row >> (dx / size) & 1 == 1) {
                let (x, y) = (x + i as u32 * LETTER * size + dx, y + dy);
                if x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, Rgb([0; 3]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_beside_their_captions() {
        let image = |value| RgbImage::from_pixel(30, 20, Rgb([value, 9, 9]));
        let rows = [
            Row { caption: "Bag".to_owned(), images: vec![image(50), image(60)] },
            Row { caption: "\u{4e2d}".to_owned(), images: vec![image(70)] },
        ];
        let sheet = sheet(&rows, &["one".to_owned()]).expect("fits");
        let (left, top) = (3 * 8 + 8, 8 + 4);
        assert_eq!(sheet.dimensions(), (left + 2 + 2 * 62, top + 2 + 2 * 42), "twice as large, two by two");
        for (x, y, value) in [(0, 0, 50), (59, 39, 50), (62, 0, 60), (0, 42, 70)] {
            assert_eq!(sheet.get_pixel(left + 2 + x, top + 2 + y), &Rgb([value, 9, 9]), "at {x}, {y}");
        }
        let black = |x0: u32, x1: u32, y0: u32, y1: u32| {
            (x0..x1)
                .flat_map(|x| (y0..y1).map(move |y| (x, y)))
                .filter(|(x, y)| sheet.get_pixel(*x, *y)[0] == 0)
                .count()
        };
        assert!(black(0, left, top, top + 42) > 30, "the first caption");
        assert!(black(0, left, top + 42, top + 84) > 5, "a question mark for a letter that the font lacks");
        assert!(black(left, left + 62, 0, top) > 20, "the heading");
    }

    #[test]
    fn nothing_and_too_much_are_refused() {
        sheet(&[], &[]).expect_err("no image");
        let many = [Row { caption: String::new(), images: vec![RgbImage::new(1, 1); 100_000] }, Row::default()];
        assert!(sheet(&many, &[]).expect_err("too large").to_string().contains("--npz"));
    }
}
