//! Scale schedules: the sizes of the token maps that a model predicts in order.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Height and width of one token map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "PatchNum", into = "PatchNum")]
pub struct MapSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl MapSize {
    /// Creates the size of a square map.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// Returns the number of tokens in the map.
    pub const fn area(self) -> usize {
        self.height * self.width
    }
}

impl std::fmt::Display for MapSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.height == self.width {
            write!(f, "{}", self.height)
        } else {
            write!(f, "{}x{}", self.height, self.width)
        }
    }
}

/// Size of a map as written in configurations: `4`, or `[3, 5]` for 3 rows and 5 columns.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PatchNum {
    Side(usize),
    Sides([usize; 2]),
}

impl From<PatchNum> for MapSize {
    fn from(value: PatchNum) -> Self {
        match value {
            PatchNum::Side(side) => Self::square(side),
            PatchNum::Sides([height, width]) => Self { height, width },
        }
    }
}

impl From<MapSize> for PatchNum {
    fn from(size: MapSize) -> Self {
        if size.height == size.width { Self::Side(size.height) } else { Self::Sides([size.height, size.width]) }
    }
}

/// Scale schedule: the sizes of the token maps from the coarsest to the finest (`patch_nums` in VAR's code), and the
/// position of each map in the sequence of all tokens.
///
/// The finest map has the size of the tokenizer's latent. Maps are usually square and growing; neither is required. A
/// model that predicts one token after the other has a schedule too: [`Scales::raster`]. In files, a schedule is the list
/// of its maps, and a raster is `{ raster = 16 }`, or `{ raster = [16, 24] }` for 16 rows of 24 tokens.
///
/// ```
/// use burn_var::Scales;
///
/// # fn main() -> burn_var::Result<()> {
/// let scales = Scales::square(&[1, 2, 4])?;
/// assert_eq!((scales.len(), scales.tokens()), (3, 21));
/// assert_eq!(scales.at(2).range(), 5..21);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Scales {
    sizes: Vec<MapSize>,
    /// The map whose positions are the scales, if this is a raster.
    raster: Option<MapSize>,
}

/// Schedule as written in configurations.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "expected a list of map sizes, or `{ raster = SIZE }`")]
enum Written {
    Maps(Vec<MapSize>),
    Raster { raster: MapSize },
}

impl TryFrom<Written> for Scales {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Maps(sizes) => Self::new(sizes),
            Written::Raster { raster } => Self::raster(raster),
        }
    }
}

impl From<Scales> for Written {
    fn from(scales: Scales) -> Self {
        match scales.raster {
            Some(raster) => Self::Raster { raster },
            None => Self::Maps(scales.sizes),
        }
    }
}

impl TryFrom<Vec<MapSize>> for Scales {
    type Error = Error;

    fn try_from(sizes: Vec<MapSize>) -> Result<Self> {
        Self::new(sizes)
    }
}

impl From<Scales> for Vec<MapSize> {
    fn from(scales: Scales) -> Self {
        scales.sizes
    }
}

impl Scales {
    /// Schedule of VAR for 256x256 pixels.
    pub const VAR_256: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
    /// Schedule of VAR for 512x512 pixels.
    pub const VAR_512: [usize; 10] = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32];
    /// Schedule of VAR for 1024x1024 pixels.
    pub const VAR_1024: [usize; 14] = [1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64];

    /// Creates a schedule of the given maps, coarsest first.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no map, or one is empty.
    pub fn new(sizes: Vec<MapSize>) -> Result<Self> {
        if sizes.is_empty() || sizes.iter().any(|size| size.area() == 0) {
            let found = format!("{:?}", sizes.iter().map(|s| [s.height, s.width]).collect::<Vec<_>>());
            return Err(Error::config("patch_nums", found, "at least one map, each of at least 1x1 tokens"));
        }
        Ok(Self { sizes, raster: None })
    }

    /// Creates a schedule of square maps.
    ///
    /// # Errors
    /// The errors of [`Scales::new`].
    pub fn square(sides: &[usize]) -> Result<Self> {
        Self::new(sides.iter().copied().map(MapSize::square).collect())
    }

    /// Creates a published schedule, which is known to be valid.
    pub(crate) fn published(sides: &[usize]) -> Self {
        Self { sizes: sides.iter().copied().map(MapSize::square).collect(), raster: None }
    }

    /// Returns this schedule for another size of the last map, for models that accept any (FlexVAR).
    ///
    /// Every map gets the new shape, its longer side being that of the old map. A smaller size ends the schedule early;
    /// a larger one continues it in steps of at most half as much again: from 16 to 32 by 23, as FlexVAR's authors do. A
    /// raster becomes the raster of the new size.
    ///
    /// # Errors
    /// [`Error::Config`] if the size is empty.
    pub fn for_size(&self, size: MapSize) -> Result<Self> {
        if self.raster.is_some() {
            return Self::raster(size);
        }
        let longer = |size: MapSize| size.height.max(size.width);
        let (target, own) = (longer(size), longer(self.finest()));
        let mut sides: Vec<usize> = self.sizes.iter().map(|size| longer(*size)).filter(|side| *side < target).collect();
        if own < target {
            let steps = ((target as f64 / own as f64).ln() / 1.5f64.ln()).ceil();
            let between = (1..steps as usize).map(|i| own as f64 * (target as f64 / own as f64).powf(i as f64 / steps));
            sides.extend(between.map(|side| side.round() as usize));
        }
        let side = |of: usize, longer: usize| ((of * longer) as f64 / target as f64).round().max(1.0) as usize;
        let map = |longer| MapSize { height: side(size.height, longer), width: side(size.width, longer) };
        let mut sizes: Vec<MapSize> = if target == 0 { Vec::new() } else { sides.into_iter().map(map).collect() };
        sizes.push(size);
        sizes.dedup();
        if let Some(first) = sizes.first().copied() {
            sizes.splice(..0, std::iter::repeat_n(first, self.first_repeats() - 1));
        }
        Self::new(sizes)
    }

    /// Creates the schedule of a next-token model: one step of a single token for each position of a map of `size`,
    /// row by row.
    ///
    /// # Errors
    /// The errors of [`Scales::new`].
    pub fn raster(size: MapSize) -> Result<Self> {
        let steps = Self::new(vec![MapSize::square(1); size.area()])?;
        Ok(Self { raster: Some(size), ..steps })
    }

    /// Creates the raster of a published size, which is known to be valid.
    pub(crate) fn of_raster(size: MapSize) -> Self {
        Self { sizes: vec![MapSize::square(1); size.area()], raster: Some(size) }
    }

    /// Returns the size of the map that a raster walks over; `None` for a schedule of whole maps.
    pub fn raster_size(&self) -> Option<MapSize> {
        self.raster
    }

    /// Returns the ranges of scales that are shown and measured one by one: every scale by itself, or every row of a
    /// raster.
    pub fn stages(&self) -> Vec<Range<usize>> {
        let step = self.raster.map_or(1, |size| size.width);
        (0..self.len()).step_by(step).map(|first| first..first + step).collect()
    }

    /// Returns scale `k` of this schedule.
    ///
    /// # Panics
    /// If `k` is not below [`Scales::len`].
    pub fn at(&self, k: usize) -> ScaleAt<'_> {
        assert!(k < self.len(), "scale {k} of a schedule of {}", self.len());
        ScaleAt { k, scales: self }
    }

    /// Iterates over the scales, coarsest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ScaleAt<'_>> + DoubleEndedIterator {
        (0..self.len()).map(|k| ScaleAt { k, scales: self })
    }

    /// Returns the number of scales, K.
    #[allow(clippy::len_without_is_empty, reason = "a schedule is never empty")]
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Returns the size of map `k`.
    ///
    /// # Panics
    /// If `k` is not below [`Scales::len`].
    pub fn size(&self, k: usize) -> MapSize {
        self.sizes[k]
    }

    /// Returns all sizes, coarsest first.
    pub fn sizes(&self) -> &[MapSize] {
        &self.sizes
    }

    /// Returns the size of the latent: that of the last map, or of the map that a raster walks over.
    pub fn finest(&self) -> MapSize {
        self.raster.unwrap_or(self.sizes[self.sizes.len() - 1])
    }

    /// Returns the number of maps of the first size that the schedule begins with: the steps of a masked first scale, or 1.
    /// A raster has single tokens instead of maps: 1.
    pub fn first_repeats(&self) -> usize {
        if self.raster.is_some() {
            return 1;
        }
        self.sizes.iter().take_while(|size| **size == self.sizes[0]).count()
    }

    /// Returns the schedule with a single map of the first size.
    #[must_use]
    pub fn without_repeats(&self) -> Self {
        Self { sizes: self.sizes[self.first_repeats() - 1..].to_vec(), ..*self }
    }

    /// Returns the number of tokens of all maps together, L.
    pub fn tokens(&self) -> usize {
        self.sizes.iter().map(|size| size.area()).sum()
    }

    /// Returns the positions of map `k` in the sequence of all tokens.
    ///
    /// # Panics
    /// If `k` is not below [`Scales::len`].
    pub fn range(&self, k: usize) -> Range<usize> {
        if self.raster.is_some() {
            return k..k + 1;
        }
        let start = self.sizes[..k].iter().map(|size| size.area()).sum();
        start..start + self.sizes[k].area()
    }

    /// Returns the scale index of every position of the sequence (`lvl_1L` in VAR's checkpoints).
    pub fn levels(&self) -> Vec<usize> {
        self.sizes.iter().enumerate().flat_map(|(k, size)| std::iter::repeat_n(k, size.area())).collect()
    }

    /// Returns the progress through the schedule at scale `k`: `k / (K - 1)`, and 0 for a schedule of one scale (where
    /// the original divides by zero).
    pub fn ratio(&self, k: usize) -> f64 {
        match self.sizes.len() {
            1 => 0.0,
            count => k as f64 / (count - 1) as f64,
        }
    }
}

/// One scale of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaleAt<'a> {
    k: usize,
    scales: &'a Scales,
}

impl<'a> ScaleAt<'a> {
    /// Returns the index of the scale, from 0.
    pub fn k(self) -> usize {
        self.k
    }

    /// Returns the schedule.
    pub fn scales(self) -> &'a Scales {
        self.scales
    }

    /// Returns the size of its token map.
    pub fn size(self) -> MapSize {
        self.scales.sizes[self.k]
    }

    /// Returns its positions in the sequence of all tokens.
    pub fn range(self) -> Range<usize> {
        self.scales.range(self.k)
    }

    /// Returns the progress through the schedule, see [`Scales::ratio`].
    pub fn ratio(self) -> f64 {
        self.scales.ratio(self.k)
    }

    /// Returns the preceding scale; `None` at the first.
    pub fn before(self) -> Option<Self> {
        Some(Self { k: self.k.checked_sub(1)?, ..self })
    }

    /// Returns `true` for the first scale.
    pub fn is_first(self) -> bool {
        self.k == 0
    }

    /// Returns `true` for the last scale.
    pub fn is_last(self) -> bool {
        self.k + 1 == self.scales.len()
    }
}

impl std::fmt::Display for Scales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(size) = self.raster {
            return write!(f, "raster:{size}");
        }
        for (k, size) in self.sizes.iter().enumerate() {
            if k > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{size}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_for_another_size_keeps_its_steps() {
        let scales = Scales::published(&Scales::VAR_256);
        let found = |height: usize, width: usize| scales.for_size(MapSize { height, width }).unwrap().to_string();
        assert_eq!(found(16, 16), scales.to_string(), "its own size");
        assert_eq!(found(32, 32), "1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 32", "the steps of FlexVAR's 512 pixels");
        assert_eq!(found(6, 6), "1, 2, 3, 4, 5, 6");
        assert_eq!(found(8, 16), "1, 1x2, 2x3, 2x4, 3x5, 3x6, 4x8, 5x10, 7x13, 8x16");
        assert_eq!(found(1, 1), "1");
        let masked = Scales::square(&[2, 2, 2, 3, 4]).unwrap();
        let larger = masked.for_size(MapSize::square(6)).unwrap();
        assert_eq!(larger.to_string(), "2, 2, 2, 3, 4, 6", "the steps of a masked first scale stay");
        assert_eq!((masked.first_repeats(), masked.without_repeats().to_string()), (3, "2, 3, 4".to_owned()));
        assert!(scales.for_size(MapSize { height: 0, width: 0 }).is_err(), "no image");
    }

    #[test]
    fn var_256_has_680_tokens() {
        let scales = Scales::square(&Scales::VAR_256).unwrap();
        assert_eq!(scales.tokens(), 680, "tokens of a 256x256 image");
        assert_eq!(scales.range(9), 424..680, "the last map");
        assert_eq!(scales.levels().len(), 680);
        assert_eq!(Scales::square(&Scales::VAR_512).unwrap().tokens(), 2240, "tokens of a 512x512 image");
    }

    #[test]
    fn sizes_read_as_sides_or_pairs() {
        let scales: Scales = serde_json::from_str("[1, [3, 5]]").unwrap();
        assert_eq!(scales.finest(), MapSize { height: 3, width: 5 });
        assert_eq!(serde_json::to_string(&scales).unwrap(), "[1,[3,5]]");
        let raster: Scales = serde_json::from_str(r#"{"raster":[2,3]}"#).unwrap();
        assert_eq!(raster, Scales::raster(MapSize { height: 2, width: 3 }).unwrap());
        assert_eq!(serde_json::to_string(&raster).unwrap(), r#"{"raster":[2,3]}"#);
        let error = serde_json::from_str::<Scales>(r#"{"raster":2,"rows":3}"#).unwrap_err().to_string();
        assert!(error.contains("raster = SIZE"), "{error}");
        assert_eq!(scales.to_string(), "1, 3x5");
    }

    #[test]
    fn an_empty_schedule_or_map_is_refused() {
        assert!(Scales::square(&[]).is_err(), "no map");
        assert!(Scales::square(&[1, 0]).is_err(), "a map without tokens");
        assert!(serde_json::from_str::<Scales>("[]").is_err(), "no map, from a file");
    }

    #[test]
    fn a_raster_is_one_token_per_step() {
        let size = MapSize { height: 2, width: 3 };
        let scales = Scales::raster(size).unwrap();
        assert_eq!(
            (scales.raster_size(), scales.finest(), scales.to_string()),
            (Some(size), size, "raster:2x3".into())
        );
        assert_eq!(scales.stages(), [0..3, 3..6], "rows");
        assert_eq!(Scales::square(&[1, 2]).unwrap().stages(), [0..1, 1..2], "scales");
        assert_eq!(scales.for_size(MapSize::square(4)).unwrap(), Scales::raster(MapSize::square(4)).unwrap());
        assert!(Scales::raster(MapSize { height: 0, width: 3 }).is_err(), "no token");
        assert_eq!((scales.len(), scales.tokens(), scales.range(4)), (6, 6, 4..5));
        assert_eq!(scales.at(4).before(), Some(scales.at(3)), "the token before");
        assert!(scales.at(0).is_first() && scales.at(5).is_last() && scales.at(0).before().is_none());
    }

    #[test]
    fn one_scale_has_ratio_zero() {
        assert_eq!(Scales::square(&[4]).unwrap().ratio(0), 0.0);
    }
}
