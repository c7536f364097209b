use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};

use super::{DrawnTokens, Noise, Sampler, TopPRule, mixture_temperature, not_a_number};
use crate::ops::{self, Draw, Mass, Values};
use crate::{Error, Result};

/// Draw of a batch's tokens on its device, if there is a kernel for it: neither logits nor tokens are read back.
///
/// The filter and the noise are those of [`Sampler::draw`]: the same integers, whose logarithms and sums are taken in single
/// precision. So a token differs from the host's about once in a million draws, where two entries are as close as that.
/// Logits that are not numbers are noted on the device, and [`DeviceDraw::check`] makes them an error.
#[derive(Debug, Clone)]
pub struct DeviceDraw {
    /// Keys of the images' noise, `[images, 2]`.
    keys: Tensor<2, Int>,
    /// 1 plus the number of an entry that was not a number, or 0.
    fault: Option<Tensor<1, Int>>,
    images: usize,
    vocabulary: usize,
}

impl DeviceDraw {
    /// Creates the draw of a batch with the noise of each image; `None` if its device has no kernel for it.
    pub fn new(noise: &[Noise], vocabulary: usize, device: &Device) -> Option<Self> {
        if !ops::draws(device, vocabulary) {
            return None;
        }
        let device = device.clone().inner();
        let keys = noise.iter().flat_map(|noise| noise.key()).map(u32::cast_signed).collect();
        let keys = TensorData::new::<i32, _>(keys, [noise.len(), 2]);
        let keys = Tensor::from_data(keys, (&device, DType::I32));
        Some(Self { keys, fault: Some(Tensor::zeros([1], &device)), images: noise.len(), vocabulary })
    }

    /// Draws the tokens of scale `k` from logits `[batch, tokens, vocab]`, as [`Sampler::draw`].
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes do not fit each other.
    pub fn draw(
        &mut self,
        sampler: &Sampler,
        logits: Tensor<3>,
        k: usize,
        ratio: f64,
        codebook: &Tensor<2>,
    ) -> Result<DrawnTokens> {
        let _span = tracing::trace_span!("part", op = "Sampler", pass = "forward").entered();
        let [batch, tokens, vocabulary] = logits.dims();
        if batch != self.images || vocabulary != self.vocabulary || tokens == 0 {
            let expected = format!("[{}, tokens, {}]", self.images, self.vocabulary);
            return Err(Error::shape("logits", expected, [batch, tokens, vocabulary]));
        }
        let values = match sampler.more_smooth {
            true => Values::Mixture { ratio: ratio as f32, tau: mixture_temperature(ratio) as f32 },
            false => Values::None,
        };
        let strategy = logits.gradient_checkpointing_strategy();
        let rows = logits.inner().cast(DType::F32).reshape([batch * tokens, vocabulary]);
        let (ids, values) = self.run(rows, sampler.on_device(tokens, k, values));
        let mut ids = ids.reshape([batch, tokens]);
        if let Some(strategy) = strategy {
            ids = ids.autodiff().with_gradient_checkpointing_strategy(strategy);
        }
        let codes = sampler.more_smooth.then(|| {
            let shares = activation::softmax(values, 1).cast(codebook.dtype());
            ops::exact_matmul(shares, codebook.clone()).reshape([batch, tokens, codebook.dims()[1]])
        });
        Ok(DrawnTokens { ids, codes })
    }

    fn run(&mut self, rows: Tensor<2>, settings: Draw) -> (Tensor<1, Int>, Tensor<2>) {
        let fault = self.fault.take().unwrap_or_else(|| Tensor::zeros([1], &rows.device()));
        let (ids, fault, values) = ops::draw(rows, &self.keys, fault, settings);
        self.fault = Some(fault);
        (ids, values)
    }

    /// Checks that all logits so far were numbers, which waits for the device.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if one was not; [`Error::Device`] if the device cannot tell.
    pub fn check(&self) -> Result<()> {
        let Some(fault) = self.fault.clone() else { return Ok(()) };
        let found = fault.try_into_vec_as::<i64>().map_err(Error::device("read the state of the draw"))?;
        checked(&found)
    }

    /// Checks as [`DeviceDraw::check`] does, without blocking.
    ///
    /// # Errors
    /// The errors of [`DeviceDraw::check`].
    pub async fn check_async(&self) -> Result<()> {
        let Some(fault) = self.fault.clone() else { return Ok(()) };
        let data = fault.into_data_async().await.map_err(Error::device("read the state of the draw"))?;
        let data = data.try_cast_as::<i64>().map_err(Error::device("read the state of the draw"))?;
        checked(&data.try_into_vec().map_err(Error::device("read the state of the draw"))?)
    }
}

fn checked(fault: &[i64]) -> Result<()> {
    match fault.iter().find_map(|fault| usize::try_from(fault - 1).ok()) {
        Some(position) => Err(not_a_number(position)),
        None => Ok(()),
    }
}

impl Sampler {
    /// Filters rows of logits on their device, `[rows, vocab]`, as [`Sampler::filter`] does: minus infinity where an entry is
    /// dropped. Returns `None` if the device has no kernel for it.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if a logit is not a number; [`Error::Device`] if the device cannot tell.
    pub fn filter_on_device(&self, logits: Tensor<2>) -> Result<Option<Tensor<2>>> {
        let [rows, vocabulary] = logits.dims();
        let noise = Noise::new(&mut crate::rng::Rng::new(0, "none", 0));
        let Some(mut draw) = DeviceDraw::new(&[noise], vocabulary, &logits.device()) else { return Ok(None) };
        if rows == 0 {
            return Ok(Some(logits));
        }
        let settings = self.on_device(rows, 0, Values::Filtered);
        let (_, filtered) = draw.run(logits.inner().cast(DType::F32), settings);
        draw.check()?;
        Ok(Some(filtered))
    }

    /// Returns the settings of the kernel for `tokens` rows per image.
    fn on_device(&self, tokens: usize, k: usize, values: Values) -> Draw {
        let (mass, share) = match self.top_p_rule {
            _ if self.top_p == 0.0 => (Mass::All, 0.0),
            TopPRule::Ascending => (Mass::Ascending, 1.0 - self.top_p),
            TopPRule::Descending if self.top_p < 1.0 => (Mass::Descending, self.top_p),
            TopPRule::Descending => (Mass::All, 0.0),
        };
        Draw {
            tokens,
            scale: k as u32,
            temperature: self.temperature as f32,
            top_k: self.top_k,
            mass,
            share: share as f32,
            values,
        }
    }
}
