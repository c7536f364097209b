//! The commands in the README: all of them parse, and those run that need nothing but small files made here.

mod support;

use std::fs;
use std::path::Path;

use support::{colour_image, command, ok};

const README: &str = include_str!("../../README.md");

/// Files and data that are not made here; a command that names one is parsed only.
const ABSENT: [&str; 11] = [
    "c2i_B",
    "FlexVAR",
    "aid.toml",
    "runs/aid/",
    "runs/dino/",
    "var_d16",
    "--inception",
    "eval compare",
    "classifier.safetensors",
    "cargo test",
    "eval sweep",
];

/// Returns the texts of the code blocks in a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    README.split(&*opening).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// Returns the commands of all shell blocks as arguments, without comments and with continued lines joined.
fn commands() -> Vec<Vec<&'static str>> {
    let mut commands: Vec<Vec<&str>> = Vec::new();
    let mut continued = false;
    for line in blocks("sh").into_iter().flat_map(str::lines) {
        let line = line.split(" #").next().unwrap_or_default().trim();
        let words = line.trim_end_matches('\\').split_whitespace();
        match commands.last_mut().filter(|_| continued) {
            Some(command) => command.extend(words),
            None => commands.push(words.collect()),
        }
        continued = line.ends_with('\\');
    }
    commands.retain(|words| !words.is_empty());
    commands
}

/// Returns the arguments of a call of `burn-var`, or nothing for another command.
fn arguments<'a>(words: &'a [&'static str]) -> Option<&'a [&'static str]> {
    const CARGO: [&str; 6] = ["cargo", "run", "--release", "-p", "burn-var-cli", "--"];
    words.strip_prefix(&["burn-var"]).or_else(|| words.strip_prefix(&CARGO))
}

fn is_absent(words: &[&str]) -> bool {
    let line = words.join(" ");
    ABSENT.iter().any(|name| line.contains(name))
}

/// Returns `true` for a call of a script of the repository.
fn is_script(words: &[&str]) -> bool {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    matches!(words, ["sh", script, ..] if root.join(script).is_file())
}

#[test]
fn every_command_parses() {
    let folder = tempfile::tempdir().expect("a folder");
    let commands = commands();
    assert!(commands.len() >= 15, "the README has commands: {commands:?}");
    for words in &commands {
        let Some(args) = arguments(words) else {
            assert!(is_absent(words) || is_script(words), "an unknown program: {words:?}");
            continue;
        };
        // With --help nothing runs, but an unknown argument or value is still an error.
        let help = ok(folder.path(), &[args, &["--help"]].concat());
        assert!(help.contains("Usage: burn-var"), "{words:?}: {help}");
    }
}

/// Writes small images of four classes, the configurations of both trainings, and an image to edit.
fn set_up(folder: &Path) {
    for class in 0..4 {
        let images = folder.join("pictures").join(format!("class-{class}"));
        fs::create_dir_all(&images).expect("created");
        (0..3).for_each(|i| colour_image(16, class + 4 * i).save(images.join(format!("{i}.png"))).expect("written"));
    }
    let run = "[run]\nsteps = 2\nbatch_size = 4\n[data]\npath = \"pictures\"\n";
    let tokenizer = format!(
        "{run}[model]\nch = 32\nch_mult = [1, 1]\nnum_res_blocks = 1\nz_channels = 8\nvocab_size = 32\n\
         patch_nums = [1, 2, 4, 8]\n"
    );
    fs::write(folder.join("tokenizer.toml"), tokenizer).expect("written");
    let transformer = format!(
        "tokenizer = \"runs/tokenizer/tokenizer.safetensors\"\n{run}[model]\ndepth = 2\nembed_dim = 32\nnum_heads = 2\n"
    );
    fs::write(folder.join("transformer.toml"), transformer).expect("written");
    colour_image(28, 3).save(folder.join("coat.png")).expect("written");
}

#[test]
fn commands_run_in_the_order_of_the_page() {
    let folder = tempfile::tempdir().expect("a folder");
    set_up(folder.path());
    let mut count = 0;
    for words in commands().iter().filter(|words| !is_absent(words)) {
        let Some(args) = arguments(words) else { continue };
        let output = command(folder.path(), args).output().expect("the binary starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`burn-var {}`: {errors}", args.join(" "));
        if count == 0 {
            let printed = String::from_utf8(output.stdout).expect("UTF-8");
            let shown = blocks("text").first().copied().unwrap_or_default();
            assert_eq!(without_seconds(&printed), without_seconds(shown), "what the page says is printed");
        }
        count += 1;
    }
    assert!(count >= 8, "most commands run: {count}");
}

/// Replaces the number before ` s` by a name.
fn without_seconds(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let seconds = |i: usize| words.get(i + 1).is_some_and(|next| next.starts_with("s:") || *next == "s");
    let replaced = words.iter().enumerate().map(|(i, word)| if seconds(i) { "SECONDS" } else { word });
    replaced.collect::<Vec<_>>().join(" ")
}
