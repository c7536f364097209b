//! Residuals that codes leave out: a refinement of the last scale, as HART's residual diffusion, and scales that are not codes at
//! all but flow out of the refinement, as FlowAR's.

use burn_var::Result;
use burn_var::generation::ScaleInput;
use burn_var::ops::transpose;
use burn_var::prelude::*;
use burn_var::rng::Rng;

use crate::replace::{Classes, Gray, Raise, toy};
use crate::support::{class_numbers, everywhere, pipeline, sharp};

/// A model that adds a random quarter at most to every code of the last scale.
#[derive(Clone)]
struct Refined(Raise);

impl NextScale for Refined {
    type State = Classes;

    fn scales(&self) -> &Scales {
        self.0.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.0.vocabulary()
    }

    fn num_classes(&self) -> usize {
        self.0.num_classes()
    }

    fn start(&self, conditions: &[Condition], scales: &Scales) -> Result<Classes> {
        self.0.start(conditions, scales)
    }

    fn embed(&self, state: &Classes, at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        self.0.embed(state, at, input)
    }

    fn step(&self, state: &mut Classes, at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        self.0.step(state, at, hidden)
    }

    fn refine(&self, _: &mut Classes, at: ScaleAt<'_>, tokens: ScaleTokens<'_>, rngs: &mut [Rng]) -> Result<Tensor<3>> {
        let codes = tokens.codes;
        if !at.is_last() {
            return Ok(codes);
        }
        let noise: Vec<f32> = rngs.iter_mut().map(|rng| rng.uniform() as f32 / 4.0).collect();
        let noise = Tensor::<1>::from_floats(noise.as_slice(), &codes.device()).reshape([rngs.len(), 1, 1]);
        Ok(codes.clone() + noise.expand(codes.dims()))
    }
}

#[test]
fn the_last_scale_is_refined() {
    let (tokenizer, model) = toy(&[1, 2]);
    let (plain, _) = everywhere(&tokenizer, &model, &Request::classes([0, 1]));
    let (refined, pixels) = everywhere(&tokenizer, &Refined(model.clone()), &Request::classes([0, 1]).seed(9));
    assert_eq!(refined, plain, "the tokens are as they were");
    let levels: Vec<f64> = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0 * 7.0).collect();
    assert!(levels[0] > 1.0 && levels[0] < 1.3 && levels[1] > 3.0 && levels[1] < 3.3, "{levels:?}");
    // Noise belongs to the image: the second image is the same in a batch of its own.
    let (_, alone) = everywhere(&tokenizer, &Refined(model.clone()), &Request::classes([1]).seed(9).first(1));
    assert_eq!(alone, pixels[1..]);
    let batches = pipeline(&tokenizer, &Refined(model)).with_batch_size(1);
    let images = batches.generate(&Request::classes([0, 1]).seed(9)).expect("images");
    assert_eq!(images.iter().map(|image| image.get_pixel(0, 0).0[0]).collect::<Vec<_>>(), pixels, "cut into batches");
}

/// A tokenizer without codes: the one choice of its vocabulary stands for "none", and the canvas holds any number.
#[derive(Clone)]
struct NoCodes(Gray);

impl Tokenizer for NoCodes {
    fn scales(&self) -> &Scales {
        self.0.scales()
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(1)
    }

    fn z_channels(&self) -> usize {
        1
    }

    fn image_shape(&self, scales: &Scales) -> [usize; 3] {
        self.0.image_shape(scales)
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn encode(&self, _images: Tensor<4>, _scales: &Scales) -> Result<TokenPyramid> {
        Err(burn_var::Error::unsupported("encoding to tokens", "this tokenizer has none"))
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        self.0.blank(batch, scales)
    }

    fn lookup(&self, ids: Tensor<2, burn::tensor::Int>) -> Tensor<3> {
        self.0.lookup(ids)
    }

    fn codebook(&self) -> Tensor<2> {
        self.0.codebook().narrow(0, 0, 1)
    }

    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        self.0.paint(canvas, at, codes)
    }

    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4> {
        self.0.next_input(canvas, at)
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        self.0.decode(canvas)
    }
}

/// A model whose scales are real numbers: half of the canvas before plus the class, computed from what its transformer
/// left in the state.
#[derive(Clone)]
struct Flow {
    scales: Scales,
}

#[derive(Clone)]
struct FlowState {
    classes: Classes,
    /// The transformer's output at this scale, `[sequences, tokens, 1]`.
    output: Option<Tensor<3>>,
}

impl State for FlowState {
    fn sequences(&self) -> usize {
        self.classes.sequences()
    }

    fn keep_first(self, count: usize) -> Self {
        Self { classes: self.classes.keep_first(count), output: self.output.map(|output| output.narrow(0, 0, count)) }
    }

    fn detach(&mut self) {
        self.classes.detach();
    }
}

impl NextScale for Flow {
    type State = FlowState;

    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::codes(1)
    }

    fn num_classes(&self) -> usize {
        Raise::CLASSES
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> Result<FlowState> {
        Ok(FlowState { classes: Classes(class_numbers(conditions, Raise::CLASSES)?), output: None })
    }

    fn embed(&self, _state: &FlowState, _at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        transpose(input.map.flatten::<3>(2, 3))
    }

    fn step(&self, state: &mut FlowState, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        let [sequences, tokens, _] = hidden.dims();
        let ids = Tensor::zeros([sequences, tokens], &hidden.device());
        state.output = Some(hidden / 2.0 + state.classes.0.clone().unsqueeze_dim(2));
        sharp(ids, self.vocabulary())
    }

    fn refine(
        &self,
        state: &mut FlowState,
        _: ScaleAt<'_>,
        tokens: ScaleTokens<'_>,
        _: &mut [Rng],
    ) -> Result<Tensor<3>> {
        let codes = tokens.codes;
        let images = codes.dims()[0];
        Ok(state.output.take().map_or(codes, |output| output.narrow(0, 0, images)))
    }
}

#[test]
fn scales_without_codes_flow_out_of_the_refinement() {
    let scales = Scales::square(&[1, 2, 4]).expect("a schedule");
    let tokenizer = NoCodes(Gray { scales: scales.clone() });
    let (tokens, pixels) = everywhere(&tokenizer, &Flow { scales }, &Request::classes([1, 2]));
    assert_eq!(tokens, [[0; 21]; 2], "no codes");
    let byte = |level: f64| (level / 7.0 * 255.0).round() as u8;
    assert_eq!(pixels, [byte(1.75), byte(3.5)], "class (1 + 1/2 + 1/4)");
}
