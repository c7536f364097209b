//! Several processes of this command on one machine.

use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time between looks at the processes.
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs this command in `count` processes, and waits for all; returns the first that has failed. `configure` adds what is
/// special about each, by its number from 0. After a failure the others get the time `grace` to end by themselves, or as
/// long as they need if there is none.
pub(crate) fn run(
    name: &str,
    count: usize,
    grace: Option<Duration>,
    configure: impl Fn(usize, &mut Command),
) -> Result<Option<(usize, ExitStatus)>> {
    // Signals are passed on, and this process stays until the others have saved their work. Later they end it as ever.
    let (stop, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, over.clone()).context("cannot handle Ctrl-C")?;
        signal_hook::flag::register(signal, stop.clone()).context("cannot handle Ctrl-C")?;
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let threads = available_parallelism().map_or(1, usize::from).div_ceil(count);
    let quiet = std::env::args_os().any(|arg| arg == "--quiet");
    let mut children = Vec::new();
    for number in 0..count {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        // One progress bar is enough.
        if number > 0 && !quiet {
            command.arg("--quiet");
        }
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        of_its_own(&mut command);
        configure(number, &mut command);
        children.push(command.spawn().with_context(|| format!("cannot start {name} {number}"))?);
    }
    let failed = wait(name, &mut children, grace, &stop);
    over.store(true, Ordering::SeqCst);
    failed
}

/// Waits for all processes; returns the first that has failed. The others end soon after it, or are killed.
fn wait(
    name: &str,
    children: &mut [Child],
    grace: Option<Duration>,
    stop: &AtomicBool,
) -> Result<Option<(usize, ExitStatus)>> {
    let (mut failed, mut deadline) = (None, None);
    loop {
        let mut running = 0;
        for (number, child) in children.iter_mut().enumerate() {
            match child.try_wait().with_context(|| format!("cannot wait for {name} {number}"))? {
                None => running += 1,
                Some(status) if !status.success() && failed.is_none() => {
                    failed = Some((number, status));
                    deadline = grace.map(|grace| Instant::now() + grace);
                }
                Some(_) => {}
            }
        }
        if running == 0 {
            return Ok(failed);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            for child in children.iter_mut() {
                // Fails only for one that has ended by itself.
                _ = child.kill();
            }
        }
        if stop.swap(false, Ordering::SeqCst) {
            children.iter().for_each(end);
        }
        sleep(INTERVAL);
    }
}

/// Keeps the signals of the terminal from a process: a second one would end it before its work is saved.
#[cfg(unix)]
fn of_its_own(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

/// Elsewhere, the processes get the signals themselves.
#[cfg(not(unix))]
fn of_its_own(_: &mut Command) {}

/// Asks a process to end; a training ends after its step, or, asked twice, at once.
#[cfg(unix)]
fn end(child: &Child) {
    // SAFETY: sends a signal to a process that this one has started and not yet waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

/// Elsewhere, the processes get the signals themselves.
#[cfg(not(unix))]
fn end(_: &Child) {}
