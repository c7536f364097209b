//! Progress reports of a training loop. The library prints nothing: a caller draws a bar, writes lines, or neither.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;

/// The state of a run after a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport<'a> {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Steps per second over the last steps; `None` before there are two to compare.
    pub per_second: Option<f64>,
    /// Time to the end at that rate.
    pub remaining: Option<Duration>,
    /// Speed and memory, in measured steps.
    pub speed: Option<Speed>,
    /// Metrics of the method: name and value, in the order to show them.
    pub figures: &'a [(&'a str, f64)],
}

/// Speed and memory of the steps since the last measured one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Images of all ranks, by the time of the steps alone: without samples, curves and checkpoints.
    pub images_per_second: f64,
    /// Bytes that the process takes, see [`burn_var::memory::held`].
    pub memory: Option<u64>,
}

/// Time and images of steps.
#[derive(Debug, Default)]
pub struct Meter {
    spent: Duration,
    images: usize,
}

impl Meter {
    /// Adds a step.
    pub fn add(&mut self, images: usize, spent: Duration) {
        self.images += images;
        self.spent += spent;
    }

    /// Returns the speed of the steps since the last call.
    pub fn take(&mut self, memory: Option<u64>) -> Speed {
        let Self { spent, images } = std::mem::take(self);
        // A clock may stand still for a short step.
        let seconds = spent.as_secs_f64().max(1e-9);
        Speed { images_per_second: images as f64 / seconds, memory }
    }
}

/// Listens to a training loop.
pub trait Progress {
    /// Called after every step. `Break` asks for a checkpoint and an orderly end.
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()>;

    /// Called with a message worth a line: resumed, saved, skipped images.
    fn note(&mut self, text: &str);
}

/// Shows nothing.
impl Progress for () {
    fn step(&mut self, _report: &StepReport<'_>) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn note(&mut self, _text: &str) {}
}

/// Rate and remaining time, from the last steps only: a pause for images or a checkpoint is soon forgotten.
#[derive(Debug, Clone)]
pub struct Rate {
    steps: u64,
    recent: VecDeque<(u64, Instant)>,
}

impl Rate {
    const WINDOW: usize = 50;

    /// Starts the clock of a run of `steps` that has done `done` of them.
    pub fn new(done: u64, steps: u64, now: Instant) -> Self {
        Self { steps, recent: VecDeque::from([(done, now)]) }
    }

    /// The report after `step` steps are done.
    pub fn report<'a>(&mut self, step: u64, now: Instant, figures: &'a [(&'a str, f64)]) -> StepReport<'a> {
        self.recent.push_back((step, now));
        if self.recent.len() > Self::WINDOW {
            self.recent.pop_front();
        }
        let per_second = self.recent.front().and_then(|&(first, start)| {
            let seconds = now.duration_since(start).as_secs_f64();
            let done = step.saturating_sub(first) as f64;
            (seconds > 0.0 && done > 0.0).then(|| done / seconds)
        });
        let left = self.steps.saturating_sub(step) as f64;
        let remaining = per_second.and_then(|rate| Duration::try_from_secs_f64(left / rate).ok());
        StepReport { step, steps: self.steps, per_second, remaining, speed: None, figures }
    }
}

/// Stops after a number of steps.
#[cfg(test)]
pub(crate) struct StopAfter(pub(crate) u64);

#[cfg(test)]
impl Progress for StopAfter {
    fn step(&mut self, report: &StepReport<'_>) -> ControlFlow<()> {
        if report.step == self.0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn note(&mut self, _text: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_last_steps() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 310, start);
        let first = rate.report(11, start + Duration::from_secs(1), &[("loss", 0.5)]);
        assert_eq!(first.per_second, Some(1.0), "one step in one second, whatever was done before");
        assert_eq!(first.remaining, Some(Duration::from_secs(299)), "299 steps left");
        let mut now = start + Duration::from_secs(1);
        for step in 12..=111 {
            now += Duration::from_millis(250);
            rate.report(step, now, &[]);
        }
        let last = rate.report(112, now + Duration::from_millis(250), &[]);
        let found = last.per_second.expect("many steps");
        assert!((found - 4.0).abs() < 1e-9, "four a second of late, found {found}");
    }

    #[test]
    fn the_speed_is_that_of_the_steps_since_the_last() {
        let mut meter = Meter::default();
        for _ in 0..3 {
            meter.add(8, Duration::from_millis(500));
        }
        let first = Speed { images_per_second: 16.0, memory: Some(7) };
        assert_eq!(meter.take(Some(7)), first, "24 images in a second and a half");
        meter.add(8, Duration::from_secs(2));
        assert_eq!(meter.take(None).images_per_second, 4.0, "what came before is forgotten");
        assert!(meter.take(None).images_per_second.is_finite(), "no step, no speed");
    }

    #[test]
    fn no_time_no_rate() {
        let now = Instant::now();
        let mut rate = Rate::new(0, 5, now);
        let report = rate.report(0, now, &[]);
        assert_eq!((report.per_second, report.remaining), (None, None), "nothing to measure yet");
        let report = rate.report(7, now + Duration::from_secs(1), &[]);
        assert_eq!(report.remaining, Some(Duration::ZERO), "beyond the end nothing remains");
    }
}
