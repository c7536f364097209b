//! Formulas and statistics of sampling, guidance, regularization and weights, against values computed here.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData, bf16, f16};
use burn_var::editing::KnownTokens;
use burn_var::guidance::{Aid, AidWeight, Cfg, Guidance, Logits, Ssg, SsgConfig, Uncertainty};
use burn_var::init::{Init, initialize};
use burn_var::models::aid::{Injector, InjectorConfig};
use burn_var::models::var::{Var, VarConfig, VqVae, VqVaeConfig, drop_labels};
use burn_var::rng::Rng;
use burn_var::weights::{FloatType, LoadOptions, Pretrained, StateDict, export};
use burn_var::{BatchRequest, Condition, MapSize, NextScale, Scales, TeacherForced, TokenPyramid, Tokenizer, generate};
use burn_var_tests::tiny;
use burn_var_tests::weightgen::WeightGen;
use burn_var_train::report::read_log;
use burn_var_train::tokenizer::train_tokenizer;
use burn_var_train::var::train_var;
use serde_json::json;

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.try_into_vec_as::<f64>().expect("numbers")
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Fails unless all numbers are within `absolute + relative * |expected|`.
fn assert_near(found: &[f64], expected: &[f64], [absolute, relative]: [f64; 2], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: count");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        // Not `difference > limit`, which a NaN would pass.
        let holds = (f - e).abs() <= absolute + relative * e.abs();
        assert!(holds, "{what}, element {i}: expected {e}, found {f}");
    }
}

/// A transformer of width 8 with weights of one size everywhere, so that every branch shows in the logits.
fn var_config(depth: usize, drop_path_rate: f64, patch_nums: serde_json::Value) -> VarConfig {
    serde_json::from_value(json!({
        "depth": depth, "embed_dim": 8, "num_heads": 2, "vocab_size": 7, "z_channels": 4, "num_classes": 3,
        "patch_nums": patch_nums, "drop_path_rate": drop_path_rate,
    }))
    .expect("sizes")
}

fn var(config: &VarConfig, device: &Device) -> Var {
    initialize(config.init_zeros(device).expect("valid"), 1, |_| Init::Normal(0.4))
}

#[test]
fn uncertainty_is_entropy_or_margin() {
    const TABLE: [([f64; 4], f64, f64); 5] = [
        ([0.25, 0.25, 0.25, 0.25], 1.0, 1.0),
        ([1.0, 0.0, 0.0, 0.0], 0.0, 0.0),
        ([0.5, 0.5, 0.0, 0.0], 0.5, 1.0),
        // -(0.7 ln 0.7 + 0.2 ln 0.2 + 0.1 ln 0.1) / ln 4, and 1 - (0.7 - 0.2).
        ([0.2, 0.7, 0.1, 0.0], 0.578_389_824, 0.5),
        // A half, a quarter and two eighths: 1.75 of 2 bits.
        ([0.125, 0.25, 0.125, 0.5], 0.875, 0.75),
    ];
    let logits: Vec<f64> = TABLE.iter().flat_map(|(shares, ..)| shares.map(|share| share.ln() + 3.0)).collect();
    let logits = tensor(&logits, [1, TABLE.len(), 4], &Device::default());
    let entropy = Uncertainty::Entropy.of(logits.clone());
    assert_eq!(entropy.dims(), [1, TABLE.len(), 1]);
    assert_near(&floats(entropy), &TABLE.map(|row| row.1), [1e-6, 0.0], "entropy");
    assert_near(&floats(Uncertainty::Margin.of(logits)), &TABLE.map(|row| row.2), [1e-6, 0.0], "margin");
}

/// The adaptive weight of an injector: `most` times the uncertainty of the scale before, its mean over the positions, or
/// position by position.
#[test]
fn the_adaptive_weight_is_the_uncertainty_of_the_scale_before() {
    let device = Device::default();
    let scales = Scales::square(&[1, 2, 2]).expect("a scale schedule");
    let transformer = var(&var_config(1, 0.0, json!([1, 2, 2])), &device);
    let injector = InjectorConfig { num_heads: 2, ..InjectorConfig::paper(8) }.init_zeros(&device).expect("valid");
    let injector: Injector = initialize(injector, 6, |_| Init::Normal(0.4));
    let codes = tensor(&(0..16).map(|i| f64::from(i % 5) - 2.0).collect::<Vec<_>>(), [1, 4, 4], &device);
    let logits: Vec<f64> = (0..28).map(|i| f64::from(i * i % 11) / 3.0).collect();
    let logits = tensor(&logits, [1, 4, 7], &device);
    let added = |weight: AidWeight| {
        let mut aid = Aid::new(injector.clone(), transformer.word_embed(), weight).expect("fits");
        aid.logits(scales.at(1), Logits::cond(logits.clone())).expect("logits");
        floats(aid.hidden(scales.at(2), Some(&codes), Tensor::zeros([1, 4, 8], &device)).expect("a map"))
    };
    let map = added(AidWeight::Constant(1.0));
    assert!(map.iter().any(|x| x.abs() > 0.05), "the map is there: {map:?}");
    for by in [Uncertainty::Entropy, Uncertainty::Margin] {
        let uncertainty = floats(by.of(logits.clone()));
        let mean = uncertainty.iter().sum::<f64>() / 4.0;
        assert!(uncertainty.iter().any(|u| (u - mean).abs() > 0.01), "positions differ: {uncertainty:?}");
        for per_position in [false, true] {
            let weight = |i: usize| 2.5 * if per_position { uncertainty[i / 8] } else { mean };
            let expected: Vec<f64> = map.iter().enumerate().map(|(i, x)| weight(i) * x).collect();
            let found = added(AidWeight::Adaptive { most: 2.5, by, per_position });
            assert_near(&found, &expected, [1e-6, 1e-5], &format!("{by:?}, per position: {per_position}"));
        }
    }
}

/// The largest accepted difference between a share of `count` independent draws and its probability: 4 standard
/// deviations.
fn chance(probability: f64, count: usize) -> f64 {
    4.0 * (probability * (1.0 - probability) / count as f64).sqrt()
}

#[test]
fn labels_are_dropped_at_their_rate_and_are_otherwise_unchanged() {
    let labels: Vec<usize> = (0..20_000).map(|i| i % 7).collect();
    for rate in [0.0, 0.1, 0.5, 1.0] {
        let mut streams: Vec<Rng> = (0..20_000).map(|image| Rng::new(1, "labels", image)).collect();
        let dropped = drop_labels(&labels, rate, &mut streams);
        let null = dropped.iter().filter(|condition| matches!(condition, Condition::Null)).count();
        let found = null as f64 / labels.len() as f64;
        assert!((found - rate).abs() <= chance(rate, labels.len()), "rate {rate}, found {found}");
        let same = labels.iter().zip(&dropped).all(|(label, dropped)| match dropped {
            Condition::Class(class) => class == label,
            condition => matches!(condition, Condition::Null),
        });
        assert!(same, "labels that stay are the same");
    }
}

/// A transformer whose gates of attention and feed-forward in some blocks are multiplied by factors.
fn gated(config: &VarConfig, factors: &[(usize, [f64; 2])], device: &Device) -> Var {
    let module = config.init_zeros(device).expect("valid");
    let names = export(&module, &Var::keys(config)).expect("parameters");
    let shapes: Vec<_> =
        names.keys().map(|key| (key.to_owned(), names.shape(key).unwrap_or_default().to_vec())).collect();
    let factors = factors.to_vec();
    let recipe = WeightGen { gain: 1.5, ..WeightGen::default() };
    let dict = StateDict::generated("gates", shapes, move |key, shape| {
        let mut values = recipe.tensor(key, shape);
        for (block, gates) in &factors {
            // Six parts of `width` rows each, the two gates first.
            if key.starts_with(&format!("blocks.{block}.ada_lin.1.")) {
                let part = values.len() / 6;
                let gates = gates.iter().flat_map(|gate| std::iter::repeat_n(*gate as f32, part));
                values.iter_mut().zip(gates).for_each(|(value, gate)| *value *= gate);
            }
        }
        values
    });
    Var::load_with(&dict.expect("tensors"), config, LoadOptions::default(), device).expect("fits")
}

/// Drop path: each image keeps each branch with probability `1 - p`, multiplied by `1 / (1 - p)`, or loses it. So the
/// expected value of a branch is the branch. `p` grows linearly from 0 at the first block to the rate at the last.
#[test]
fn drop_path_keeps_branches_at_their_rate_and_scales_them_without_bias() {
    const IMAGES: usize = 1500;
    let device = Device::default();
    let input = |count: usize| {
        let one = tensor(&(0..16).map(|i| f64::from(i % 7) - 3.0).collect::<Vec<_>>(), [1, 4, 4], &device);
        one.repeat_dim(0, count)
    };
    let forward = |model: &Var, count: usize, noise: Option<&mut [Rng]>| -> Vec<f64> {
        floats(
            model
                .teacher_forced(&vec![Condition::Class(1); count], input(count), model.scales(), noise)
                .expect("logits"),
        )
    };
    let streams = || (0..IMAGES as u64).map(|image| Rng::new(2, "drop path", image)).collect::<Vec<_>>();
    // Depth, the block that is looked at, its rate of dropping. Blocks after it are closed, so that theirs do not show.
    for (depth, block, p) in [(2, 1, 0.4), (3, 1, 0.2), (3, 2, 0.4)] {
        let config = var_config(depth, 0.4, json!([1, 2]));
        let closed: Vec<(usize, [f64; 2])> = (1..depth).filter(|i| *i != block).map(|i| (i, [0.0; 2])).collect();
        let keep = 1.0 / (1.0 - p);
        let outcomes = [[0.0, 0.0], [0.0, keep], [keep, 0.0], [keep, keep]];
        let expected = outcomes.map(|gates| {
            let factors = [closed.clone(), vec![(block, gates)]].concat();
            forward(&gated(&config, &factors, &device), 1, None)
        });
        let found = forward(&gated(&config, &closed, &device), IMAGES, Some(&mut streams()));
        let mut counts = [0usize; 4];
        for image in found.chunks(expected[0].len()) {
            let distance =
                |outcome: &Vec<f64>| outcome.iter().zip(image).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let distances: Vec<f64> = expected.iter().map(distance).collect();
            let nearest = (0..4).fold(0, |best, i| if distances[i] < distances[best] { i } else { best });
            assert!(distances[nearest] < 1e-4, "no outcome of drop path: distances {distances:?}");
            assert_eq!(distances.iter().filter(|d| **d < 1e-3).count(), 1, "outcomes can be told apart: {distances:?}");
            counts[nearest] += 1;
        }
        let share = |count: usize| count as f64 / IMAGES as f64;
        for (name, kept) in [("attention", counts[2] + counts[3]), ("feed-forward", counts[1] + counts[3])] {
            let message = format!("{name} of block {block} of {depth}: kept {}, expected {}", share(kept), 1.0 - p);
            assert!((share(kept) - (1.0 - p)).abs() <= chance(p, IMAGES), "{message}");
        }
        let both = (1.0 - p).powi(2);
        assert!((share(counts[3]) - both).abs() <= chance(both, IMAGES), "branches are independent: {counts:?}");
    }
    let plain = var(&var_config(3, 0.0, json!([1, 2])), &device);
    let without = forward(&plain, 4, None);
    assert_eq!(forward(&plain, 4, Some(&mut streams()[..4])), without, "a rate of 0 drops nothing");
}

/// A tokenizer and a transformer of maps that are not square: 1x1, 2x3 and 3x5 tokens.
fn non_square() -> (VqVae, Var) {
    let device = Device::default();
    let sizes: VqVaeConfig = serde_json::from_value(json!({
        "image_channels": 1, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 4, "vocab_size": 7,
        "patch_nums": [1, [2, 3], [3, 5]],
    }))
    .expect("sizes");
    let tokenizer = initialize(sizes.init_zeros(&device).expect("valid"), 2, |_| Init::Normal(0.3));
    (tokenizer, var(&var_config(2, 0.0, json!([1, [2, 3], [3, 5]])), &device))
}

/// Generates, and returns the guided logits of all scales, the tokens and the canvas.
fn generated(
    models: &(VqVae, Var),
    conditions: &[Condition],
    guidance: Vec<Box<dyn Guidance>>,
    known: Option<KnownTokens>,
) -> (Tensor<3>, TokenPyramid, Tensor<4>) {
    let (tokenizer, transformer) = models;
    let mut logits = Vec::new();
    let request = BatchRequest { known, ..BatchRequest::new(conditions.to_vec(), 4) };
    let result = generate(tokenizer, transformer, guidance, request, &mut |done| {
        logits.push(done.logits.clone());
        ControlFlow::Continue(())
    })
    .expect("generates");
    (Tensor::cat(logits, 1), result.tokens, result.canvas)
}

#[test]
fn teacher_forced_logits_are_those_of_generation_on_maps_that_are_not_square() {
    let models = non_square();
    let (tokenizer, transformer) = &models;
    assert_eq!(tokenizer.image_shape(tokenizer.scales()), [1, 6, 10], "twice the finest map");
    let conditions = [Condition::Class(0), Condition::Class(2), Condition::Null];
    let (logits, tokens, canvas) = generated(&models, &conditions, Vec::new(), None);
    assert_eq!(tokens.sequence().dims(), [3, 1 + 6 + 15]);
    assert_eq!(tokenizer.decode(canvas.clone()).dims(), [3, 1, 6, 10], "images");
    let distinct: std::collections::BTreeSet<u32> = tokens.to_rows().expect("ids").concat().into_iter().collect();
    assert!(distinct.len() > 2, "more than one token: {distinct:?}");
    let painted = tokenizer.canvases(&tokens).pop().expect("scales");
    assert_near(&floats(canvas), &floats(painted), [1e-5, 0.0], "canvas of the tokens");

    let input = tokenizer.teacher_input(&tokens);
    assert_eq!(input.dims(), [3, 6 + 15, 4]);
    let cond =
        floats(transformer.teacher_forced(&conditions, input.clone(), transformer.scales(), None).expect("logits"));
    assert_near(&floats(logits), &cond, [1e-4, 1e-4], "cached and teacher-forced logits");

    // Both branches of classifier-free guidance, along the tokens of the first generation.
    let guidance: Vec<Box<dyn Guidance>> = vec![Box::new(Cfg::ramp(2.0))];
    let known = KnownTokens::all(tokens.clone());
    let (guided, kept, _) = generated(&models, &conditions, guidance, Some(known));
    assert_eq!(kept.to_rows().expect("ids"), tokens.to_rows().expect("ids"), "the given tokens");
    let null = floats(
        transformer.teacher_forced(&vec![Condition::Null; 3], input, transformer.scales(), None).expect("logits"),
    );
    // Strengths 0, 1 and 2 of the three scales.
    let strengths: Vec<f64> = [(1, 0.0), (6, 1.0), (15, 2.0)].iter().flat_map(|(n, t)| vec![*t; *n]).collect();
    let strength = |i: usize| strengths[i / 7 % 22];
    let expected: Vec<f64> =
        cond.iter().zip(&null).enumerate().map(|(i, (c, n))| (1.0 + strength(i)) * c - strength(i) * n).collect();
    assert_near(&floats(guided), &expected, [1e-3, 1e-4], "guided logits");
}

#[test]
fn every_part_of_guidance_takes_maps_that_are_not_square() {
    let models = non_square();
    let (tokenizer, transformer) = &models;
    let device = Device::default();
    let image = tensor(&(0..60).map(|i| f64::from(i % 9) / 5.0 - 0.8).collect::<Vec<_>>(), [1, 1, 6, 10], &device);
    let tokens = tokenizer.encode(image, tokenizer.scales()).expect("an image of the right size");
    assert_eq!(tokens.sequence().dims(), [1, 22]);
    let injector = InjectorConfig { num_heads: 2, ..InjectorConfig::paper(8) }.init(3, &device).expect("valid");
    let aid = Aid::new(injector, transformer.word_embed(), AidWeight::Constant(0.5)).expect("fits");
    // The left half is kept; a column in the middle may go either way.
    let mut mask = vec![0.0; 60];
    mask.chunks_exact_mut(10).for_each(|row| row[..5].fill(1.0));
    let known = KnownTokens::masked(tokens.clone(), tensor(&mask, [1, 1, 6, 10], &device)).expect("one mask");
    let redrawn = known.drawn().expect("masks");
    let guidance: Vec<Box<dyn Guidance>> =
        vec![Box::new(aid), Box::new(Cfg::ramp(1.0)), Box::new(Ssg::new(SsgConfig::paper(0.3)))];
    let (_, edited, canvas) = generated(&models, &[Condition::Class(1)], guidance, Some(known));
    let [before, after] = [&tokens, &edited].map(|tokens| tokens.to_rows().expect("ids").remove(0));
    assert_eq!(before[0], after[0], "the single token of the first scale is kept");
    for (k, MapSize { height, width }) in tokens.scales().sizes().iter().copied().enumerate().skip(1) {
        let start = tokens.scales().range(k).start;
        let left = (0..height).flat_map(|y| (0..width / 2).map(move |x| start + y * width + x));
        assert!(left.clone().all(|i| before[i] == after[i]), "the left half of scale {k} is kept");
        assert!((1..height * width).contains(&redrawn[k]), "a part of scale {k} is redrawn: {redrawn:?}");
    }
    assert_eq!(tokenizer.decode(canvas).dims(), [1, 1, 6, 10]);
}

/// Rounds a weight as `linear` holds it.
fn rounded(value: f32, linear: FloatType) -> f32 {
    match linear {
        FloatType::F32 => value,
        FloatType::F16 => f16::from_f32(value).to_f32(),
        FloatType::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

/// Weights held in half precision compute as weights rounded to it in single precision: sums stay in single precision.
fn half_weights_are_rounded_single_weights(device: &Device) {
    let config = var_config(2, 0.0, json!([1, 2, 3]));
    let module = config.init_zeros(device).expect("valid");
    let recipe = WeightGen::default();
    let names = export(&module, &Var::keys(&config)).expect("parameters");
    let dict = |linear: FloatType| {
        let recipe = recipe.clone();
        let shapes: Vec<_> =
            names.keys().map(|key| (key.to_owned(), names.shape(key).unwrap_or_default().to_vec())).collect();
        StateDict::generated("rounded", shapes, move |key, shape| {
            let is_linear = key.ends_with(".weight") && !["class_emb.weight", "lvl_embed.weight"].contains(&key);
            let linear = if is_linear { linear } else { FloatType::F32 };
            recipe.tensor(key, shape).into_iter().map(|value| rounded(value, linear)).collect()
        })
        .expect("tensors")
    };
    let input = tensor(&(0..52).map(|i| f64::from(i % 7) / 2.0 - 1.5).collect::<Vec<_>>(), [1, 13, 4], device);
    let forward = |model: Var| {
        floats(model.teacher_forced(&[Condition::Class(1)], input.clone(), model.scales(), None).expect("logits"))
    };
    let load = |linear: FloatType, options| Var::load_with(&dict(linear), &config, options, device).expect("fits");
    let single = forward(load(FloatType::F32, LoadOptions::default()));
    for linear in [FloatType::F16, FloatType::Bf16] {
        let options = LoadOptions { linear, ..LoadOptions::default() };
        let found = forward(load(FloatType::F32, options));
        let expected = forward(load(linear, LoadOptions::default()));
        assert_near(&found, &expected, [1e-5, 1e-5], &format!("{linear:?} on {device:?}"));
        assert_ne!(found, single, "{linear:?} rounds");
    }
}

#[cfg(feature = "flex")]
#[test]
fn half_weights_on_flex() {
    half_weights_are_rounded_single_weights(&Device::flex());
}

/// Burn's ndarray backend panics on half precision; loading refuses it before.
#[cfg(feature = "ndarray")]
#[test]
#[allow(deprecated, reason = "the second backend of the tests")]
fn half_weights_on_ndarray_are_refused() {
    let (device, config) = (Device::ndarray(), var_config(2, 0.0, json!([1, 2, 3])));
    let dict = export(&config.init_zeros(&Device::default()).expect("valid"), &Var::keys(&config)).expect("parameters");
    for linear in [FloatType::F16, FloatType::Bf16] {
        let options = LoadOptions { linear, ..LoadOptions::default() };
        let error = Var::load_with(&dict, &config, options, &device).expect_err("no such type").to_string();
        assert!(error.contains(&format!("{:?}", linear.dtype())) && error.contains("f32"), "{error}");
    }
}

/// Writes IDX files of 16x16 grey images in three classes.
fn write_images(folder: &Path) {
    for (prefix, count) in [("train", 12_usize), ("t10k", 3)] {
        let big_endian =
            |numbers: &[usize]| numbers.iter().flat_map(|n| (*n as u32).to_be_bytes()).collect::<Vec<u8>>();
        let pixel = |i: usize| ((i * 7919 + i / 256 * 37) % 251) as u8;
        let images = [vec![0, 0, 8, 3], big_endian(&[count, 16, 16]), (0..count * 256).map(pixel).collect()].concat();
        let labels = [vec![0, 0, 8, 1], big_endian(&[count]), (0..count).map(|i| (i % 3) as u8).collect()].concat();
        std::fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("written");
        std::fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("written");
    }
}

/// Trains two steps with every number of micro-batches, and compares logs and weights with those of whole batches.
///
/// A large epsilon makes the optimizer's step a smooth function of the gradients: with the usual one, a gradient of
/// rounding alone decides the direction of a step.
fn accumulation_changes_nothing(class_dropout: f64, drop_path: f64) {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_images(at);
    let sections = |accumulate: usize| {
        format!(
            "[run]\nsteps = 2\nbatch_size = 6\naccumulate = {accumulate}\nseed = 5\nlog_every = 1\n\
             [data]\npath = {at:?}\nmirror = true\n"
        )
    };
    let tokenizer = sections(1)
        + "[model]\nimage_channels = 1\nch = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nz_channels = 6\n\
           vocab_size = 24\npatch_nums = [1, 3, 8]\n";
    let tokenizer = toml::from_str(&tokenizer).unwrap_or_else(|error| panic!("{error}"));
    let device = Device::default();
    let file = train_tokenizer(tokenizer, &at.join("tokenizer"), &device, &mut ()).expect("trains").expect("a file");
    let train = |accumulate: usize| {
        let text = format!(
            "tokenizer = {file:?}\nclass_dropout = {class_dropout}\n{}\
             [learning_rate]\npeak = 0.5\n[optimizer]\nepsilon = 1.0\n[model]\ndepth = 2\nembed_dim = 32\nnum_heads = 2\n\
             drop_path_rate = {drop_path}\n[preview]\nper_class = 1\n",
            sections(accumulate)
        );
        let config = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"));
        let run = at.join(format!("run-{accumulate}"));
        let file = train_var(config, &run, &device, &mut ()).expect("trains").expect("a file");
        let dict = StateDict::open(file).expect("a checkpoint");
        let read = |key: &str| dict.tensor(key).expect(key).convert::<f64>().try_into_vec::<f64>().expect("numbers");
        let weights: Vec<f64> = dict.keys().flat_map(read).collect();
        (read_log(run.join("log.jsonl")).expect("a log"), weights)
    };
    let (whole, weights) = train(1);
    for pieces in [2, 3, 6] {
        let (log, found) = train(pieces);
        assert_eq!(log.len(), whole.len(), "steps in the log");
        for (step, (found, expected)) in log.iter().zip(&whole).enumerate() {
            for name in ["loss", "accuracy", "grad_norm"] {
                let [found, expected] = [found, expected].map(|line| line[name].as_f64().expect(name));
                assert_near(&[found], &[expected], [1e-6, 1e-4], &format!("{name} of step {step}, {pieces} pieces"));
            }
        }
        assert_near(&found, &weights, [1e-5, 1e-4], &format!("weights after {pieces} pieces"));
    }
}

#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    accumulation_changes_nothing(0.0, 0.0);
}

/// The same with noise, each image's own wherever it lies in a batch.
#[test]
fn accumulated_gradients_are_those_of_the_whole_batch_with_noise() {
    accumulation_changes_nothing(0.3, 0.3);
}

/// Casting is exact where every value fits, so that tests of rounding test rounding.
#[test]
fn rounding_to_half_precision_is_to_nearest_even() {
    let values = [1.0, 1.0 + 1.0 / 4096.0, 1.0 + 3.0 / 2048.0, 0.1, 65504.0];
    let device = Device::default();
    for (linear, dtype) in [(FloatType::F16, DType::F16), (FloatType::Bf16, DType::BF16)] {
        let cast = Tensor::<1>::from_floats(values, &device).cast(dtype).cast(DType::F32);
        let expected: Vec<f64> = values.iter().map(|value| f64::from(rounded(*value, linear))).collect();
        assert_eq!(floats(cast), expected, "{linear:?}");
    }
}

/// The other half is in the tests of GPUs: the draw there has to be the same.
#[test]
fn tokens_are_those_of_every_device() {
    assert_eq!(tiny::generated_and_edited(&Device::default()).expect("tokens"), tiny::EXPECTED);
}
