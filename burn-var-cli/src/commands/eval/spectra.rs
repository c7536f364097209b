//! `burn-var eval spectra`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::metrics::Spectrum;
use burn_var_train::curves::{Chart, Series};
use serde::Serialize;

use crate::generator::{DrawArgs, Generator, Plain, Wanted};
use crate::models::check_target;
use crate::output::{Output, usage};

/// Measure which frequencies of the logits guidance strengthens, as figure 4a of the Scaled Spatial Guidance paper.
///
/// Images are generated with classifier-free guidance alone. The guided model is then teacher-forced with the same
/// tokens, so that both have the same input at every scale. The logarithms of the magnitudes of their logits are compared
/// for each frequency.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Images to generate, in equal parts of all classes.
    #[arg(long, value_name = "IMAGES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Plot the changes, an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    draw: DrawArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(rename = "pictures")]
    images: usize,
    scales: Vec<Change>,
    settings: serde_json::Value,
}

/// The change of the logits of one scale by guidance.
#[derive(Debug, Serialize)]
struct Change {
    scale: usize,
    side: usize,
    /// Side of the scale before, which has the frequencies below it too.
    side_before: usize,
    /// Mean log-magnitude of the guided logits minus that of the plain ones, from frequency 0 on.
    change: Vec<f64>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    if let Some(path) = &args.plot {
        check_target(path)?;
    }
    let generator = Generator::new(&args.draw, Plain::Too, device)?;
    if !generator.is_guided() {
        return Err(usage("nothing to compare: name a guidance, such as --ssg"));
    }
    let sizes = generator.pipeline.scales().sizes();
    let empty: Vec<Spectrum> = sizes.iter().map(|size| Spectrum::new(*size)).collect();
    let (mut plain, mut guided) = (empty.clone(), empty);
    let labels = generator.labels_in_turn(args.count as usize);
    let bar = output.bar(labels.len(), "images");
    generator.run(&labels, Wanted { logits: true, plain: true, ..Default::default() }, |batch| {
        let teacher_forced = generator.teacher_forced(batch.labels, batch.first, batch.output.tokens.clone())?.logits;
        for (spectra, logits) in [(&mut plain, batch.output.logits), (&mut guided, teacher_forced)] {
            spectra.iter_mut().zip(logits).try_for_each(|(spectrum, logits)| spectrum.push(logits))?;
        }
        bar.inc(batch.labels.len() as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    let side = |k: usize| sizes[k].height.max(sizes[k].width);
    let change = |k: usize| {
        let pairs = guided[k].by_frequency().into_iter().zip(plain[k].by_frequency());
        Change { scale: k, side: side(k), side_before: side(k - 1), change: pairs.map(|(a, b)| a - b).collect() }
    };
    let report =
        Report { images: labels.len(), scales: (1..sizes.len()).map(change).collect(), settings: generator.settings() };
    if let Some(path) = &args.plot {
        let line = |Change { side, side_before, change, .. }: &Change| Series {
            name: format!("{side_before} to {side}"),
            points: change.iter().enumerate().map(|(frequency, change)| (frequency as f64, *change)).collect(),
        };
        let lines: Vec<Series> = report.scales.iter().map(line).collect();
        let chart =
            Chart { smoothing: 0.0, ..Chart::new("Change of the logits by guidance, for each scale", "change of ln") };
        Chart { across: "frequency, half-waves across the map".to_owned(), ..chart }.write(path, &lines)?;
    }
    output.result(&report, || text(&report))
}

/// Returns a table in Markdown.
fn text(report: &Report) -> String {
    let most = report.scales.iter().map(|change| change.side).max().unwrap_or_default();
    let head: String = (0..most).map(|frequency| format!(" {frequency} |")).collect();
    let rule = " ---: |".repeat(most);
    let row = |Change { side, side_before, change, .. }: &Change| {
        let value = |frequency: usize| match change.get(frequency) {
            None => " |".to_owned(),
            Some(change) if frequency < *side_before => format!(" {change:+.3} |"),
            Some(change) => format!(" **{change:+.3}** |"),
        };
        format!("| {side_before} to {side} |{}", (0..most).map(value).collect::<String>())
    };
    format!(
        "change of the mean ln magnitude of the logits of {} images, by frequency; bold: frequencies that the scale before lacks\n\n\
         | sides |{head}\n| --- |{rule}\n{}",
        report.images,
        report.scales.iter().map(row).collect::<Vec<_>>().join("\n")
    )
}
