//! `burn-var eval compare`

use std::path::PathBuf;

use anyhow::Result;
use burn_var_train::eval::{Comparison, FeatureTable, Statistics};
use serde::Serialize;

use super::generated::{FEATURES, STATISTICS};
use crate::output::{Output, usage};

/// Two evaluated sets of pictures.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder that `eval generated --out` has written.
    first: PathBuf,
    /// Another one, against the same reference through the same network.
    second: PathBuf,
    /// How often both sets are drawn again.
    #[arg(long, value_name = "TIMES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..))]
    resamples: u32,
    /// Draws the sets.
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
    let read = |folder: &PathBuf| -> Result<(FeatureTable, Statistics)> {
        Ok((FeatureTable::open(&folder.join(FEATURES))?, Statistics::read(folder.join(STATISTICS))?))
    };
    let ((a, reference), (b, other)) = (read(&args.first)?, read(&args.second)?);
    if reference != other {
        return Err(usage("the two were compared with different references: their distances have nothing in common"));
    }
    let comparison = Comparison::of(&a, &b, &reference.features, args.resamples as usize, args.seed)?;
    let outside_chance = comparison.is_outside_chance();
    let report = Report { comparison, outside_chance, resamples: args.resamples, seed: args.seed };
    output.result(&report, || {
        let Comparison { difference, interval } = comparison;
        let (first, second) = (args.first.display(), args.second.display());
        let (low, high) = (interval.low, interval.high);
        let verdict = match (outside_chance, difference < 0.0) {
            (false, _) => "no more than chance".to_owned(),
            (true, true) => format!("`{second}` is nearer to the reference"),
            (true, false) => format!("`{first}` is nearer to the reference"),
        };
        format!(
            "Frechet distance of `{second}` less that of `{first}`: {difference:.4}\n\
             in 95 of 100 draws between {low:.4} and {high:.4}: {verdict}"
        )
    })
}
