//! Images that several processes share.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use burn_var_train::eval::Shard;
use serde::Serialize;

use crate::output::{Output, usage};
use crate::processes;

/// The part of the images that this process generates, or the processes to start.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Several processes")]
pub(crate) struct ShardArgs {
    /// Generate one of several parts of the images, `2/8` for the second of eight: each in a process of its own, on one
    /// machine or on several. `burn-var merge` puts the files of `sample` together, and `eval` its results, when the
    /// command is repeated without --shard.
    #[arg(long, value_name = "NUMBER/COUNT")]
    shard: Option<Shard>,
    /// Number of processes that are started here, each for one part of the images; the parts are then put together.
    /// [default: one for each of --devices]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
    /// Numbers of the GPUs that generate the images together, one process for each, `0,1,2,3` for instance. With --shard,
    /// the shards take them in turn.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    devices: Vec<usize>,
}

impl ShardArgs {
    /// Returns the shard of this process, if it has one.
    pub(crate) fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// Returns `true` if this process starts others, and puts their parts together.
    pub(crate) fn launches(&self) -> bool {
        self.shard.is_none() && self.count() > 1
    }

    /// Returns `true` if the images are generated in several parts.
    pub(crate) fn are_several(&self) -> bool {
        self.shard.is_some() || self.launches()
    }

    /// Returns the files of the processes that are started here.
    pub(crate) fn files(&self, whole: &Path) -> Vec<PathBuf> {
        Shard::all(self.count()).map(|shard| shard.path(whole)).collect()
    }

    /// Returns the number of the GPU of this process.
    pub(crate) fn device(&self) -> Option<usize> {
        let number = self.shard.map_or(1, Shard::number);
        self.devices.get((number - 1) % self.devices.len().max(1)).copied()
    }

    /// Starts the processes and waits for them, if there are several and this is none of them; returns the time it took.
    pub(crate) fn launch(&self) -> Result<Duration> {
        if let (Some(shard), Some(shards)) = (self.shard, self.shards)
            && shard.count() != shards as usize
        {
            return Err(usage(format!("--shard {shard} and --shards {shards} contradict each other: leave one out")));
        }
        if !self.launches() {
            return Ok(Duration::ZERO);
        }
        let (start, count) = (Instant::now(), self.count());
        // One that fails keeps no other from saving its part.
        let failed = processes::run("shard", count, None, |number, command| {
            command.args(["--shard", &format!("{}/{count}", number + 1)]).stdin(Stdio::null()).stdout(Stdio::null());
        })?;
        match failed {
            None => Ok(start.elapsed()),
            Some((number, status)) => bail!(
                "shard {}/{count} has failed ({status}); its message is above. The same command resumes what is missing",
                number + 1
            ),
        }
    }

    fn count(&self) -> usize {
        self.shards.map_or(self.devices.len().max(1), |count| count as usize)
    }
}

/// Turns the error about shards and images that do not fit into one about the command line.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn unfit(error: burn_var_train::Error) -> anyhow::Error {
    usage(error.to_string())
}

/// The result of a shard whose features are saved.
#[derive(Debug, Serialize)]
struct Report<'a> {
    shard: String,
    #[serde(rename = "pictures")]
    images: usize,
    out: &'a Path,
}

/// Prints the result of a shard whose features are saved in a folder.
pub(crate) fn result(output: Output, shard: Shard, images: usize, out: &Path) -> Result<()> {
    let report = Report { shard: shard.to_string(), images, out };
    output.result(&report, || format!("shard {shard}: features of {images} images in {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(shard: Option<&str>, shards: Option<u32>, devices: &[usize]) -> ShardArgs {
        let shard = shard.map(|shard| shard.parse().expect("a shard"));
        ShardArgs { shard, shards, devices: devices.to_vec() }
    }

    #[test]
    fn one_gpu_is_no_reason_for_shards() {
        let plain = args(None, None, &[]);
        assert_eq!((plain.are_several(), plain.device()), (false, None));
        let one = args(None, None, &[3]);
        assert_eq!((one.are_several(), one.launches(), one.device()), (false, false, Some(3)));
    }

    #[test]
    fn shards_take_the_gpus_in_turn() {
        let all = args(None, None, &[4, 5]);
        assert_eq!((all.launches(), all.count(), all.device()), (true, 2, Some(4)));
        assert_eq!(all.files(Path::new("a.npz")), [Path::new("a.1-of-2.npz"), Path::new("a.2-of-2.npz")]);
        let device = |shard: &str| args(Some(shard), None, &[4, 5]).device();
        assert_eq!(["1/4", "2/4", "3/4", "4/4"].map(device), [4, 5, 4, 5].map(Some));
        let one = args(Some("2/8"), None, &[]);
        assert_eq!((one.are_several(), one.launches(), one.device()), (true, false, None));
        assert_eq!(args(None, Some(3), &[0, 1]).count(), 3, "more processes than GPUs");
    }
}
