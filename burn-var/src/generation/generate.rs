use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor};

use super::{BatchRequest, Condition, NextScale, ScaleInput, ScaleTokens, State, Tokenizer, Vocabulary};
use crate::editing::{replace_codes, replace_ids};
use crate::guidance::{BatchInfo, Guidance, Logits};
use crate::rng::Rng;
use crate::sampling::{DeviceDraw, DrawnTokens, Noise};
use crate::scales::ScaleAt;
use crate::{Error, Result, Scales, TokenPyramid};

/// A finished scale. Its tensors are cheap to clone.
#[derive(Debug, Clone)]
pub struct ScaleDone {
    /// Index of the scale, from 0.
    pub k: usize,
    /// Guided logits before filtering, `[batch, tokens, vocabulary.logits()]`.
    pub logits: Tensor<3>,
    /// Tokens, `[batch, tokens * symbols]`.
    pub ids: Tensor<2, Int>,
    /// Canvas so far; [`Tokenizer::decode`] makes a preview of it.
    pub canvas: Tensor<4>,
}

/// A finished batch.
#[derive(Debug)]
pub struct Generated {
    /// Tokens of all scales.
    pub tokens: TokenPyramid,
    /// Final canvas, `[batch, z_channels, height, width]`.
    pub canvas: Tensor<4>,
}

/// Generation of a batch of images in progress.
///
/// Each call of [`Generation::next_scale`] generates one scale. A GPU draws the tokens itself, and nothing is read back but,
/// after the last scale, that all logits were numbers. On other devices tokens are drawn on the host, which reads the logits
/// of each scale. Where reading must not block (in a browser), [`Generation::next_scale_async`] awaits it. Dropping it stops
/// the generation.
pub struct Generation<'a, T: ?Sized, M: NextScale + ?Sized> {
    tokenizer: &'a T,
    model: &'a M,
    guidance: Vec<Box<dyn Guidance + 'a>>,
    request: BatchRequest,
    scales: Scales,
    /// Number of scales, from the first, in which each further branch runs: its cache must be complete up to the last
    /// scale that uses it.
    null_scales: usize,
    corrupted_scales: usize,
    state: M::State,
    corrupted: Option<M::State>,
    canvas: Tensor<4>,
    codebook: Tensor<2>,
    previous: Option<Previous>,
    rngs: Vec<Rng>,
    noise: Vec<Noise>,
    /// Draw on the device; `None` where tokens are drawn on the host.
    on_device: Option<DeviceDraw>,
    maps: Vec<Tensor<2, Int>>,
}

/// Tokens of the preceding scale.
struct Previous {
    ids: Tensor<2, Int>,
    codes: Tensor<3>,
}

impl<'a, T: Tokenizer + ?Sized, M: NextScale + ?Sized> Generation<'a, T, M> {
    /// Starts a batch. `guidance` is applied in order.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Shape`] if tokenizer, model, schedule and request do not fit each other or a
    /// setting is out of range; [`Error::Label`] and [`Error::Unsupported`] for a condition that the model does not
    /// have. Checked before anything large is computed.
    pub fn new(
        tokenizer: &'a T,
        model: &'a M,
        mut guidance: Vec<Box<dyn Guidance + 'a>>,
        request: BatchRequest,
    ) -> Result<Self> {
        check_pair(tokenizer, model)?;
        request.validate()?;
        let scales = request.scales.clone().unwrap_or_else(|| model.scales().clone());
        model.check_scales(&scales)?;
        let images = request.conditions.len();
        if let Some(known) = &request.known {
            known.check(images, &scales, tokenizer.vocabulary())?;
        }
        let device = tokenizer.device();
        let info = BatchInfo { scales: &scales, images, seed: request.seed, first: request.first, device: &device };
        guidance.iter_mut().try_for_each(|part| part.begin(&info))?;

        let last_scale = |needs: fn(&dyn Guidance, ScaleAt<'_>) -> bool| {
            let needed = |at: &ScaleAt<'_>| guidance.iter().any(|part| needs(part.as_ref(), *at));
            scales.iter().rev().find(needed).map_or(0, |at| at.k() + 1)
        };
        let null_scales = last_scale(|part, at| part.branches(at).null);
        let corrupted_scales = last_scale(|part, at| part.branches(at).corrupted);
        let mut conditions = request.conditions.clone();
        if null_scales > 0 {
            conditions.resize(2 * images, Condition::Null);
        }
        let state = model.start(&conditions, &scales)?;
        let stream = |i| Rng::new(request.seed, "sample", request.first + i);
        let mut rngs: Vec<Rng> = (0..images as u64).map(stream).collect();
        let noise: Vec<Noise> = rngs.iter_mut().map(Noise::new).collect();
        Ok(Self {
            corrupted: (corrupted_scales > 0).then(|| state.clone()),
            state,
            canvas: tokenizer.blank(images, &scales),
            codebook: tokenizer.codebook(),
            previous: None,
            on_device: DeviceDraw::new(&noise, tokenizer.vocabulary().size, &device),
            noise,
            rngs,
            maps: Vec::with_capacity(scales.len()),
            tokenizer,
            model,
            guidance,
            request,
            scales,
            null_scales,
            corrupted_scales,
        })
    }

    /// Generates the next scale; returns `None` after the last.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for logits that are not numbers, where the device draws with the last scale;
    /// [`Error::Device`] if the device fails; those of the guidance.
    pub fn next_scale(&mut self) -> Result<Option<ScaleDone>> {
        let Some(logits) = self.logits()? else { return Ok(None) };
        let drawn = match self.draw_on_device(&logits)? {
            Some(drawn) => drawn,
            None => self.draw(&logits, read(logits.clone())?)?,
        };
        let done = self.paint(logits, drawn)?;
        if self.is_complete() {
            self.check()?;
        }
        Ok(Some(done))
    }

    /// Generates the next scale without blocking while something is read back; returns `None` after the last.
    ///
    /// # Errors
    /// The errors of [`Generation::next_scale`].
    pub async fn next_scale_async(&mut self) -> Result<Option<ScaleDone>> {
        let Some(logits) = self.logits()? else { return Ok(None) };
        let drawn = match self.draw_on_device(&logits)? {
            Some(drawn) => drawn,
            None => self.draw(&logits, read_async(logits.clone()).await?)?,
        };
        let done = self.paint(logits, drawn)?;
        if let Some(draw) = self.on_device.as_ref().filter(|_| self.is_complete()) {
            draw.check_async().await?;
        }
        Ok(Some(done))
    }

    /// Checks that the logits of all scales so far were numbers. After the last scale this is done; who stops before it and
    /// uses the tokens must ask.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for logits that are not numbers; [`Error::Device`] if the device cannot tell.
    pub fn check(&self) -> Result<()> {
        self.on_device.as_ref().map_or(Ok(()), DeviceDraw::check)
    }

    fn is_complete(&self) -> bool {
        self.maps.len() == self.scales.len()
    }

    /// Computes the guided logits of the next scale, on the device.
    fn logits(&mut self) -> Result<Option<Tensor<3>>> {
        let k = self.maps.len();
        if k == self.scales.len() {
            return Ok(None);
        }
        let at = self.scales.at(k);
        let images = self.request.conditions.len();
        if k == self.null_scales && self.state.sequences() > images {
            // The clone shares all tensors: what it costs is small, and `Option` would make every use fallible.
            self.state = self.state.clone().keep_first(images);
            self.corrupted = self.corrupted.take().map(|state| state.keep_first(images));
        }
        if k == self.corrupted_scales {
            self.corrupted = None;
        }
        let mut hidden = self.embed(at, self.state.sequences() / images);
        let codes = self.previous.as_ref().map(|previous| &previous.codes);
        for part in &mut self.guidance {
            hidden = part.hidden(at, codes, hidden)?;
        }
        let mut beside = None;
        if let Some(state) = &mut self.corrupted {
            let mut hidden = hidden.clone();
            for part in &mut self.guidance {
                hidden = part.corrupt(at, hidden)?;
            }
            beside = Some(Box::new(branches(self.model.step(state, at, hidden), images)));
        }
        let mut logits = branches(self.model.step(&mut self.state, at, hidden), images);
        logits.corrupted = beside;
        for part in &mut self.guidance {
            logits = part.logits(at, logits)?;
        }
        Ok(Some(logits.cond))
    }

    /// Embeds a scale for all branches, which share tokens and canvas.
    fn embed(&self, at: ScaleAt<'_>, branches: usize) -> Tensor<3> {
        let mut map = self.tokenizer.next_input(&self.canvas, at);
        let mut ids = self.previous.as_ref().map(|previous| previous.ids.clone());
        if branches > 1 {
            map = map.repeat_dim(0, branches);
            ids = ids.map(|ids| ids.repeat_dim(0, branches));
        }
        self.model.embed(&self.state, at, ScaleInput { map, ids: ids.as_ref() })
    }

    /// Draws a scale's tokens on the device, if it has a kernel for it.
    fn draw_on_device(&mut self, logits: &Tensor<3>) -> Result<Option<DrawnTokens>> {
        let Some(draw) = &mut self.on_device else { return Ok(None) };
        let at = self.scales.at(self.maps.len());
        let sampler = self.request.sampler.at_size(at.size());
        let rows = rows(logits, self.tokenizer.vocabulary());
        draw.draw(&sampler, logits.clone().reshape(rows), at.k(), at.ratio(), &self.codebook).map(Some)
    }

    /// Draws a scale's tokens on the host, from `values`, its logits as read back.
    fn draw(&self, logits: &Tensor<3>, values: Vec<f32>) -> Result<DrawnTokens> {
        let at = self.scales.at(self.maps.len());
        let sampler = self.request.sampler.at_size(at.size());
        let noise: Vec<Noise> = self.noise.iter().map(|noise| noise.at_scale(at.k())).collect();
        sampler.draw(values, rows(logits, self.tokenizer.vocabulary()), &noise, at.ratio(), &self.codebook)
    }

    /// Paints a scale's tokens, those that are known in place of drawn ones.
    fn paint(&mut self, logits: Tensor<3>, drawn: DrawnTokens) -> Result<ScaleDone> {
        let at = self.scales.at(self.maps.len());
        let [batch, tokens, _] = logits.dims();
        let mut ids = drawn.ids;
        let mut codes = drawn.codes.map(|codes| codes.reshape([batch, tokens, self.tokenizer.z_channels()]));
        let kept = self.model.kept(&mut self.state, at, &mut self.rngs)?;
        if let Some((kept, previous)) = kept.zip(self.previous.as_ref()) {
            ids = replace_ids(ids, &kept, previous.ids.clone());
            codes = codes.map(|codes| replace_codes(codes, &kept, previous.codes.clone()));
        }
        if let Some(known) = &self.request.known {
            ids = known.fill_ids(at.k(), ids);
            codes = codes.map(|codes| known.fill_codes(at.k(), codes, self.tokenizer));
        }
        let looked_up = self.tokenizer.lookup(ids.clone());
        let codes = codes.unwrap_or_else(|| looked_up.clone());
        let codes = self.model.refine(&mut self.state, at, ScaleTokens { ids: &ids, codes }, &mut self.rngs)?;
        self.canvas = self.tokenizer.paint(self.canvas.clone(), at, codes);
        self.previous = Some(Previous { ids: ids.clone(), codes: looked_up });
        self.maps.push(ids.clone());
        Ok(ScaleDone { k: at.k(), logits, ids, canvas: self.canvas.clone() })
    }

    /// Returns the tokens and the canvas of a finished batch.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if scales are left.
    pub fn finish(self) -> Result<Generated> {
        match self.maps.len() {
            done if done < self.scales.len() => Err(Error::Cancelled { scales: done }),
            _ => {
                let tokens = TokenPyramid::with_symbols(self.scales, self.tokenizer.vocabulary().symbols, self.maps)?;
                Ok(Generated { tokens, canvas: self.canvas })
            }
        }
    }
}

/// Returns the shape of logits, `[batch, tokens, logits]`, with a row per symbol.
fn rows(logits: &Tensor<3>, vocabulary: Vocabulary) -> [usize; 3] {
    let [batch, tokens, _] = logits.dims();
    [batch, tokens * vocabulary.symbols, vocabulary.size]
}

/// Reads a tensor back.
fn read(tensor: Tensor<3>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(Error::device("read logits"))
}

/// Reads a tensor back without blocking.
async fn read_async(tensor: Tensor<3>) -> Result<Vec<f32>> {
    let data = tensor.into_data_async().await.map_err(Error::device("read logits"))?;
    let data = data.try_cast_as::<f32>().map_err(Error::device("read logits"))?;
    data.try_into_vec().map_err(Error::device("read logits"))
}

/// Splits the logits of a batch into those with a condition and those of the null branch behind them.
fn branches(logits: Tensor<3>, images: usize) -> Logits {
    let sequences = logits.dims()[0];
    if sequences == images {
        return Logits::cond(logits);
    }
    let null = logits.clone().narrow(0, images, sequences - images);
    Logits { null: Some(null), ..Logits::cond(logits.narrow(0, 0, images)) }
}

/// Generates a batch of images. [`Tokenizer::decode`] turns the canvas into images.
///
/// `guidance` is applied in order. `observer` is called after each scale and may stop the loop.
///
/// # Errors
/// The errors of [`Generation::new`] and [`Generation::next_scale`]; [`Error::Cancelled`] if the observer stops before
/// the last scale is done.
pub fn generate<T, M>(
    tokenizer: &T,
    model: &M,
    guidance: Vec<Box<dyn Guidance + '_>>,
    request: BatchRequest,
    observer: &mut dyn FnMut(&ScaleDone) -> ControlFlow<()>,
) -> Result<Generated>
where
    T: Tokenizer + ?Sized,
    M: NextScale + ?Sized,
{
    let mut generation = Generation::new(tokenizer, model, guidance, request)?;
    while let Some(done) = generation.next_scale()? {
        if observer(&done).is_break() {
            return Err(Error::Cancelled { scales: done.k + 1 });
        }
    }
    generation.finish()
}

/// Checks that the scale schedule and the vocabulary of a tokenizer and a transformer match.
///
/// # Errors
/// [`Error::Config`] naming what differs.
pub fn check_pair<T, M>(tokenizer: &T, model: &M) -> Result<()>
where
    T: Tokenizer + ?Sized,
    M: NextScale + ?Sized,
{
    if tokenizer.scales() != model.scales() {
        let expected = format!("`{}`, the tokenizer's", tokenizer.scales());
        return Err(Error::config("patch_nums of the transformer", model.scales(), expected));
    }
    let (own, needed) = (model.vocabulary(), tokenizer.vocabulary());
    if own.size != needed.size {
        let expected = format!("{}, the tokenizer's", needed.size);
        return Err(Error::config("vocab_size of the transformer", own.size, expected));
    }
    if own.symbols != needed.symbols {
        let expected = format!("{}, the tokenizer's", needed.symbols);
        return Err(Error::config("symbols per token of the transformer", own.symbols, expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use burn::tensor::Device;

    use super::*;
    use crate::guidance::{Branches, Cfg, Schedule, Vpg, VpgConfig};
    use crate::init::{Init, initialize};
    use crate::models::var::{Var, VarConfig, VqVae, VqVaeConfig};

    fn models() -> (VqVae, Var) {
        let scales = Scales::square(&[1, 2, 3, 4]).unwrap();
        let device = Device::default();
        let tokenizer = VqVaeConfig {
            image_channels: 1,
            ch: 32,
            ch_mult: vec![1, 1],
            num_res_blocks: 1,
            z_channels: 4,
            vocab_size: 7,
            ..VqVaeConfig::public(scales.clone())
        };
        let config: VarConfig = serde_json::from_value(serde_json::json!({
            "depth": 2, "embed_dim": 12, "num_heads": 2, "vocab_size": 7, "z_channels": 4, "num_classes": 3,
            "patch_nums": scales,
        }))
        .unwrap();
        let transformer = initialize(config.init_zeros(&device).unwrap(), 1, |_| Init::Normal(0.3));
        (initialize(tokenizer.init_zeros(&device).unwrap(), 2, |_| Init::Normal(0.3)), transformer)
    }

    /// Which branches there were at each scale, and how far the corrupted ones were from the others.
    type Seen = Rc<RefCell<Vec<[Option<f32>; 2]>>>;

    /// Asks for a corrupted branch up to scale 2, and stretches what enters it.
    struct Spy {
        stretch: f64,
        seen: Seen,
    }

    impl Guidance for Spy {
        fn name(&self) -> &'static str {
            "spy"
        }

        fn branches(&self, at: ScaleAt<'_>) -> Branches {
            Branches { corrupted: at.k() == 2, ..Branches::default() }
        }

        fn corrupt(&mut self, _: ScaleAt<'_>, hidden: Tensor<3>) -> Result<Tensor<3>> {
            Ok(hidden * (1.0 + self.stretch))
        }

        fn logits(&mut self, _: ScaleAt<'_>, logits: Logits) -> Result<Logits> {
            let apart = |a: &Tensor<3>, b: &Tensor<3>| (a.clone() - b.clone()).abs().max().into_scalar::<f32>();
            let beside = logits.corrupted.as_ref();
            let null = beside.and_then(|beside| beside.null.as_ref()).zip(logits.null.as_ref());
            self.seen
                .borrow_mut()
                .push([beside.map(|beside| apart(&beside.cond, &logits.cond)), null.map(|(a, b)| apart(a, b))]);
            Ok(logits)
        }
    }

    fn run(guidance: Vec<Box<dyn Guidance>>) -> Vec<Vec<u32>> {
        let (tokenizer, transformer) = models();
        let request = BatchRequest::classes(&[0, 2], 5);
        let generated =
            generate(&tokenizer, &transformer, guidance, request, &mut |_| ControlFlow::Continue(())).unwrap();
        generated.tokens.to_rows().unwrap()
    }

    #[test]
    fn the_corrupted_branch_runs_beside_the_other_as_long_as_it_is_needed() {
        let seen_with = |stretch: f64, cfg: Schedule| {
            let seen = Seen::default();
            let spy = Spy { stretch, seen: seen.clone() };
            let tokens = run(vec![Box::new(spy), Box::new(Cfg::new(cfg))]);
            (seen.take(), tokens)
        };
        let ramp = || Schedule::Ramp(2.0);
        let (same, tokens) = seen_with(0.0, ramp());
        assert_eq!(same, [[Some(0.0); 2], [Some(0.0); 2], [Some(0.0); 2], [None; 2]], "uncorrupted, and then gone");
        let (corrupted, others) = seen_with(0.5, ramp());
        let far = |value: &Option<f32>| value.is_some_and(|value| value > 1e-4);
        assert!(corrupted[..3].iter().flatten().all(far), "both branches are corrupted: {corrupted:?}");
        assert_eq!(tokens, others, "nothing but a part that looks at it uses it");
        let (without, _) = seen_with(0.5, Schedule::PerScale(vec![1.0, 1.0, 0.0, 0.0]));
        assert!(far(&without[2][0]) && without[2][1].is_none(), "the null branch ends first: {without:?}");
    }

    #[test]
    fn scales_that_are_left_are_no_image() {
        let (tokenizer, transformer) = models();
        let request = || BatchRequest::classes(&[1], 5);
        let mut generation = Generation::new(&tokenizer, &transformer, Vec::new(), request()).unwrap();
        assert_eq!(generation.next_scale().unwrap().map(|done| done.k), Some(0));
        let error = generation.finish().unwrap_err();
        assert!(matches!(error, Error::Cancelled { scales: 1 }), "{error}");
        let stop = generate(&tokenizer, &transformer, Vec::new(), request(), &mut |done| match done.k {
            1 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert!(matches!(stop.unwrap_err(), Error::Cancelled { scales: 2 }));
    }

    #[test]
    fn visual_prefix_guidance_acts_from_the_second_scale_on() {
        let with = |schedule: Schedule| {
            run(vec![Box::new(Cfg::ramp(1.0)), Box::new(Vpg::new(VpgConfig { schedule, share: 0.5 }))])
        };
        let plain = run(vec![Box::new(Cfg::ramp(1.0))]);
        assert_eq!(with(Schedule::Constant(0.0)), plain, "strength 0 changes nothing");
        assert_eq!(with(Schedule::PerScale(vec![9.0, 0.0, 0.0, 0.0])), plain, "nothing comes before the first scale");
        let guided = with(Schedule::Constant(9.0));
        assert_ne!(guided, plain);
        assert!(guided.iter().zip(&plain).all(|(a, b)| a[0] == b[0]), "the first token is as it was");
    }
}
