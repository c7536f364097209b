use burn::module::{Module, ModuleVisitor};
use burn::tensor::Gradients;
use burn_var::MapSize;
use burn_var::math::Resize;
use burn_var::metrics::Lpips;
use burn_var::models::flexvar::FlexVae;
use burn_var::models::var::VqVae;
use burn_var::weights::StateDict;

use super::patch_gan::PatchGanConfig;
use super::*;
use crate::tensor::scalar;

const IMAGE_SHAPE: [usize; 3] = [1, 16, 20];
const WEIGHTS: TokenizerLoss =
    TokenizerLoss { l1: 0.5, l2: 1.5, vq: 0.7, perceptual: 0.4, lpips_vgg: None, lpips_lin: None };
const SEED: u64 = 3;

fn device() -> Device {
    Device::default().autodiff()
}

fn model() -> VqVae {
    let config: VqVaeConfig = toml::from_str(
        "image_channels = 1\nch = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nz_channels = 6\nvocab_size = 24\n\
         patch_nums = [1, [3, 4], [8, 10]]",
    )
    .expect("a configuration");
    config.init(SEED, &device()).expect("valid")
}

fn images() -> Tensor<4> {
    let mut rng = Rng::new(SEED, "pictures", 0);
    let values: Vec<f32> = (0..3 * 16 * 20).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [3, 1, 16, 20]), &Device::default())
}

/// With weights of VGG drawn at random: there are no others to be had in a test.
fn lpips() -> Lpips {
    let values = |key: &str, shape: &[usize]| {
        let mut rng = Rng::new(SEED, key, 0);
        let bound = (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt();
        (0..shape.iter().product()).map(|_| ((rng.uniform() * 2.0 - 1.0) * bound) as f32).collect()
    };
    let places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
    let widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
    let shapes = places.iter().zip(widths.windows(2)).flat_map(|(place, io)| {
        let weight = (format!("features.{place}.weight"), vec![io[1], io[0], 3, 3]);
        [weight, (format!("features.{place}.bias"), vec![io[1]])]
    });
    let vgg = StateDict::generated("vgg", shapes, values).expect("tensors");
    Lpips::load(&vgg, &Lpips::published_heads().expect("part of the library"), &device()).expect("all weights")
}

fn criterion() -> Criterion {
    Criterion { weights: WEIGHTS, lpips: Some(lpips()) }
}

const DISCRIMINATOR: PatchGanConfig = PatchGanConfig { width: 32, layers: 2 };

fn adversary(adaptive: bool) -> Adversary {
    let config = GanConfig { weight: 0.3, adaptive, discriminator: DISCRIMINATOR, ..GanConfig::default() };
    Adversary::new(config, IMAGE_SHAPE, SEED, 10, &device()).expect("fits")
}

/// The weighted terms as anyone would write them down, on one graph: without the adversarial term, and that term.
fn plain_loss(model: &VqVae, criterion: &Criterion) -> [Tensor<1>; 2] {
    let images = Tensor::from_inner(images());
    let (made, quantized) = model.forward_train(images.clone()).expect("fits");
    let difference = made.clone() - images.clone();
    let lpips = criterion.lpips.as_ref().expect("given");
    let perceptual = lpips.distance(made.clone(), images).expect("fits").mean();
    let other = difference.clone().square().mean() * 1.5 + difference.abs().mean() * 0.5 + perceptual * 0.4;
    let network = DISCRIMINATOR.init(IMAGE_SHAPE, SEED, &device()).expect("fits");
    [quantized.loss * 0.7 + other, network.forward(made).mean().neg()]
}

struct Flatten<'a>(&'a GradientsParams, Vec<f32>);

impl ModuleVisitor for Flatten<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A phi that no scale uses has none.
        let zeros = || param.val().inner().zeros_like();
        let grad = self.0.get::<D>(param.id).unwrap_or_else(zeros);
        self.1.extend(grad.into_data().try_into_vec::<f32>().expect("f32"));
    }
}

fn flat(model: &impl Module, grads: Gradients) -> Vec<f32> {
    let grads = GradientsParams::from_grads(grads, model);
    let mut flatten = Flatten(&grads, Vec::new());
    model.visit(&mut flatten);
    flatten.1
}

fn metric(terms: &Terms, name: &str) -> f64 {
    let metrics = terms.metrics().expect("readable");
    metrics.iter().find(|metric| metric.0 == name).unwrap_or_else(|| panic!("no `{name}` in {metrics:?}")).1
}

#[test]
fn gradients_are_those_of_one_backward_pass() {
    let (model, criterion) = (model(), criterion());
    for adversary in [None, Some(adversary(false))] {
        let pass = Pass::new(&model, images(), &[]).expect("fits");
        let (grads, terms) = match &adversary {
            None => pass.backward(&criterion).expect("a backward pass"),
            Some(adversary) => {
                let sides = pass.sides(&criterion, adversary).expect("both sides");
                pass.backward_against(&criterion, sides, adversary.constant_weight(&Device::default()))
                    .expect("backward")
            }
        };
        let [own, against] = plain_loss(&model, &criterion);
        let whole = if adversary.is_some() { own + against * 0.3 } else { own };
        let value = scalar(&whole.clone().inner(), "test").expect("readable");
        let (found, expected) = (flat(&model, grads), flat(&model, whole.backward()));
        let size = expected.iter().fold(0.0f32, |most, grad| most.max(grad.abs()));
        let error = found.iter().zip(&expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert_eq!(found.len(), model.num_params(), "every parameter");
        // Against double precision a pass through convolutions in tiles is off by up to 1.2e-5 of its largest gradient;
        // these are two.
        assert!(size > 0.0 && error <= 2.4e-5 * size, "adversary {}: off by {error} of {size}", adversary.is_some());
        assert!((metric(&terms, "loss") - value).abs() < 1e-5 * value.abs(), "the loss is {value}");
    }
}

#[test]
fn the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_convolution() {
    let (model, criterion, adversary) = (model(), criterion(), adversary(true));
    let strength = |term: &Tensor<1>| {
        let grad = model.decoder.conv_out().weight.val().grad(&term.backward()).expect("a gradient");
        scalar(&grad.square().sum().sqrt(), "test").expect("readable")
    };
    // Each term on a graph of its own. The codebook's loss, in the first, does not reach the decoder.
    let pull = strength(&plain_loss(&model, &criterion)[0]);
    let push = strength(&plain_loss(&model, &criterion)[1]);
    let expected = 0.3 * pull / (push + 1e-4);
    let pass = Pass::new(&model, images(), &[]).expect("fits");
    let sides = pass.sides(&criterion, &adversary).expect("both sides");
    let weight = adversary.adaptive_weight(pass.at_last_convolution(model.decoder.conv_out(), &sides));
    let (_, terms) = pass.backward_against(&criterion, sides, weight).expect("backward");
    let found = metric(&terms, "gan_weight");
    assert!((found - expected).abs() < 1e-4 * expected, "weight {found}, expected {expected}");
}

#[test]
fn a_term_that_is_not_finite_is_named() {
    let (model, criterion) = (model(), Criterion { lpips: None, ..criterion() });
    let error = |images: Tensor<4>| {
        let pass = Pass::new(&model, images, &[]).expect("fits");
        let (_, terms) = pass.backward(&criterion).expect("backward");
        Terms::explain(&[&terms], 17, Error::config("a", "b", "c")).to_string()
    };
    assert_eq!(error(images()), Error::config("a", "b", "c").to_string(), "no term is to blame");
    let message = error(images() * f32::NAN);
    assert!(message.contains("`vq` at step 17") && message.contains("NaN"), "{message}");
}

#[test]
fn what_the_perceptual_term_lacks_is_named() {
    let weights = TokenizerLoss { perceptual: 1.0, ..TokenizerLoss::default() };
    let error = weights.validate(IMAGE_SHAPE).expect_err("no files").to_string();
    assert!(error.contains("`loss.lpips_vgg` is absent") && error.contains("vgg16-397923af.pth"), "{error}");
    let weights = TokenizerLoss { lpips_vgg: Some("vgg.pth".into()), ..weights };
    weights.validate(IMAGE_SHAPE).expect("VGG is given");
    let error = weights.validate([3, 12, 16]).expect_err("too small").to_string();
    assert!(error.contains("3 of 12x16"), "{error}");
    let error = Criterion::new(weights, &device()).err().expect("no such files").to_string();
    assert!(error.contains("vgg.pth"), "{error}");
}

fn flexvae() -> FlexVae {
    let config: FlexVaeConfig = toml::from_str(
        "patch_nums = [1, [2, 3], [4, 5], [8, 10]]\n[vq]\nimage_channels = 1\nch = 32\nch_mult = [1, 2]\n\
         num_res_blocks = 1\nz_channels = 8\ncodebook_size = 24\ncodebook_embed_dim = 6",
    )
    .expect("a configuration");
    config.init(SEED, &device()).expect("valid")
}

#[test]
fn extra_scales_are_compared_with_the_image_of_their_size() {
    let (model, criterion) = (flexvae(), criterion());
    let pass = Pass::new(&model, images(), &[2, 0]).expect("fits");
    assert_eq!(pass.made.scales.iter().map(|scale| scale.k).collect::<Vec<_>>(), [3, 2, 0], "the last one first");
    let (grads, terms) = pass.backward(&criterion).expect("a backward pass");

    // The same, written down scale by scale. Only the last is large enough for LPIPS.
    let real = Tensor::from_inner(images());
    let latent = model.latent(real.clone()).expect("fits");
    let mut vq = Tensor::<1>::zeros([1], &device());
    let mut distances = Vec::new();
    for size in [3, 2, 0].map(|k| model.scales().size(k)) {
        let quantized = model.quantize_train(latent.clone(), size);
        vq = vq + quantized.loss();
        let made = model.decode_raw(quantized.codes);
        let size = MapSize { height: 2 * size.height, width: 2 * size.width };
        let target = Resize::Area.apply(real.clone(), size);
        let difference = made.clone() - target.clone();
        let mut distance = difference.clone().square().mean() * 1.5 + difference.abs().mean() * 0.5;
        if size.height == 16 {
            let lpips = criterion.lpips.as_ref().expect("given");
            distance = distance + lpips.distance(made, target).expect("fits").mean() * 0.4;
        }
        distances.push(distance);
    }
    let smaller = (distances[1].clone() + distances[2].clone()) / 2.0;
    let whole = vq / 3.0 * 0.7 + distances[0].clone() + smaller;
    let value = scalar(&whole.clone().inner(), "test").expect("readable");
    assert!((metric(&terms, "loss") - value).abs() < 1e-5 * value.abs(), "the loss is {value}");
    let (found, expected) = (flat(&model, grads), flat(&model, whole.backward()));
    let size = expected.iter().fold(0.0f32, |most, grad| most.max(grad.abs()));
    let error = found.iter().zip(&expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(size > 0.0 && error <= 2.4e-5 * size, "off by {error} of {size}");
}

#[test]
fn a_step_draws_distinct_scales_besides_the_last() {
    let text = include_str!("../../../../models/fashion-mnist-flexvar/tokenizer.toml");
    let config: TokenizerTrainConfig<FlexVaeConfig> = toml::from_str(text).expect("a configuration");
    config.validate().expect("valid");
    let drawn: Vec<Vec<usize>> = (0..50).map(|step| config.drawn_scales(step, 8)).collect();
    assert!(drawn.iter().all(|scales| scales.len() == 2 && scales[0] != scales[1]), "{drawn:?}");
    let mut all: Vec<usize> = drawn.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, [0, 1, 2, 3, 4, 5, 6], "every scale but the last gets its turn");
    assert!(config.drawn_scales(0, 1).is_empty(), "there is no other scale");
    let text = include_str!("../../../../models/fashion-mnist/tokenizer.toml");
    let config: TokenizerTrainConfig = toml::from_str(text).expect("a configuration");
    assert!(config.drawn_scales(0, 6).is_empty(), "VAR's tokenizer trains all scales together");
    let config = TokenizerTrainConfig { extra_scales: Some(1), ..config };
    assert!(config.validate().expect_err("not VAR's").to_string().contains("extra_scales"));
}
