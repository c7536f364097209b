//! `burn-var eval compare`

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn_var_train::eval::{Comparison, FeatureTable, NetworkIdentity, Statistics};
use serde::Serialize;

use super::generated::{FEATURES, STATISTICS};
use crate::output::{Output, usage};

/// Compare two evaluated sets of images: do their Frechet distances differ by more than chance?
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder written by `eval generated --out`.
    first: PathBuf,
    /// Another one, with the same reference and network.
    second: PathBuf,
    /// Bootstrap resamples of both sets.
    #[arg(long, value_name = "TIMES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..))]
    resamples: u32,
    /// Seed of the resamples.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    comparison: Comparison,
    outside_chance: bool,
    resamples: u32,
    seed: u64,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let (a, reference) = read(&args.first)?;
    let (b, other) = read(&args.second)?;
    let [first, second] = [&args.first, &args.second].map(|folder| format!("`{}`", folder.display()));
    NetworkIdentity::check_same((&first, &a.network), (&second, &b.network))?;
    if reference != other {
        return Err(usage(format!(
            "{first} and {second} have different references, so their distances cannot be compared: evaluate both with \
             the same --data or --reference"
        )));
    }
    let comparison = Comparison::of(&a, &b, &reference, args.resamples as usize, args.seed)?;
    let outside_chance = comparison.is_outside_chance();
    let report = Report { comparison, outside_chance, resamples: args.resamples, seed: args.seed };
    output.result(&report, || {
        let Comparison { difference, interval } = comparison;
        let (low, high) = (interval.low, interval.high);
        let verdict = match (outside_chance, difference < 0.0) {
            (false, _) => "no more than chance".to_owned(),
            (true, true) => format!("{second} is nearer to the reference"),
            (true, false) => format!("{first} is nearer to the reference"),
        };
        format!(
            "Frechet distance of {second} minus that of {first}: {difference:.4}\n\
             95% bootstrap interval: {low:.4} to {high:.4}: {verdict}"
        )
    })
}

/// Reads the features of a folder, and the reference statistics that they were compared with.
fn read(folder: &Path) -> Result<(FeatureTable, Statistics)> {
    let features = folder.join(FEATURES);
    let statistics = folder.join(STATISTICS);
    let (table, reference) = (FeatureTable::open(&features)?, Statistics::read(&statistics)?);
    let [features, statistics] = [features, statistics].map(|path| format!("`{}`", path.display()));
    NetworkIdentity::check_statistics((&features, &table.network), (&statistics, reference.network.as_ref()))?;
    Ok((table, reference))
}
