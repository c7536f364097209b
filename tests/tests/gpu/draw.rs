//! Filter and draw of tokens on a GPU, against those on the host.

use burn::tensor::{Device, Tensor, TensorData};
use burn_var::generation::Generation;
use burn_var::rng::Rng;
use burn_var::sampling::{DeviceDraw, Noise, Sampler, TopPRule};
use burn_var::{BatchRequest, Error};
use burn_var_tests::tiny;

const IMAGES: usize = 2;

fn noise() -> [Noise; IMAGES] {
    [0, 1].map(|image| Noise::new(&mut Rng::new(3, "sample", image)))
}

/// Draws on the device and on the host: returns the ids of both.
fn drawn(sampler: &Sampler, values: &[f32], vocabulary: usize, k: usize) -> [Vec<i64>; 2] {
    let device = Device::wgpu(Default::default());
    let shape = [IMAGES, values.len() / vocabulary / IMAGES, vocabulary];
    let codebook = Tensor::zeros([vocabulary, 1], &device);
    let mut draw = DeviceDraw::new(&noise(), vocabulary, &device).expect("a kernel");
    let logits = Tensor::from_data(TensorData::new(values.to_vec(), shape), &device);
    let found = draw.draw(sampler, logits, k, 0.5, &codebook).expect("tokens").ids;
    draw.check().expect("all are numbers");
    let noise = noise().map(|noise| noise.at_scale(k));
    let expected = sampler.draw(values.to_vec(), shape, &noise, 0.5, &codebook).expect("tokens").ids;
    [found, expected].map(|ids| ids.try_into_vec_as().expect("ids"))
}

fn filtered(sampler: &Sampler, values: &[f32], vocabulary: usize) -> Vec<f32> {
    let rows = TensorData::new(values.to_vec(), [values.len() / vocabulary, vocabulary]);
    let rows = Tensor::from_data(rows, &Device::wgpu(Default::default()));
    let filtered = sampler.filter_on_device(rows).expect("numbers").expect("a kernel");
    filtered.into_data().try_into_vec().expect("f32")
}

/// Rows of one kind each: normal numbers, few different ones, many that are out, all equal, zeros of both signs, all out but
/// one, all out.
fn rows(vocabulary: usize, count: usize) -> Vec<f32> {
    let mut rng = Rng::new(9, "rows", vocabulary as u64);
    let mut row = |kind: usize| -> Vec<f32> {
        let mut entry = |i: usize| match kind {
            0..=5 => (2.0 * rng.normal()) as f32,
            6 | 7 => rng.below(5) as f32 - 2.0,
            8 if rng.uniform() < 0.7 => f32::NEG_INFINITY,
            8 => (4.0 * rng.normal()) as f32,
            9 => 1.5,
            10 if rng.uniform() < 0.5 => -0.0,
            10 => (rng.below(2) as f32 - 0.5).max(0.0),
            11 if i != vocabulary / 2 => f32::NEG_INFINITY,
            11 => -3.0,
            _ => f32::NEG_INFINITY,
        };
        (0..vocabulary).map(&mut entry).collect()
    };
    (0..count).flat_map(|i| row(i % 13)).collect()
}

/// Settings for a vocabulary: many for one size, since a software GPU compiles each slowly.
fn settings(vocabulary: usize) -> Vec<Sampler> {
    let of = |top_k: usize, top_p: f64, top_p_rule: TopPRule, temperature: f64| Sampler {
        top_k,
        top_p,
        top_p_rule,
        temperature,
        ..Sampler::default()
    };
    let (up, down) = (TopPRule::Ascending, TopPRule::Descending);
    if vocabulary != 33 {
        return vec![of(vocabulary / 3, 0.96, up, 1.0), of(0, 0.83, down, 1.0)];
    }
    vec![
        of(0, 0.0, up, 1.0),
        of(1, 0.0, up, 1.0),
        of(vocabulary / 3 + 1, 0.0, up, 1.0),
        of(vocabulary, 1.0, up, 1.0),
        of(0, 0.9, up, 1.0),
        of(0, 1.0, down, 1.0),
        of(0, 0.83, down, 1.0),
        of(vocabulary / 2, 0.96, up, 1.0),
        of(vocabulary / 2, 0.7, down, 1.0),
        of(1, 0.4, down, 1.0),
        of(0, 1e-9, up, 1.0),
        of(vocabulary / 2, 0.96, up, 0.7),
    ]
}

#[test]
fn the_filter_keeps_what_the_host_keeps() {
    let _alone = crate::alone();
    let (mut rows_seen, mut others) = (0, 0);
    for vocabulary in [2, 33, 4096] {
        let values = rows(vocabulary, if vocabulary > 1000 { 13 } else { 65 });
        for sampler in settings(vocabulary) {
            let found = filtered(&sampler, &values, vocabulary);
            for (i, (row, found)) in values.chunks(vocabulary).zip(found.chunks(vocabulary)).enumerate() {
                let mut expected = row.to_vec();
                sampler.filter(&mut expected).expect("numbers");
                let is_off = |(found, expected): &(&f32, &f32)| found.is_finite() != expected.is_finite();
                let off = found.iter().zip(&expected).filter(is_off).count();
                // Where a sum meets the limit of top-p to the last digits, one entry more or less stays.
                assert!(off <= 1, "{vocabulary} entries, {sampler:?}, row {i}: {off} are off");
                (rows_seen, others) = (rows_seen + 1, others + off);
                for (found, expected) in found.iter().zip(&expected).filter(|pair| !is_off(pair)) {
                    assert!(
                        found == expected || (found - expected).abs() <= 1e-6 * expected.abs(),
                        "{found}, {expected}"
                    );
                }
            }
        }
    }
    assert!(others * 500 <= rows_seen, "{others} of {rows_seen} rows differ");
}

#[test]
fn draws_are_those_of_the_host() {
    let _alone = crate::alone();
    for vocabulary in [1, 2, 5, 33, 4096, 16384] {
        // Two images.
        let values = rows(vocabulary, 26);
        for (k, sampler) in settings(vocabulary).into_iter().enumerate() {
            let [found, expected] = drawn(&sampler, &values, vocabulary, k);
            assert_eq!(found, expected, "{vocabulary} entries, {sampler:?}");
        }
    }
}

/// More rows than an axis of a grid has cubes, and so many draws that some are close.
#[test]
fn of_many_draws_hardly_any_differs() {
    let _alone = crate::alone();
    let mut rng = Rng::new(1, "many", 0);
    let values: Vec<f32> = (0..33_000 * 17).map(|_| (2.0 * rng.normal()) as f32).collect();
    let sampler = Sampler { top_k: 0, top_p: 0.0, ..Sampler::default() };
    let [found, expected] = drawn(&sampler, &values, 17, 3);
    let off = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
    assert!(off <= 3, "{off} of 33000 differ");
}

#[test]
fn a_mixture_of_codes_is_that_of_the_host() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let (vocabulary, tokens) = (40, 3);
    let mut rng = Rng::new(2, "mixture", 0);
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.normal() as f32).collect() };
    let (values, codes) = (numbers(IMAGES * tokens * vocabulary), numbers(vocabulary * 4));
    let (shape, codebook) =
        ([IMAGES, tokens, vocabulary], Tensor::from_data(TensorData::new(codes, [vocabulary, 4]), &device));
    let sampler = Sampler { top_k: 10, top_p: 0.9, more_smooth: true, ..Sampler::default() };
    for (k, ratio) in [0.0, 0.5, 1.0].into_iter().enumerate() {
        let mut draw = DeviceDraw::new(&noise(), vocabulary, &device).expect("a kernel");
        let logits = Tensor::from_data(TensorData::new(values.clone(), shape), &device);
        let found = draw.draw(&sampler, logits, k, ratio, &codebook).expect("codes");
        let noise = noise().map(|noise| noise.at_scale(k));
        let expected = sampler.draw(values.clone(), shape, &noise, ratio, &codebook).expect("codes");
        let [found, expected] = [found, expected]
            .map(|drawn| drawn.codes.expect("a mixture").into_data().try_into_vec::<f32>().expect("numbers"));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-3, "ratio {ratio}: {found}, expected {expected}");
        }
    }
}

#[test]
fn what_is_not_a_number_is_an_error() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let codebook = Tensor::zeros([300, 1], &device);
    let mut draw = DeviceDraw::new(&noise(), 300, &device).expect("a kernel");
    let mut values = vec![0.5f32; IMAGES * 2 * 300];
    let mut next = |values: &[f32]| {
        let logits = Tensor::from_data(TensorData::new(values.to_vec(), [IMAGES, 2, 300]), &device);
        let ids = draw.draw(&Sampler::default(), logits, 0, 0.0, &codebook).expect("tokens").ids;
        assert!(ids.try_into_vec_as::<i64>().expect("ids").iter().all(|id| (0..300).contains(id)), "ids of codes");
        draw.check()
    };
    next(&values).expect("numbers");
    (values[900 + 270], values[900 + 271]) = (-f32::NAN, f32::NAN);
    let error = next(&values).expect_err("not a number");
    assert!(matches!(error, Error::NonFinite { .. }) && error.to_string().contains("token 270"), "{error}");
    values.fill(0.5);
    assert!(next(&values).is_err(), "it stays an error");
    let other = Tensor::zeros([IMAGES, 2, 299], &device);
    assert!(draw.draw(&Sampler::default(), other, 0, 0.0, &codebook).is_err(), "another vocabulary");
}

/// The tokens are those that a CPU draws on the host.
#[test]
fn a_model_generates_and_edits_as_on_a_cpu() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    assert_eq!(tiny::generated_and_edited(&device).expect("tokens"), tiny::EXPECTED);
    let rollout = tiny::generated_and_edited(&device.autodiff()).expect("tokens");
    assert_eq!(rollout, tiny::EXPECTED, "on the autodiff graph");
}

#[test]
fn a_model_that_computes_no_numbers_is_an_error() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let (tokenizer, mut model) = tiny::models(&device).expect("models");
    model = burn_var::init::initialize(model, 1, |_| burn_var::init::Init::Normal(1e38));
    let error = burn_var::generate(&tokenizer, &model, Vec::new(), BatchRequest::classes(&[0], 1), &mut |_| {
        std::ops::ControlFlow::Continue(())
    });
    assert!(matches!(error, Err(Error::NonFinite { .. })), "{error:?}");
    let mut generation =
        Generation::new(&tokenizer, &model, Vec::new(), BatchRequest::classes(&[0], 1)).expect("a batch");
    generation.next_scale().expect("nobody has looked");
    assert!(matches!(generation.check(), Err(Error::NonFinite { .. })), "who stops early asks");
}
