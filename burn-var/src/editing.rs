//! Image editing with known tokens: completion, in-painting, out-painting, and teacher forcing.

use burn::tensor::{Bool, Int, Tensor};

use crate::generation::{Tokenizer, Vocabulary};
use crate::math::Resize;
use crate::{Error, MapSize, Result, Scales, TokenPyramid};

/// Scales with at most this many tokens are kept whole; masking them would lose the layout.
const WHOLE: usize = 3;

/// Tokens that are known, so that only the others are drawn.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_var::editing::KnownTokens;
/// use burn_var::{Scales, TokenPyramid};
///
/// # fn main() -> burn_var::Result<()> {
/// let device = Device::default();
/// let tokens = TokenPyramid::from_rows(Scales::square(&[1, 2])?, &[[7u32, 1, 2, 3, 4]], &device)?;
/// // The left half stays: 1 in the mask.
/// let mask = Tensor::<1>::from_floats([1.0, 0.0], &device).reshape([1, 1, 1, 2]);
/// let known = KnownTokens::masked(tokens, mask)?;
/// assert_eq!(known.drawn()?, [0, 2], "tokens to draw per scale");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct KnownTokens {
    tokens: TokenPyramid,
    /// One mask per scale, `[batch, tokens]`: true where the token is known.
    masks: Vec<Tensor<2, Bool>>,
}

impl KnownTokens {
    /// Marks all tokens as known: nothing is drawn, and the logits are teacher-forced.
    pub fn all(tokens: TokenPyramid) -> Self {
        let scales = tokens.scales().len();
        Self::first(tokens, scales)
    }

    /// Marks the first `scales` scales as known; the finer ones are drawn.
    pub fn first(tokens: TokenPyramid, scales: usize) -> Self {
        let batch = tokens.batch();
        let mask = |k: usize| {
            let (area, device) = (tokens.scales().size(k).area(), tokens.map(k).device());
            Tensor::<2>::full([batch, area], if k < scales { 1.0 } else { 0.0 }, &device).greater_elem(0.5)
        };
        Self { masks: (0..tokens.scales().len()).map(mask).collect(), tokens }
    }

    /// Marks the tokens under a mask as known: `mask`, `[batch, 1, height, width]` of any size, is 1 where the image
    /// stays and 0 where it is drawn. A token is known where the mask, resized to its scale, is above 0.5; the smallest
    /// scales are known as a whole (VAR's zero-shot editing).
    ///
    /// A next-token model draws each token from those before it, so the known tokens of a raster must be its first ones.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one mask per image; [`Error::Unsupported`] if a raster has known tokens after drawn
    /// ones; [`Error::Device`] if the mask of a raster cannot be read back.
    pub fn masked(tokens: TokenPyramid, mask: Tensor<4>) -> Result<Self> {
        let [batch, channels, ..] = mask.dims();
        if batch != tokens.batch() || channels != 1 {
            return Err(Error::shape("mask", format!("[{}, 1, height, width]", tokens.batch()), mask.dims()));
        }
        if let Some(size) = tokens.scales().raster_size() {
            return Self::beginning(tokens, Resize::Bilinear.apply(mask, size));
        }
        let of = |k: usize| {
            let size @ MapSize { height, width } = tokens.scales().size(k);
            let kept = Resize::Bilinear.apply(mask.clone(), size).reshape([batch, height * width]);
            if size.area() <= WHOLE { kept.ones_like() } else { kept }.greater_elem(0.5)
        };
        Ok(Self { masks: (0..tokens.scales().len()).map(of).collect(), tokens })
    }

    /// Marks tokens of a raster as known by a mask of its size.
    fn beginning(tokens: TokenPyramid, mask: Tensor<4>) -> Result<Self> {
        let count = tokens.scales().len();
        let kept = mask.flatten::<2>(1, 3).greater_elem(0.5); // [batch, tokens]
        let rows = kept.clone().int().try_into_vec_as::<i64>().map_err(Error::device("read the mask"))?;
        for row in rows.chunks(count) {
            let first = row.iter().position(|kept| *kept == 0).unwrap_or(count);
            if let Some(after) = row[first..].iter().position(|kept| *kept != 0) {
                let hint = "a next-token model draws every token from those before it, row by row: keep only the beginning \
                            of the image, the rows above the new part";
                let what = format!("keeping token {} after token {first} is drawn anew", first + after);
                return Err(Error::unsupported(what, hint));
            }
        }
        Ok(Self { masks: (0..count).map(|k| kept.clone().narrow(1, k, 1)).collect(), tokens })
    }

    /// Marks tokens as known by a mask per scale, `[batch, tokens]` each: for models whose maps do not cover the whole
    /// image, such as the single tokens of a next-token model.
    ///
    /// # Errors
    /// [`Error::Shape`] if a mask is missing or has another shape.
    pub fn with_masks(tokens: TokenPyramid, masks: Vec<Tensor<2, Bool>>) -> Result<Self> {
        let scales = tokens.scales();
        if masks.len() != scales.len() {
            return Err(Error::shape("masks", format!("{} masks, one per scale", scales.len()), [masks.len()]));
        }
        for (at, mask) in scales.iter().zip(&masks) {
            let expected = [tokens.batch(), at.size().area()];
            if mask.dims() != expected {
                return Err(Error::shape(format!("mask {}", at.k()), format!("{expected:?}"), mask.dims()));
            }
        }
        Ok(Self { tokens, masks })
    }

    /// Returns the number of tokens that are drawn at each scale, of all images together.
    ///
    /// # Errors
    /// [`Error::Device`] if the masks cannot be read back.
    pub fn drawn(&self) -> Result<Vec<usize>> {
        let count = |mask: &Tensor<2, Bool>| {
            let kept = mask.clone().int().try_into_vec_as::<i64>().map_err(Error::device("read masks"))?;
            Ok(kept.into_iter().filter(|kept| *kept == 0).count())
        };
        self.masks.iter().map(count).collect()
    }

    /// Checks that the tokens are those of `images` images over a schedule, in a model's vocabulary.
    pub(crate) fn check(&self, images: usize, scales: &Scales, vocabulary: Vocabulary) -> Result<()> {
        if self.tokens.symbols() != vocabulary.symbols {
            let expected = format!("{}, the model's", vocabulary.symbols);
            return Err(Error::config("symbols per token of the known tokens", self.tokens.symbols(), expected));
        }
        if self.tokens.scales() != scales {
            return Err(Error::config("scale schedule of the known tokens", self.tokens.scales(), scales.to_string()));
        }
        match self.tokens.batch() {
            found if found == images => Ok(()),
            found => Err(Error::shape("known tokens", format!("those of {images} images"), [found])),
        }
    }

    /// Replaces sampled ids of scale `k` by the known ones, `[batch, tokens * symbols]`.
    pub(crate) fn fill_ids(&self, k: usize, drawn: Tensor<2, Int>) -> Tensor<2, Int> {
        replace_ids(drawn, &self.masks[k], self.tokens.map(k))
    }

    /// Replaces code vectors of sampled tokens by the known ones, `[batch, tokens, z_channels]`.
    pub(crate) fn fill_codes<T>(&self, k: usize, drawn: Tensor<3>, tokenizer: &T) -> Tensor<3>
    where
        T: Tokenizer + ?Sized,
    {
        replace_codes(drawn, &self.masks[k], tokenizer.lookup(self.tokens.map(k)))
    }
}

/// Replaces the ids of tokens, `[batch, tokens * symbols]`, where a mask `[batch, tokens]` is true.
pub(crate) fn replace_ids(drawn: Tensor<2, Int>, mask: &Tensor<2, Bool>, by: Tensor<2, Int>) -> Tensor<2, Int> {
    let [batch, tokens] = mask.dims();
    let [_, ids] = drawn.dims();
    let mask = mask.clone().unsqueeze_dim::<3>(2).expand([batch, tokens, ids / tokens]);
    drawn.mask_where(mask.reshape([batch, ids]), by)
}

/// Replaces the code vectors of tokens, `[batch, tokens, z_channels]`, where a mask `[batch, tokens]` is true.
pub(crate) fn replace_codes(drawn: Tensor<3>, mask: &Tensor<2, Bool>, by: Tensor<3>) -> Tensor<3> {
    let mask = mask.clone().unsqueeze_dim::<3>(2).expand(drawn.dims());
    drawn.mask_where(mask, by)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn kept(known: &KnownTokens, k: usize) -> Vec<bool> {
        known.masks[k].clone().into_data().try_into_vec().unwrap()
    }

    fn tokens(sides: &[usize]) -> TokenPyramid {
        let scales = Scales::square(sides).unwrap();
        let rows = [(0..scales.tokens() as u32).collect::<Vec<_>>()];
        TokenPyramid::from_rows(scales, &rows, &Device::default()).unwrap()
    }

    #[test]
    fn the_first_scales_are_kept() {
        let known = KnownTokens::first(tokens(&[1, 2]), 1);
        assert_eq!((kept(&known, 0), kept(&known, 1)), (vec![true], vec![false; 4]));
        let all = KnownTokens::all(tokens(&[1, 2]));
        assert_eq!((kept(&all, 0), kept(&all, 1)), (vec![true], vec![true; 4]));
        let check = |images, sides: &[usize], vocabulary| {
            all.check(images, &Scales::square(sides).unwrap(), vocabulary).map_err(|error| error.to_string())
        };
        assert_eq!(check(1, &[1, 2], Vocabulary::codes(9)), Ok(()));
        assert!(check(1, &[1, 3], Vocabulary::codes(9)).is_err(), "another schedule");
        assert!(check(2, &[1, 2], Vocabulary::codes(9)).is_err(), "another number of images");
        assert!(check(1, &[1, 2], Vocabulary::bits(3)).unwrap_err().contains("symbols"), "tokens of bits");
    }

    #[test]
    fn masks_of_ones_own_are_one_per_scale() {
        let mask = |tokens: usize| Tensor::<2>::zeros([1, tokens], &Device::default()).greater_elem(0.5);
        let known = KnownTokens::with_masks(tokens(&[1, 2]), vec![mask(1), mask(4)]).unwrap();
        assert_eq!(known.drawn().unwrap(), [1, 4]);
        assert!(KnownTokens::with_masks(tokens(&[1, 2]), vec![mask(1)]).is_err(), "a mask is missing");
        assert!(KnownTokens::with_masks(tokens(&[1, 2]), vec![mask(1), mask(3)]).is_err(), "a mask of another size");
    }

    #[test]
    fn a_raster_keeps_its_beginning_only() {
        let size = MapSize { height: 3, width: 2 };
        let tokens = || {
            let scales = Scales::raster(size).unwrap();
            TokenPyramid::from_rows(scales, &[[0u32, 1, 2, 3, 4, 5]; 2], &Device::default()).unwrap()
        };
        let mask = |rows: [[f32; 6]; 2]| {
            let mask = Tensor::from_data(TensorData::new(rows.concat(), [2, 1, 3, 2]), &Device::default());
            KnownTokens::masked(tokens(), Resize::Nearest.apply(mask, MapSize { height: 12, width: 8 }))
        };
        let known = mask([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0; 6]]).unwrap();
        assert_eq!(known.drawn().unwrap(), [1, 1, 1, 2, 2, 2], "of both images");
        let error = mask([[1.0; 6], [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]]).unwrap_err().to_string();
        assert!(error.contains("token 5 after token 2") && error.contains("beginning"), "{error}");
    }

    #[test]
    fn masks_are_resized_and_the_smallest_scale_is_kept_whole() {
        let mut half = vec![0.0f32; 64];
        half.chunks_exact_mut(8).for_each(|row| row[..4].fill(1.0));
        let mask = Tensor::from_data(TensorData::new(half, [1, 1, 8, 8]), &Device::default());
        let known = KnownTokens::masked(tokens(&[1, 2, 4]), mask.clone()).unwrap();
        assert_eq!(known.drawn().unwrap(), [0, 2, 8], "half of the others");
        assert_eq!(kept(&known, 0), [true], "one token is the whole image");
        assert_eq!(kept(&known, 1), [true, false, true, false]);
        assert_eq!(kept(&known, 2), [true, true, false, false].repeat(4));
        assert!(KnownTokens::masked(tokens(&[1, 2]), mask.repeat_dim(0, 2)).is_err(), "two masks for one image");
    }
}
