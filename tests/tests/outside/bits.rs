//! Tokens of several bits, each drawn from logits of its own, as in Infinity; a canvas that scales add to.

use burn::tensor::{Int, TensorData};
use burn_var::Result;
use burn_var::generation::ScaleInput;
use burn_var::math::Resize;
use burn_var::ops::transpose;
use burn_var::prelude::*;

use crate::replace::Classes;
use crate::support::{class_numbers, device, everywhere, pipeline, sharp};

const BITS: usize = 3;
const CLASSES: usize = 8;

/// A residual tokenizer of signs: bit `b` of a token adds half its sign to channel `b`.
#[derive(Clone)]
struct Signs {
    scales: Scales,
}

impl Tokenizer for Signs {
    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::bits(BITS)
    }

    fn z_channels(&self) -> usize {
        BITS
    }

    fn image_shape(&self, scales: &Scales) -> [usize; 3] {
        let MapSize { height, width } = scales.finest();
        [BITS, height, width]
    }

    fn device(&self) -> Device {
        device()
    }

    fn encode(&self, images: Tensor<4>, scales: &Scales) -> Result<TokenPyramid> {
        let mut canvas = self.blank(images.dims()[0], scales);
        let mut maps = Vec::new();
        for at in scales.iter() {
            let residual = Resize::Area.apply(images.clone() - canvas.clone(), at.size());
            let bits = transpose(residual.greater_elem(0.0).int().flatten::<3>(2, 3)); // [batch, tokens, bits]
            let bits = bits.flatten::<2>(1, 2);
            canvas = self.paint(canvas, at, self.lookup(bits.clone()));
            maps.push(bits);
        }
        TokenPyramid::with_symbols(scales.clone(), BITS, maps)
    }

    fn blank(&self, batch: usize, scales: &Scales) -> Tensor<4> {
        let MapSize { height, width } = scales.finest();
        Tensor::zeros([batch, BITS, height, width], &device())
    }

    fn lookup(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, bits] = ids.dims();
        (ids.float() - 0.5).reshape([batch, bits / BITS, BITS])
    }

    fn codebook(&self) -> Tensor<2> {
        Tensor::from_data(TensorData::from([[-0.5f32], [0.5]]), &device())
    }

    fn paint(&self, canvas: Tensor<4>, at: ScaleAt<'_>, codes: Tensor<3>) -> Tensor<4> {
        let [batch, ..] = canvas.dims();
        let MapSize { height, width } = at.size();
        let map = transpose(codes).reshape([batch, BITS, height, width]);
        canvas + Resize::Nearest.apply(map, at.scales().finest())
    }

    fn next_input(&self, canvas: &Tensor<4>, at: ScaleAt<'_>) -> Tensor<4> {
        Resize::Bilinear.apply(canvas.clone(), at.size())
    }

    fn decode(&self, canvas: Tensor<4>) -> Tensor<4> {
        canvas
    }
}

/// A model whose every token is the class in binary; without a class, all bits are 1.
#[derive(Clone)]
struct Binary {
    scales: Scales,
}

impl NextScale for Binary {
    type State = Classes;

    fn scales(&self) -> &Scales {
        &self.scales
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary::bits(BITS)
    }

    fn num_classes(&self) -> usize {
        CLASSES
    }

    fn start(&self, conditions: &[Condition], _scales: &Scales) -> Result<Classes> {
        Ok(Classes(class_numbers(conditions, CLASSES)?.remainder_scalar(CLASSES as f32)))
    }

    fn embed(&self, _state: &Classes, _at: ScaleAt<'_>, input: ScaleInput<'_>) -> Tensor<3> {
        transpose(input.map.flatten::<3>(2, 3))
    }

    fn step(&self, state: &mut Classes, _at: ScaleAt<'_>, hidden: Tensor<3>) -> Tensor<3> {
        let [sequences, tokens, _] = hidden.dims();
        let bit = |b: u32| (state.0.clone() / f64::from(1 << b)).floor().remainder_scalar(2.0);
        let bits = Tensor::cat((0..BITS as u32).map(bit).collect(), 1); // [sequences, bits]
        let bits = bits.unsqueeze_dim::<3>(1).expand([sequences, tokens, BITS]).reshape([sequences, tokens * BITS]);
        sharp(bits, self.vocabulary())
    }
}

fn toy(sides: &[usize]) -> (Signs, Binary) {
    let scales = Scales::square(sides).expect("a schedule");
    (Signs { scales: scales.clone() }, Binary { scales })
}

#[test]
fn each_bit_is_drawn_by_itself() {
    let (tokenizer, model) = toy(&[1, 2]);
    let (tokens, pixels) = everywhere(&tokenizer, &model, &Request::classes([5, 2]));
    assert_eq!(tokens, [[1, 0, 1].repeat(5), [0, 1, 0].repeat(5)]);
    assert_eq!(pixels, [255, 0], "two scales of one half each");
    let image = pipeline(&tokenizer, &model).generate(&Request::classes([6])).expect("an image").remove(0);
    assert_eq!(image.get_pixel(1, 1).0, [0, 255, 255]);
    let (tokens, _) = everywhere(&tokenizer, &model, &Request::unconditional(1));
    assert_eq!(tokens, [[1; 15]]);
}

#[test]
fn tokens_of_bits_are_edited() {
    let (tokenizer, model) = toy(&[1, 2, 4]);
    let pipeline = pipeline(&tokenizer, &model);
    let red = image::RgbImage::from_pixel(4, 4, image::Rgb([255, 0, 0]));
    let tokens = pipeline.encode(&red).expect("tokens");
    assert_eq!((tokens.symbols(), tokens.map(2).dims()), (BITS, [1, 48]));
    assert_eq!(tokens.to_rows().expect("tokens")[0][..6], [1, 0, 0].repeat(2), "two tokens");
    let (completed, _) =
        everywhere(&tokenizer, &model, &Request::classes([6]).known(KnownTokens::first(tokens.clone(), 1)));
    assert_eq!(completed[0], [vec![1, 0, 0], [0, 1, 1].repeat(20)].concat());
    let top = Tensor::<1>::from_floats([1.0, 1.0, 0.0, 0.0], &device()).reshape([1, 1, 4, 1]).expand([1, 1, 4, 4]);
    let known = KnownTokens::masked(tokens.clone(), top).expect("a mask");
    assert_eq!(known.drawn().expect("counts"), [0, 2, 8], "tokens, not bits");
    let (painted, _) = everywhere(&tokenizer, &model, &Request::classes([6]).known(known));
    let (own, new) = (tokens.to_rows().expect("tokens").remove(0), [0, 1, 1]);
    assert_eq!(painted[0], [&own[..9], &new.repeat(2), &own[15..39], &new.repeat(8)].concat());
    // Tokens of one symbol are of another tokenizer.
    let ids = Tensor::<2, Int>::zeros([1, 21], &device());
    let foreign = TokenPyramid::from_sequence(tokenizer.scales.clone(), ids).expect("tokens");
    let error = pipeline.generate(&Request::classes([6]).known(KnownTokens::all(foreign))).expect_err("one symbol");
    assert!(error.to_string().contains("symbols per token"), "{error}");
}

#[test]
fn mixtures_of_bits_are_painted_too() {
    let (tokenizer, model) = toy(&[1, 2]);
    let mut batch = BatchRequest::classes(&[5], 3);
    batch.sampler.more_smooth = true;
    let steps = pipeline(&tokenizer, &model);
    let generated = steps.start(batch).expect("steps").finish().expect("all");
    let canvas = generated.canvas.into_data().try_into_vec::<f32>().expect("values");
    let expected = [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
    assert!(
        canvas.iter().zip(expected).all(|(found, expected): (&f32, f32)| (found - expected).abs() < 1e-5),
        "{canvas:?}"
    );
}
