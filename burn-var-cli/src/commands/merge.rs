//! `burn-var merge`

use std::path::PathBuf;

use anyhow::Result;
use burn_var_train::eval::{SampleFile, merge_samples};
use serde::Serialize;

use crate::models::check_target;
use crate::output::Output;

/// Put the shards of `sample --npz` together to the file of one run, byte for byte.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All shards of a run, in any order: `images.*-of-8.npz`. One that is missing, is there twice or belongs to another run
    /// is an error.
    #[arg(required = true, value_name = "FILE")]
    shards: Vec<PathBuf>,
    /// The file of all images.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "pictures")]
    images: usize,
    shards: usize,
    npz: PathBuf,
}

pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    check_target(&args.out)?;
    let mut images = 0;
    for shard in &args.shards {
        images += SampleFile::open(shard)?.count();
    }
    let bar = output.bar(images, "images");
    let merged = merge_samples(&args.shards, &args.out, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let report = Report { images, shards: merged?, npz: args.out.clone() };
    output.result(&report, || format!("{images} images of {} shards: {}", report.shards, report.npz.display()))
}
