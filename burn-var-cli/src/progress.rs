//! What training shows while it runs.

use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use burn_var_train::progress::{Progress, StepReport};
use indicatif::{ProgressBar, ProgressStyle};

/// Set by Ctrl-C: the run ends after this step, with a checkpoint.
static STOP: AtomicBool = AtomicBool::new(false);

/// How a run is shown.
pub(crate) struct TrainProgress {
    mode: Mode,
    /// Steps done.
    pub(crate) step: u64,
    /// Whether the run was asked to stop.
    pub(crate) stopped: bool,
}

enum Mode {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl TrainProgress {
    /// A bar on a terminal, lines elsewhere. From now on Ctrl-C ends the run in order; a second one ends it at once.
    pub(crate) fn new(quiet: bool) -> Self {
        listen();
        let style = "{msg}\n{bar:40} {pos}/{len} {prefix}";
        let mode = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Mode::Silent,
            (false, false) => Mode::Lines,
            (false, true) => Mode::Bar(
                ProgressBar::no_length()
                    .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar())),
            ),
        };
        Self { mode, step: 0, stopped: false }
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
        let speed = speed(report);
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
        self.stopped = STOP.load(Ordering::Relaxed);
        if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn note(&mut self, text: &str) {
        match &self.mode {
            Mode::Bar(bar) => bar.println(text),
            Mode::Lines => eprintln!("{text}"),
            Mode::Silent => {}
        }
    }
}

fn speed(report: &StepReport<'_>) -> String {
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
    format!("({rate}{})", left.unwrap_or_default())
}

/// Four digits that matter.
fn number(value: f64) -> String {
    if value == 0.0 || (1e-3..1e5).contains(&value.abs()) { format!("{value:.4}") } else { format!("{value:.3e}") }
}

#[cfg(unix)]
fn listen() {
    use std::ffi::c_int;

    unsafe extern "C" {
        fn signal(number: c_int, handler: usize) -> usize;
    }
    const SIGINT: c_int = 2;
    const DEFAULT: usize = 0;

    extern "C" fn stop(_: c_int) {
        STOP.store(true, Ordering::Relaxed);
        // SAFETY: `signal` may be called in a handler.
        unsafe { signal(SIGINT, DEFAULT) };
    }
    let handler: extern "C" fn(c_int) = stop;
    // SAFETY: the handler stores to an atomic and calls `signal`, both of which are allowed in a handler.
    unsafe { signal(SIGINT, handler as usize) };
}

/// Elsewhere Ctrl-C ends the program at once; the last checkpoint is whole all the same.
#[cfg(not(unix))]
fn listen() {}
