//! `burn-var eval report`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use burn_var_train::eval::NetworkIdentity;
use burn_var_train::fs::atomic_write;
use serde::Serialize;

use super::generated::{REPORT, Report};
use super::page::page;
use crate::models::check_target;
use crate::output::{Output, usage};

/// Write one page about the results in several folders.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folders written by `eval generated --out`, in the order of the page: checkpoints of a run, or methods, evaluated
    /// through one network.
    #[arg(required = true, value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// The page, an HTML file.
    #[arg(long, value_name = "FILE", default_value = "burn-var-report.html")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Written {
    file: PathBuf,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    check_target(&args.out)?;
    let reports = args.folders.iter().map(|folder| read(folder)).collect::<Result<Vec<_>>>()?;
    check_networks(&args.folders, &reports)?;
    atomic_write(&args.out, page(&reports, &[])?.as_bytes())?;
    let written = Written { file: args.out.clone() };
    output.result(&written, || args.out.display().to_string())
}

/// Reads the name and the report of a folder.
fn read(folder: &Path) -> Result<(String, Report)> {
    let path = folder.join(REPORT);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let report = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not a report of `eval generated`", path.display()))?;
    Ok((folder.file_name().unwrap_or_default().to_string_lossy().into_owned(), report))
}

/// Checks that all measures of a page come from one network. Reports of older versions do not record the identity; they
/// can be shown alone, or beside others whose description of the network is the same.
fn check_networks(folders: &[PathBuf], reports: &[(String, Report)]) -> Result<()> {
    let mut named =
        folders.iter().zip(reports).map(|(folder, (_, report))| (format!("`{}`", folder.display()), report));
    let Some((first_name, first)) = named.next() else { return Ok(()) };
    for (name, report) in named {
        for judge in &report.judges {
            let other = first.judges.iter().find(|other| other.name == judge.name && other.network != judge.network);
            if let Some(other) = other {
                return Err(usage(format!(
                    "the measures of different networks do not belong on one page: the judge `{}` of {first_name} is \
                     [{}], that of {name} is [{}]; evaluate both again through the same judges, or write a page for each",
                    judge.name, other.network, judge.network
                )));
            }
        }
        match (&first.identity, &report.identity) {
            (Some(a), Some(b)) => NetworkIdentity::check_same((&first_name, a), (&name, b))?,
            (None, None) if first.network == report.network => {}
            _ => {
                return Err(usage(format!(
                    "the measures of different networks do not belong on one page: {first_name} has [{}], {name} has \
                     [{}]; evaluate both again through one network, or write a page for each",
                    first.network, report.network
                )));
            }
        }
    }
    Ok(())
}
