//! The results of a sweep.

use std::path::Path;

use anyhow::Result;
use burn_var_train::curves::{Bar, Bars, Chart, Series};
use burn_var_train::eval::{Interval, MethodDistances, Ratios, geometric_mean};
use serde::Serialize;

use super::file::{RealImages, Sweep, Variant};
use super::measure::{Figures, Inputs, Measures};
use crate::output::usage;

/// The seeds of one training.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) training: String,
    pub(super) seeds: Vec<Measures>,
}

/// The measures of one training and seed.
#[derive(Debug, Serialize)]
struct Seed {
    /// Files of the training, if the method has several.
    #[serde(skip_serializing_if = "String::is_empty")]
    training: String,
    #[serde(flatten)]
    figures: Figures,
    /// Frechet distances, by judge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    judged: Vec<f64>,
}

/// A setting with the measures of all trainings and seeds.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    method: String,
    varied: String,
    settings: serde_json::Value,
    /// By training, then seed.
    figures: Vec<Seed>,
    /// The comparison through the judges, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    judged: Option<Judged>,
    #[serde(skip)]
    runs: Vec<Run>,
}

impl Measured {
    pub(super) fn new(variant: &Variant, settings: serde_json::Value, runs: Vec<Run>) -> Self {
        let seed = |run: &Run, measures: &Measures| Seed {
            training: run.training.clone(),
            figures: measures.figures.clone(),
            judged: measures.distances.iter().map(|distance| distance.frechet).collect(),
        };
        let figures = runs.iter().flat_map(|run| run.seeds.iter().map(move |measures| seed(run, measures))).collect();
        let (method, varied) = (variant.method.clone(), variant.varied.clone());
        Self { method, varied, settings, figures, judged: None, runs }
    }

    fn name(&self) -> String {
        [&self.method, &self.varied].map(String::as_str).join(", ").trim_end_matches(", ").to_owned()
    }

    /// Returns mean and standard deviation of a measure over the trainings if there are several, else over the seeds;
    /// `None` if a seed has no such measure.
    fn over_runs(&self, of: impl Fn(&Figures) -> Option<f64>) -> Option<Spread> {
        let of_run = |run: &Run| run.seeds.iter().map(|measures| of(&measures.figures)).collect::<Option<Vec<f64>>>();
        let runs = self.runs.iter().map(of_run).collect::<Option<Vec<_>>>()?;
        Some(match &runs[..] {
            [seeds] => spread(seeds),
            _ => spread(&runs.iter().map(|seeds| spread(seeds).mean).collect::<Vec<_>>()),
        })
    }

    /// Returns mean and standard deviation of the time for an image, over all runs for which it was measured; `None` if it
    /// was for none, since all features were there already.
    fn time(&self) -> Option<Spread> {
        let runs = self.runs.iter().flat_map(|run| &run.seeds);
        let times: Vec<f64> = runs.filter_map(|measures| measures.figures.seconds_per_image).collect();
        (!times.is_empty()).then(|| spread(&times))
    }
}

/// Mean and, for two or more values, standard deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    mean: f64,
    std: Option<f64>,
}

/// One row of the table of judges.
#[derive(Debug, Serialize)]
struct Judged {
    /// The Frechet distance through each judge.
    frechet: Vec<Spread>,
    #[serde(flatten)]
    ratios: Ratios,
}

/// A judge.
#[derive(Debug, Serialize)]
struct Judge {
    name: String,
    network: String,
    /// The Frechet distance of as many training images.
    floor: f64,
    /// This distance, divided by that of the baseline.
    floor_ratio: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    network: String,
    reference: String,
    real_images: RealImages,
    count: usize,
    seeds: usize,
    baseline: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    judges: Vec<Judge>,
    measured: Vec<Measured>,
}

impl Report {
    pub(super) fn new(
        inputs: &Inputs<'_>,
        sweep: &Sweep,
        mut measured: Vec<Measured>,
        baseline: usize,
    ) -> Result<Self> {
        let mut judges = Vec::new();
        if !inputs.floors.is_empty() {
            let distances = |Measured { runs, .. }: &Measured| {
                let of_seed = |measures: &Measures| measures.distances.clone();
                MethodDistances::new(runs.iter().map(|run| run.seeds.iter().map(of_seed).collect()).collect())
            };
            let all = measured.iter().map(distances).collect::<burn_var_train::Result<Vec<_>>>()?;
            for (measured, own) in measured.iter_mut().zip(&all) {
                let ratios = own.ratios(&all[baseline], 0)?;
                let frechet = (0..inputs.floors.len()).map(|judge| spread(&own.spread(judge))).collect();
                measured.judged = Some(Judged { frechet, ratios });
            }
            let judge = |(i, ([name, network], floor)): (usize, ([String; 2], &f64))| {
                let floor_ratio = floor / spread(&all[baseline].by_training(i)).mean;
                Judge { name, network, floor: *floor, floor_ratio }
            };
            judges = inputs.judges().into_iter().zip(&inputs.floors).enumerate().map(judge).collect();
        }
        Ok(Self {
            network: inputs.network(),
            reference: inputs.reference.clone(),
            real_images: sweep.reference,
            count: sweep.count,
            seeds: sweep.seeds.len(),
            baseline: measured[baseline].name(),
            judges,
            measured,
        })
    }

    /// Plots the Frechet distance over the share of recognized images.
    pub(super) fn plot(&self, path: &Path) -> Result<()> {
        let mut lines: Vec<Series> = Vec::new();
        for measured in &self.measured {
            let Some(recognized) = measured.over_runs(|figures| figures.recognized) else {
                return Err(usage(
                    "--plot needs the share of recognized images: name a --classifier with the model's classes",
                ));
            };
            let Some(frechet) = measured.over_runs(|figures| Some(figures.scores.frechet)) else { continue };
            let point = (100.0 * recognized.mean, frechet.mean);
            match lines.iter_mut().find(|line| line.name == measured.method) {
                Some(line) => line.points.push(point),
                None => lines.push(Series { name: measured.method.clone(), points: vec![point] }),
            }
        }
        let chart = Chart { smoothing: 0.0, ..Chart::new("Lower is nearer to real images", "Frechet distance") };
        Ok(Chart { across: "recognized class, %".to_owned(), ..chart }.write(path, &lines)?)
    }

    /// Draws the geometric means over the judges.
    pub(super) fn bars(&self, path: &Path) -> Result<()> {
        let bar = |measured: &Measured| {
            let Ratios { mean, interval, trainings, .. } = &measured.judged.as_ref()?.ratios;
            let points = if trainings.len() > 1 { trainings.clone() } else { Vec::new() };
            let interval = interval.map(|Interval { low, high }| [low, high]);
            Some(Bar { name: measured.name(), value: *mean, interval, points })
        };
        let bars: Vec<Bar> = self.measured.iter().filter_map(bar).collect();
        let title = format!("Frechet distance divided by that of {}, over {} judges", self.baseline, self.judges.len());
        Ok(Bars { title, reference: Some(1.0) }.write(path, &bars)?)
    }

    /// Returns tables in Markdown.
    pub(super) fn text(&self) -> String {
        let row = |measured: &Measured| {
            let number = |digits: usize, factor: f64, of: fn(&Figures) -> Option<f64>| {
                measured.over_runs(of).map_or_else(|| "-".to_owned(), |found| found.text(digits, factor))
            };
            format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                measured.method,
                measured.varied,
                number(4, 1.0, |found| Some(found.scores.frechet)),
                number(2, 100.0, |found| found.recognized),
                number(3, 1.0, |found| found.scores.precision),
                number(3, 1.0, |found| found.scores.recall),
                number(2, 1.0, |found| found.scores.inception_score.map(|[mean, _]| mean)),
                measured.time().map_or_else(|| "-".to_owned(), |found| found.text(1, 1e3)),
            )
        };
        let over = match self.measured.iter().any(|measured| measured.runs.len() > 1) {
            true => "trainings of a method, or over the seeds of one training",
            false => "seeds",
        };
        let head = format!(
            "{} images for each of {} seeds, mean and standard deviation over the {over}, against the {}\n\n\
             | method | varied | Frechet distance | recognized, % | precision | recall | Inception Score | ms per image |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
            self.count, self.seeds, self.reference
        );
        let table = head + &self.measured.iter().map(row).collect::<Vec<_>>().join("\n");
        if self.judges.is_empty() { table } else { format!("{table}\n\n{}", self.judges_text()) }
    }

    /// Returns the table of judges.
    fn judges_text(&self) -> String {
        let of_judge = |column: fn(&Judge) -> String| self.judges.iter().map(column).collect::<String>();
        let floors = format!(
            "| real training images | |{} {:.3} |",
            of_judge(|judge| format!(" {:.4} ({:.3}) |", judge.floor, judge.floor_ratio)),
            geometric_mean(self.judges.iter().map(|judge| judge.floor_ratio)),
        );
        let row = |measured: &Measured| {
            let Judged { frechet, ratios } = measured.judged.as_ref()?;
            let cell = |(found, ratio): (&Spread, &f64)| format!(" {} ({ratio:.3}) |", found.text(4, 1.0));
            let cells: String = frechet.iter().zip(&ratios.by_judge).map(cell).collect();
            let interval = ratios.interval.map(|Interval { low, high }| format!(" ({low:.3} to {high:.3})"));
            let mean = format!("{:.3}{}", ratios.mean, interval.unwrap_or_default());
            Some(format!("| {} | {} |{cells} {mean} |", measured.method, measured.varied))
        };
        let rows: Vec<String> = self.measured.iter().filter_map(row).collect();
        format!(
            "Frechet distance through {} judges, and its ratio to that of {}; the geometric mean of the ratios with its \
             95% bootstrap interval\n\n| method | varied |{} geometric mean |\n| --- | --- |{} ---: |\n{floors}\n{}",
            self.judges.len(),
            self.baseline,
            of_judge(|judge| format!(" {} |", judge.name)),
            " ---: |".repeat(self.judges.len()),
            rows.join("\n")
        )
    }
}

fn spread(values: &[f64]) -> Spread {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    Spread { mean, std: (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt()) }
}

impl Spread {
    fn text(self, digits: usize, factor: f64) -> String {
        match self.std {
            None => format!("{:.digits$}", factor * self.mean),
            Some(std) => format!("{:.digits$} ± {:.digits$}", factor * self.mean, factor * std),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_sample_standard_deviations() {
        assert_eq!(spread(&[2.0]), Spread { mean: 2.0, std: None });
        assert_eq!(spread(&[1.0, 3.0]), Spread { mean: 2.0, std: Some(2f64.sqrt()) });
        assert_eq!(spread(&[1.0, 3.0]).text(2, 10.0), "20.00 ± 14.14");
    }
}
