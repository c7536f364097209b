//! Several processes that train one run.

use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burn_var_train::engine::Ranks;

/// Time that the other ranks get to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(20);
/// Time between looks at the ranks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Data-parallel training.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number of processes that train together, the ranks: each computes its part of every batch. Without `--rank`, all
    /// are started here.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// Number of this process among the ranks, from 0, where each is started by itself: on several machines, for instance.
    #[arg(long, value_name = "NUMBER", requires = "ranks", requires = "join")]
    rank: Option<usize>,
    /// Address at which rank 0 listens and the others find it, the same for all. The connections are not encrypted.
    #[arg(long, value_name = "HOST:PORT", requires = "rank")]
    join: Option<String>,
    /// Numbers of the GPUs to train on, one for each rank that is started here, `0,1,2,3` for instance. Without `--ranks`,
    /// there are as many ranks as GPUs; with `--rank`, the ranks take them in turn.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    devices: Vec<usize>,
}

impl Args {
    /// Returns the number of ranks.
    fn count(&self) -> usize {
        self.ranks.map_or(self.devices.len().max(1), |ranks| ranks as usize)
    }

    /// Starts the ranks and waits for them, if there are several and this process is none of them; returns whether it did.
    pub(crate) fn launch(&self) -> Result<bool> {
        let launches = self.rank.is_none() && self.count() > 1;
        if launches {
            launch(self.count(), self.ranks.is_some())?;
        }
        Ok(launches)
    }

    /// Returns the number of the GPU of this rank.
    pub(crate) fn device(&self) -> Option<usize> {
        self.devices.get(self.rank.unwrap_or(0) % self.devices.len().max(1)).copied()
    }

    /// Returns the ranks of the run, once all have joined.
    pub(super) fn join(&self) -> Result<Ranks> {
        match (self.rank, &self.join) {
            (Some(rank), Some(address)) => Ok(Ranks::join(rank, self.count(), address)?),
            _ => Ok(Ranks::alone()),
        }
    }
}

/// Runs this command once for every rank, on this machine, and waits for all. Rank 0 has the terminal.
fn launch(count: usize, ranks_given: bool) -> Result<()> {
    // Signals are passed on, and this process stays until the ranks have written their checkpoint.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("cannot handle Ctrl-C")?;
    }
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = port.context("cannot find a port")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let threads = available_parallelism().map_or(1, usize::from).div_ceil(count);
    let mut ranks = Vec::new();
    for rank in 0..count {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).args(["--rank", &rank.to_string(), "--join", &address.to_string()]);
        if !ranks_given {
            command.args(["--ranks", &count.to_string()]);
        }
        of_its_own(&mut command);
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        if rank > 0 {
            command.args(["--quiet"]).stdin(Stdio::null()).stdout(Stdio::null());
        }
        ranks.push(command.spawn().with_context(|| format!("cannot start rank {rank}"))?);
    }
    let failed = wait(&mut ranks, &stop)?;
    match failed {
        None => Ok(()),
        Some((rank, status)) => bail!("rank {rank} has failed ({status}); its message is above"),
    }
}

/// Waits for all ranks; returns the first that has failed. The others end soon after it, or are killed.
fn wait(ranks: &mut [Child], stop: &AtomicBool) -> Result<Option<(usize, ExitStatus)>> {
    let (mut failed, mut deadline) = (None, None);
    loop {
        let mut running = 0;
        for (rank, child) in ranks.iter_mut().enumerate() {
            match child.try_wait().with_context(|| format!("cannot wait for rank {rank}"))? {
                None => running += 1,
                Some(status) if !status.success() && failed.is_none() => {
                    failed = Some((rank, status));
                    deadline = Some(Instant::now() + GRACE);
                }
                Some(_) => {}
            }
        }
        if running == 0 {
            return Ok(failed);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            for child in ranks.iter_mut() {
                // Fails only for one that has ended by itself.
                _ = child.kill();
            }
        }
        if stop.swap(false, Ordering::SeqCst) {
            ranks.iter().for_each(end);
        }
        sleep(INTERVAL);
    }
}

/// Keeps the signals of the terminal from a rank: a second one would end it before its checkpoint.
#[cfg(unix)]
fn of_its_own(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

/// Elsewhere, the ranks get the signals themselves.
#[cfg(not(unix))]
fn of_its_own(_: &mut Command) {}

/// Asks a rank to end after its step; asked twice, it ends at once.
#[cfg(unix)]
fn end(child: &Child) {
    // SAFETY: sends a signal to a process that this one has started and not yet waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
}

/// Elsewhere, the ranks get the signals themselves.
#[cfg(not(unix))]
fn end(_: &Child) {}
