//! Progress of a training run in the terminal, and its orderly end on Ctrl-C.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use burn_var_train::progress::{Progress, Speed, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::{emulate_default_handler, register};

use crate::output::bytes;

/// Shows a run, and ends it when the user asks for that.
pub(crate) struct TrainProgress {
    mode: Mode,
    /// Set by a signal: the run ends after the current step, with a checkpoint.
    stop: Arc<AtomicBool>,
    /// Completed steps.
    pub(crate) step: u64,
    /// Speed and memory, as of the last measured step.
    measured: String,
}

enum Mode {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl TrainProgress {
    /// Shows a bar on a terminal and lines elsewhere.
    ///
    /// From here on, Ctrl-C or `kill` (SIGINT or SIGTERM) ends the run after the current step, with a checkpoint. A
    /// second signal ends the process at once.
    ///
    /// # Errors
    /// If the system refuses the signal handlers.
    pub(crate) fn new(quiet: bool) -> Result<Self> {
        let stop = stop_on_signals().context("cannot handle Ctrl-C")?;
        let style = "{msg}\n{bar:40} {pos}/{len} {prefix}";
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, false) => Mode::Lines,
            (false, true) => Mode::Bar(
                ProgressBar::no_length()
                    .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar())),
            ),
        };
        Ok(Self { mode, stop, step: 0, measured: String::new() })
    }
}

impl Progress for TrainProgress {
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()> {
        self.step = report.step;
        let figures = report.figures.iter().fold(String::new(), |mut text, (name, value)| {
            // Writing to a string cannot fail.
            let _ = write!(text, " {name} {}", number(*value));
            text
        });
        if let Some(speed) = &report.speed {
            self.measured = measured(speed);
        }
        let speed = speed(report, &self.measured);
        match &self.mode {
            Mode::Bar(bar) => {
                bar.set_length(report.steps);
                bar.set_position(report.step);
                bar.set_prefix(speed);
                if !figures.is_empty() {
                    bar.set_message(figures.trim_start().to_owned());
                }
                if report.step == report.steps {
                    bar.finish();
                }
            }
            Mode::Lines if !figures.is_empty() => {
                eprintln!("step {}/{}{figures} {speed}", report.step, report.steps);
            }
            Mode::Lines | Mode::Silent => {}
        }
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn note(&mut self, text: &str) {
        match &self.mode {
            Mode::Bar(bar) => bar.println(text),
            Mode::Lines => eprintln!("{text}"),
            Mode::Silent => {}
        }
    }
}

/// Formats images per second and memory, to be added to the speed in steps.
fn measured(speed: &Speed) -> String {
    let memory = speed.memory.map(|memory| format!(", {}", bytes(memory)));
    format!(", {} images/s{}", number(speed.images_per_second), memory.unwrap_or_default())
}

fn speed(report: &StepReport<'_>, measured: &str) -> String {
    let rate = match report.per_second {
        Some(rate) if rate >= 1.0 => format!("{rate:.1} steps/s"),
        Some(rate) => format!("{:.2} s/step", 1.0 / rate),
        None => return String::new(),
    };
    let left = report.remaining.map(|left| {
        let minutes = left.as_secs() / 60;
        match minutes {
            0 => format!(", {} s left", left.as_secs()),
            1..60 => format!(", {minutes} min left"),
            _ => format!(", {} h {} min left", minutes / 60, minutes % 60),
        }
    });
    format!("({rate}{}{measured})", left.unwrap_or_default())
}

/// Formats a metric with four significant digits or decimals.
fn number(value: f64) -> String {
    if value == 0.0 || (1e-3..1e5).contains(&value.abs()) { format!("{value:.4}") } else { format!("{value:.3e}") }
}

/// Registers the signal handlers, and returns the flag that the first signal sets.
///
/// SIGHUP stays as it is, so that `nohup` works.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let stop = stop.clone();
        // One exchange, so that of two signals that arrive at once, on two threads, one is the second.
        let action = move || {
            if stop.swap(true, Ordering::SeqCst) {
                // Returns only for a signal that has no default action.
                let _ = emulate_default_handler(signal);
            }
        };
        // SAFETY: the action is safe inside a signal handler: an atomic exchange, and a function made for handlers.
        unsafe { register(signal, action) }?;
    }
    Ok(stop)
}
