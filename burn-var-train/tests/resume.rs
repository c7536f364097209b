//! A run that is stopped at odd steps and resumed ends with the weights of one that never stopped; the number of pieces
//! that a batch is cut into changes nothing but the rounding of sums; ranks are pieces in other processes.

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use burn_var::guidance::AidWeight;
use burn_var::math::Resize;
use burn_var::models::aid::{Augment, DiscriminatorHeads, Injector};
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::common::{Lora, LowRankConfig};
use burn_var::models::dino::VitConfig;
use burn_var::models::flexvar::{FirstScale, FlexVae, FlexVaeConfig, FlexVar, MaskedFirst, SeenScales};
use burn_var::models::llamagen::LlamaGenVqConfig;
use burn_var::models::var::VqVae;
use burn_var::ops::Precision;
use burn_var::sampling::Sampler;
use burn_var::weights::{Pretrained, SaveOptions, StateDict};
use burn_var::{MapSize, Scales, Tokenizer};
use burn_var_train::Error;
use burn_var_train::aid::{
    AidMethod, AidTrainConfig, Backbone, CollapseConfig, DiscriminatorInput, LoraSize, Reconstruction, SoftDecode,
    train_aid,
};
use burn_var_train::checkpoint::Checkpoint;
use burn_var_train::data::{BatchLoader, ImageShape, Split, Supervision, TokenCache, View};
use burn_var_train::engine::{Method, Placement, Ranks, TrainConfig, Trainer};
use burn_var_train::flexvar::{FlexVarMethod, FlexVarTrainConfig, MaskRatio, train_flexvar};
use burn_var_train::llamagen::{LlamaGenTrainConfig, train_llamagen};
use burn_var_train::patch_gan::PatchGan;
use burn_var_train::progress::{Progress, StepReport};
use burn_var_train::report::read_log;
use burn_var_train::sar::{ForcingSchedule, Sampling, SarConfig, SarTrainConfig, StudentForcing, Target, train_sar};
use burn_var_train::tokenizer::{TokenizerMethod, TokenizerTrainConfig, train_llamagen_vq, train_tokenizer};
use burn_var_train::va_pi::{VaPiTrainConfig, train_va_pi};
use burn_var_train::var::{VarMethod, VarTrainConfig, train_var};

/// IDX files of 15x16 grey images in three classes: blots at different places, and noise.
fn images(folder: &Path) -> PathBuf {
    let data = folder.join("images");
    std::fs::create_dir(&data).expect("a folder");
    for (prefix, count) in [("train", 11), ("t10k", 5)] {
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 15, 0, 0, 0, 16];
        let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count];
        for image in 0..usize::from(count) {
            let class = image % 3;
            let pixel = |i: usize| {
                let inside = (i / 16).abs_diff(4 * class + 3) < 3 && (i % 16).abs_diff(image + 2) < 4;
                ((image * 7919 + i * 31_337) % 60 + if inside { 190 } else { 0 }) as u8
            };
            images.extend((0..15 * 16).map(pixel));
            labels.push(class as u8);
        }
        std::fs::write(data.join(format!("{prefix}-images-idx3-ubyte")), images).expect("images");
        std::fs::write(data.join(format!("{prefix}-labels-idx1-ubyte")), labels).expect("labels");
    }
    data
}

const STEPS: u64 = 6;

fn run_section(data: &Path) -> String {
    format!(
        "[run]\nsteps = {STEPS}\nbatch_size = 4\nseed = 5\nsave_every = 100\nlog_every = 1\nsample_every = 100\n\
         [data]\npath = {data:?}\nmirror = true\n"
    )
}

/// The whole loss of a tokenizer with revival of codes in the middle, and `more` sections.
fn tokenizer_config(data: &Path, more: &str) -> TokenizerTrainConfig {
    let text = run_section(data)
        + "[model]\nimage_channels = 1\nch = 32\nch_mult = [1, 2]\nnum_res_blocks = 1\nz_channels = 6\n\
           vocab_size = 24\npatch_nums = [1, 3, 8]\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\ndecay = \"cosine\"\n\
           [revival]\nevery = 2\nuntil = 0.9\nthreshold = 0.5\n"
        + more;
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

const GAN: &str = "[gan]\nweight = 0.5\nstart_step = 2\ndiscriminator = { width = 16, layers = 1 }\n";

/// Stops after a number of steps.
struct StopAfter(u64);

impl Progress for StopAfter {
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()> {
        if report.step == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn note(&mut self, _text: &str) {}
}

/// Trains once from start to end and once with stops, and compares what both leave; returns the folder of the first.
fn compare(folder: &Path, parts: &[&str], train: impl Fn(&Path, &mut dyn Progress) -> Option<PathBuf>) -> PathBuf {
    let (whole, broken) = (folder.join("whole"), folder.join("broken"));
    let finish = |run| std::fs::read(train(run, &mut ()).expect("to the end")).expect("weights");
    let expected = finish(&whole);
    for stop in [1, 3] {
        assert_eq!(train(&broken, &mut StopAfter(stop)), None, "stopped after step {stop}");
        let files = std::fs::read_dir(&broken).expect("a run").flatten().map(|entry| entry.file_name());
        let models = ["tokenizer.safetensors", "transformer.safetensors", "injector.safetensors", "lora.safetensors"];
        let models = files.filter(|name| models.iter().any(|model| name == model));
        assert_eq!(models.count(), 1, "the model as far as it is, after step {stop}");
    }
    assert!(finish(&broken) == expected, "the same weights, to the bit, after stops at steps 1 and 3");
    let log = |run: &Path| read_log(run.join("log.jsonl")).expect("a log");
    assert_eq!(log(&whole), log(&broken), "the same log");
    for run in [&whole, &broken] {
        let checkpoint = newest(run);
        assert_eq!(checkpoint.step(), STEPS, "the last step is saved");
        let mut names: Vec<&str> = checkpoint.parts().filter(|name| *name != "state.json").collect();
        names.sort_unstable();
        assert_eq!(names, parts, "parts of the checkpoint");
    }
    whole
}

fn newest(run: &Path) -> Checkpoint {
    Checkpoint::newest(run.join("checkpoints")).expect("readable").expect("a checkpoint")
}

/// All weights of a module in a checkpoint.
fn weights<M: Module>(run: &Path, name: &str, module: M) -> Vec<f32> {
    let module = newest(run).module(name, module).expect("fits");
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

struct Collect(Vec<f32>);

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.extend(param.val().into_data().try_into_vec::<f32>().expect("f32"));
    }
}

fn tokenizer(config: &TokenizerTrainConfig) -> impl Fn(&Path, &mut dyn Progress) -> Option<PathBuf> {
    |run, progress| train_tokenizer(config.clone(), run, &Device::default(), progress).expect("trains")
}

/// Runs `train` on `count` ranks, each in a thread, and returns what each returns, in order.
fn on_ranks<T: Send>(count: usize, train: impl Fn(usize, Placement) -> T + Sync) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let address = &format!("127.0.0.1:{port}");
    std::thread::scope(|scope| {
        let train = &train;
        let start = |rank| {
            scope.spawn(move || {
                let ranks = Ranks::join(rank, count, address).expect("joins");
                train(rank, Placement { device: Device::default(), ranks })
            })
        };
        let threads: Vec<_> = (0..count).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Trains in one process with two pieces, and on two ranks with a piece each, once without a stop, and once stopped by rank
/// 1 and resumed by one process: the same log, and the same weights to the bit.
fn compare_ranks<C: Sync>(
    folder: &Path,
    [pieces, ranks]: [&C; 2],
    train: impl Fn(&C, &Path, Placement, &mut dyn Progress) -> Option<PathBuf> + Sync,
) {
    let alone = || Placement::from(&Device::default());
    let left = |run: &Path, file: Option<PathBuf>| {
        let log = read_log(run.join("log.jsonl")).expect("a log");
        (std::fs::read(file.expect("to the end")).expect("weights"), log)
    };
    let [whole, shared, resumed] = ["pieces", "ranks", "resumed"].map(|name| folder.join(name));
    let expected = left(&whole, train(pieces, &whole, alone(), &mut ()));
    let mut files = on_ranks(2, |_, place| train(ranks, &shared, place, &mut ()));
    assert_eq!(files.pop(), Some(None), "rank 1 writes nothing");
    assert!(left(&shared, files.remove(0)) == expected, "two ranks end as two pieces do");
    let stopped = on_ranks(2, |rank, place| match rank {
        0 => train(ranks, &resumed, place, &mut ()),
        _ => train(ranks, &resumed, place, &mut StopAfter(3)),
    });
    assert_eq!(stopped, [None, None], "what stops one rank stops both");
    assert_eq!(newest(&resumed).step(), 3);
    assert!(left(&resumed, train(pieces, &resumed, alone(), &mut ())) == expected, "resumed without ranks");
}

#[test]
fn a_tokenizer_and_its_discriminator_are_trained_on_ranks_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&images(folder.path()), GAN);
    let mut pieces = config.clone();
    pieces.run.accumulate = 2;
    compare_ranks(folder.path(), [&pieces, &config], |config, run, place, progress| {
        train_tokenizer(config.clone(), run, place, progress).expect("trains")
    });
}

#[test]
fn a_transformer_is_trained_on_ranks_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let pieces = transformer_config(folder.path(), &images(folder.path()));
    let mut ranks = pieces.clone();
    (ranks.accumulate, ranks.run.accumulate) = (None, 1);
    compare_ranks(folder.path(), [&pieces, &ranks], |config, run, place, progress| {
        train_var(config.clone(), run, place, progress).expect("trains")
    });
}

#[test]
fn an_injector_is_trained_on_ranks_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    let impossible = on_ranks(2, |_, place| {
        train_aid(config.clone(), &folder.path().join("cut"), place, &mut ()).expect_err("cuts a group").to_string()
    });
    for message in impossible {
        assert!(message.contains("ranks") && message.contains("discriminator.virtual_batch = 8"), "{message}");
    }
    config.discriminator.virtual_batch = 2;
    let mut pieces = config.clone();
    pieces.run.accumulate = 2;
    compare_ranks(folder.path(), [&pieces, &config], |config, run, place, progress| {
        train_aid(config.clone(), run, place, progress).expect("trains")
    });
}

#[test]
fn what_makes_a_run_impossible_ends_all_ranks_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&images(folder.path()), "");
    let train = |change: fn(usize, &mut TokenizerTrainConfig)| {
        on_ranks(3, |rank, place| {
            let mut config = config.clone();
            change(rank, &mut config);
            train_tokenizer(config, &folder.path().join("run"), place, &mut ()).expect_err("impossible").to_string()
        })
    };
    for message in train(|_, _| ()) {
        assert!(message.contains("run.batch_size") && message.contains("a multiple of 3"), "{message}");
    }
    for message in train(|rank, config| config.run.seed += u64::from(rank == 2)) {
        assert!(message.contains("rank 2") && message.contains("`seed = 6`, where rank 0 has `seed = 5`"), "{message}");
    }
    let missing = train(|_, config| config.data.path = "nowhere".into());
    assert!(missing[0].contains("nowhere") && !missing[0].contains("rank"), "{missing:?}");
    for message in &missing[1..] {
        assert!(message.contains("rank 0 stopped") && message.contains("nowhere"), "{message}");
    }
}

#[test]
fn a_tokenizer_resumes_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&images(folder.path()), "");
    let whole = compare(folder.path(), &["average", "model", "optimizer", "usage"], tokenizer(&config));
    let untrained: VqVae = config.model.init(config.run.seed, &Device::default()).expect("valid");
    let [first, broken] = [&whole, &folder.path().join("broken")].map(|run| weights(run, "model", untrained.clone()));
    assert!(first == broken, "the weights themselves, not only their average");
    let log = read_log(whole.join("log.jsonl")).expect("a log");
    assert!(log.iter().any(|record| record["revived"].as_f64() > Some(0.0)), "codes were revived: {log:?}");
}

#[test]
fn a_tokenizer_and_its_discriminator_resume_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&images(folder.path()), GAN);
    let parts = ["average", "discriminator", "discriminator-optimizer", "model", "optimizer", "usage"];
    let whole = compare(folder.path(), &parts, tokenizer(&config));
    let untrained: PatchGan =
        config.gan.discriminator.init([1, 16, 16], config.run.seed, &Device::default()).expect("fits");
    let [first, broken] =
        [&whole, &folder.path().join("broken")].map(|run| weights(run, "discriminator", untrained.clone()));
    assert!(first == broken, "the discriminator");
    assert!(first.iter().all(|weight| weight.is_finite()), "finite weights");

    for (step, record) in (1..).zip(read_log(whole.join("log.jsonl")).expect("a log")) {
        for name in ["d_loss", "d_real", "d_fake", "g_loss", "gan_weight"] {
            let value = record.get(name).and_then(serde_json::Value::as_f64);
            assert_eq!(value.is_some_and(f64::is_finite), step > 2, "`{name}` after step {step}: {value:?}");
        }
    }
}

/// A tokenizer of a few steps in `folder`, and how to train a transformer on it.
fn transformer_config(folder: &Path, data: &Path) -> VarTrainConfig {
    transformer_config_on(folder, tokenizer_config(data, ""), data)
}

fn transformer_config_on(folder: &Path, config: TokenizerTrainConfig, data: &Path) -> VarTrainConfig {
    let path = train_tokenizer(config, &folder.join("tokenizer"), &Device::default(), &mut ())
        .expect("trains")
        .expect("to the end");
    let text = format!("tokenizer = {path:?}\naccumulate = 2\nclass_dropout = 0.3\n{}", run_section(data))
        + "[model]\ndepth = 2\nembed_dim = 32\nnum_heads = 2\ndrop_path_rate = 0.2\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\n[preview]\nper_class = 1\nclasses = 2\n";
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// AID-VAR on models of a few steps, and an encoder of none.
fn aid_config(folder: &Path) -> AidTrainConfig {
    let data = images(folder);
    aid_config_on(folder, tokenizer_config(&data, ""), &data)
}

fn aid_config_on(folder: &Path, tokenizer: TokenizerTrainConfig, data: &Path) -> AidTrainConfig {
    let models = transformer_config_on(folder, tokenizer, data);
    let transformer = train_var(models.clone(), &folder.join("transformer"), &Device::default(), &mut ());
    let transformer = transformer.expect("trains").expect("to the end");
    let encoder = folder.join("encoder.safetensors");
    let sizes: VitConfig = toml::from_str(
        "image_size = 16\nimage_channels = 1\npatch_size = 4\nembed_dim = 16\ndepth = 2\nnum_heads = 2\n\
         mean = [0.5]\nstd = [0.5]",
    )
    .expect("sizes");
    let vit = sizes.init(1, &Device::default()).expect("valid");
    vit.save(&encoder, &SaveOptions::default()).expect("written");
    let files = format!("tokenizer = {:?}\ntransformer = {transformer:?}\nencoder = {encoder:?}\n", models.tokenizer);
    let text = files
        + &run_section(data)
        + "[guidance]\nweight = 0.1\nramp_from = 0.05\nramp_steps = 3\n[loss]\nlambda_rec = 0.5\n\
           [learning_rate]\npeak = 0.01\n[discriminator]\nsteps = 2\n[discriminator.learning_rate]\npeak = 0.001\n";
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// A run of a configuration from [`aid_config`] at its first step, in the same folder.
fn aid_trainer(folder: &Path, config: AidTrainConfig) -> Trainer<AidMethod> {
    let device = Device::default();
    let backbone = Backbone::load(&config, &device).expect("fits");
    let run = config.run.clone();
    let method = AidMethod::new(config, backbone, tokens(folder), folder, &device).expect("a valid configuration");
    Trainer::new(method, &run).expect("a valid configuration")
}

/// The token cache that the runs in `folder` share.
fn tokens(folder: &Path) -> TokenCache {
    TokenCache::open(&caches(folder)[0]).expect("made by another run")
}

fn caches(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder.join(".cache")).expect("a folder").flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect()
}

/// The parts of a checkpoint of either.
const AID_PARTS: [&str; 7] = [
    "collapse_streak",
    "correction-average",
    "correction-model",
    "correction-optimizer",
    "heads-average",
    "heads-model",
    "heads-optimizer",
];

#[test]
fn an_injector_resumes_to_the_bit_and_learns() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = aid_config(folder.path());
    let whole = compare(folder.path(), &AID_PARTS, |run, progress| {
        train_aid(config.clone(), run, &Device::default(), progress).expect("trains")
    });
    let device = Device::default();
    let open = |file: &str| StateDict::open(whole.join(file)).expect("written");
    let dict = open("injector.safetensors");
    let sizes = Injector::config_of(&dict, None).expect("its configuration");
    assert_eq!(AidWeight::of(&dict).expect("readable"), Some(AidWeight::Constant(0.1)), "the weight at the end");
    let untrained = sizes.init(config.run.seed, &device).expect("valid");
    let weights = |module: &Injector| {
        let mut collect = Collect(Vec::new());
        module.visit(&mut collect);
        collect.0
    };
    let (before, after) = (weights(&untrained), weights(&Injector::load(&dict, &device).expect("fits")));
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(moved > before.len() / 2, "{moved} of {} weights have moved", before.len());
    DiscriminatorHeads::load(&open("heads.safetensors"), &device).expect("the heads are kept too");
    for record in read_log(whole.join("log.jsonl")).expect("a log") {
        assert!(record["grad_norm"].as_f64() > Some(0.0), "the injector gets a gradient: {record:?}");
        for name in ["adversarial", "reconstruction", "d_loss", "d_grad_norm", "d_real_2", "d_made_1", "tokens_changed"]
        {
            assert!(record.get(name).is_some(), "`{name}` is in the log: {record:?}");
        }
    }
}

#[test]
fn a_lora_resumes_to_the_bit_and_learns() {
    let folder = tempfile::tempdir().expect("a folder");
    let rank = LowRankConfig { rank: 2, alpha: 2.0 };
    let lora = Some(LoraSize { attention: rank, feed_forward: rank });
    // Judged without an encoder besides, and scale by scale.
    let mut config = AidTrainConfig { lora, encoder: None, ..aid_config(folder.path()) };
    config.discriminator.input = DiscriminatorInput::QuantizerFeatures;
    config.loss.truncate = true;
    let whole = compare(folder.path(), &AID_PARTS, |run, progress| {
        train_aid(config.clone(), run, &Device::default(), progress).expect("trains")
    });
    let dict = StateDict::open(whole.join("lora.safetensors")).expect("written");
    let lora = Lora::load(&dict, &Device::default()).expect("its configuration and weights");
    let mut collect = Collect(Vec::new());
    lora.visit(&mut collect);
    let zeros = collect.0.iter().filter(|weight| **weight == 0.0).count();
    assert!(zeros * 10 < collect.0.len(), "second factors begin at zero, and {zeros} of {} are", collect.0.len());
    for record in read_log(whole.join("log.jsonl")).expect("a log") {
        assert!(record["grad_norm"].as_f64() > Some(0.0), "it gets a gradient: {record:?}");
    }
}

#[test]
fn gradients_are_whole_when_made_anew_and_when_truncated_only_where_one_scale_is_corrected() {
    let norms = |patch_nums: &[usize]| {
        let folder = tempfile::tempdir().expect("a folder");
        let data = images(folder.path());
        let mut tokenizer = tokenizer_config(&data, "");
        tokenizer.model.patch_nums = Scales::square(patch_nums).expect("a ladder");
        let mut config = aid_config_on(folder.path(), tokenizer, &data);
        [(false, false), (true, false), (false, true), (true, true)].map(|(truncate, checkpointing)| {
            (config.loss.truncate, config.loss.checkpointing) = (truncate, checkpointing);
            let metrics = aid_trainer(folder.path(), config.clone()).step(0, true).expect("finite");
            metrics.into_iter().find(|(name, _)| name == "grad_norm").expect("measured").1
        })
    };
    let same = |a: f64, b: f64| (a - b).abs() < 1e-4 * a;
    let [whole, truncated, anew, both] = norms(&[1, 8]);
    assert!(same(whole, truncated) && same(whole, anew) && same(whole, both), "{whole}, {truncated}, {anew}, {both}");
    let [whole, truncated, anew, both] = norms(&[1, 3, 8]);
    assert!((whole - truncated).abs() > 1e-3 * whole, "with two scales: {whole} and {truncated}");
    assert!(same(whole, anew) && same(truncated, both), "{whole} and {anew}, {truncated} and {both}");
}

#[test]
fn drawn_codes_can_be_judged_in_place_of_mean_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    config.guidance.sampler = Sampler::greedy();
    // The loss is then of nothing but the input of the discriminator.
    config.discriminator.r1_gamma = 0.0;
    config.discriminator.augment = Augment::NONE;
    let judged = |decode: SoftDecode, temperature: f64| {
        let mut config = config.clone();
        (config.loss.decode, config.loss.temperature) = (decode, temperature);
        let metrics = aid_trainer(folder.path(), config).step(0, true).expect("finite");
        ["d_loss", "grad_norm"].map(|name| metrics.iter().find(|(found, _)| found == name).expect("measured").1)
    };
    // Next to no temperature leaves the likeliest code of the mean, which is what greedy sampling draws.
    let [[cold, _], [drawn, _]] = [(SoftDecode::Mean, 1e-7), (SoftDecode::StraightThrough, 1e-7)]
        .map(|(decode, temperature)| judged(decode, temperature));
    assert!((cold - drawn).abs() < 1e-4 * drawn, "{cold} and {drawn}");
    let [[mean, _], [warm, gradient]] = [(SoftDecode::Mean, 1.0), (SoftDecode::StraightThrough, 1.0)]
        .map(|(decode, temperature)| judged(decode, temperature));
    assert!((warm - drawn).abs() < 1e-4 * drawn, "the temperature changes the gradient alone: {warm} and {drawn}");
    assert!((mean - warm).abs() > 1e-3 * warm && gradient > 0.0, "{mean} and {warm}, gradient {gradient}");
}

#[test]
fn a_discriminator_with_a_head_start_learns_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    config.discriminator.head_start = 1;
    let mut trainer = aid_trainer(folder.path(), config);
    let kept =
        |trainer: &Trainer<AidMethod>| std::fs::read(trainer.method().export().expect("written")).expect("readable");
    let learnt = |metrics: burn_var_train::run::Metrics| {
        ["d_loss", "adversarial"].map(|name| metrics.iter().any(|(found, _)| found == name))
    };
    let before = kept(&trainer);
    assert_eq!(learnt(trainer.step(0, true).expect("finite")), [true, false]);
    assert!(before == kept(&trainer), "the injector waits");
    assert_eq!(learnt(trainer.step(1, true).expect("finite")), [true, true]);
    assert!(before != kept(&trainer), "and then learns");
}

#[test]
fn the_backbone_of_an_injector_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    config.loss.reconstruction = Reconstruction::FreeRunning;
    let device = Device::default();
    let mut trainer = aid_trainer(folder.path(), config.clone());
    for step in 0..2 {
        trainer.step(step, true).expect("finite");
    }
    let unchanged = Backbone::load(&config, &device).expect("fits");
    assert_eq!(
        trainer.method().backbone().fingerprint().unwrap(),
        unchanged.fingerprint().unwrap(),
        "not a bit has changed"
    );

    config.collapse = CollapseConfig { accuracy: 0.0, patience: 1 };
    let error = train_aid(config, &folder.path().join("collapsed"), &device, &mut ()).expect_err("gives up");
    assert!(matches!(error, Error::Collapse { step: 0, streak: 1, .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains("accuracies on real") && error.contains("r1_gamma"), "{error}");
}

#[test]
fn a_transformer_resumes_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = transformer_config(folder.path(), &images(folder.path()));
    compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
        train_var(config.clone(), run, &Device::default(), progress).expect("trains")
    });
}

/// Trains a transformer in a folder of its own, in a precision.
fn train_in(precision: Precision, config: &VarTrainConfig, folder: &Path) -> PathBuf {
    let mut config = config.clone();
    config.run.precision = precision;
    let run = folder.join(precision.name());
    std::fs::create_dir(&run).expect("a folder");
    compare(&run, &["average", "model", "optimizer"], |run, progress| {
        train_var(config.clone(), run, &Device::default(), progress).expect("trains")
    })
}

/// Products in `bf16` or TF32 leave weights and averages in `f32`: a run resumes to the bit, learns about as well as an exact
/// one, and ends elsewhere.
#[test]
fn a_transformer_in_mixed_precision_resumes_to_the_bit_and_learns() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = transformer_config(folder.path(), &images(folder.path()));
    config.learning_rate.peak = 0.01;
    let losses = |run: &Path| logged(run, "loss");
    let exact = losses(&train_in(Precision::Exact, &config, folder.path()));
    for (precision, most) in [(Precision::Tf32, 0.005), (Precision::Bf16, 0.04)] {
        let run = train_in(precision, &config, folder.path());
        let found = losses(&run);
        assert!(found.last() < found.first(), "{precision}: {found:?}");
        let far = found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far > 0.0 && far < most, "{precision}: losses {found:?}, exact ones {exact:?}");
        let text = std::fs::read_to_string(run.join("config.toml")).expect("written");
        assert!(text.contains(&format!("precision = \"{precision}\"")), "{text}");
        let mut other = config.clone();
        other.run.precision = Precision::Exact;
        let error =
            train_var(other, &run, &Device::default(), &mut ()).map(|_| ()).expect_err("another precision").to_string();
        assert!(error.contains("`run.precision`") && error.contains(precision.name()), "{error}");
    }
    config.run.precision = Precision::F16;
    let error =
        train_var(config, &folder.path().join("f16"), &Device::default(), &mut ()).map(|_| ()).expect_err("no f16");
    assert!(error.to_string().contains("run.precision") && error.to_string().contains("`bf16`"), "{error}");
}

/// A step in `bf16`: the gradients differ from exact ones by about its rounding.
#[test]
fn gradients_in_mixed_precision_are_near_exact_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = transformer_config(folder.path(), &images(folder.path())).normalize();
    let device = Device::default();
    train_var(config.clone(), &folder.path().join("first"), &device, &mut StopAfter(1)).expect("makes the tokens");
    let norm = |precision: Precision| {
        let mut run = config.run.clone();
        run.precision = precision;
        let tokenizer = VqVae::load(&StateDict::open(&config.tokenizer).expect("written"), &device).expect("fits");
        let method = VarMethod::new(config.clone(), tokenizer, tokens(folder.path()), folder.path(), &device);
        let mut trainer = Trainer::new(method.expect("valid"), &run).expect("valid");
        let metrics = trainer.step(0, true).expect("finite");
        metrics.into_iter().find(|(name, _)| name == "grad_norm").expect("measured").1
    };
    let exact = norm(Precision::Exact);
    for (precision, unit) in [(Precision::Tf32, 1.0 / 2048.0), (Precision::Bf16, 1.0 / 256.0)] {
        let off = (norm(precision) - exact).abs() / exact / unit;
        assert!(off > 0.0 && off < 4.0, "{precision}: the norm of all gradients is off by {off} roundings");
    }
}

/// An untrained FlexVAE in `folder`, and how to train a transformer on it over random schedules.
fn flexvar_config(folder: &Path) -> FlexVarTrainConfig {
    let data = images(folder);
    let path = folder.join("flexvae.safetensors");
    let vq = VqModelConfig {
        image_channels: 1,
        ch: 32,
        ch_mult: vec![1, 1],
        num_res_blocks: 1,
        z_channels: 8,
        ..VqModelConfig::vq16(24, 6)
    };
    let tokenizer = FlexVaeConfig { vq, patch_nums: Scales::square(&[1, 3, 8]).expect("a schedule") };
    let tokenizer = tokenizer.init(2, &Device::default()).expect("valid");
    tokenizer.save(&path, &SaveOptions::default()).expect("written");
    let text = format!("tokenizer = {path:?}\npositions = 4\nclass_dropout = 0.3\n{}", run_section(&data))
        + "[model]\ndepth = 2\nembed_dim = 32\nnum_heads = 2\ndrop_path_rate = 0.2\n\
           [scales]\ndefault_share = 0.3\nfirst = [1]\nlast = 8\nmax_tokens = 90\n\
           groups = [{ count = 2, from = 2, to = 5 }]\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\n[preview]\nper_class = 1\nclasses = 2\n";
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_flexvar_transformer_resumes_to_the_bit_over_random_schedules() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = flexvar_config(folder.path());
    let whole = compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
        train_flexvar(config.clone(), run, &Device::default(), progress).expect("trains")
    });
    let log = read_log(whole.join("log.jsonl")).expect("a log");
    let sides = |record: &serde_json::Value| -> Vec<usize> {
        (1..9).filter(|side| record.get(format!("loss_{side}")).is_some()).collect()
    };
    let schedules: std::collections::BTreeSet<Vec<usize>> = log.iter().map(sides).collect();
    assert!(schedules.len() > 1, "steps have schedules of their own: {schedules:?}");
    let union: Vec<usize> = TokenCache::open(&caches(folder.path())[0])
        .expect("a cache")
        .spec()
        .scales
        .sizes()
        .iter()
        .map(|s| s.width)
        .collect();
    assert_eq!(union, [1, 2, 3, 4, 5, 8], "an image is encoded once, at every side of a schedule");
}

/// Training of a masked first scale, with a default schedule of two steps for it.
fn masked_config(folder: &Path) -> FlexVarTrainConfig {
    let mut config = flexvar_config(folder);
    config.patch_nums = Some(Scales::square(&[2, 2, 3, 8]).expect("a schedule"));
    config.first = FirstScale::Masked(MaskedFirst { own_positions: true, rewrite: false });
    config.scales.first = vec![2];
    config.scales.groups[0].from = 3;
    config
}

#[test]
fn a_masked_first_scale_resumes_to_the_bit() {
    for sees in [SeenScales::Before, SeenScales::ClassToken, SeenScales::ClassTokenReleased] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = FlexVarTrainConfig { sees, ..masked_config(folder.path()) };
        let whole = compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
            train_flexvar(config.clone(), run, &Device::default(), progress).expect("trains")
        });
        let dict = StateDict::open(whole.join("transformer.safetensors")).expect("written");
        let trained = FlexVar::config_of(&dict, None).expect("sizes");
        assert_eq!((trained.first, trained.sees), (config.first, sees), "what was trained is what generates");
        assert_eq!(trained.patch_nums.to_string(), "2, 2, 3, 8", "two steps for the first scale");
    }
}

#[test]
fn a_masked_first_scale_is_refused_where_it_does_not_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = masked_config(folder.path());
    let fails = |config: FlexVarTrainConfig| {
        let run = folder.path().join("run");
        train_flexvar(config, &run, &Device::default(), &mut ()).expect_err("refused").to_string()
    };
    let ratio = |ratio| FlexVarTrainConfig { mask_ratio: ratio, ..config.clone() };
    let error = fails(ratio(MaskRatio { mean: 0.5, ..MaskRatio::default() }));
    assert!(error.contains("mask_ratio.mean") && error.contains("0.7"), "{error}");
    let released = SeenScales::ClassTokenReleased;
    let error = fails(FlexVarTrainConfig { first: FirstScale::OneShot, sees: released, ..config.clone() });
    assert!(error.contains("sees") && error.contains("masked first scale"), "{error}");
    let steps = Scales::square(&[2, 2, 2, 2, 2, 8]).expect("a schedule");
    let error = fails(FlexVarTrainConfig { patch_nums: Some(steps), ..config.clone() });
    assert!(error.contains("at most 4 maps of the first size"), "{error}");

    let init = train_flexvar(config.clone(), &folder.path().join("base"), &Device::default(), &mut ());
    let init = init.expect("trains").expect("to the end");
    let sar = sar_config(&config.tokenizer, &init, &config.data.path, "");
    let error = train_sar(sar, &folder.path().join("sar"), &Device::default(), &mut ()).expect_err("masked");
    assert!(error.to_string().contains("first of the transformer"), "{error}");
}

#[test]
fn scales_can_stand_for_resized_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = flexvar_config(folder.path());
    let device = Device::default();
    let encoded = |supervision| {
        let before = if folder.path().join(".cache").exists() { caches(folder.path()) } else { Vec::new() };
        let config = FlexVarTrainConfig { supervision, ..config.clone() };
        train_flexvar(config, &folder.path().join("run"), &device, &mut StopAfter(1)).expect("makes the tokens");
        std::fs::remove_dir_all(folder.path().join("run")).expect("removed");
        let made = caches(folder.path()).into_iter().find(|path| !before.contains(path)).expect("a cache of its own");
        TokenCache::open(&made).expect("a cache")
    };
    let (latent, image) = (encoded(Supervision::Latent), encoded(Supervision::Image));
    let row = |cache: &TokenCache| cache.row(0, 0).expect("tokens of the first image");
    let scales = latent.spec().scales.clone();
    let last = scales.range(scales.len() - 1);
    assert_eq!(row(&latent)[last.clone()], row(&image)[last], "the last scale is the image itself");

    // The tokens of a smaller scale are those of the image in its size.
    let tokenizer = FlexVae::load(&StateDict::open(&config.tokenizer).expect("written"), &device).expect("fits");
    let loader =
        BatchLoader::new(config.data.open(Split::Train).expect("images"), ImageShape::new(16, 16, 1).expect("valid"));
    let images = loader.load(&[0], View::Fixed { mirrored: false }, &device).expect("an image").images;
    for k in 0..scales.len() - 1 {
        let size = scales.size(k);
        let [_, height, width] = tokenizer.image_shape(&Scales::new(vec![size]).expect("a schedule"));
        let small = Resize::Area.apply(images.clone(), MapSize { height, width });
        let expected = tokenizer.quantize(tokenizer.latent(small).expect("a latent"), size);
        let expected: Vec<u32> = expected.try_into_vec_as::<u32>().expect("read");
        assert_eq!(row(&image)[scales.range(k)], expected, "scale {size}");
    }
}

/// Returns the settings of a training of LlamaGen's tokenizer.
fn llamagen_vq_config(data: &Path) -> TokenizerTrainConfig<LlamaGenVqConfig> {
    let text = run_section(data)
        + "[model]\npatch_nums = { raster = 4 }\n\
           [model.vq]\nimage_channels = 1\nch = 32\nch_mult = [1, 2, 1]\nnum_res_blocks = 1\nz_channels = 6\n\
           codebook_size = 24\ncodebook_embed_dim = 5\nentropy_loss_ratio = 0.1\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\n[revival]\nevery = 2\nuntil = 0.9\nthreshold = 0.5\n";
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// An untrained tokenizer of LlamaGen in `folder`, and how to train a transformer on it with all its dropouts.
fn llamagen_config(folder: &Path) -> LlamaGenTrainConfig {
    let data = images(folder);
    let path = folder.join("llamagen_vq.safetensors");
    let tokenizer = llamagen_vq_config(&data).model.init(2, &Device::default()).expect("valid");
    tokenizer.save(&path, &SaveOptions::default()).expect("written");
    let text = format!("tokenizer = {path:?}\nclass_dropout = 0.3\n{}", run_section(&data))
        + "[model]\ndim = 32\nn_layer = 2\nn_head = 2\ndrop_path_rate = 0.2\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\n[preview]\nper_class = 1\nclasses = 2\n";
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_tokenizer_of_llamagen_resumes_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = llamagen_vq_config(&images(folder.path()));
    assert_eq!((config.optimizer.beta_1, config.optimizer.beta_2), (0.9, 0.95), "the authors' optimizer");
    compare(folder.path(), &["average", "model", "optimizer", "usage"], |run, progress| {
        train_llamagen_vq(config.clone(), run, &Device::default(), progress).expect("trains")
    });
}

#[test]
fn a_llamagen_transformer_resumes_to_the_bit_and_learns() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = llamagen_config(folder.path());
    let whole = compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
        train_llamagen(config.clone(), run, &Device::default(), progress).expect("trains")
    });
    let log = read_log(whole.join("log.jsonl")).expect("a log");
    let losses: Vec<f64> = log.iter().map(|record| record["loss"].as_f64().expect("a loss")).collect();
    assert!((losses[0] - 24_f64.ln()).abs() < 1e-4, "a head of zeros knows nothing: {losses:?}");
    assert!(losses[5] < losses[0] - 0.001, "{losses:?}");
    let rows = |record: &serde_json::Value| (0..9).filter(|row| record.get(format!("loss_{row}")).is_some()).count();
    assert_eq!(rows(&log[0]), 4, "a loss per row of tokens");
}

#[test]
fn a_llamagen_transformer_does_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = llamagen_config(folder.path());
    let device = Device::default();
    let first_loss = |config: &LlamaGenTrainConfig, name: &str| {
        let run = folder.path().join(name);
        train_llamagen(config.clone(), &run, &device, &mut StopAfter(3)).expect("trains");
        let log = read_log(run.join("log.jsonl")).expect("a log");
        log.iter().map(|record| record["loss"].as_f64().expect("a loss") as f32).collect::<Vec<_>>()
    };
    let whole = first_loss(&config, "whole");
    config.run.accumulate = 4;
    assert_close(&first_loss(&config, "pieces"), &whole, 1e-3, "losses of pieces of one image");
}

#[test]
fn a_flexvar_transformer_does_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = flexvar_config(folder.path());
    let device = Device::default();
    train_flexvar(config.clone(), &folder.path().join("first"), &device, &mut StopAfter(1)).expect("makes the tokens");
    let train = |accumulate: usize| -> Vec<f64> {
        let mut config = config.clone();
        config.run.accumulate = accumulate;
        let run = config.run.clone();
        let tokenizer = FlexVae::load(&StateDict::open(&config.tokenizer).expect("written"), &device).expect("fits");
        let method = FlexVarMethod::new(config, tokenizer, tokens(folder.path()), folder.path(), &device);
        let mut trainer = Trainer::new(method.expect("valid"), &run).expect("valid");
        // Further steps would differ by more than rounding: Adam divides gradients by their own size.
        trainer.step(0, true).expect("finite").into_iter().map(|(_, value)| value).collect()
    };
    let whole = train(1);
    for pieces in [2, 4] {
        let found = train(pieces);
        assert_eq!(found.len(), whole.len(), "the same schedule in {pieces} pieces");
        for (found, expected) in found.iter().zip(&whole) {
            assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{pieces}: {found}, not {expected}");
        }
    }
}

/// Post-training of a transformer of a few steps.
fn sar_config(tokenizer: &Path, init: &Path, data: &Path, more: &str) -> SarTrainConfig {
    let text = format!("tokenizer = {tokenizer:?}\ninit = {init:?}\nclass_dropout = 0.3\n{}", run_section(data))
        + "[learning_rate]\npeak = 0.001\n[preview]\nper_class = 1\nclasses = 2\n"
        + more;
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// Post-training of a FlexVAR of a few steps.
fn flexvar_sar_config(folder: &Path, more: &str) -> SarTrainConfig {
    let base = flexvar_config(folder);
    let init = train_flexvar(base.clone(), &folder.join("base"), &Device::default(), &mut ());
    let init = init.expect("trains").expect("to the end");
    SarTrainConfig { scales: Some(base.scales), ..sar_config(&base.tokenizer, &init, &base.data.path, more) }
}

#[test]
fn sar_resumes_to_the_bit_and_measures_the_student() {
    for more in ["", "[sar]\npreset = \"paper\"\nscales = \"random-one\"\nweight = 0.5\nreduction = \"scale-sum\"\n"] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = flexvar_sar_config(folder.path(), more);
        let whole = compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
            train_sar(config.clone(), run, &Device::default(), progress).expect("trains")
        });
        for record in read_log(whole.join("log.jsonl")).expect("a log") {
            assert!(record["student_loss"].as_f64() > Some(0.0), "{record:?}");
        }
    }
}

#[test]
fn student_forcing_resumes_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = flexvar_sar_config(folder.path(), "[student_forcing]\nschedule = \"alternate\"\n");
    config.run.accumulate = 2;
    compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
        train_sar(config.clone(), run, &Device::default(), progress).expect("trains")
    });
}

/// Loss terms and norm of the gradient of the first step.
fn first_step(config: &SarTrainConfig, folder: &Path) -> [f64; 3] {
    let mut config = config.clone();
    config.run.steps = 1;
    train_sar(config, folder, &Device::default(), &mut ()).expect("trains").expect("to the end");
    let log = read_log(folder.join("log.jsonl")).expect("a log");
    ["loss", "student_loss", "grad_norm"].map(|name| log[0].get(name).and_then(|value| value.as_f64()).unwrap_or(0.0))
}

#[test]
fn var_is_post_trained_with_the_full_context() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = images(folder.path());
    let base = transformer_config(folder.path(), &data);
    let init = train_var(base.clone(), &folder.path().join("base"), &Device::default(), &mut ());
    let init = init.expect("trains").expect("to the end");
    let config = |more: &str| sar_config(&base.tokenizer, &init, &data, more);
    let run = |name: &str, config: &SarTrainConfig| first_step(config, &folder.path().join(name));

    let error = train_sar(config(""), &folder.path().join("refused"), &Device::default(), &mut ()).expect_err("VAR");
    assert!(error.to_string().contains("sar.context"), "{error}");
    let mut paper = config("[sar]\npreset = \"paper\"\nweight = 1.0\n");
    let hard = run("hard", &paper);
    let sar = SarConfig { weight: 1.0, sampling: Sampling::Argmax, ..SarConfig::paper() };
    paper.sar = Some(SarConfig { target: Target::GtRequantised, ..sar.clone() });
    let requantized = run("requantized", &paper);
    paper.sar = Some(SarConfig { target: Target::Gt, ..sar });
    let truth = run("truth", &paper);
    assert_eq!((hard[0], requantized[0]), (truth[0], truth[0]), "the same teacher-forced loss");
    assert!(requantized[1] != truth[1], "other coarse tokens call for other fine ones");
    assert!([hard, requantized, truth].iter().all(|[_, student, norm]| *student > 0.0 && *norm > 0.0));

    let forced = |name: &str, forcing: StudentForcing| {
        run(name, &SarTrainConfig { student_forcing: Some(forcing), ..config("") })
    };
    let plain = forced("plain", StudentForcing::new(ForcingSchedule::TeacherForcing));
    assert!((plain[0] - truth[0]).abs() < 1e-5, "teacher forcing is the teacher's pass");
    let full = forced("full", StudentForcing::new(ForcingSchedule::Full));
    assert!(full[0] != plain[0], "inputs of its own");
    forced(
        "full-requantized",
        StudentForcing { target: Target::GtRequantised, ..StudentForcing::new(ForcingSchedule::Full) },
    );
}

/// VA-pi on a model of a few steps, without LPIPS.
fn va_pi_config(tokenizer: &Path, init: &Path, data: &Path, more: &str) -> VaPiTrainConfig {
    let text = format!("tokenizer = {tokenizer:?}\ninit = {init:?}\n{}", run_section(data))
        + "[learning_rate]\npeak = 0.001\n[preview]\nper_class = 1\nclasses = 2\n[va_pi.reward]\nlpips = 0.0\n"
        + more;
    toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn llamagen_va_pi_config(folder: &Path, more: &str) -> VaPiTrainConfig {
    let base = llamagen_config(folder);
    let init = train_llamagen(base.clone(), &folder.join("base"), &Device::default(), &mut ());
    va_pi_config(&base.tokenizer, &init.expect("trains").expect("to the end"), &base.data.path, more)
}

fn var_va_pi_config(folder: &Path, more: &str) -> VaPiTrainConfig {
    let data = images(folder);
    let base = transformer_config(folder, &data);
    let init = train_var(base.clone(), &folder.join("base"), &Device::default(), &mut ());
    va_pi_config(&base.tokenizer, &init.expect("trains").expect("to the end"), &data, more)
}

fn flexvar_va_pi_config(folder: &Path, more: &str) -> VaPiTrainConfig {
    let base = flexvar_config(folder);
    let init = train_flexvar(base.clone(), &folder.join("base"), &Device::default(), &mut ());
    va_pi_config(&base.tokenizer, &init.expect("trains").expect("to the end"), &base.data.path, more)
}

fn va_pi(config: &VaPiTrainConfig) -> impl Fn(&Path, &mut dyn Progress) -> Option<PathBuf> {
    |run, progress| train_va_pi(config.clone(), run, &Device::default(), progress).expect("trains")
}

/// The numbers of a run's log.
fn logged(run: &Path, name: &str) -> Vec<f64> {
    let log = read_log(run.join("log.jsonl")).expect("a log");
    let value = |record: &serde_json::Value| record[name].as_f64();
    log.iter().map(|record| value(record).unwrap_or_else(|| panic!("`{name}` in {record}"))).collect()
}

const LORA: &str = "[lora]\nattention = { rank = 2, alpha = 2.0 }\nfeed_forward = { rank = 2, alpha = 2.0 }\n";

#[test]
fn va_pi_resumes_to_the_bit_with_all_its_noise() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = llamagen_va_pi_config(
        folder.path(),
        "embedding = 0.5\n[va_pi]\ngroup = 3\nupdates = 2\nnoise = 0.4\ntoken_dropout = 0.3\ndropout = true\n\
         class_dropout = 0.3\ntop_k = 10\ndecode_batch = 5\n[va_pi.loss]\nkl = 0.05\nclip = 1e-4\n[ema]\ndecay = 0.5\n",
    );
    config.run.accumulate = 2;
    let whole = compare(folder.path(), &["average", "model", "optimizer"], va_pi(&config));
    for name in ["loss", "reward", "reward_std", "flat_groups", "advantages_clipped", "ratios_clipped", "pixels"] {
        assert_eq!(logged(&whole, name).len(), STEPS as usize, "{name}");
    }
    for name in ["embedding", "entropy", "entropy_3", "cross_entropy", "accuracy", "grad_norm", "kl"] {
        assert!(logged(&whole, name).iter().any(|value| *value > 0.0), "{name}");
    }
    assert!(logged(&whole, "ratios_clipped").iter().any(|share| *share > 0.0), "the second update has ratios");
}

#[test]
fn va_pi_with_a_lora_resumes_to_the_bit_and_leaves_the_base_as_it_is() {
    for (config, folder) in [
        (var_va_pi_config as fn(&Path, &str) -> VaPiTrainConfig, tempfile::tempdir().expect("a folder")),
        (flexvar_va_pi_config, tempfile::tempdir().expect("a folder")),
        (llamagen_va_pi_config, tempfile::tempdir().expect("a folder")),
    ] {
        let mut config = config(folder.path(), LORA);
        // Large enough for a divergence above the rounding of single precision.
        config.learning_rate.peak = 0.02;
        let before = std::fs::read(&config.init).expect("readable");
        let whole = compare(folder.path(), &["model", "optimizer"], va_pi(&config));
        let kl = logged(&whole, "kl");
        assert!(kl[0] == 0.0, "the reference is the model without the adaptation: {kl:?}");
        // Of the others, the gates are so small as yet that the distance is below rounding.
        assert!(kl[5] > 0.0 || !folder.path().join("llamagen_vq.safetensors").exists(), "{kl:?}");
        let model = std::fs::metadata(newest(&whole).path().join("model")).expect("a part").len();
        assert!(model < before.len() as u64 / 2, "the adaptation alone is kept: {model} of {} bytes", before.len());
        assert_eq!(std::fs::read(&config.init).expect("readable"), before);
        // What is written is a whole model, the updates merged.
        let dict = |path: &Path| StateDict::open(path).expect("written");
        let (init, merged) = (dict(&config.init), dict(&whole.join("transformer.safetensors")));
        let changed: Vec<String> = init
            .keys()
            .filter(|key| init.tensor(key).expect("there") != merged.tensor(key).expect("the same names"))
            .map(str::to_owned)
            .collect();
        assert!(!changed.is_empty(), "it learns");
        let adapted = ["mat_qkv", "proj", "fc1", "fc2", "wqkv", "wo", "w1", "w2", "w3"];
        let only = |key: &String| adapted.iter().any(|layer| key.ends_with(&format!("{layer}.weight")));
        assert!(changed.iter().all(only), "{changed:?}");
    }
}

#[test]
fn va_pi_of_next_scale_models_resumes_to_the_bit() {
    for (config, more) in [
        (
            var_va_pi_config as fn(&Path, &str) -> VaPiTrainConfig,
            "[va_pi]\npreset = \"paper\"\ncredit = \"prefix-swap\"\nmean = \"scales\"\n",
        ),
        (flexvar_va_pi_config, "[va_pi]\ngroup = 4\n"),
        (flexvar_va_pi_config, "[va_pi]\nestimator = { straight-through = { tau = 0.7 } }\n"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path(), more);
        let whole = compare(folder.path(), &["model", "optimizer"], va_pi(&config));
        assert!(logged(&whole, "grad_norm").iter().all(|norm| *norm > 0.0), "{more}");
        let text = std::fs::read_to_string(whole.join("config.toml")).expect("written");
        assert!(text.contains("credit = "), "the credit of the family is named: {text}");
    }
}

#[test]
fn va_pi_does_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = llamagen_va_pi_config(folder.path(), "[va_pi]\nnoise = 0.5\ntoken_dropout = 0.2\n");
    config.run.steps = 1;
    let mut run = |accumulate: usize| {
        config.run.accumulate = accumulate;
        let run = folder.path().join(format!("pieces-{accumulate}"));
        train_va_pi(config.clone(), &run, &Device::default(), &mut ()).expect("trains");
        ["loss", "reward", "reward_std", "policy_loss", "cross_entropy", "entropy", "grad_norm"]
            .map(|name| logged(&run, name)[0])
    };
    let whole = run(1);
    for pieces in [2, 4] {
        for (found, expected) in run(pieces).iter().zip(&whole) {
            let near = (found - expected).abs() < 1e-4 * expected.abs().max(1e-2);
            assert!(near, "{pieces} pieces: {found}, not {expected}");
        }
    }
}

#[test]
fn settings_of_va_pi_do_what_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = var_va_pi_config(folder.path(), "");
    let run = |name: &str, change: &dyn Fn(&mut VaPiTrainConfig)| {
        let mut config = plain.clone();
        change(&mut config);
        let run = folder.path().join(name);
        train_va_pi(config, &run, &Device::default(), &mut ()).expect("trains");
        run
    };
    let one = run("one", &|_| ());
    assert!(read_log(one.join("log.jsonl")).expect("a log")[0].get("kl").is_none(), "no reference without a penalty");
    assert!(logged(&one, "ratios_clipped").iter().all(|share| *share == 0.0), "one update has ratios of 1");
    let several = run("several", &|config| (config.va_pi.updates, config.va_pi.loss.clip) = (3, 0.0));
    assert!(logged(&several, "ratios_clipped").iter().all(|share| *share > 0.9), "later updates have others");

    // A penalty holds the model at its start.
    let leaves =
        |name: &str, kl: f64| *logged(&run(name, &|config| config.va_pi.loss.kl = kl), "kl").last().expect("a step");
    let (free, held) = (leaves("free", 1e-9), leaves("held", 100.0));
    assert!(held < 0.5 * free, "a penalty of {held} with a weight, {free} without");

    // Dropped labels and dropout are for cross-entropy alone.
    let first =
        |run: &Path| ["reward", "policy_loss", "cross_entropy", "entropy", "loss"].map(|name| logged(run, name)[0]);
    let before = first(&one);
    let dropped = first(&run("dropped", &|config| config.va_pi.class_dropout = 1.0));
    let dropout = first(&run("dropout", &|config| config.va_pi.dropout = true));
    for found in [dropped, dropout] {
        assert_eq!(found[..4], before[..4], "the policy sees all labels and no dropout");
        assert!(found[4] != before[4], "cross-entropy does not: {found:?}");
    }

    // Cross-entropy alone draws samples for the log only, which changes nothing.
    let alone = |name: &str, log_every: u64| {
        let run = run(name, &|config| (config.va_pi.loss.policy, config.run.log_every) = (0.0, log_every));
        std::fs::read(run.join("transformer.safetensors")).expect("written")
    };
    assert!(alone("logged", 1) == alone("unlogged", 100), "the same weights");
}

#[test]
fn va_pi_names_what_does_not_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = var_va_pi_config(folder.path(), "");
    let fails = |change: &dyn Fn(&mut VaPiTrainConfig)| {
        let mut config = config.clone();
        change(&mut config);
        let run = folder.path().join("refused");
        let error = train_va_pi(config, &run, &Device::default(), &mut ()).expect_err("refused").to_string();
        assert!(!run.join("config.toml").exists(), "nothing is written: {error}");
        error
    };
    let error = fails(&|config| config.va_pi.reward.lpips = 1.0);
    assert!(error.contains("va_pi.reward.lpips_vgg") && error.contains("vgg16-397923af.pth"), "{error}");
    let error = fails(&|config| {
        (config.va_pi.reward.lpips, config.va_pi.reward.lpips_vgg) = (1.0, Some("nowhere.pth".into()));
    });
    assert!(error.contains("nowhere.pth"), "{error}");
    let error = fails(&|config| config.va_pi.credit = Some(burn_var_train::va_pi::Credit::PerScaleDecode));
    assert!(error.contains("va_pi.credit") && error.contains("shared, prefix-swap"), "{error}");
    let error = fails(&|config| config.patch_nums = Some(Scales::square(&[1, 8]).expect("a schedule")));
    assert!(error.contains("patch_nums") && error.contains("for VAR"), "{error}");
    let error = fails(&|config| config.init = config.tokenizer.clone());
    assert!(error.contains("not a VAR transformer") || error.contains("another model"), "{error}");
    let error = fails(&|config| {
        config.lora = Some(LoraSize { attention: LowRankConfig { rank: 0, alpha: 1.0 }, ..LoraSize::default() })
    });
    assert!(error.contains("attention.rank"), "{error}");

    // Another model under the same name is noticed.
    let run = folder.path().join("run");
    train_va_pi(config.clone(), &run, &Device::default(), &mut StopAfter(1)).expect("stops");
    let other = train_va_pi(config.clone(), &folder.path().join("other"), &Device::default(), &mut ());
    std::fs::copy(other.expect("trains").expect("to the end"), &config.init).expect("replaced");
    let error = train_va_pi(config, &run, &Device::default(), &mut ()).expect_err("another model").to_string();
    assert!(error.contains("other images or tokens"), "{error}");
}

#[test]
fn flexvar_refuses_schedules_beyond_the_latent() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = flexvar_config(folder.path());
    let train = |config| train_flexvar(config, &folder.path().join("run"), &Device::default(), &mut ());
    let mut larger = config.clone();
    larger.scales.last = 9;
    let error = train(larger).expect_err("a latent of 8x8").to_string();
    assert!(error.contains("scales.last") && error.contains("at most 8"), "{error}");
    let error = train(FlexVarTrainConfig { image_size: Some(15), ..config }).expect_err("odd").to_string();
    assert!(error.contains("image_size") && error.contains("multiple of 2"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = tokenizer_config(&images(folder.path()), "");
    config.learning_rate.peak = 1e30;
    config.learning_rate.warmup_steps = 0;
    let run = folder.path().join("run");
    let error =
        train_tokenizer(config, &run, &Device::default(), &mut ()).expect_err("the weights overflow").to_string();
    assert!(error.contains("the loss term `") && error.contains("at step 1"), "names term and step: {error}");
}

#[test]
fn unknown_keys_are_refused() {
    let known = "[loss]\nl1 = 1.0\nperceptual = 0.0\n[gan]\nweight = 0.1\n[gan.discriminator]\nwidth = 32\n";
    let text = |sections: &str| {
        let model = "[model]\nch = 32\nch_mult = [1]\nnum_res_blocks = 1\nz_channels = 4\nvocab_size = 8\n\
                     patch_nums = [1, 8]\n";
        run_section(Path::new("images")) + model + sections
    };
    toml::from_str::<TokenizerTrainConfig>(&text(known)).expect("all keys are known");
    for (right, wrong) in [("perceptual", "perceptive"), ("weight", "weigth"), ("width", "with")] {
        let error =
            toml::from_str::<TokenizerTrainConfig>(&text(&known.replace(right, wrong))).expect_err(wrong).to_string();
        assert!(error.contains(&format!("`{wrong}`")), "names `{wrong}`: {error}");
    }
}

/// All weights of a module.
fn flat<M: Module>(module: &M) -> Vec<f32> {
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

/// Asserts that weights are the same up to the rounding of sums: Adam divides gradients by their own size, so that
/// differences near zero are compared with the learning rate, which is the size of its steps.
fn assert_close(found: &[f32], expected: &[f32], rate: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let far = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(far < 0.02 * rate, "{what}: off by {far}, a step is {rate}");
}

#[test]
fn a_transformer_does_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = transformer_config(folder.path(), &images(folder.path())).normalize();
    let device = Device::default();
    train_var(config.clone(), &folder.path().join("first"), &device, &mut StopAfter(1)).expect("makes the tokens");
    let train = |accumulate: usize| {
        let mut config = config.clone();
        config.run.accumulate = accumulate;
        // Adam's first steps have the size of the learning rate whatever the gradient is: an epsilon far above the
        // rounding of sums keeps what is compared a function of the gradient.
        config.optimizer.epsilon = 1e-3;
        let run = config.run.clone();
        let dict = StateDict::open(&config.tokenizer).expect("written");
        let tokenizer = VqVae::load(&dict, &device).expect("fits");
        let method = VarMethod::new(config, tokenizer, tokens(folder.path()), folder.path(), &device).expect("valid");
        let mut trainer = Trainer::new(method, &run).expect("valid");
        let norms = (0..3).map(|step| {
            let metrics = trainer.step(step, true).expect("finite");
            metrics.into_iter().find(|(name, _)| name == "grad_norm").expect("measured").1
        });
        let norms: Vec<f64> = norms.collect();
        (norms, flat(trainer.method().model()))
    };
    let (norms, weights) = train(1);
    for pieces in [2, 4] {
        let (found, found_weights) = train(pieces);
        for (found, expected) in found.iter().zip(&norms) {
            assert!((found - expected).abs() < 1e-4 * expected, "{pieces} pieces: norms {found} and {expected}");
        }
        assert_close(&found_weights, &weights, 0.001, &format!("{pieces} pieces"));
    }
}

#[test]
fn a_tokenizer_and_its_discriminator_do_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let gan = GAN.replace("start_step = 2", "start_step = 0");
    let mut config = tokenizer_config(&images(folder.path()), &gan);
    (config.optimizer.epsilon, config.gan.optimizer.epsilon) = (1e-3, 1e-3);
    let train = |accumulate: usize| {
        let mut config = config.clone();
        config.run.accumulate = accumulate;
        let run = config.run.clone();
        let method = TokenizerMethod::new(config, folder.path(), &Device::default()).expect("valid");
        let mut trainer = Trainer::new(method, &run).expect("valid");
        // One step: later ones may differ by more than rounding, where a unit of the discriminator lies so near the kink of
        // its leaky ReLU that rounding decides its slope.
        let metrics: Vec<_> = (0..1).flat_map(|step| trainer.step(step, true).expect("finite")).collect();
        (metrics, flat(trainer.method().average()))
    };
    let (metrics, weights) = train(1);
    for pieces in [2, 4] {
        let (found, found_weights) = train(pieces);
        for ((name, found), (expected_name, expected)) in found.iter().zip(&metrics) {
            assert_eq!(name, expected_name, "the same metrics");
            let near = (found - expected).abs() <= 1e-3 * expected.abs() + 1e-6;
            assert!(near, "{pieces} pieces: `{name}` is {found}, expected {expected}");
        }
        assert_close(&found_weights, &weights, 0.001, &format!("{pieces} pieces"));
    }
}

#[test]
fn an_injector_does_not_depend_on_the_number_of_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    // Two groups of two images.
    config.discriminator.virtual_batch = 2;
    let step = |accumulate: usize| {
        let mut config = config.clone();
        config.run.accumulate = accumulate;
        aid_trainer(folder.path(), config).step(0, true).expect("finite")
    };
    for ((name, found), (expected_name, expected)) in step(2).iter().zip(&step(1)) {
        assert_eq!(name, expected_name, "the same metrics");
        let near = (found - expected).abs() <= 1e-3 * expected.abs() + 1e-6;
        assert!(near, "two pieces: `{name}` is {found}, expected {expected}");
    }
    config.run.accumulate = 4;
    let scales = Scales::square(&[1, 3, 8]).expect("a schedule");
    let error = config.validate(&scales).expect_err("groups would be cut").to_string();
    assert!(error.contains("run.accumulate") && error.contains("virtual_batch"), "{error}");
}

#[test]
fn dropout_of_the_injector_is_for_training_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = aid_config(folder.path());
    assert_eq!(config.injector.dropout, 0.1, "on by default");
    let mut first = |dropout: f64| {
        config.injector.dropout = dropout;
        let mut trainer = aid_trainer(folder.path(), config.clone());
        std::fs::create_dir_all(folder.path().join("samples")).expect("a folder");
        let preview = trainer.method_mut().samples(0).expect("written").expect("images");
        let preview = std::fs::read(preview).expect("readable");
        // The initial injector adds next to nothing, with or without dropout.
        let metrics = (0..3).map(|step| trainer.step(step, true).expect("finite")).last().expect("three steps");
        let norm = metrics.into_iter().find(|(name, _)| name == "grad_norm").expect("measured").1;
        (norm, preview)
    };
    let [(with, shown), (again, _), (without, plain)] = [first(0.5), first(0.5), first(0.0)];
    assert_eq!(with, again, "the draws are keyed");
    assert!((with - without).abs() > 1e-6 * without, "dropout changes the gradient: {with} and {without}");
    assert!(shown == plain, "previews have no dropout");
}

#[test]
fn runs_share_a_token_cache_and_use_one_of_an_older_version() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let config = transformer_config(at, &images(at));
    let train = |run: &str| {
        train_var(config.clone(), &at.join(run), &Device::default(), &mut StopAfter(1)).expect("trains");
    };
    // At once: one makes the cache, the other waits for it.
    std::thread::scope(|scope| {
        for run in ["one", "two"] {
            scope.spawn(move || train(run));
        }
    });
    let found = caches(at);
    assert_eq!(found.len(), 1, "one cache for both: {found:?}");
    assert!(!at.join("one/tokens.safetensors").exists(), "nothing in the run's folder");
    // As a run folder of an older version has it.
    std::fs::create_dir_all(at.join("old/run")).expect("a folder");
    std::fs::rename(&found[0], at.join("old/run/tokens.safetensors")).expect("moved");
    train("old/run");
    assert!(!at.join("old/.cache").exists(), "the cache in its own folder fits");
}

#[test]
fn a_run_of_an_older_version_continues_with_a_note() {
    struct Notes(Vec<String>);
    impl Progress for Notes {
        fn step(&mut self, _: &StepReport<'_>) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }

        fn note(&mut self, text: &str) {
            self.0.push(text.to_owned());
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let config = transformer_config(folder.path(), &images(folder.path()));
    let run = folder.path().join("run");
    let train = |progress: &mut dyn Progress| train_var(config.clone(), &run, &Device::default(), progress);
    train(&mut StopAfter(2)).expect("trains");
    // The state without its version, and the key `accumulate` in its old place.
    let checkpoint = newest(&run);
    let state = std::fs::read_to_string(checkpoint.path().join("state.json")).expect("a state");
    let mut state: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    state.as_object_mut().expect("an object").remove("noise").expect("was there");
    let text = serde_json::to_vec_pretty(&state).expect("JSON");
    std::fs::write(checkpoint.path().join("state.json"), &text).expect("written");
    let manifest = checkpoint.path().join("manifest.json");
    let mut summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).expect("a manifest")).expect("JSON");
    let mut crc = flate2::Crc::new();
    crc.update(&text);
    summary["parts"]["state.json"] = serde_json::json!({ "bytes": text.len(), "crc32": crc.sum() });
    std::fs::write(&manifest, summary.to_string()).expect("written");
    let settings = std::fs::read_to_string(run.join("config.toml")).expect("settings");
    let settings = format!("accumulate = 2\n{}", settings.replace("accumulate = 2\n", ""));
    std::fs::write(run.join("config.toml"), settings).expect("written");

    let mut notes = Notes(Vec::new());
    train(&mut notes).expect("continues").expect("to the end");
    assert!(notes.0.iter().any(|note| note.contains("an older version started this run")), "{:?}", notes.0);
}
