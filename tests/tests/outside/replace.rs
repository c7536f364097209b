//! Tokens that replace the canvas, over any scale schedule, as in FlexVAR.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::{Int, TensorData};
use burn_var::generation::{ScaleInput, State};
use burn_var::math::Resize;
use burn_var::ops::transpose;
use burn_var::prelude::*;
use burn_var::{Error, Result};

use crate::support::{class_numbers, device, everywhere, pipeline, sharp};

/// Gray levels, which are the codes.
pub(crate) const LEVELS: usize = 8;

/// A tokenizer whose every scale is the whole image at its size: code `i` is the gray level `i`.
#[derive(Clone)]
pub(crate) struct Gray {
    pub(crate) scales: Scales,
}

impl Tokenizer for Gray {
    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(LEVELS)
    }

    fn z_channels(&self) -> usize {
        1
    }

    fn image_shape(&self, scales: &Scales) -> [usize; 3] {
        let MapSize { height, width } = scales.finest();
        [1, height, width]
    }

    fn device(&self) -> Device {
        device()
    }

    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let levels = (images + 1.0) * ((LEVELS - 1) as f64 / 2.0);
        let map = |at: ScaleAt<'_>| Resize::Area.apply(levels.clone(), at.size()).round().int().flatten::<2>(1, 3);
        TokenPyramid::new(scales.clone(), scales.iter().map(map).collect())
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.finest();
        Tensor::zeros([batch, 1, height, width], &device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        ids.float().unsqueeze_dim(2)
    }

    fn codebook(&self) -> Tensor<2> {
        Tensor::<1, Int>::arange(0..LEVELS as i64, &device()).float().unsqueeze_dim(1)
    }

    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        let [batch, ..] = canvas.dims();
        let MapSize { height, width } = at.size();
        Resize::Nearest.apply(codes.reshape([batch, 1, height, width]), at.scales().finest())
    }

    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4> {
        Resize::Area.apply(canvas.clone(), at.size())
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        canvas * (2.0 / (LEVELS - 1) as f64) - 1.0
    }
}

/// A model that raises every gray level by `class + 1` from scale to scale, beginning with the class.
#[derive(Clone)]
pub(crate) struct Raise {
    pub(crate) scales: Scales,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Raise {
    pub(crate) const CLASSES: usize = 4;

    pub(crate) fn new(scales: Scales) -> Self {
        Self { scales, calls: Arc::default() }
    }
}

/// The classes of the sequences, `[sequences, 1]`; -1 without one.
#[derive(Clone)]
pub(crate) struct Classes(pub(crate) Tensor<2>);

impl State for Classes {
    fn sequences(&self) -> usize {
        self.0.dims()[0]
    }

    fn keep_first(self, count: usize) -> Self {
        Self(self.0.narrow(0, 0, count))
    }

    fn detach(&mut self) {
        self.0 = self.0.clone().detach();
    }
}

impl NextScale for Raise {
    type State = Classes;

    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(LEVELS)
    }

    fn num_classes(&self) -> usize {
        Self::CLASSES
    }

    /// Accepts any schedule up to a size, as its positions can be resized.
    fn check_scales(&self, scales: &Scales) -> Result<()> {
        match scales.finest().area() <= 64 {
            true => Ok(()),
            false => Err(Error::config("scale schedule", scales, "at most 64 tokens at the last scale")),
        }
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> Result<Classes> {
        Ok(Classes(class_numbers(conditions, Self::CLASSES)?))
    }

    /// Returns the canvas as the tokenizer shows it, one channel wide. The first scale has the class for a canvas.
    fn embed(&self, state: &Classes, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        let levels = transpose(input.map.flatten::<3>(2, 3));
        let classes = state.0.clone().unsqueeze_dim::<3>(2).expand(levels.dims());
        if at.is_first() { classes } else { levels + classes + 1.0 }
    }

    fn step(&self, _state: &mut Classes, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let levels = hidden.squeeze_dim::<2>(2).round();
        sharp(levels.remainder_scalar(LEVELS as f32), self.vocabulary())
    }
}

pub(crate) fn toy(sides: &[usize]) -> (Gray, Raise) {
    let scales = Scales::square(sides).expect("a schedule");
    (Gray { scales: scales.clone() }, Raise::new(scales))
}

/// The tokens of `class` over a schedule.
fn expected(class: u32, scales: &Scales) -> Vec<u32> {
    let level = |at: ScaleAt<'_>| (class + at.k() as u32 * (class + 1)) % LEVELS as u32;
    scales.iter().flat_map(|at| vec![level(at); at.size().area()]).collect()
}

fn byte(level: u32) -> u8 {
    (f64::from(level) / 7.0 * 255.0).round() as u8
}

#[test]
fn every_scale_replaces_the_one_before() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let (tokens, pixels) = everywhere(&tokenizer, &model, &Request::classes([0, 3]).seed(7));
    assert_eq!(tokens, [expected(0, &model.scales), expected(3, &model.scales)]);
    assert_eq!(pixels, [byte(2), byte(3)], "the last scale alone is the image");
}

#[test]
fn a_request_brings_its_own_schedule() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let scales =
        Scales::new(vec![MapSize::square(1), MapSize { height: 2, width: 3 }, MapSize { height: 5, width: 8 }]);
    let scales = scales.expect("a schedule");
    let request = Request::classes([1]).scales(scales.clone());
    let (tokens, _) = everywhere(&tokenizer, &model, &request);
    assert_eq!(tokens, [expected(1, &scales)]);
    let image = pipeline(&tokenizer, &model).generate(&request).expect("an image").remove(0);
    assert_eq!(image.dimensions(), (8, 5), "the size of the request's last map");
    let large = Request::classes([1]).scales(Scales::square(&[1, 9]).expect("a schedule"));
    let error = pipeline(&tokenizer, &model).generate(&large).expect_err("too large").to_string();
    assert!(error.contains("at most 64 tokens"), "{error}");
}

#[test]
fn known_tokens_lead_to_others() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let pipeline = pipeline(&tokenizer, &model);
    // Level 6 on the left, 0 on the right.
    let image = image::RgbImage::from_fn(4, 4, |x, _| image::Rgb([if x < 2 { byte(6) } else { 0 }; 3]));
    let tokens = pipeline.encode(&image).expect("tokens");
    assert_eq!(tokens.to_rows().expect("tokens")[0][1..5], [6, 0, 6, 0]);
    // Two scales are kept, and the last continues them: each level by class + 1.
    let request = Request::classes([0]).known(KnownTokens::first(tokens.clone(), 2));
    let (completed, _) = everywhere(&tokenizer, &model, &request);
    assert_eq!(completed[0][5..], [7, 7, 1, 1].repeat(4));
    // The right half is drawn anew. A mean of both halves is the first token, which is kept whole.
    let half = Tensor::<1>::from_floats([1.0, 1.0, 0.0, 0.0], &device()).reshape([1, 1, 1, 4]).expand([1, 1, 4, 4]);
    let request = Request::classes([0]).known(KnownTokens::masked(tokens, half).expect("a mask"));
    let (painted, _) = everywhere(&tokenizer, &model, &request);
    assert_eq!(painted[0], [vec![3], [6, 4].repeat(2), [6, 6, 5, 5].repeat(4)].concat());
    // Tokens of another schedule have to come with that schedule.
    let scales = Scales::square(&[1, 4]).expect("a schedule");
    let other = KnownTokens::first(pipeline.encode_over(&image, &scales).expect("tokens"), 1);
    assert!(pipeline.generate(&Request::classes([0]).known(other.clone())).is_err(), "another schedule");
    let (tokens, _) = everywhere(&tokenizer, &model, &Request::classes([0]).scales(scales).known(other));
    assert_eq!(tokens[0], [vec![3], vec![4; 16]].concat());
}

#[test]
fn dropping_the_steps_stops_the_work() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let pipeline = pipeline(&tokenizer, &model);
    let request = Request::classes([2]);
    let mut steps = pipeline.steps(&request).expect("steps");
    let preview = steps.next().expect("a scale").expect("a step").image().expect("a preview");
    assert_eq!(preview.get_pixel(3, 3).0, [byte(2); 3], "the first scale is the class");
    assert!(steps.next().is_some());
    drop(steps);
    assert_eq!(model.calls.load(Ordering::Relaxed), 2, "two scales were computed");
    assert_eq!(
        pipeline.generate(&request).expect("images")[0].get_pixel(0, 0).0,
        [byte(0); 3],
        "and nothing is left of it"
    );
    let unfinished = pipeline.start(BatchRequest::classes(&[2], 0)).expect("steps");
    assert_eq!(unfinished.finish().expect("all").tokens.to_rows().expect("tokens"), [expected(2, &model.scales)]);
}

#[test]
fn pairs_that_do_not_fit_are_refused() {
    let (tokenizer, _) = toy(&[1, 2, 4]);
    let (_, model) = toy(&[1, 2]);
    let error = ModelPair::new(tokenizer, model).map(|_| ()).expect_err("another schedule").to_string();
    assert!(error.contains("is 1, 2, expected `1, 2, 4`"), "{error}");
}

#[test]
fn the_true_tokens_of_an_image_give_the_inputs_of_training() {
    let (tokenizer, _) = toy(&[1, 2]);
    let ids = Tensor::<2, Int>::from_data(TensorData::new(vec![3i64, 1, 2, 4, 5], [1, 5]), &device());
    let tokens = TokenPyramid::from_sequence(tokenizer.scales.clone(), ids).expect("tokens");
    let input = tokenizer.teacher_input(&tokens).into_data().try_into_vec::<f32>().expect("values");
    assert_eq!(input, [3.0; 4], "the second scale sees the first");
    let canvases = tokenizer.canvases(&tokens);
    assert_eq!(canvases[1].clone().into_data().try_into_vec::<f32>().expect("values"), [1.0, 2.0, 4.0, 5.0]);
}
