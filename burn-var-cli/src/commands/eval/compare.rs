//! `burn-var eval compare`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn_var_train::eval::{Comparison, FeatureTable, NetworkIdentity, Statistics};
use serde::Serialize;

use super::generated::{FEATURES, JUDGES, STATISTICS};
use crate::output::{Output, usage};

/// Compare two evaluated sets of images: do their Frechet distances differ by more than chance? Through the judges that
/// both were evaluated by, too.
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
    compared: Compared,
    /// The same through each judge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    judges: Vec<Judge>,
    resamples: u32,
    seed: u64,
}

/// A comparison through one network.
#[derive(Debug, Serialize)]
struct Compared {
    #[serde(flatten)]
    comparison: Comparison,
    outside_chance: bool,
}

#[derive(Debug, Serialize)]
struct Judge {
    name: String,
    #[serde(flatten)]
    compared: Compared,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let compared = compare(args, "")?;
    let mut judges = Vec::new();
    for name in judges_in(&args.first)? {
        let folder = Path::new(JUDGES).join(&name);
        if args.second.join(&folder).is_dir() {
            judges.push(Judge { name, compared: compare(args, folder)? });
        }
    }
    let report = Report { compared, judges, resamples: args.resamples, seed: args.seed };
    output.result(&report, || {
        let [first, second] = [&args.first, &args.second].map(|folder| format!("`{}`", folder.display()));
        let interval = |Compared { comparison: Comparison { interval, .. }, outside_chance }: &Compared| {
            let verdict = match (outside_chance, interval.high < 0.0) {
                (false, _) => "no more than chance".to_owned(),
                (true, true) => format!("{second} is nearer to the reference"),
                (true, false) => format!("{first} is nearer to the reference"),
            };
            format!("95% bootstrap interval: {:.4} to {:.4}: {verdict}", interval.low, interval.high)
        };
        let mut lines = vec![
            format!("Frechet distance of {second} minus that of {first}: {:.4}", report.compared.comparison.difference),
            interval(&report.compared),
        ];
        lines.extend(report.judges.iter().map(|Judge { name, compared }| {
            format!("through {name}: {:.4}, {}", compared.comparison.difference, interval(compared))
        }));
        lines.join("\n")
    })
}

/// Compares the two results in a sub-folder of both folders.
fn compare(args: &Args, folder: impl AsRef<Path>) -> Result<Compared> {
    let folders = [&args.first, &args.second].map(|path| path.join(&folder));
    let (a, reference) = read(&folders[0])?;
    let (b, other) = read(&folders[1])?;
    let [first, second] = [&folders[0], &folders[1]].map(|folder| format!("`{}`", folder.display()));
    NetworkIdentity::check_same((&first, &a.network), (&second, &b.network))?;
    if reference != other {
        return Err(usage(format!(
            "{first} and {second} have different references, so their distances cannot be compared: evaluate both with \
             the same --data or --reference"
        )));
    }
    let comparison = Comparison::of(&a, &b, &reference, args.resamples as usize, args.seed)?;
    Ok(Compared { comparison, outside_chance: comparison.is_outside_chance() })
}

/// Returns the names of the judges in a folder of results, in order.
fn judges_in(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.join(JUDGES);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let cannot = || format!("cannot read `{}`", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(cannot)? {
        names.push(entry.with_context(cannot)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
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
