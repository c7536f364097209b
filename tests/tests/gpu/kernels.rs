//! The kernels against the plain operations that they stand for, each in a process of its own: they are switched off when it
//! starts.

use std::collections::BTreeMap;
use std::process::Command;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_var::generation::TeacherInput;
use burn_var::guidance::{Cfg, Guidance, Schedule, Vpg, VpgConfig};
use burn_var::init::{Init, initialize};
use burn_var::models::var::{VarConfig, VarPreset, VqVaeConfig};
use burn_var::ops::Precision;
use burn_var::rng::Rng;
use burn_var::sampling::Sampler;
use burn_var::{BatchRequest, Condition, Scales, TeacherForced, TokenPyramid, generate, ops};
use burn_var_train::checkpoint::{Checkpoint, CheckpointDir};
use burn_var_train::engine::{Learner, Network, Rules, SectionNames};
use burn_var_train::optim::{EmaConfig, LrSchedule, OptimConfig, no_decay_1d};

/// Where the child process writes what it has computed.
const OUT: &str = "BURN_VAR_TEST_OUT";

/// Numbers by name.
type Results = BTreeMap<String, Vec<f32>>;

struct Gradients<'a> {
    of: &'a GradientsParams,
    path: Vec<String>,
    found: Results,
}

impl ModuleVisitor for Gradients<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.of.get::<D>(param.id) {
            self.found.insert(self.path.join("."), gradient.into_data().try_into_vec().expect("f32"));
        }
    }
}

fn compute() -> Results {
    let device = Device::wgpu(Default::default());
    let scales = Scales::square(&[1, 2, 3, 5]).expect("a schedule");
    let tokenizer = VqVaeConfig { ch: 32, ch_mult: vec![1, 1], vocab_size: 50, ..VqVaeConfig::public(scales.clone()) };
    let tokenizer = initialize(tokenizer.init_zeros(&device).expect("valid"), 1, |_| Init::Normal(0.2));
    // A width that is no multiple of the units of a cube, and heads whose width is no power of two.
    let config = VarConfig {
        depth: 2,
        embed_dim: 60,
        num_heads: 5,
        vocab_size: 50,
        num_classes: 3,
        patch_nums: scales.clone(),
        drop_path_rate: 0.4,
        ..VarPreset::D16.config()
    };
    let weights = |device: &Device| initialize(config.init_zeros(device).expect("valid"), 2, |_| Init::Normal(0.2));
    let mut results = Results::new();

    let model = weights(&device);
    let mut request = BatchRequest::classes(&[0, 2], 5);
    request.sampler = Sampler::greedy();
    let mut run = |name: &str, guidance: Vec<Box<dyn Guidance>>| {
        let mut each = |done: &burn_var::generation::ScaleDone| {
            let mut keep = |what: &str, values: Vec<f32>| results.insert(format!("{name}, {what} {}", done.k), values);
            keep("logits", done.logits.clone().into_data().try_into_vec().expect("f32"));
            keep("canvas", done.canvas.clone().into_data().try_into_vec().expect("f32"));
            std::ops::ControlFlow::Continue(())
        };
        generate(&tokenizer, &model, guidance, request.clone(), &mut each).expect("images")
    };
    let generated = run("cfg", vec![Box::new(Cfg::ramp(2.0))]);
    // The null branch ends before the last scale, and a second cache begins as a copy of the first.
    let early = Box::new(Cfg::new(Schedule::PerScale(vec![0.0, 1.5, 1.5, 0.0])));
    let corrupted = Box::new(Vpg::new(VpgConfig { schedule: Schedule::Constant(2.0), share: 0.5 }));
    run("vpg", vec![early, corrupted]);

    let model = weights(&device.clone().autodiff());
    let input = TeacherInput::of(&tokenizer, &generated.tokens).on_graph();
    let mut noise: Vec<Rng> = (0..2).map(|image| Rng::new(3, "drop path", image)).collect();
    let conditions = [Condition::Class(1), Condition::Null];
    let logits = model.teacher_forced(&conditions, input, &scales, Some(&mut noise)).expect("logits");
    results.insert("taught logits".into(), logits.clone().inner().into_data().try_into_vec().expect("f32"));
    let sequence = TokenPyramid::sequence(&generated.tokens);
    let gradients = ops::cross_entropy(logits, sequence, 0.0).mean().backward();
    let gradients = GradientsParams::from_grads(gradients, &model);
    let mut visitor = Gradients { of: &gradients, path: Vec::new(), found: Results::new() };
    model.visit(&mut visitor);
    results.extend(visitor.found);
    results.extend(train(&device));
    results
}

/// Made-up gradients for a module, a part of which has none.
struct MadeUp {
    step: u64,
    grads: GradientsParams,
}

impl ModuleVisitor for MadeUp {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val().inner();
        let count = value.shape().num_elements();
        // Of all sizes, and never 0.
        let number = |i: usize| (((i * 7 + self.step as usize * 5) % 23) as f32 - 11.5) * 0.03;
        if count != 5 {
            let numbers: Vec<f32> = (0..count).map(number).collect();
            let grad = Tensor::<1>::from_data(numbers.as_slice(), &value.device());
            self.grads.register::<D>(param.id, grad.reshape(value.shape()));
        }
    }
}

struct Weights(Vec<f32>);

impl ModuleVisitor for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let value = if value.is_autodiff() { value.inner() } else { value };
        self.0.extend(value.into_data().try_into_vec::<f32>().expect("f32"));
    }
}

fn weights(module: &impl Module) -> Vec<f32> {
    let mut weights = Weights(Vec::new());
    module.visit(&mut weights);
    weights.0
}

/// More layers than a launch takes, of which one is frozen and one has a bias without a gradient.
fn layers(device: &Device) -> Vec<Linear> {
    let sizes = (0..30).map(|i| [3 + i, 40 - i]).chain([[50, 70], [4, 5]]);
    let mut layers: Vec<Linear> = sizes.map(|[from, to]| LinearConfig::new(from, to).init(device)).collect();
    layers = initialize(layers, 4, |_| Init::Normal(0.5));
    layers[3] = layers[3].clone().no_grad();
    layers
}

fn learner(device: &Device, clip_norm: Option<f64>, ema: Option<EmaConfig>) -> Learner<Vec<Linear>> {
    let optimizer = OptimConfig { weight_decay: 0.3, weight_decay_end: Some(0.1), clip_norm, ..OptimConfig::default() };
    let learning_rate = LrSchedule { peak: 0.02, ..LrSchedule::default() };
    let rules = Rules { optimizer, learning_rate, ema, no_decay: no_decay_1d, steps: 5 };
    Learner::new(layers(&device.clone().autodiff()), rules, SectionNames::SINGLE)
}

fn add(learner: &mut Learner<Vec<Linear>>, step: u64) {
    let mut made_up = MadeUp { step, grads: GradientsParams::new() };
    let trained: Vec<Linear> =
        learner.model.iter().enumerate().filter(|(i, _)| *i != 3).map(|(_, x)| x.clone()).collect();
    trained.visit(&mut made_up);
    learner.add(made_up.grads);
}

fn train(device: &Device) -> Results {
    let mut results = Results::new();
    for (name, clip, ema, pieces) in [
        ("clipped", Some(0.5), Some(EmaConfig::default()), 1),
        ("not clipped, in pieces", Some(1e4), Some(EmaConfig { decay: 0.9, warmup: false }), 3),
        ("without average", None, None, 1),
    ] {
        let mut learner = learner(device, clip, ema);
        for step in 0..4 {
            (0..pieces).for_each(|piece| add(&mut learner, step + piece));
            let rates = learner.update(step).expect("an update").expect("there are gradients");
            results.insert(format!("{name}, norm {step}"), vec![rates.grad_norm().expect("finite") as f32]);
        }
        learner.check().expect("finite");
        results.insert(format!("{name}, weights"), weights(&learner.model));
        results.insert(format!("{name}, average"), weights(&learner.result()));
    }
    results
}

fn assert_equal(found: &Results, expected: &Results) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(expected.len() > 2 * 12 + 8, "gradients of all weights of both blocks: {:?}", expected.keys());
    for (name, expected) in expected {
        let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        assert!(largest > 0.0, "`{name}` is zero");
        for (i, (found, expected)) in found[name].iter().zip(expected).enumerate() {
            let off = (found - expected).abs();
            assert!(off <= 2e-5 * largest, "`{name}` {i}: {found}, expected {expected}, the largest being {largest}");
        }
    }
}

/// `exact`: products are computed as on a GPU that would round those of Burn to TF32.
#[test]
fn kernels_equal_the_plain_operations() {
    let _alone = crate::alone();
    let expected = in_child("generic");
    ["all", "exact"].into_iter().for_each(|kernels| assert_equal(&in_child(kernels), &expected));
}

/// Numbers between -1 and 1, no two of them equal.
fn waves(dims: [usize; 2], factor: f32, device: &Device) -> Tensor<2> {
    let count = (dims[0] * dims[1]) as i64;
    (Tensor::<1, Int>::arange(0..count, device).float() * factor).sin().reshape(dims)
}

/// A GPU without a type rounds the inputs of products to it, and gradients as well.
#[test]
fn products_round_to_types_that_the_gpu_lacks() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default()).autodiff();
    let numbers = |dims, factor| waves(dims, factor, &device);
    for (precision, dropped) in [(Precision::Tf32, 13), (Precision::Bf16, 16)] {
        let round = |x: Tensor<2>| {
            let bits = x.clone().inner().into_data().try_into_vec::<f32>().expect("f32").into_iter().map(f32::to_bits);
            let even = |bits: u32| (bits + (1 << (dropped - 1)) - 1 + (bits >> dropped & 1)) & (u32::MAX << dropped);
            let rounded: Vec<f32> = bits.map(|bits| f32::from_bits(even(bits))).collect();
            Tensor::<2>::from_data(TensorData::new(rounded, x.dims()), &device)
        };
        let values = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().expect("f32");
        let (x, weight) = (numbers([5, 40], 0.37).require_grad(), numbers([40, 30], 0.21));
        let product = precision.scope(|| ops::linear(x.clone(), weight.clone(), None));
        let expected = ops::exact_matmul(round(x.clone()), round(weight.clone()));
        let exact = ops::linear(x.clone(), weight.clone(), None);
        let upstream = numbers([5, 30], 0.11);
        let gradient = x.grad(&(product.clone() * upstream.clone()).sum().backward()).expect("a gradient");
        let expected_gradient = ops::exact_matmul(round(upstream), ops::transpose(round(weight)));
        for (found, expected) in
            [(values(product.clone()), values(expected)), (values(gradient), values(expected_gradient))]
        {
            let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{precision}: off by {off}");
        }
        assert_ne!(values(product), values(exact), "{precision} rounds");
    }
}

#[test]
#[ignore = "a part of the tests above, in a process of its own"]
fn child() {
    let Some(out) = std::env::var_os(OUT) else { return };
    std::fs::write(out, serde_json::to_vec(&compute()).expect("numbers")).expect("written");
}

fn in_child(kernels: &str) -> Results {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("results.json");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "kernels::child", "--ignored"]).env("BURN_VAR_KERNELS", kernels).env(OUT, &out);
    let output = command.output().expect("the same program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&std::fs::read(out).expect("results")).expect("results")
}

/// An update whose gradients are not finite is found when the norm is read; until then nothing changes any more.
#[test]
fn a_norm_that_is_not_finite_names_its_step() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut learner = learner(&device, Some(1.0), Some(EmaConfig::default()));
        let mut kept = Vec::new();
        for step in 0..4 {
            add(&mut learner, step);
            if step == 2 {
                let id = learner.model[0].weight.id;
                let mut grads = GradientsParams::new();
                grads.register(id, learner.model[0].weight.val().inner().full_like(bad));
                learner.add(grads);
            }
            learner.update(step).expect("nothing is read here");
            if step == 1 {
                learner.check().expect("finite so far");
                kept = vec![weights(&learner.model), weights(learner.average())];
            }
        }
        let error = learner.check().expect_err("not finite").to_string();
        assert!(error.contains("step 2"), "{error}");
        assert_eq!(kept, [weights(&learner.model), weights(learner.average())], "nothing has changed since");
    }
}

/// A checkpoint has the moments that kernels have updated, in place where nothing else uses them.
#[test]
fn a_learner_resumes_from_a_checkpoint() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = CheckpointDir::open(folder.path()).expect("a folder");
    let new = || learner(&device, Some(0.5), Some(EmaConfig::default()));
    let advance = |learner: &mut Learner<Vec<Linear>>, steps: std::ops::Range<u64>| {
        for step in steps {
            add(learner, step);
            learner.update(step).expect("an update");
        }
    };
    let mut whole = new();
    advance(&mut whole, 0..2);
    checkpoints.save(2, &(), whole.parts()).expect("saved");
    advance(&mut whole, 2..4);
    let mut resumed = new();
    resumed.restore(&Checkpoint::newest(folder.path()).expect("readable").expect("a checkpoint")).expect("restored");
    advance(&mut resumed, 2..4);
    assert_eq!(weights(&whole.model), weights(&resumed.model), "weights, to the bit");
    assert_eq!(weights(whole.average()), weights(resumed.average()), "their average, to the bit");
}

/// A half-precision weight is not converted: what enters the product is.
#[test]
fn a_linear_layer_multiplies_in_the_type_of_its_weight() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let numbers = |dims| waves(dims, 0.37, &device);
    let (x, weight, bias) = (numbers([5, 40]), numbers([40, 30]), numbers([1, 30]).squeeze_dim::<1>(0));
    let exact = ops::linear(x.clone(), weight.clone(), Some(bias.clone()));
    let half = ops::linear(x, weight.cast(DType::F16), Some(bias));
    assert_eq!(half.dtype(), DType::F32, "the type of the input");
    let off = (half - exact).abs().max().into_scalar::<f32>();
    assert!(off > 0.0 && off < 0.02, "rounded to ten bits: off by {off}");
}

/// Attention of what is too much for one kernel: products, and a softmax with or without a mask.
#[test]
fn attention_equals_its_formula() {
    let _alone = crate::alone();
    let device = Device::wgpu(Default::default());
    let (heads, queries, keys, width) = (2, 3, 5, 4);
    let numbers = |dims: [usize; 4], step: f64| {
        let count = dims.iter().product::<usize>() as i64;
        (Tensor::<1, Int>::arange(0..count, &device).float() * step).sin().reshape(dims)
    };
    let query = numbers([1, heads, queries, width], 0.7);
    let [key, value] = [0.9, 1.3].map(|step| numbers([1, heads, keys, width], step));
    let host = |x: &Tensor<4>| -> Vec<f32> { x.clone().into_data().try_into_vec().expect("f32") };
    let (q, k, v) = (host(&query), host(&key), host(&value));
    let hidden = |query: usize, key: usize| key > query + 2;
    for masked in [false, true] {
        let mask: Vec<f32> = (0..queries * keys)
            .map(|i| if masked && hidden(i / keys, i % keys) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::<1>::from_data(mask.as_slice(), &device).reshape([1, 1, queries, keys]);
        let bias = masked.then_some(mask);
        let found = ops::attention(query.clone(), key.clone(), value.clone(), bias, 0.5);
        let found: Vec<f32> = found.into_data().try_into_vec().expect("f32");
        for (i, found) in found.into_iter().enumerate() {
            let (at, head, channel) = (i / (heads * width), i / width % heads, i % width);
            let row = |of: &[f32], count: usize, at: usize| of[(head * count + at) * width..][..width].to_vec();
            let score = |key: usize| -> f32 {
                row(&q, queries, at).iter().zip(row(&k, keys, key)).map(|(a, b)| a * b).sum::<f32>() * 0.5
            };
            let seen: Vec<usize> = (0..keys).filter(|key| !(masked && hidden(at, *key))).collect();
            let total: f32 = seen.iter().map(|key| score(*key).exp()).sum();
            let expected: f32 = seen.iter().map(|key| score(*key).exp() / total * row(&v, keys, *key)[channel]).sum();
            assert!((found - expected).abs() < 1e-5, "masked {masked}, {i}: {found}, expected {expected}");
        }
    }
}
