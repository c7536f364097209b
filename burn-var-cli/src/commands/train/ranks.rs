//! Several processes that train one run.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use burn_var_train::engine::Ranks;

use crate::processes;

/// Time that the other ranks get to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(20);

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
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = port.context("cannot find a port")?;
    let failed = processes::run("rank", count, Some(GRACE), |rank, command| {
        command.args(["--rank", &rank.to_string(), "--join", &address.to_string()]);
        if !ranks_given {
            command.args(["--ranks", &count.to_string()]);
        }
        if rank > 0 {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
    })?;
    match failed {
        None => Ok(()),
        Some((rank, status)) => bail!("rank {rank} has failed ({status}); its message is above"),
    }
}
