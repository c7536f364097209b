//! Token ids of every scale of a batch of images.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{Error, Result, Scales};

/// Token ids of every scale of a batch of images: the output of tokenizers and transformers.
///
/// A bit-wise token has several ids, its symbols, side by side.
///
/// ```
/// use burn::tensor::Device;
/// use burn_var::{Scales, TokenPyramid};
///
/// # fn main() -> burn_var::Result<()> {
/// let tokens = TokenPyramid::from_rows(Scales::square(&[1, 2])?, &[[7u32, 1, 2, 3, 4]], &Device::default())?;
/// assert_eq!(tokens.map(1).dims(), [1, 4]);
/// assert_eq!(tokens.to_rows()?, [[7, 1, 2, 3, 4]]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TokenPyramid {
    scales: Scales,
    symbols: usize,
    maps: Vec<Tensor<2, Int>>,
}

impl TokenPyramid {
    /// Creates a pyramid of one `[batch, tokens]` map per scale, row by row.
    ///
    /// # Errors
    /// [`Error::Shape`] if a map is missing or has another number of tokens or images.
    pub fn new(scales: Scales, maps: Vec<Tensor<2, Int>>) -> Result<Self> {
        Self::with_symbols(scales, 1, maps)
    }

    /// Creates a pyramid of tokens of several symbols: one `[batch, tokens * symbols]` map per scale.
    ///
    /// # Errors
    /// The errors of [`TokenPyramid::new`].
    pub fn with_symbols(scales: Scales, symbols: usize, maps: Vec<Tensor<2, Int>>) -> Result<Self> {
        if maps.len() != scales.len() {
            return Err(Error::shape("token pyramid", format!("{} maps", scales.len()), vec![maps.len()]));
        }
        let batch = maps[0].dims()[0];
        for (k, map) in maps.iter().enumerate() {
            let expected = [batch, scales.size(k).area() * symbols];
            if map.dims() != expected {
                return Err(Error::shape(format!("token map {k}"), format!("{expected:?}"), map.dims()));
            }
        }
        Ok(Self { scales, symbols, maps })
    }

    /// Splits `[batch, L]` ids, coarsest scale first, into maps.
    ///
    /// # Errors
    /// [`Error::Shape`] if L is not the number of tokens of the schedule.
    pub fn from_sequence(scales: Scales, ids: Tensor<2, Int>) -> Result<Self> {
        let [_, length] = ids.dims();
        if length != scales.tokens() {
            return Err(Error::shape("token ids", format!("[batch, {}]", scales.tokens()), ids.dims()));
        }
        let maps = (0..scales.len()).map(|k| {
            let range = scales.range(k);
            ids.clone().narrow(1, range.start, range.len())
        });
        let maps = maps.collect();
        Ok(Self { scales, symbols: 1, maps })
    }

    /// Creates a pyramid of ids on the host, one row of L ids per image.
    ///
    /// # Errors
    /// [`Error::Shape`] if a row has another length.
    pub fn from_rows<R: AsRef<[u32]>>(scales: Scales, rows: &[R], device: &Device) -> Result<Self> {
        let length = scales.tokens();
        let mut ids = Vec::with_capacity(rows.len() * length);
        for row in rows {
            let row = row.as_ref();
            if row.len() != length {
                return Err(Error::shape("a row of token ids", format!("[{length}]"), [row.len()]));
            }
            ids.extend(row.iter().map(|&id| i64::from(id)));
        }
        Self::from_sequence(scales, Tensor::from_data(TensorData::new(ids, [rows.len(), length]), device))
    }

    /// Reads the ids back to the host: one row of L ids per image.
    ///
    /// # Errors
    /// [`Error::Device`] if they cannot be read back.
    pub fn to_rows(&self) -> Result<Vec<Vec<u32>>> {
        let ids = self.sequence().try_into_vec_as::<i64>().map_err(Error::device("read token ids"))?;
        Ok(ids
            .chunks(self.scales.tokens() * self.symbols)
            .map(|row| row.iter().map(|&id| id as u32).collect())
            .collect())
    }

    /// Returns the scale schedule of the maps.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Returns the number of symbols per token: 1, or the number of bits of a bit-wise token.
    pub fn symbols(&self) -> usize {
        self.symbols
    }

    /// Returns the number of images.
    pub fn batch(&self) -> usize {
        self.maps[0].dims()[0]
    }

    /// Returns the ids of scale `k`, `[batch, tokens * symbols]`.
    ///
    /// # Panics
    /// If `k` is not below the number of scales.
    pub fn map(&self, k: usize) -> Tensor<2, Int> {
        self.maps[k].clone()
    }

    /// Returns the ids of all scales, coarsest first, `[batch, L * symbols]`.
    pub fn sequence(&self) -> Tensor<2, Int> {
        Tensor::cat(self.maps.clone(), 1)
    }
}
