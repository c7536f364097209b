//! Tokens of a picture that is there already: completion, in-painting, out-painting, teaching.

use burn::tensor::{Bool, Tensor};

use super::{Given, Guidance};
use crate::resize::Resize;
use crate::{Error, MapSize, Result, Scales, TokenPyramid};

/// Up to so many tokens a scale has too few for a part of a picture: all are kept, or the picture would be lost.
const WHOLE: usize = 3;

/// Keeps tokens of given pictures, so that only the others are drawn.
#[derive(Debug, Clone)]
pub struct Keep {
    tokens: TokenPyramid,
    /// One a scale, `[batch, tokens]`: true where a token is kept.
    masks: Vec<Tensor<2, Bool>>,
}

impl Keep {
    /// All tokens: nothing is drawn, and logits are those of a taught model.
    pub fn all(tokens: TokenPyramid) -> Self {
        let scales = tokens.scales().len();
        Self::first(tokens, scales)
    }

    /// The first `scales` scales: the rest is made up.
    pub fn first(tokens: TokenPyramid, scales: usize) -> Self {
        let batch = tokens.batch();
        let mask = |k: usize| {
            let (area, device) = (tokens.scales().size(k).area(), tokens.map(k).device());
            Tensor::<2>::full([batch, area], if k < scales { 1.0 } else { 0.0 }, &device).greater_elem(0.5)
        };
        Self { masks: (0..tokens.scales().len()).map(mask).collect(), tokens }
    }

    /// Where `mask`, `[batch, 1, height, width]` of any size with 1 for what stays and 0 for what is drawn, is above a
    /// half once it has been brought to the size of a scale; and all of the smallest scales (VAR's zero-shot editing).
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not one mask a picture.
    pub fn where_mask(tokens: TokenPyramid, mask: Tensor<4>) -> Result<Self> {
        let [batch, channels, ..] = mask.dims();
        if batch != tokens.batch() || channels != 1 {
            return Err(Error::shape("mask", format!("[{}, 1, height, width]", tokens.batch()), mask.dims()));
        }
        let of = |k: usize| {
            let size @ MapSize { height, width } = tokens.scales().size(k);
            let kept = Resize::Bilinear.apply(mask.clone(), size).reshape([batch, height * width]);
            if size.area() <= WHOLE { kept.ones_like() } else { kept }.greater_elem(0.5)
        };
        Ok(Self { masks: (0..tokens.scales().len()).map(of).collect(), tokens })
    }

    /// How many tokens of each scale are drawn, of all pictures together.
    ///
    /// # Errors
    /// [`Error::Device`] if the masks cannot be read.
    pub fn drawn(&self) -> Result<Vec<usize>> {
        let count = |mask: &Tensor<2, Bool>| {
            let kept = mask.clone().int().try_into_vec_as::<i64>().map_err(Error::device("read masks"))?;
            Ok(kept.into_iter().filter(|kept| *kept == 0).count())
        };
        self.masks.iter().map(count).collect()
    }
}

impl Guidance for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn check(&self, scales: &Scales) -> Result<()> {
        match self.tokens.scales() == scales {
            true => Ok(()),
            false => Err(Error::config("ladder of the kept tokens", self.tokens.scales(), scales.to_string())),
        }
    }

    fn given(&mut self, k: usize) -> Option<Given> {
        Some(Given { ids: self.tokens.map(k), mask: self.masks[k].clone() })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn kept(keep: &mut Keep, k: usize) -> Vec<bool> {
        keep.given(k).unwrap().mask.into_data().try_into_vec().unwrap()
    }

    fn tokens(sides: &[usize]) -> TokenPyramid {
        let scales = Scales::square(sides).unwrap();
        let rows = [(0..scales.tokens() as u32).collect::<Vec<_>>()];
        TokenPyramid::from_rows(scales, &rows, &Device::default()).unwrap()
    }

    #[test]
    fn the_first_scales_are_kept() {
        let mut keep = Keep::first(tokens(&[1, 2]), 1);
        assert_eq!((kept(&mut keep, 0), kept(&mut keep, 1)), (vec![true], vec![false; 4]));
        let mut all = Keep::all(tokens(&[1, 2]));
        assert_eq!((kept(&mut all, 0), kept(&mut all, 1)), (vec![true], vec![true; 4]));
        assert!(all.check(&Scales::square(&[1, 3]).unwrap()).is_err(), "another ladder");
    }

    #[test]
    fn masks_are_resized_and_the_smallest_scale_is_kept_whole() {
        let mut half = vec![0.0f32; 64];
        half.chunks_exact_mut(8).for_each(|row| row[..4].fill(1.0));
        let mask = Tensor::from_data(TensorData::new(half, [1, 1, 8, 8]), &Device::default());
        let mut keep = Keep::where_mask(tokens(&[1, 2, 4]), mask.clone()).unwrap();
        assert_eq!(keep.drawn().unwrap(), [0, 2, 8], "half of the others");
        assert_eq!(kept(&mut keep, 0), [true], "one token is the whole picture");
        assert_eq!(kept(&mut keep, 1), [true, false, true, false]);
        assert_eq!(kept(&mut keep, 2), [true, true, false, false].repeat(4));
        assert!(Keep::where_mask(tokens(&[1, 2]), mask.repeat_dim(0, 2)).is_err(), "two masks for a picture");
    }
}
