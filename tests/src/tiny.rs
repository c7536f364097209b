//! A small untrained model, whose images are known token by token: every device has to draw the same.

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use burn_var::editing::KnownTokens;
use burn_var::guidance::{Cfg, Guidance};
use burn_var::init::{Init, initialize};
use burn_var::models::var::{Var, VarConfig, VarPreset, VqVae, VqVaeConfig};
use burn_var::sampling::Sampler;
use burn_var::{BatchRequest, Result, Scales, TokenPyramid, generate};

/// Choices of a token.
pub const VOCABULARY: usize = 50;

/// Returns the models.
///
/// # Errors
/// [`burn_var::Error::Config`] for sizes that do not fit each other.
pub fn models(device: &Device) -> Result<(VqVae, Var)> {
    let scales = Scales::square(&[1, 2, 3, 4])?;
    let tokenizer =
        VqVaeConfig { ch: 32, ch_mult: vec![1, 1], vocab_size: VOCABULARY, ..VqVaeConfig::public(scales.clone()) };
    let config = VarConfig {
        depth: 2,
        embed_dim: 32,
        num_heads: 2,
        vocab_size: VOCABULARY,
        num_classes: 3,
        patch_nums: scales,
        ..VarPreset::D16.config()
    };
    let tokenizer = initialize(tokenizer.init_zeros(device)?, 1, |_| Init::Normal(0.2));
    Ok((tokenizer, initialize(config.init_zeros(device)?, 2, |_| Init::Normal(0.15))))
}

/// Generates two images with guidance, and returns their tokens; with `known`, the left half of these.
///
/// # Errors
/// The errors of [`generate`].
pub fn tokens((tokenizer, model): &(VqVae, Var), seed: u64, known: Option<TokenPyramid>) -> Result<TokenPyramid> {
    let half = |tokens: TokenPyramid| {
        let mask = Tensor::<1>::from_floats([1.0, 0.0], &tokens.map(0).device()).reshape([1, 1, 1, 2]);
        KnownTokens::masked(tokens, mask.repeat_dim(0, 2))
    };
    let request = BatchRequest {
        sampler: Sampler { top_k: 30, top_p: 0.95, ..Sampler::default() },
        known: known.map(half).transpose()?,
        ..BatchRequest::classes(&[0, 2], seed)
    };
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(1.5))];
    Ok(generate(tokenizer, model, guidance, request, &mut |_| ControlFlow::Continue(()))?.tokens)
}

/// Generates images, and edits them with another seed; returns the tokens of both, image by image.
///
/// # Errors
/// The errors of [`generate`].
pub fn generated_and_edited(device: &Device) -> Result<[Vec<Vec<u32>>; 2]> {
    let models = models(device)?;
    let generated = tokens(&models, 5, None)?;
    let edited = tokens(&models, 6, Some(generated.clone()))?;
    Ok([generated.to_rows()?, edited.to_rows()?])
}

/// The tokens of [`generated_and_edited`].
pub const EXPECTED: [[[u32; 30]; 2]; 2] = [
    [
        [
            47, 45, 45, 36, 23, 23, 34, 45, 42, 3, 45, 33, 36, 38, 36, 2, 37, 0, 36, 31, 34, 37, 23, 2, 15, 36, 23, 23,
            42, 32,
        ],
        [18, 6, 21, 40, 35, 8, 10, 11, 19, 32, 6, 40, 10, 16, 32, 6, 34, 2, 6, 25, 36, 42, 40, 6, 11, 36, 48, 6, 40, 0],
    ],
    [
        [
            47, 45, 36, 36, 43, 23, 11, 34, 42, 8, 45, 33, 42, 36, 36, 2, 49, 12, 36, 31, 48, 40, 23, 2, 10, 45, 23,
            23, 46, 48,
        ],
        [18, 6, 8, 40, 21, 8, 36, 40, 19, 27, 29, 40, 18, 46, 32, 6, 40, 8, 6, 25, 3, 6, 40, 6, 0, 18, 48, 6, 30, 30],
    ],
];
