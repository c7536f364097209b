//! One token after the other with an embedding of the model's own, as in LlamaGen and Janus: a schedule of single tokens.

use burn::tensor::Int;
use burn_var::Result;
use burn_var::generation::{ScaleInput, State};
use burn_var::prelude::*;

use crate::support::{class_numbers, device, everywhere, sharp};

const LEVELS: usize = 8;
const CLASSES: usize = 4;
const MAP: MapSize = MapSize { height: 2, width: 3 };

/// A tokenizer that paints one gray level after the other, row by row.
#[derive(Clone)]
struct Raster {
    scales: Scales,
}

impl Tokenizer for Raster {
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
        [1, scales.finest().height, scales.finest().width]
    }

    fn device(&self) -> Device {
        device()
    }

    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let levels = ((images + 1.0) * 3.5).round().int();
        TokenPyramid::from_sequence(scales.clone(), levels.flatten::<2>(1, 3))
    }

    fn blank(&self, batch: usize, _scales: &Scales) -> Tensor<4> {
        Tensor::zeros([batch, 1, MAP.height, MAP.width], &device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        ids.float().unsqueeze_dim(2)
    }

    fn codebook(&self) -> Tensor<2> {
        Tensor::<1, Int>::arange(0..LEVELS as i64, &device()).float().unsqueeze_dim(1)
    }

    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        let [batch, ..] = canvas.dims();
        let (row, column) = (at.k() / MAP.width, at.k() % MAP.width);
        canvas.slice_assign([0..batch, 0..1, row..row + 1, column..column + 1], codes.unsqueeze_dim(3))
    }

    /// Returns nothing: the model reads ids.
    fn next_input(&self, canvas: &Tensor<4>, _at: ScaleAt<'_>) -> Tensor<4> {
        canvas.clone().narrow(2, 0, 1).narrow(3, 0, 1).zeros_like()
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        canvas / 3.5 - 1.0
    }
}

/// A model whose next token is the sum of the class and all tokens so far.
#[derive(Clone)]
struct Sum {
    scales: Scales,
}

/// The cache: the sum so far, `[sequences, 1]`.
#[derive(Clone)]
struct Cache {
    class: Tensor<2>,
    sum: Tensor<2>,
}

impl State for Cache {
    fn sequences(&self) -> usize {
        self.sum.dims()[0]
    }

    fn keep_first(self, count: usize) -> Self {
        Self { class: self.class.narrow(0, 0, count), sum: self.sum.narrow(0, 0, count) }
    }

    fn detach(&mut self) {
        self.sum = self.sum.clone().detach();
    }
}

impl NextScale for Sum {
    type State = Cache;

    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(LEVELS)
    }

    fn num_classes(&self) -> usize {
        CLASSES
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> Result<Cache> {
        let class = class_numbers(conditions, CLASSES)?;
        Ok(Cache { sum: class.zeros_like(), class })
    }

    /// Embeds the token before; the condition, before the first.
    fn embed(&self, state: &Cache, _at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        match input.ids {
            Some(ids) => ids.clone().float().unsqueeze_dim(2),
            None => state.class.clone().unsqueeze_dim(2),
        }
    }

    fn step(&self, state: &mut Cache, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        state.sum = state.sum.clone() + hidden.squeeze_dim::<2>(2);
        sharp(state.sum.clone().remainder_scalar(LEVELS as f32), self.vocabulary())
    }
}

fn toy() -> (Raster, Sum) {
    let scales = Scales::raster(MAP).expect("a raster");
    (Raster { scales: scales.clone() }, Sum { scales })
}

#[test]
fn tokens_follow_each_other() {
    let (tokenizer, model) = toy();
    let (tokens, pixels) = everywhere(&tokenizer, &model, &Request::classes([1, 3]));
    assert_eq!(tokens, [[1, 2, 4, 0, 0, 0], [3, 6, 4, 0, 0, 0]], "each is the sum of all before");
    assert_eq!(pixels, [36, 109], "3 of 7 and 1 of 7 are the first pixels");
}

#[test]
fn the_null_branch_has_a_cache_of_its_own() {
    let (tokenizer, model) = toy();
    let pipeline = crate::support::pipeline(&tokenizer, &model);
    // (1 + t) cond - t null: the certain token of the null branch is out of reach, and the other stays.
    for schedule in [Schedule::Constant(0.5), Schedule::PerScale(vec![0.5, 0.5, 0.0, 0.0, 0.0, 0.0])] {
        let cfg = Box::new(burn_var::guidance::Cfg::new(schedule));
        let steps = pipeline.start_with(vec![cfg], BatchRequest::classes(&[1, 3], 0)).expect("steps");
        let tokens = steps.finish().expect("all").tokens.to_rows().expect("tokens");
        assert_eq!(tokens, [[1, 2, 4, 0, 0, 0], [3, 6, 4, 0, 0, 0]]);
    }
}

#[test]
fn some_tokens_are_known() {
    let (tokenizer, model) = toy();
    let pipeline = crate::support::pipeline(&tokenizer, &model);
    let image = image::RgbImage::from_pixel(3, 2, image::Rgb([255; 3]));
    let tokens = pipeline.encode(&image).expect("tokens");
    let known = |k: usize| Tensor::<2>::full([1, 1], if k == 1 { 1.0 } else { 0.0 }, &device()).greater_elem(0.5);
    let known = KnownTokens::with_masks(tokens, (0..6).map(known).collect()).expect("masks");
    assert_eq!(known.drawn().expect("counts"), [1, 0, 1, 1, 1, 1]);
    let (tokens, _) = everywhere(&tokenizer, &model, &Request::classes([1]).known(known));
    assert_eq!(tokens, [[1, 7, 1, 2, 4, 0]], "the second token is the image's, and the others follow from it");
}
