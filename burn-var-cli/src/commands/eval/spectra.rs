//! `burn-var eval spectra`

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Device;
use burn_var::Tokenizer;
use burn_var::metrics::Spectrum;
use burn_var_train::curves::{Chart, Series};
use serde::Serialize;

use crate::generator::{DrawArgs, Generator, Plain, Wanted};
use crate::models::check_target;
use crate::output::{Output, usage};

/// Which frequencies of the logits guidance strengthens: figure 4a of the paper of Scaled Spatial Guidance.
///
/// Pictures are drawn with classifier-free guidance alone. Then the same tokens are given to the guided model, so that
/// both see the same at every scale, and the logarithms of their logits' magnitudes are compared, frequency by frequency.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pictures to draw, all classes in equal parts.
    #[arg(long, value_name = "PICTURES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Draw the changes, an SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    draw: DrawArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    pictures: usize,
    scales: Vec<Change>,
    settings: serde_json::Value,
}

/// What guidance does to the logits of one scale.
#[derive(Debug, Serialize)]
struct Change {
    scale: usize,
    side: usize,
    /// Frequencies below it are those that the scale before has too.
    side_before: usize,
    /// Guided less plain mean log-magnitude, from frequency 0 on.
    change: Vec<f64>,
}

pub(crate) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    if let Some(path) = &args.plot {
        check_target(path)?;
    }
    let generator = Generator::new(&args.draw, Plain::Too, device)?;
    if !generator.is_guided() {
        return Err(usage("nothing to compare: name some guidance, --ssg for instance"));
    }
    let sizes = generator.pair.tokenizer.scales().sizes();
    let empty: Vec<Spectrum> = sizes.iter().map(|size| Spectrum::new(*size)).collect();
    let (mut plain, mut guided) = (empty.clone(), empty);
    let labels = generator.pair.classes().in_turn(args.count as usize);
    let bar = output.bar(labels.len(), "pictures");
    generator.run(&labels, Wanted { logits: true, plain: true, ..Default::default() }, |batch| {
        let taught = generator.taught(batch.labels, batch.first, batch.tokens)?;
        for (spectra, logits) in [(&mut plain, batch.logits), (&mut guided, taught)] {
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
    let report = Report {
        pictures: labels.len(),
        scales: (1..sizes.len()).map(change).collect(),
        settings: generator.settings(),
    };
    if let Some(path) = &args.plot {
        let line = |Change { side, side_before, change, .. }: &Change| Series {
            name: format!("{side_before} to {side}"),
            points: change.iter().enumerate().map(|(frequency, change)| (frequency as f64, *change)).collect(),
        };
        let lines: Vec<Series> = report.scales.iter().map(line).collect();
        let chart =
            Chart { smoothing: 0.0, ..Chart::new("What guidance does to logits, scale by scale", "change of ln") };
        Chart { across: "frequency, half waves across the map".to_owned(), ..chart }.write(path, &lines)?;
    }
    output.result(&report, || text(&report))
}

/// A table in Markdown.
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
        "change of the mean ln magnitude of {} pictures' logits, by frequency; bold: beyond those of the scale before\n\n\
         | sides |{head}\n| --- |{rule}\n{}",
        report.pictures,
        report.scales.iter().map(row).collect::<Vec<_>>().join("\n")
    )
}
