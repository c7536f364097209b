//! Measures as one self-contained HTML page.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use burn_var_train::curves::{Chart, Series};
use burn_var_train::eval::{FeatureTable, ImageSet, confidences, evenly};
use burn_var_train::grid::Grid;
use image::{ImageFormat, RgbImage};

use super::generated::{CLASS_HEADS, Report, class_rows, rows};

/// Images in a grid.
const SHOWN: usize = 64;
/// Images per row of a grid.
const COLUMNS: usize = 16;

/// A captioned grid of images, as a PNG file.
pub(super) struct CaptionedGrid {
    caption: String,
    png: Vec<u8>,
}

/// Returns a grid of evenly spaced images; with a classifier, also of those with the highest and lowest confidence.
pub(super) fn grids(set: &mut dyn ImageSet, table: &FeatureTable, classifier: bool) -> Result<Vec<CaptionedGrid>> {
    let mut wanted = vec![("a sample".to_owned(), evenly(table.count, SHOWN))];
    let labels = set.labels().filter(|_| classifier).map(<[usize]>::to_vec);
    if let Some(labels) = labels {
        let confidences = confidences(table, &labels)?;
        let mut order: Vec<usize> = (0..table.count).collect();
        order.sort_by(|a, b| confidences[*b].total_cmp(&confidences[*a]).then(a.cmp(b)));
        let most = SHOWN.min(table.count);
        wanted.push(("highest confidence".to_owned(), order[..most].to_vec()));
        wanted.push(("lowest confidence".to_owned(), order[table.count - most..].iter().rev().copied().collect()));
    }
    let captioned = |(caption, numbers): (String, Vec<usize>)| Ok(CaptionedGrid { caption, png: grid(set, &numbers)? });
    wanted.into_iter().map(captioned).collect()
}

/// Draws the images with these numbers, in this order.
fn grid(set: &mut dyn ImageSet, numbers: &[usize]) -> Result<Vec<u8>> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let (size, pixels) = (set.size(), set.pick(&sorted)?);
    let image = |number: &usize| {
        let place = sorted.binary_search(number).unwrap_or_default();
        let pixels = pixels[place * size.area() * 3..][..size.area() * 3].to_vec();
        RgbImage::from_raw(size.width as u32, size.height as u32, pixels).context("an image of another size")
    };
    let images = numbers.iter().map(image).collect::<Result<Vec<_>>>()?;
    let mut png = std::io::Cursor::new(Vec::new());
    Grid::new(COLUMNS).sheet(&images)?.write_to(&mut png, ImageFormat::Png).context("a grid as PNG")?;
    Ok(png.into_inner())
}

/// Returns the page about some sets of images, with the grids of the first.
pub(super) fn page(reports: &[(String, Report)], grids: &[CaptionedGrid]) -> Result<String> {
    let mut body = String::new();
    body += "<h1>burn-var: measures of images</h1>\n";
    body += &table(reports);
    if reports.len() > 1 {
        body += &curve(reports)?;
    }
    for (name, report) in reports {
        let _ = writeln!(body, "<h2>{}</h2>", escape(name));
        for (what, value) in [
            ("images", report.samples.clone()),
            ("reference", report.reference.clone()),
            ("network", report.network.clone()),
            ("settings", report.settings.to_string()),
            ("options", report.options.to_string()),
            ("evaluated by", format!("burn-var {} in {:.0} s", report.version, report.seconds)),
        ] {
            let _ = writeln!(body, "<p><b>{what}</b> {}</p>", escape(&value));
        }
        report.notes.iter().for_each(|note| {
            let _ = writeln!(body, "<p class=note>{}</p>", escape(note));
        });
        body += &classes(report);
    }
    for CaptionedGrid { caption, png } in grids {
        let data = STANDARD.encode(png);
        let _ = writeln!(body, "<h2>{}</h2>\n<img alt=\"{0}\" src=\"data:image/png;base64,{data}\">", escape(caption));
    }
    Ok(format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>burn-var: measures</title>\n<style>\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse}}th,td{{padding:.2rem .8rem;border-bottom:1px solid #8884;text-align:right}}\
         th:first-child,td:first-child{{text-align:left}}.note{{color:#a60}}\
         img{{max-width:100%;image-rendering:pixelated}}</style>\n{body}</html>\n"
    ))
}

/// Returns a table with a column per set and a row per measure, and the measures of real images from the first set.
fn table(reports: &[(String, Report)]) -> String {
    let columns: Vec<Vec<[String; 3]>> = reports.iter().map(|(_, report)| rows(report)).collect();
    let mut names: Vec<&String> = Vec::new();
    for [name, ..] in columns.iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let heads: String = reports.iter().map(|(name, _)| format!("<th>{}</th>", escape(name))).collect();
    let line = |name: &String| {
        let find = |column: &[[String; 3]], part: usize| {
            let row = column.iter().find(|row| row[0] == *name);
            row.map(|row| escape(&row[part])).unwrap_or_default()
        };
        let cells: String = columns.iter().map(|column| format!("<td>{}</td>", find(column, 1))).collect();
        let real = columns.first().map(|column| find(column, 2)).unwrap_or_default();
        format!("<tr><td>{}</td>{cells}<td>{real}</td></tr>\n", escape(name))
    };
    let lines: String = names.into_iter().map(line).collect();
    format!("<table><tr><th></th>{heads}<th>real images</th></tr>\n{lines}</table>\n")
}

/// Plots the Frechet distance of each set, with the bounds of its interval.
fn curve(reports: &[(String, Report)]) -> Result<String> {
    let series = |name: &str, value: &dyn Fn(&Report) -> Option<f64>| {
        let points = reports.iter().enumerate();
        let points = points.filter_map(|(i, (_, report))| Some((i as f64, value(report)?))).collect();
        Series { name: name.to_owned(), points }
    };
    let interval = |report: &Report| report.scores.frechet_interval;
    let series = [
        series("Frechet distance", &|report| Some(report.scores.frechet)),
        series("2.5th percentile", &|report| interval(report).map(|interval| interval.low)),
        series("97.5th percentile", &|report| interval(report).map(|interval| interval.high)),
    ];
    let drawn: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    let chart = Chart { smoothing: 0.0, ..Chart::new("Frechet distance of each set", "Frechet distance") };
    Ok(chart.to_svg(&drawn)?)
}

/// Returns the table of the classes of a set, if they were measured.
fn classes(report: &Report) -> String {
    if report.classes.is_empty() {
        return String::new();
    }
    let row = |cells: &[String; 5], tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let lines: String = class_rows(report).iter().map(|cells| row(cells, "td")).collect();
    format!("<table>{}{lines}</table>\n", row(&CLASS_HEADS.map(str::to_owned), "th"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
