//! Training as a user runs it, killed and out of disk space too.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use burn_var::Scales;
use burn_var::models::common::vq_model::VqModelConfig;
use burn_var::models::flexvar::FlexVaeConfig;
use burn_var::weights::{Pretrained, SaveOptions};
use support::{assert_same_weights, command, fails, image_folder, json, ok, run};

const STEPS: u64 = 24;

/// Images of `side` pixels and the configurations of both trainings, a checkpoint after every step.
fn set_up(folder: &Path, side: u32, levels: usize) {
    image_folder(&folder.join("image-folder"), side, 8);
    let run = |steps| {
        format!("[run]\nsteps = {steps}\nbatch_size = 4\nseed = 3\nsave_every = 1\nlog_every = 5\nsample_every = 20\n")
    };
    let data = "[data]\npath = \"image-folder\"\nmirror = true\n";
    let levels = vec!["1"; levels].join(", ");
    let tokenizer = format!(
        "{}{data}[model]\nch = 32\nch_mult = [{levels}]\nnum_res_blocks = 1\nz_channels = 8\nvocab_size = 32\n\
         patch_nums = [1, 2, 4, 8]\n[learning_rate]\npeak = 1e-3\n[revival]\nevery = 6",
        run(STEPS)
    );
    fs::write(folder.join("tokenizer.toml"), tokenizer).expect("written");
    let var = format!(
        "tokenizer = \"tokenizer.safetensors\"\naccumulate = 2\n{}{data}[model]\ndepth = 2\nembed_dim = 64\nnum_heads = 2\n\
         drop_path_rate = 0.1\n[learning_rate]\npeak = 1e-3\n[preview]\nper_class = 2",
        run(STEPS)
    );
    fs::write(folder.join("var.toml"), var).expect("written");
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

#[test]
fn from_a_folder_of_colour_images_to_a_sample() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 64, 4);
    let report = json(at, &["train", "tokenizer", "tokenizer.toml", "--out", "tok", "--steps", "4"]);
    assert_eq!((&report["steps"], &report["stopped"]), (&4.into(), &false.into()), "{report}");
    fs::copy(at.join("tok/tokenizer.safetensors"), at.join("tokenizer.safetensors")).expect("there");
    let report = json(at, &["train", "var", "var.toml", "--out", "var", "--steps", "4"]);
    assert_eq!(report["file"], "var/transformer.safetensors", "{report}");
    let sample = ["sample", "--tokenizer", "tokenizer.safetensors", "--transformer", "var/transformer.safetensors"];
    let report = json(at, &[&sample[..], &["--class", "waves", "--count", "2"]].concat());
    assert_eq!(report["classes"][0]["name"], "waves", "names come from the folders: {report}");
    let sheet = image::open(at.join("burn-var-sample.png")).expect("an image");
    assert!(sheet.width() > 128, "two images of 64 pixels");

    let info = json(at, &["info", "var"]);
    assert_eq!(info["checkpoint"]["step"], 4, "the run is at its end: {info}");
    let log = fs::read_to_string(at.join("tok/log.jsonl")).expect("a log");
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "JSON lines: {log}");
    let quiet = run(at, &["train", "var", "var.toml", "--out", "var", "--steps", "5", "--quiet"]);
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "nothing is said with --quiet");
    let more = run(at, &["train", "var", "var.toml", "--out", "var", "--steps", "6"]);
    let said = String::from_utf8_lossy(&more.stderr).into_owned();
    assert!(said.contains("resumes after step 5") && said.contains("step 6/6"), "plain lines in a pipe: {said}");
    assert!(said.contains(" images/s, "), "speed and memory: {said}");
}

#[test]
fn a_run_keeps_its_precision() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 16, 2);
    let train =
        |options: &[&'static str]| [&["train", "tokenizer", "tokenizer.toml", "--out", "tok"], options].concat();
    let message = fails(at, 1, &train(&["--precision", "f16"]));
    assert!(message.contains("`run.precision`") && message.contains("`bf16`"), "{message}");
    ok(at, &train(&["--steps", "1", "--precision", "bf16"]));
    let config = fs::read_to_string(at.join("tok/config.toml")).expect("written");
    assert!(config.contains("precision = \"bf16\""), "{config}");
    let message = fails(at, 1, &train(&["--steps", "2", "--precision", "tf32"]));
    assert!(message.contains("`run.precision` was \"bf16\", is now \"tf32\""), "{message}");
    ok(at, &train(&["--steps", "2", "--set", "run.precision=bf16"]));
}

/// An untrained FlexVAE of images of 16 pixels, and the configurations of its transformer's trainings.
fn set_up_flexvar(folder: &Path) {
    image_folder(&folder.join("pictures"), 16, 8);
    let vq =
        VqModelConfig { ch: 32, ch_mult: vec![1, 1], num_res_blocks: 1, z_channels: 8, ..VqModelConfig::vq16(32, 8) };
    let config = FlexVaeConfig { vq, patch_nums: Scales::square(&[1, 2, 4, 8]).expect("valid") };
    let tokenizer = config.init(1, &Device::flex()).expect("valid");
    tokenizer.save(folder.join("flexvae.safetensors"), &SaveOptions::default()).expect("written");
    let common = "tokenizer = \"flexvae.safetensors\"\n[run]\nsteps = 2\nbatch_size = 4\nlog_every = 1\n\
                  [data]\npath = \"pictures\"\n[preview]\nper_class = 1\n\
                  [scales]\nfirst = [1, 2]\ngroups = [{ count = 2, from = 3, to = 6 }]\nlast = 8\nmax_tokens = 140\n";
    let flexvar = format!("positions = 8\n{common}[model]\ndepth = 2\nembed_dim = 64\nnum_heads = 2\n");
    fs::write(folder.join("flexvar.toml"), flexvar).expect("written");
    let sar = format!("init = \"flexvar/transformer.safetensors\"\n{common}[sar]\npreset = \"paper\"\nweight = 0.1\n");
    fs::write(folder.join("sar.toml"), sar).expect("written");
    let forcing = format!(
        "init = \"flexvar/transformer.safetensors\"\n{common}[student_forcing]\nschedule = {{ hybrid-from = 4 }}\n"
    );
    fs::write(folder.join("forcing.toml"), forcing).expect("written");
    let (common, _) = common.split_once("[scales]").expect("a section");
    let va_pi = format!("init = \"flexvar/transformer.safetensors\"\n{common}[va_pi.reward]\nlpips = 0.0\n");
    fs::write(folder.join("va-pi.toml"), va_pi).expect("written");
}

#[test]
fn flexvar_is_trained_and_post_trained() {
    let folder = temporary();
    let at = folder.path();
    set_up_flexvar(at);
    let report = json(at, &["train", "flexvar", "flexvar.toml", "--out", "flexvar"]);
    assert_eq!((&report["steps"], &report["file"]), (&2.into(), &"flexvar/transformer.safetensors".into()), "{report}");
    for (method, name) in [("sar", "sar"), ("sar", "forcing"), ("va-pi", "va-pi")] {
        let config = format!("{name}.toml");
        let report = json(at, &["train", method, &config, "--out", name]);
        assert_eq!(report["steps"], 2, "{report}");
        let transformer = format!("{name}/transformer.safetensors");
        let sample = ["sample", "--tokenizer", "flexvae.safetensors", "--transformer", &transformer];
        let report = json(at, &[&sample[..], &["--class", "waves"]].concat());
        assert_eq!(report["classes"][0]["name"], "waves", "a FlexVAR like any other: {report}");
    }
    let log = fs::read_to_string(at.join("sar/log.jsonl")).expect("a log");
    assert!(log.lines().all(|line| line.contains("student_loss")), "{log}");
    let misspelt = ["train", "sar", "sar.toml", "--out", "other", "--set", "sar.preset=papers"];
    let message = fails(at, 1, &misspelt);
    assert!(message.contains("papers") && message.contains("released, paper"), "{message}");
}

/// When to kill.
#[derive(Debug, Clone, Copy)]
enum When {
    After(Duration),
    /// While a checkpoint is being written, the next one that is seen.
    InSave,
}

/// Starts a training, and kills it (SIGKILL); returns whether it was still at work.
fn killed(folder: &Path, args: &[&str], when: When) -> bool {
    let mut child = command(folder, args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("starts");
    let start = Instant::now();
    let checkpoints = folder.join(args[args.len() - 1]).join("checkpoints");
    loop {
        let now = match when {
            When::After(time) => start.elapsed() >= time,
            When::InSave => names(&checkpoints).iter().any(|name| name.starts_with(".tmp-step")),
        };
        if now {
            child.kill().expect("killed");
        }
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success() || now || status.code().is_none(), "the training failed by itself: {status}");
            return !status.success();
        }
        if now {
            return !child.wait().expect("a child").success();
        }
        // Short: a save of a tiny model takes a millisecond or two.
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A run killed many times ends with the weights of one that was not.
fn survives_kills(folder: &Path, model: &str, weights: &str) {
    let config = format!("{model}.toml");
    let start = Instant::now();
    ok(folder, &["train", model, &config, "--out", "whole"]);
    let whole = start.elapsed();
    let args = ["train", model, &config, "--out", "broken"];
    let (mut kills, mut in_save) = (0, 0);
    for part in [0.1, 0.2, 0.15, 0.25, 0.3, 0.4] {
        kills += u32::from(killed(folder, &args, When::After(whole.mul_f64(part))));
        if killed(folder, &args, When::InSave) {
            kills += 1;
            in_save +=
                u32::from(names(&folder.join("broken/checkpoints")).iter().any(|name| name.starts_with(".tmp-")));
        }
    }
    assert!(kills >= 4 && in_save >= 1, "the test must kill at work: {kills} times, {in_save} of them inside a save");
    ok(folder, &args);
    assert_same_weights(&folder.join("whole").join(weights), &folder.join("broken").join(weights), model);
    let steps = |run: &str| -> Vec<u64> {
        let log = fs::read_to_string(folder.join(run).join("log.jsonl")).expect("a log");
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["step"].as_u64();
        log.lines().map(|line| step(line).expect("a step")).collect()
    };
    assert_eq!(steps("whole"), steps("broken"), "the logs have the same steps, each once");
}

#[test]
fn a_killed_tokenizer_training_ends_with_the_same_weights() {
    let folder = temporary();
    set_up(folder.path(), 16, 2);
    survives_kills(folder.path(), "tokenizer", "tokenizer.safetensors");
}

#[test]
fn a_killed_transformer_training_ends_with_the_same_weights() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 16, 2);
    ok(at, &["train", "tokenizer", "tokenizer.toml", "--out", "tok", "--steps", "2"]);
    fs::copy(at.join("tok/tokenizer.safetensors"), at.join("tokenizer.safetensors")).expect("there");
    survives_kills(at, "var", "transformer.safetensors");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 16, 2);
    ok(at, &["train", "tokenizer", "tokenizer.toml", "--out", "whole", "--steps", "4"]);
    ok(at, &["train", "tokenizer", "tokenizer.toml", "--out", "run", "--steps", "2"]);
    // No file may grow beyond 300 kB: the first part of a checkpoint does.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 300; exec {:?} train tokenizer tokenizer.toml --out run --steps 4",
        env!("CARGO_BIN_EXE_burn-var")
    );
    let output = Command::new("bash").args(["-c", &limited]).current_dir(at).output().expect("bash");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "fails in order: {said}");
    assert!(said.contains("error: cannot write") && said.contains("checkpoints"), "names the file: {said}");
    assert_eq!(json(at, &["info", "run"])["checkpoint"]["step"], 2, "the last good checkpoint is intact");
    assert!(!names(&at.join("run/checkpoints")).iter().any(|name| name.starts_with(".tmp-")), "no halves are left");
    ok(at, &["train", "tokenizer", "tokenizer.toml", "--out", "run", "--steps", "4"]);
    let [whole, run] = ["whole", "run"].map(|run| at.join(run).join("tokenizer.safetensors"));
    assert_same_weights(&whole, &run, "after the disk had space again");
}

#[test]
fn damaged_checkpoints_and_impossible_folders() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 16, 2);
    let train = |out, steps| ["train", "tokenizer", "tokenizer.toml", "--out", out, "--steps", steps];
    ok(at, &train("whole", "4"));
    ok(at, &train("run", "3"));
    let cut = |step: u64| {
        let path: PathBuf = at.join(format!("run/checkpoints/step-{step:08}/model"));
        let bytes = fs::read(&path).expect("a part");
        fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
    };
    cut(3);
    ok(at, &train("run", "4"));
    let [whole, run] = ["whole", "run"].map(|run| at.join(run).join("tokenizer.safetensors"));
    assert_same_weights(&whole, &run, "from the checkpoint before the damaged one");
    names(&at.join("run/checkpoints")).iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).for_each(cut);
    let message = fails_at_the_end(at, &train("run", "5"));
    assert!(message.contains("damaged"), "{message}");

    fs::write(at.join("file"), "").expect("written");
    assert!(fails(at, 1, &train("file/run", "2")).contains("file/run"));
    assert!(fails(at, 1, &["train", "tokenizer", "none.toml", "--out", "x"]).contains("none.toml"));
    fs::write(at.join("wrong.toml"), "[run]\nstep = 3\n").expect("written");
    assert!(fails(at, 1, &["train", "var", "wrong.toml", "--out", "x"]).contains("`step`"));
    fs::remove_dir_all(at.join("image-folder")).expect("removed");
    assert!(fails(at, 1, &train("new", "2")).contains("image-folder"));
}

/// A failure after some notes.
fn fails_at_the_end(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "exit code of {args:?}: {said}");
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    said
}

/// Starts a training of many steps without intermediate checkpoints as `wrap` says, and waits for its first step.
#[cfg(unix)]
fn long_run(at: &Path, wrap: &str) -> Child {
    long_run_with(at, wrap, "")
}

/// [`long_run`] with more arguments.
#[cfg(unix)]
fn long_run_with(at: &Path, wrap: &str, more: &str) -> Child {
    set_up(at, 16, 2);
    let config = fs::read_to_string(at.join("tokenizer.toml")).expect("there");
    let config = config.replace("save_every = 1\n", "save_every = 100000\n").replace("steps = 24", "steps = 100000");
    fs::write(at.join("long.toml"), config).expect("written");
    let program = env!("CARGO_BIN_EXE_burn-var");
    let script = format!("{wrap} exec '{program}' train tokenizer long.toml --json --out run {more}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(at).stderr(Stdio::null()).stdout(Stdio::piped());
    let child = shell.spawn().expect("starts");
    while !at.join("run/log.jsonl").is_file() {
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().expect("kill").success(), "{signal} was sent");
}

#[cfg(unix)]
#[test]
fn signals_end_with_a_checkpoint() {
    for signal in ["-INT", "-TERM"] {
        let folder = temporary();
        let at = folder.path();
        let child = long_run(at, "");
        send(signal, &child);
        let output = child.wait_with_output().expect("a child");
        assert!(output.status.success(), "{signal} ends the run in order: {}", output.status);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["stopped"], true, "{signal}: {report}");
        let info = json(at, &["info", "run"]);
        assert_eq!(info["checkpoint"]["step"], report["steps"], "{signal}: a checkpoint of the last step");
    }
}

/// Two processes that this command starts end as one with two pieces does, also where a signal stops them on the way.
#[cfg(unix)]
#[test]
fn ranks_train_as_pieces_do() {
    let folder = temporary();
    let at = folder.path();
    set_up(at, 16, 2);
    let args = |out, more: &[&'static str]| {
        [&["train", "tokenizer", "tokenizer.toml", "--steps", "4", "--out", out][..], more].concat()
    };
    ok(at, &args("pieces", &["--set", "run.accumulate=2"]));
    let report = json(at, &args("ranks", &["--ranks", "2"]));
    assert_eq!((&report["steps"], &report["stopped"]), (&4.into(), &false.into()), "{report}");
    let files = ["pieces", "ranks"].map(|run| fs::read(at.join(run).join("tokenizer.safetensors")).expect("weights"));
    assert!(files[0] == files[1], "to the bit");
    let message = fails(at, 2, &args("none", &["--rank", "0"]));
    assert!(message.contains("--join"), "{message}");

    let folder = temporary();
    let child = long_run_with(folder.path(), "", "--ranks 2");
    send("-INT", &child);
    let output = child.wait_with_output().expect("a child");
    assert!(output.status.success(), "ends in order: {}", output.status);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report of rank 0 alone");
    assert_eq!(report["stopped"], true, "{report}");
    assert_eq!(json(folder.path(), &["info", "run"])["checkpoint"]["step"], report["steps"], "with a checkpoint");
}

/// A rank that is killed ends the others with a message that names it.
#[cfg(unix)]
#[test]
fn a_rank_that_dies_ends_the_run_with_its_name() {
    let folder = temporary();
    let at = folder.path();
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let rank = |rank: usize| format!("--ranks 2 --rank {rank} --join {port}");
    set_up(at, 16, 2);
    let config = fs::read_to_string(at.join("tokenizer.toml")).expect("there").replace("steps = 24", "steps = 100000");
    fs::write(at.join("long.toml"), config).expect("written");
    let args = format!("train tokenizer long.toml --out run {}", rank(1));
    let mut second = command(at, &args.split(' ').collect::<Vec<_>>()).stderr(Stdio::null()).spawn().expect("starts");
    let args = format!("train tokenizer long.toml --out run {}", rank(0));
    let first = command(at, &args.split(' ').collect::<Vec<_>>()).stderr(Stdio::piped()).spawn().expect("starts");
    while !at.join("run/log.jsonl").is_file() {
        std::thread::sleep(Duration::from_millis(20));
    }
    second.kill().expect("killed");
    second.wait().expect("a child");
    let output = first.wait_with_output().expect("a child");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: rank 1 has ended without a message"), "{said}");
}

/// `nohup` ignores SIGHUP for its child, and the training must not undo that.
#[cfg(target_os = "linux")]
#[test]
fn ignored_hangups_stay_ignored() {
    let folder = temporary();
    let mut child = long_run(folder.path(), "trap '' HUP;");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the training runs");
    child.kill().expect("killed");
    child.wait().expect("a child");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("signals").trim();
    // SIGHUP is signal 1, the lowest bit.
    assert_eq!(u64::from_str_radix(ignored, 16).expect("hexadecimal") & 1, 1, "SIGHUP is still ignored: {ignored}");
}

/// A step that never ends must not keep the process alive: the second signal ends it.
#[cfg(unix)]
#[test]
fn a_second_signal_ends_at_once() {
    use std::os::unix::process::ExitStatusExt;

    let folder = temporary();
    let mut child = long_run(folder.path(), "");
    // Stopped, the process cannot end its step between the two signals; both are delivered when it continues.
    send("-STOP", &child);
    send("-INT", &child);
    send("-TERM", &child);
    send("-CONT", &child);
    let status = child.wait().expect("a child");
    assert!(matches!(status.signal(), Some(2 | 15)), "ended by the second signal: {status}");
}
