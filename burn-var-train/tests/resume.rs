//! A training that is stopped at odd steps and goes on ends with the very weights of one that never stopped.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use burn_var::tokenizer::VqVae;
use burn_var_train::checkpoint::Checkpoint;
use burn_var_train::patch_gan::PatchGan;
use burn_var_train::progress::{Progress, StepReport};
use burn_var_train::report::read_log;
use burn_var_train::tokenizer::{TokenizerConfig, train_tokenizer};
use burn_var_train::var::{VarTrainConfig, train_var};

/// IDX files of 15x16 grey pictures in three classes: blots at different places, and noise.
fn pictures(folder: &Path) -> PathBuf {
    let data = folder.join("pictures");
    std::fs::create_dir(&data).expect("a folder");
    for (prefix, count) in [("train", 11), ("t10k", 5)] {
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 15, 0, 0, 0, 16];
        let mut labels = vec![0, 0, 8, 1, 0, 0, 0, count];
        for picture in 0..usize::from(count) {
            let class = picture % 3;
            let pixel = |i: usize| {
                let inside = (i / 16).abs_diff(4 * class + 3) < 3 && (i % 16).abs_diff(picture + 2) < 4;
                ((picture * 7919 + i * 31_337) % 60 + if inside { 190 } else { 0 }) as u8
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
fn tokenizer_config(data: &Path, more: &str) -> TokenizerConfig {
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
        let models = ["tokenizer.safetensors", "transformer.safetensors"];
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

fn tokenizer(config: &TokenizerConfig) -> impl Fn(&Path, &mut dyn Progress) -> Option<PathBuf> {
    |run, progress| train_tokenizer(config.clone(), run, &Device::default(), progress).expect("trains")
}

#[test]
fn a_tokenizer_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&pictures(folder.path()), "");
    let whole = compare(folder.path(), &["average", "model", "optimizer", "usage"], tokenizer(&config));
    let untrained: VqVae = config.model.init(config.run.seed, &Device::default()).expect("valid");
    let [first, broken] = [&whole, &folder.path().join("broken")].map(|run| weights(run, "model", untrained.clone()));
    assert!(first == broken, "the weights themselves, not only their average");
    let log = read_log(whole.join("log.jsonl")).expect("a log");
    assert!(log.iter().any(|record| record["revived"].as_f64() > Some(0.0)), "codes were revived: {log:?}");
}

#[test]
fn a_tokenizer_and_its_discriminator_go_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tokenizer_config(&pictures(folder.path()), GAN);
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

#[test]
fn a_transformer_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = pictures(folder.path());
    let config = tokenizer_config(&data, "");
    let path = train_tokenizer(config, &folder.path().join("tokenizer"), &Device::default(), &mut ())
        .expect("trains")
        .expect("to the end");
    let text = format!("tokenizer = {path:?}\naccumulate = 2\nclass_dropout = 0.3\n{}", run_section(&data))
        + "[model]\ndepth = 2\nembed_dim = 32\nnum_heads = 2\ndrop_path_rate = 0.2\n\
           [learning_rate]\npeak = 0.001\nwarmup_steps = 2\n[preview]\nper_class = 1\nclasses = 2\n";
    let config: VarTrainConfig = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}"));
    compare(folder.path(), &["average", "model", "optimizer"], |run, progress| {
        train_var(config.clone(), run, &Device::default(), progress).expect("trains")
    });
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = tokenizer_config(&pictures(folder.path()), "");
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
        run_section(Path::new("pictures")) + model + sections
    };
    toml::from_str::<TokenizerConfig>(&text(known)).expect("all keys are known");
    for (right, wrong) in [("perceptual", "perceptive"), ("weight", "weigth"), ("width", "with")] {
        let error =
            toml::from_str::<TokenizerConfig>(&text(&known.replace(right, wrong))).expect_err(wrong).to_string();
        assert!(error.contains(&format!("`{wrong}`")), "names `{wrong}`: {error}");
    }
}
