//! LlamaGen's tokenizer: networks, evaluation and training, against `tokenizer/tokenizer_image` of its code.

use burn::tensor::{Device, Int, Tensor};
use burn_var::image::{ValueRange, to_images};
use burn_var::math::Resize;
use burn_var::metrics::Lpips;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::llamagen::{LlamaGenVq, LlamaGenVqConfig};
use burn_var::weights::{LoadOptions, Pretrained};
use burn_var::{MapSize, Result, Scales, Tokenizer};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};
use burn_var_tests::gradients::Gradients;
use burn_var_tests::weightgen::WeightGen;

use super::llamagen::norm;

/// The names of the fields of a tokenizer's configuration in the cases.
const FIELDS: [&str; 10] = [
    "ch",
    "z_channels",
    "ch_mult",
    "num_res_blocks",
    "codebook_size",
    "codebook_embed_dim",
    "codebook_l2_norm",
    "commit_loss_beta",
    "entropy_loss_ratio",
    "entropy_temperature",
];

/// Channels of the convolutions of VGG16, by their index.
const VGG16: [(usize, [usize; 2]); 13] = [
    (0, [3, 64]),
    (2, [64, 64]),
    (5, [64, 128]),
    (7, [128, 128]),
    (10, [128, 256]),
    (12, [256, 256]),
    (14, [256, 256]),
    (17, [256, 512]),
    (19, [512, 512]),
    (21, [512, 512]),
    (24, [512, 512]),
    (26, [512, 512]),
    (28, [512, 512]),
];

fn from_recipe(case: &Case, size: MapSize, device: &Device) -> Result<LlamaGenVq> {
    let vq: VqModelConfig = case.pick(&["/config"], &FIELDS);
    let config = LlamaGenVqConfig { vq, patch_nums: Scales::raster(size)? };
    let recipe: WeightGen = case.get("/weightgen");
    let weights = recipe.for_module(&config.init_zeros(device)?, &LlamaGenVq::keys(&config));
    LlamaGenVq::load_with(&weights, &config, LoadOptions::default(), device)
}

fn size_of(case: &Case, pointer: &str) -> MapSize {
    let [height, width] = case.get(pointer);
    MapSize { height, width }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let norm: (usize, f64) = (case.get("/config/group_norm_groups"), case.get("/config/group_norm_eps"));
    checks.require(norm == (32, 1e-6), || format!("group norms of {norm:?}, expected 32 groups and 1e-6"));
    let [_, _, height, width] = case.array("pre_quant").shape[..] else { panic!("`pre_quant` has four axes") };
    let size = MapSize { height, width };
    let model = from_recipe(case, size, device)?;
    let image: Tensor<4> = case.tensor("image", device);
    checks.floats("encoder_out", "floats", model.vq.encoder.forward(image.clone()));
    checks.floats("pre_quant", "floats", model.latent(image.clone())?);
    checks.floats("codebook", "floats", model.codebook());
    let tokens = model.encode(image, model.scales())?;
    checks.ids("ids", "ids", tokens.sequence());
    let canvas = model.map_of(tokens.sequence(), size)?;
    checks.floats("quant", "floats", canvas.clone());
    let last = model.canvases(&tokens).pop().expect("a canvas per token");
    checks.floats("quant", "floats", last);
    let decoded = model.decode_raw(canvas);
    checks.floats("decode", "image", decoded.clone());
    let free: Tensor<2, Int> = case.ids("free_ids", device);
    let free = model.map_of(free, size_of(case, "/config/free_shape"))?;
    checks.floats("decode_free", "image", model.decode_raw(free));

    let resized = Resize::Bicubic.apply(decoded, size_of(case, "/config/resize"));
    checks.floats("resized", "image", resized.clone());
    let shape = resized.dims().to_vec();
    let [_, channels, height, width] = resized.dims();
    let mut bytes = Vec::with_capacity(resized.shape().num_elements());
    for image in to_images(resized, ValueRange::Signed)? {
        let pixels = (0..channels).flat_map(|c| (0..height as u32).map(move |y| (c, y)));
        bytes.extend(
            pixels
                .flat_map(|(c, y)| (0..width as u32).map(move |x| (c, x, y)))
                .map(|(c, x, y)| f64::from(image.get_pixel(x, y).0[c])),
        );
    }
    checks.array("bytes", "bytes", Array { shape, values: bytes });
    training(case, size, &device.clone().autodiff(), checks)
}

/// Builds LPIPS of the recipe's VGG16, with its published heads.
pub(super) fn lpips(recipe: &WeightGen, device: &Device) -> Result<Lpips> {
    let shapes = VGG16.into_iter().flat_map(|(i, [input, output])| {
        [(format!("features.{i}.weight"), vec![output, input, 3, 3]), (format!("features.{i}.bias"), vec![output])]
    });
    Lpips::load(&recipe.state_dict(shapes), &Lpips::published_heads()?, device)
}

fn training(case: &Case, size: MapSize, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let model = from_recipe(case, size, device)?;
    let lpips = lpips(&case.get("/lpips/weightgen"), device)?;
    let image: Tensor<4> = case.tensor("image", device);
    let quantized = model.quantize_train(model.latent(image.clone())?);
    let decoded = model.decode_raw(quantized.codes.clone());
    let entropy = quantized.entropy_loss.clone().unwrap_or_else(|| Tensor::zeros([1], device));
    let terms = [
        (decoded.clone() - image.clone()).square().mean(),
        lpips.distance(image, decoded)?.mean(),
        quantized.vq_loss,
        quantized.commit_loss,
        entropy,
    ];
    let sum = terms.iter().cloned().reduce(|sum, term| sum + term).expect("five terms");
    let all: Vec<Tensor<1>> = terms.into_iter().chain([sum.clone()]).map(Tensor::inner).collect();
    checks.floats("train_losses", "losses", Tensor::cat(all, 0));
    let gradients = Gradients::of(&model, &sum.backward(), &LlamaGenVq::keys(model.config()));
    let mut norms = Vec::new();
    for key in case.get::<Vec<String>>("/config/grad_norm_params") {
        match gradients.get(&key) {
            Some(Some(gradient)) => norms.push(norm(gradient)),
            _ => checks.fail(format!("no gradient of {key}")),
        }
    }
    norms.push(gradients.norm());
    checks.array("grad_norms", "grad_norms", Array { shape: vec![norms.len()], values: norms });
    Ok(())
}
