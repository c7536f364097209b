//! Where the time goes: the library's spans, added up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// An operation's share of a run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Share {
    /// The kernel, or the part of a step.
    op: String,
    calls: usize,
    seconds: f64,
    /// Share of the time of the whole run.
    share: f64,
}

/// Runs `work`, and tells what this thread did in it, the longest first. Time within a span inside another counts for
/// the inner one; what no span covers is called `everything else`.
pub(super) fn profile<R>(work: impl FnOnce() -> R) -> (R, Vec<Share>) {
    let open = Arc::new(Mutex::new(State::default()));
    let subscriber = Registry::default().with(Timer(open.clone()));
    let start = Instant::now();
    let result = tracing::subscriber::with_default(subscriber, work);
    let total = start.elapsed();
    let state = std::mem::take(&mut *open.lock().expect("no thread panicked while it held this"));
    let covered: Duration = state.totals.values().map(|(_, time)| *time).sum();
    let rest = ("everything else".to_owned(), (1, total.saturating_sub(covered)));
    let mut shares: Vec<Share> = state
        .totals
        .into_iter()
        .chain([rest])
        .map(|(op, (calls, time))| Share {
            op,
            calls,
            seconds: time.as_secs_f64(),
            share: time.as_secs_f64() / total.as_secs_f64(),
        })
        .collect();
    shares.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (result, shares)
}

/// A table for people.
pub(super) fn table(name: &str, shares: &[Share]) -> String {
    let lines = shares.iter().map(|Share { op, calls, seconds, share }| {
        format!("  {op:<28} {calls:>6} {seconds:>9.3} s {:>5.1}%\n", 100.0 * share)
    });
    format!("{name}\n{}", lines.collect::<String>())
}

#[derive(Default)]
struct State {
    /// The spans that are entered, the innermost last: when, and how long those inside it took.
    entered: Vec<(Instant, Duration)>,
    /// Calls and time of each name.
    totals: BTreeMap<String, (usize, Duration)>,
}

struct Timer(Arc<Mutex<State>>);

/// Key that a span is counted under.
struct Name(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Timer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id).filter(|_| !fields.op.is_empty()) {
            span.extensions_mut().insert(Name(format!("{} {}", fields.op, fields.pass).trim_end().to_owned()));
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        if context.span(id).is_some_and(|span| span.extensions().get::<Name>().is_some()) {
            self.0.lock().expect("never poisoned").entered.push((Instant::now(), Duration::ZERO));
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let Some(Name(name)) = extensions.get::<Name>() else { return };
        let mut state = self.0.lock().expect("never poisoned");
        let Some((start, inside)) = state.entered.pop() else { return };
        let elapsed = start.elapsed();
        if let Some((_, outer)) = state.entered.last_mut() {
            *outer += elapsed;
        }
        let (calls, time) = state.totals.entry(name.clone()).or_default();
        *calls += 1;
        *time += elapsed.saturating_sub(inside);
    }
}

#[derive(Default)]
struct Fields {
    op: String,
    pass: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "op" => self.op = value.to_owned(),
            "pass" => self.pass = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_for_the_innermost_span() {
        let span = |op: &str| tracing::trace_span!("part", op, pass = "forward").entered();
        let wait = || std::thread::sleep(Duration::from_millis(20));
        let (result, shares) = profile(|| {
            let _outer = span("outer");
            for _ in 0..2 {
                let _inner = span("inner");
                wait();
            }
            7
        });
        let find = |op: &str| shares.iter().find(|share| share.op == op).expect("counted");
        assert_eq!(result, 7);
        assert_eq!((find("inner forward").calls, find("outer forward").calls), (2, 1));
        assert!(find("inner forward").seconds >= 0.04, "what it waited");
        let whole: f64 = shares.iter().map(|share| share.share).sum();
        assert!((whole - 1.0).abs() < 1e-9, "no time is counted twice: all shares are {whole}");
    }
}
