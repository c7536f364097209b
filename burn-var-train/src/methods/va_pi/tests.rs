//! Tests of each setting of a step, on models of a few thousand weights.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use burn_var::generation::TeacherInput;
use burn_var::init::{Init, initialize};
use burn_var::models::classifier::ClassifierConfig;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::{FlexVae, FlexVaeConfig, FlexVar};
use burn_var::models::var::{Var, VarConfig, VqVae, VqVaeConfig};
use burn_var::rng::Rng;
use burn_var::{Condition, Scales, TeacherForced, TokenPyramid, Tokenizer, ops};

use super::*;

const VOCABULARY: usize = 12;

fn scales() -> Scales {
    Scales::square(&[1, 2, 4]).unwrap()
}

fn tokenizer() -> VqVae {
    let config = VqVaeConfig {
        image_channels: 1,
        ch: 32,
        ch_mult: vec![1, 1],
        num_res_blocks: 1,
        z_channels: 4,
        vocab_size: VOCABULARY,
        ..VqVaeConfig::public(scales())
    };
    // Codes far enough from one another to decode to images of their own.
    initialize(config.init(1, &Device::default()).unwrap(), 1, |param| match param.path {
        "quantize.embedding.weight" => Init::Normal(1.0),
        _ => Init::Keep,
    })
}

fn model() -> Var {
    let config = VarConfig {
        depth: 1,
        embed_dim: 16,
        num_heads: 2,
        mlp_ratio: 2.0,
        norm_eps: 1e-6,
        shared_aln: false,
        attn_l2_norm: true,
        vocab_size: VOCABULARY,
        z_channels: 4,
        num_classes: 3,
        patch_nums: scales(),
        drop_path_rate: 0.0,
    };
    initialize(config.init_zeros(&Device::default().autodiff()).unwrap(), 3, |_| Init::Normal(0.3))
}

/// Settings without LPIPS, which takes larger images.
fn plain() -> VaPiConfig {
    VaPiConfig { group: 3, reward: reward(), ..VaPiConfig::released_c2i() }
}

fn reward() -> RewardConfig {
    RewardConfig { lpips: 0.0, ..RewardConfig::default() }
}

fn step(config: VaPiConfig) -> VaPi<Var> {
    let rewards = Rewards::new(config.reward.clone(), None, None).unwrap();
    VaPi::new(config, tokenizer(), rewards).unwrap()
}

fn images() -> Tensor<4> {
    let mut rng = Rng::new(5, "images", 0);
    let values: Vec<f32> = (0..2 * 64).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [2, 1, 8, 8]), &Device::default())
}

fn truth() -> TokenPyramid {
    tokenizer().encode(images(), &scales()).unwrap()
}

fn noise(purpose: &str) -> Vec<Rng> {
    (0..2).map(|image| Rng::keyed(7, purpose, 0, image)).collect()
}

fn logits(model: &Var) -> Tensor<3> {
    let input = TeacherInput::of(&tokenizer(), &truth()).on_graph();
    model.teacher_forced(&Condition::classes(&[0, 2]), input, &scales(), None).unwrap()
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn ids<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i64> {
    tensor.try_into_vec_as().unwrap()
}

/// Largest gradient of any weight.
fn largest_gradient(model: &Var, loss: &Tensor<1>) -> f32 {
    struct Largest<'a>(&'a Gradients, f32);
    impl ModuleVisitor for Largest<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.0) {
                self.1 = floats(gradient).into_iter().map(f32::abs).fold(self.1, f32::max);
            }
        }
    }
    let gradients = loss.backward();
    let mut largest = Largest(&gradients, 0.0);
    model.visit(&mut largest);
    largest.1
}

fn judge(step: &VaPi<Var>, draw: &Draw) -> Judgment {
    let targets = step.targets(images(), &truth()).unwrap();
    step.judge(&targets, &truth(), &draw.ids).unwrap()
}

/// Samples of a step with given rewards in place of its own.
fn samples_with(step: &VaPi<Var>, logits: Tensor<3>, rewards: &[f64]) -> Samples {
    let draw = step.draw(logits.clone(), &mut noise("draw")).unwrap();
    let judgment = Judgment { rewards: vec![rewards.to_vec()], ..judge(step, &draw) };
    step.samples(logits, draw, &judgment, None, None, &scales()).unwrap()
}

#[test]
fn equal_rewards_have_no_gradient() {
    let loss = GrpoConfig { cross_entropy: 0.0, ..GrpoConfig::default() };
    let (step, model) = (step(VaPiConfig { loss, ..plain() }), model());
    let gradient = |rewards: &[f64]| {
        let logits = logits(&model);
        let samples = samples_with(&step, logits.clone().inner(), rewards).on_graph();
        let found = grpo_loss(&loss, logits, None, samples, Tensor::from_inner(truth().sequence())).unwrap();
        largest_gradient(&model, &found.total)
    };
    assert_eq!(gradient(&[-0.3; 6]), 0.0, "nothing is better than anything else");
    assert!(gradient(&[-0.3, -0.1, -0.2, -0.3, -0.3, -0.3]) > 1e-4, "one group of two has a better sample");
}

#[test]
fn a_better_sample_becomes_likelier() {
    let loss = GrpoConfig { cross_entropy: 0.0, ..GrpoConfig::default() };
    let step = step(VaPiConfig { loss, ..plain() });
    let leaf = logits(&model()).inner();
    let samples = samples_with(&step, leaf.clone(), &[-0.1, -0.3, -0.3, -0.1, -0.3, -0.3]).on_graph();
    let before = samples.old.clone().inner();
    let on_graph = Tensor::from_inner(leaf.clone()).require_grad();
    let truth = Tensor::from_inner(truth().sequence());
    let found = grpo_loss(&loss, on_graph.clone(), None, samples.clone(), truth.clone()).unwrap();
    let after = Tensor::from_inner(leaf - on_graph.grad(&found.total.backward()).unwrap());
    let after = grpo_loss(&loss, after, None, samples, truth).unwrap().new.inner();
    let gain = floats((after - before).sum_dim(1).flatten::<1>(0, 2));
    assert!(gain[0] > 0.0 && gain[3] > 0.0, "the best of each group: {gain:?}");
    assert!(gain[1] + gain[2] < 0.0 && gain[4] + gain[5] < 0.0, "the others: {gain:?}");
}

#[test]
fn true_tokens_have_the_highest_reward() {
    for (embedding, credit) in [(0.0, Credit::Shared), (0.0, Credit::PrefixSwap), (0.0, Credit::OnlyScale)] {
        let reward = RewardConfig { target: RewardTarget::Reconstruction, embedding, ..reward() };
        let step = step(VaPiConfig { reward, credit: Some(credit), ..plain() });
        let mut draw = step.draw(logits(&model()).inner(), &mut noise("draw")).unwrap();
        let (own, others) = (truth().sequence().unsqueeze_dim::<3>(2), draw.ids.narrow(2, 1, 2));
        draw.ids = Tensor::cat(vec![own, others], 2);
        for rewards in judge(&step, &draw).rewards {
            for group in rewards.chunks(3) {
                assert!(group[0].abs() < 1e-9, "the reconstruction itself, {credit:?}: {group:?}");
                assert!(group[1] < -1e-4 && group[2] < -1e-4, "{credit:?}: {group:?}");
            }
        }
    }
}

#[test]
fn rewards_are_weighted_sums_of_their_terms() {
    let device = Device::default();
    let images = Tensor::<4>::ones([1, 1, 8, 8], &device);
    let (decoded, canvas) = (images.clone() * 3.0, Tensor::<4>::ones([1, 4, 4, 4], &device));
    let classifier = ClassifierConfig { image_channels: 1, image_size: [8, 8], classes: 3, ch: 32 };
    let reward_with = |config: RewardConfig, latent: f64, decoded: Tensor<4>| {
        let classifier = classifier.init(1, &device).unwrap();
        let rewards = Rewards::new(config, None, Some(classifier)).unwrap();
        let targets = rewards.targets(images.clone(), || Ok(canvas.clone() * latent)).unwrap();
        let terms = rewards.terms(decoded, canvas.clone(), targets).unwrap();
        (floats(rewards.weighted(&terms))[0], terms)
    };
    let reward_of = |config: RewardConfig, latent: f64| reward_with(config, latent, decoded.clone());
    assert_eq!(reward_of(RewardConfig { pixels: 0.5, ..reward() }, 1.0).0, 2.0, "half of a squared error of 4");
    assert_eq!(reward_of(RewardConfig { error: PixelError::L1, ..reward() }, 1.0).0, 2.0, "pixels out of range count");
    assert_eq!(reward_of(RewardConfig { clamp: true, ..reward() }, 1.0).0, 0.0, "unless they are clamped");
    for (latent, apart) in [(2.0, 0.0), (-0.5, 2.0)] {
        let found = reward_of(RewardConfig { pixels: 0.0, embedding: 3.0, ..reward() }, latent).0;
        assert!((f64::from(found) - 3.0 * apart).abs() < 1e-5, "direction counts, not length: {found}");
    }
    let other = super::tests::images().narrow(0, 0, 1);
    let (found, terms) = reward_with(RewardConfig { features: 10.0, ..reward() }, 1.0, other);
    let [pixels, features] = [terms.pixels, terms.features.unwrap()].map(|term| floats(term)[0]);
    assert!(features > 1e-6 && (found - pixels - 10.0 * features).abs() < 1e-5, "{found}, features {features}");
    let same = RewardConfig { features: 1.0, clamp: true, ..reward() };
    assert!(reward_of(same, 1.0).0.abs() < 1e-6, "the same image has the same features");
    let error = Rewards::new(RewardConfig::default(), None, None).unwrap_err().to_string();
    assert!(error.contains("lpips") && error.contains("without a network"), "{error}");
}

#[test]
fn samples_are_decoded_in_pieces_of_any_size() {
    let rewards = |decode_batch: usize| {
        let step = step(VaPiConfig { decode_batch, ..plain() });
        let draw = step.draw(logits(&model()).inner(), &mut noise("draw")).unwrap();
        judge(&step, &draw)
    };
    let whole = rewards(100);
    for pieces in [1, 4] {
        let found = rewards(pieces);
        assert_eq!(found.terms.pixels.dims(), [6], "all terms");
        for (found, expected) in found.rewards[0].iter().zip(&whole.rewards[0]) {
            assert!((found - expected).abs() < 1e-6, "pieces of {pieces}: {found} and {expected}");
        }
    }
}

#[test]
fn noise_replaces_a_share_of_the_context() {
    let (truth, own) = (truth(), ids(truth().sequence()));
    let noisy = |noise_share: f64| {
        let step = step(VaPiConfig { noise: noise_share, ..plain() });
        let input = step.context(&truth, &mut noise("context")).unwrap();
        (ids(input.ids().unwrap()), floats(input.codes))
    };
    let clean = TeacherInput::of(&tokenizer(), &truth);
    assert_eq!(noisy(0.0), (own.clone(), floats(clean.codes)), "without noise");
    let (all, codes) = noisy(1.0);
    let changed = |noisy: &[i64], range: std::ops::Range<usize>| {
        range.filter(|at| noisy[*at] != own[*at] || noisy[21 + at] != own[21 + at]).count()
    };
    assert!(changed(&all, 0..5) >= 4, "the first two scales: {all:?} for {own:?}");
    assert_eq!(changed(&all, 5..21), 0, "the last scale is the context of nothing");
    assert!(codes != noisy(0.0).1, "the inputs are made of the noisy tokens");
    assert!(all.iter().all(|id| (0..VOCABULARY as i64).contains(id)));

    // About half, of many images.
    let half = step(VaPiConfig { noise: 0.5, ..plain() });
    let images = 400;
    let zeros = TokenPyramid::from_sequence(scales(), Tensor::zeros([images, 21], &Device::default())).unwrap();
    let mut rngs: Vec<Rng> = (0..images as u64).map(|image| Rng::keyed(7, "context", 0, image)).collect();
    let drawn = ids(half.context(&zeros, &mut rngs).unwrap().ids().unwrap());
    let replaced = drawn.iter().filter(|id| **id != 0).count() as f64 / (images * 5) as f64;
    let expected = 0.5 * (VOCABULARY - 1) as f64 / VOCABULARY as f64;
    assert!((replaced - expected).abs() < 0.04, "{replaced} differ, expected {expected}");
    let mut last = vec![Rng::keyed(7, "context", 0, 399)];
    let zeros = TokenPyramid::from_sequence(scales(), Tensor::zeros([1, 21], &Device::default())).unwrap();
    let alone = ids(half.context(&zeros, &mut last).unwrap().ids().unwrap());
    assert_eq!(alone, drawn[399 * 21..], "an image has its own noise in any piece");
}

#[test]
fn draws_follow_temperature_and_filter() {
    let given = logits(&model()).inner();
    let likeliest = ids(given.clone().argmax(2).flatten::<1>(0, 2).repeat_dim(0, 1));
    let drawn = |config: VaPiConfig| step(config).draw(given.clone(), &mut noise("draw")).unwrap();
    let first = |draw: &Draw| ids(draw.ids.clone().narrow(2, 0, 1).flatten::<1>(0, 2));
    let free = drawn(plain());
    assert_eq!(free.ids.dims(), [2, 21, 3]);
    assert!(free.support.is_none() && first(&free) != likeliest, "nothing is filtered");
    assert!(ids(free.ids.clone().narrow(2, 0, 1)) != ids(free.ids.narrow(2, 1, 1)), "each sample is one of its own");
    let cold = GrpoConfig { temperature: 1e-6, ..GrpoConfig::default() };
    assert_eq!(first(&drawn(VaPiConfig { loss: cold, ..plain() })), likeliest, "next to no temperature");
    let greedy = VaPiConfig { top_k: 1, ..plain() };
    assert_eq!(first(&drawn(greedy.clone())), likeliest, "the likeliest alone");

    // Log-probabilities are among the tokens of the filter: with one, that is certain.
    let loss = greedy.loss;
    let leaf = Tensor::from_inner(given.clone()).require_grad();
    let greedy_step = step(greedy);
    let samples = samples_with(&greedy_step, given.clone(), &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
    assert!(floats(samples.old.clone()).iter().all(|log| log.abs() < 1e-6), "certain");
    let config = GrpoConfig { cross_entropy: 0.0, ..loss };
    let found = grpo_loss(&config, leaf.clone(), None, samples.on_graph(), Tensor::from_inner(truth().sequence()));
    let found = found.unwrap();
    assert!(floats(found.ratio.clone().inner()).iter().all(|ratio| *ratio == 1.0), "the same filter on both sides");
    let gradient = floats(leaf.grad(&found.total.backward()).unwrap());
    assert!(gradient.iter().all(|gradient| gradient.abs() < 1e-7), "what is certain cannot become likelier");

    for config in [VaPiConfig { top_k: 4, ..plain() }, VaPiConfig { top_p: 0.7, ..plain() }] {
        let draw = drawn(config.clone());
        let support = draw.support.clone().unwrap();
        let kept = floats(support.clone().float().sum_dim(2));
        assert!(kept.iter().all(|kept| (1.0..VOCABULARY as f32).contains(kept)), "{kept:?}");
        if config.top_k > 0 {
            assert!(kept.iter().all(|kept| *kept == 4.0), "top-k 4 keeps four: {kept:?}");
        }
        let inside = floats(support.float().gather(2, draw.ids));
        assert!(inside.iter().all(|inside| *inside == 1.0), "what is filtered is never drawn");
    }
}

#[test]
fn credit_and_mean_decide_about_the_tokens_of_the_policy_term() {
    let given = logits(&model()).inner();
    let found = |credit: Credit, mean: PolicyMean| {
        let step = step(VaPiConfig { credit: Some(credit), mean, ..plain() });
        let draw = step.draw(given.clone(), &mut noise("draw")).unwrap();
        let judgment = judge(&step, &draw);
        let samples = step.samples(given.clone(), draw, &judgment, None, None, &scales()).unwrap();
        (judgment, samples)
    };
    let (shared, samples) = found(Credit::Shared, PolicyMean::Tokens);
    assert_eq!((shared.rewards.len(), samples.advantages.dims(), samples.weights.is_none()), (1, [2, 1, 3], true));
    let (prefix, samples) = found(Credit::PrefixSwap, PolicyMean::Scales);
    assert_eq!((prefix.rewards.len(), samples.advantages.dims()), (3, [2, 21, 3]));
    assert_eq!(prefix.rewards[2], shared.rewards[0], "with all scales sampled, the sample itself");
    let by_scale = |weights: Tensor<3>| -> Vec<f32> {
        let weights = floats(weights);
        (0..3).map(|k| weights[scales().range(k)].iter().sum()).collect()
    };
    let sums = by_scale(samples.weights.unwrap());
    assert!(sums.iter().all(|sum| (sum - 1.0 / 3.0).abs() < 1e-6), "scales weigh the same: {sums:?}");
    let advantages = floats(samples.advantages.narrow(2, 0, 1).narrow(0, 0, 1));
    assert!(advantages[5..].iter().all(|advantage| *advantage == advantages[5]), "one advantage per scale");

    let (only, _) = found(Credit::OnlyScale, PolicyMean::Tokens);
    assert!(
        only.rewards[0] == prefix.rewards[0] && only.rewards[2] != prefix.rewards[2],
        "the first scale is the first"
    );
    let (last, samples) = found(Credit::LastScale, PolicyMean::Tokens);
    assert_eq!(last.rewards, shared.rewards);
    assert_eq!(by_scale(samples.weights.unwrap()), [0.0, 0.0, 1.0]);

    // A scale whose own tokens are true ones makes no difference.
    let leave = step(VaPiConfig { credit: Some(Credit::LeaveOneScale), ..plain() });
    let mut draw = leave.draw(given, &mut noise("draw")).unwrap();
    let true_scale = truth().map(1).unsqueeze_dim::<3>(2).repeat_dim(2, 3);
    draw.ids = Tensor::cat(vec![draw.ids.clone().narrow(1, 0, 1), true_scale, draw.ids.narrow(1, 5, 16)], 1);
    let judgment = judge(&leave, &draw);
    assert!(judgment.rewards[1].iter().all(|reward| reward.abs() < 1e-6), "{:?}", judgment.rewards);
    assert!(judgment.rewards[2].iter().all(|reward| reward.abs() > 1e-6), "{:?}", judgment.rewards);
}

#[test]
fn token_dropout_leaves_out_a_share_of_each_sample() {
    let dropping = step(VaPiConfig { token_dropout: 0.5, ..plain() });
    let mut rngs: Vec<Rng> = (0..100).map(|image| Rng::keyed(7, "drop", 0, image)).collect();
    let counted = dropping.counted(21, &mut rngs).unwrap();
    let share = counted.iter().flatten().filter(|counted| **counted).count() as f64 / (300 * 21) as f64;
    assert!(counted.len() == 300 && (share - 0.5).abs() < 0.03, "{share} of {} samples", counted.len());
    let given = logits(&model()).inner();
    let draw = dropping.draw(given.clone(), &mut noise("draw")).unwrap();
    let mut counted = counted[..6].to_vec();
    counted[1] = vec![false; 21];
    let judgment = judge(&dropping, &draw);
    let samples = dropping.samples(given, draw, &judgment, None, Some(&counted), &scales()).unwrap();
    let weights = floats(ops::swap(samples.weights.unwrap(), 1, 2).reshape([6, 21]));
    for (row, (weights, counted)) in weights.chunks(21).zip(&counted).enumerate() {
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5, "row {row}");
        for (at, (weight, counted)) in weights.iter().zip(counted).enumerate() {
            let kept = *counted || (row, at) == (1, 0);
            assert_eq!(*weight > 0.0, kept, "row {row}, token {at}: a row without any keeps its first");
        }
    }
    assert!(step(plain()).counted(21, &mut rngs).is_none(), "all count by default");
}

#[test]
fn cross_entropy_alone_needs_no_samples() {
    let model = model();
    let gradient = |loss: GrpoConfig, rewards: &[f64]| {
        let step = step(VaPiConfig { loss, ..plain() });
        let logits = logits(&model);
        let samples = samples_with(&step, logits.clone().inner(), rewards).on_graph();
        let found = grpo_loss(&loss, logits, None, samples, Tensor::from_inner(truth().sequence())).unwrap();
        (largest_gradient(&model, &found.total), floats(found.total.inner())[0], floats(found.cross_entropy.inner())[0])
    };
    let alone = GrpoConfig { policy: 0.0, ..GrpoConfig::default() };
    let uneven = [-0.3, -0.1, -0.2, -0.3, -0.5, -0.3];
    let (without, total, cross_entropy) = gradient(alone, &uneven);
    assert_eq!(without, gradient(alone, &[-0.3; 6]).0, "rewards leave no trace");
    assert!((total - 0.1 * cross_entropy).abs() < 1e-6 && without > 0.0);
    assert!(gradient(GrpoConfig::default(), &uneven).0 != without, "they do with a policy term");
    let double = gradient(GrpoConfig { policy: 2.0, cross_entropy: 0.0, ..GrpoConfig::default() }, &uneven).0;
    let single = gradient(GrpoConfig { cross_entropy: 0.0, ..GrpoConfig::default() }, &uneven).0;
    assert!((double / single - 2.0).abs() < 1e-4, "the weight of the policy term: {double} and {single}");
    let none = GrpoConfig { policy: 0.0, cross_entropy: 0.0, ..GrpoConfig::default() };
    assert!(none.validate().unwrap_err().to_string().contains("all are 0"));
}

#[test]
fn a_straight_through_sample_is_decoded_from_hard_choices_and_moves_by_soft_ones() {
    let vq = VqModelConfig {
        image_channels: 1,
        ch: 32,
        ch_mult: vec![1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        ..VqModelConfig::vq16(VOCABULARY, 6)
    };
    let tokenizer: FlexVae = FlexVaeConfig { vq, patch_nums: scales() }.init(2, &Device::default()).unwrap();
    let tokens = tokenizer.encode(images(), &scales()).unwrap();
    let given = logits(&model()).inner();
    let run = |codes: Codes, tau: f64| {
        let estimator = Estimator::StraightThrough(StraightThrough { tau, codes });
        let config = VaPiConfig { estimator, ..plain() };
        let rewards = Rewards::new(config.reward.clone(), None, None).unwrap();
        let step = VaPi::<FlexVar>::new(config, tokenizer.clone(), rewards).unwrap();
        let targets = step.targets(images(), &tokens).unwrap();
        let leaf = Tensor::from_inner(given.clone()).require_grad();
        let gumbel = step.gumbel(21, &mut noise("gumbel"));
        let found = step.straight_through(leaf.clone(), None, gumbel.clone(), targets, &tokens).unwrap();
        let expected = ids((given.clone() + gumbel).argmax(2).flatten::<1>(0, 2));
        assert_eq!(ids(found.ids.clone().flatten::<1>(0, 1)), expected, "the likeliest of the noisy logits");
        let apart = floats(step.decode(found.ids.clone(), &scales()) - found.images.clone());
        let apart = apart.into_iter().map(f32::abs).fold(0.0, f32::max);
        let gradient = floats(leaf.grad(&found.terms.pixels.clone().mean().backward()).unwrap());
        (apart, gradient)
    };
    let (apart, gradient) = run(Codes::Used, 1.0);
    assert!(apart < 1e-5, "the image of the hard choices: {apart}");
    let of_scale = |gradient: &[f32], range: std::ops::Range<usize>| {
        gradient[range.start * VOCABULARY..range.end * VOCABULARY].iter().map(|x| x.abs()).fold(0.0, f32::max)
    };
    assert!(of_scale(&gradient, 5..21) > 0.0, "the last scale is what FlexVAR decodes");
    assert_eq!(of_scale(&gradient, 0..5), 0.0, "the others are not");
    assert!(run(Codes::Used, 0.3).1 != gradient, "tau changes the gradient");
    assert!(run(Codes::Stored, 1.0).0 > 1e-3, "stored codes decode to another image than generation");

    let error = step(plain()).straight_through(
        Tensor::from_inner(given.clone()),
        None,
        given,
        step(plain()).targets(images(), &truth()).unwrap(),
        &truth(),
    );
    assert!(error.unwrap_err().to_string().contains("va_pi.estimator"));
}

#[test]
fn a_classifier_of_other_images_is_refused() {
    let classifier = ClassifierConfig { image_channels: 1, image_size: [16, 16], classes: 3, ch: 32 };
    let classifier = classifier.init(1, &Device::default()).unwrap();
    let config =
        VaPiConfig { reward: RewardConfig { features: 1.0, classifier: Some("c".into()), ..reward() }, ..plain() };
    let rewards = Rewards::new(config.reward.clone(), None, Some(classifier)).unwrap();
    let error = VaPi::<Var>::new(config, tokenizer(), rewards).err().unwrap().to_string();
    assert!(error.contains("images of the classifier") && error.contains("[1, 8, 8]"), "{error}");
}
