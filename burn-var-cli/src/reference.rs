//! The page `docs/cli.md`, made of the command line itself.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};

use crate::cli::Cli;

const UPDATE: &str = "BURN_VAR_UPDATE_DOCS";

fn page() -> String {
    let mut command = Cli::command();
    command.build();
    let mut text =
        "# The command `burn-var`\n\nMade from the command line itself; `burn-var help` shows the same.\n".to_owned();
    add(&mut text, &command, "burn-var");
    text
}

fn add(text: &mut String, command: &Command, path: &str) {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    write!(text, "\n## `{path}`\n\n{about}\n").expect("strings grow");
    // Of global flags, only the first page tells.
    let shown = |arg: &&Arg| {
        !arg.is_hide_set()
            && arg.get_id() != "help"
            && arg.get_id() != "version"
            && (path == "burn-var" || !arg.is_global_set())
    };
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    if !args.is_empty() {
        text.push_str("\n| argument | meaning |\n|---|---|\n");
        args.iter().for_each(|arg| row(text, arg));
    }
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        add(text, sub, &format!("{path} {}", sub.get_name()));
    }
}

fn row(text: &mut String, arg: &Arg) {
    let value = arg.get_value_names().filter(|_| arg.get_action().takes_values()).map(|names| names.join(" "));
    let name = match (arg.get_long(), value) {
        (Some(long), Some(value)) => format!("--{long} {value}"),
        (Some(long), None) => format!("--{long}"),
        (None, value) => value.unwrap_or_default(),
    };
    let mut help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    if !help.ends_with(['.', ']']) {
        help.push('.');
    }
    let values = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() {
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        write!(help, " One of: {}.", names.join(", ")).expect("strings grow");
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        write!(help, " Default: {}.", defaults.join(" ")).expect("strings grow");
    }
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    writeln!(text, "| `{}` | {} |", cell(&name), cell(&help)).expect("strings grow");
}

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, page()).expect("docs/cli.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "docs/cli.md is stale: run this test once with {UPDATE}=1");
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}
