//! `burn-var eval report`

use std::path::PathBuf;

use anyhow::{Context, Result};
use burn_var_train::fs::atomic_write;
use serde::Serialize;

use super::generated::{REPORT, Report};
use super::page::page;
use crate::models::check_target;
use crate::output::Output;

/// Folders of results on one page.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folders that `eval generated --out` has written, in the order of the page: checkpoints of a run, or rival
    /// methods.
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
    let read = |folder: &PathBuf| -> Result<(String, Report)> {
        let path = folder.join(REPORT);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let report = serde_json::from_str(&text).with_context(|| format!("`{}` is no report", path.display()))?;
        Ok((folder.file_name().unwrap_or_default().to_string_lossy().into_owned(), report))
    };
    let reports = args.folders.iter().map(read).collect::<Result<Vec<_>>>()?;
    atomic_write(&args.out, page(&reports, &[])?.as_bytes())?;
    let written = Written { file: args.out.clone() };
    output.result(&written, || args.out.display().to_string())
}
