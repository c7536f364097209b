//! Results go to standard output, everything else to standard error.

use std::fmt;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Format of results, and amount of progress.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// Prints a result as JSON, or as the text that `text` returns.
    pub(crate) fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value).context("result as JSON")? } else { text() };
        print(text.trim_end())
    }

    /// Prints a note to standard error.
    pub(crate) fn note(self, text: impl fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Returns a progress bar of `length` steps, which shows on a terminal only.
    pub(crate) fn bar(self, length: usize, what: &str) -> indicatif::ProgressBar {
        if self.quiet {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta} left");
        indicatif::ProgressBar::new(length as u64)
            .with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
            .with_message(what.to_owned())
    }
}

/// Prints a line. A reader that closes the pipe (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(()),
    }
}

/// A mistake on the command line: exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Creates a [`UsageError`].
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// Turns an error of the library about what the user asked for into a [`UsageError`].
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn asked(error: burn_var::Error) -> anyhow::Error {
    usage(error.to_string())
}

/// Returns an error and its causes in one line; causes that the error before them quotes are left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.ends_with(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

/// Formats 12345678 as `12.3 million`.
pub(crate) fn count(number: usize) -> String {
    match number {
        0..100_000 => number.to_string(),
        100_000..1_000_000_000 => format!("{:.1} million", number as f64 / 1e6),
        _ => format!("{:.2} billion", number as f64 / 1e9),
    }
}

/// Formats bytes as `12.3 MB`.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..100_000 => format!("{:.1} kB", number as f64 / 1e3),
        100_000..1_000_000_000 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.2} GB", number as f64 / 1e9),
    }
}
