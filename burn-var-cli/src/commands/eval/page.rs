//! Figures as one page of HTML that needs nothing beside it.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use burn_var_train::curves::{Chart, Series};
use burn_var_train::eval::{FeatureTable, PictureSet, confidences, evenly};
use burn_var_train::grid::Grid;
use image::{ImageFormat, RgbImage};

use super::generated::{CLASS_HEADS, Report, class_rows, rows};

/// Pictures in a grid, and in a row of it.
const SHOWN: usize = 64;
const COLUMNS: usize = 16;

/// A caption and a PNG file.
pub(super) struct Picture {
    caption: String,
    png: Vec<u8>,
}

/// Pictures at even distances; and with a classifier, those it is surest of and those it doubts most.
pub(super) fn grids(set: &mut dyn PictureSet, table: &FeatureTable, classifier: bool) -> Result<Vec<Picture>> {
    let mut wanted = vec![("a sample".to_owned(), evenly(table.count, SHOWN))];
    let labels = set.labels().filter(|_| classifier).map(<[usize]>::to_vec);
    if let Some(labels) = labels {
        let confidences = confidences(table, &labels)?;
        let mut order: Vec<usize> = (0..table.count).collect();
        order.sort_by(|a, b| confidences[*b].total_cmp(&confidences[*a]).then(a.cmp(b)));
        let most = SHOWN.min(table.count);
        wanted.push(("surest".to_owned(), order[..most].to_vec()));
        wanted.push(("most doubtful".to_owned(), order[table.count - most..].iter().rev().copied().collect()));
    }
    wanted.into_iter().map(|(caption, numbers)| Ok(Picture { caption, png: grid(set, &numbers)? })).collect()
}

/// The pictures of these numbers, in their order.
fn grid(set: &mut dyn PictureSet, numbers: &[usize]) -> Result<Vec<u8>> {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let (size, pixels) = (set.size(), set.pick(&sorted)?);
    let picture = |number: &usize| {
        let place = sorted.binary_search(number).unwrap_or_default();
        let pixels = pixels[place * size.area() * 3..][..size.area() * 3].to_vec();
        RgbImage::from_raw(size.width as u32, size.height as u32, pixels).context("a picture of another size")
    };
    let pictures = numbers.iter().map(picture).collect::<Result<Vec<_>>>()?;
    let mut png = std::io::Cursor::new(Vec::new());
    Grid::new(COLUMNS).sheet(&pictures)?.write_to(&mut png, ImageFormat::Png).context("a grid as PNG")?;
    Ok(png.into_inner())
}

/// The page about some sets of pictures, with the grids of the first.
pub(super) fn page(reports: &[(String, Report)], grids: &[Picture]) -> Result<String> {
    let mut body = String::new();
    body += "<h1>burn-var: figures of pictures</h1>\n";
    body += &table(reports);
    if reports.len() > 1 {
        body += &curve(reports)?;
    }
    for (name, report) in reports {
        let _ = writeln!(body, "<h2>{}</h2>", escape(name));
        for (what, value) in [
            ("pictures", report.samples.clone()),
            ("reference", report.reference.clone()),
            ("network", report.network.clone()),
            ("settings", report.settings.to_string()),
            ("options", report.options.to_string()),
            ("made by", format!("burn-var {} in {:.0} s", report.version, report.seconds)),
        ] {
            let _ = writeln!(body, "<p><b>{what}</b> {}</p>", escape(&value));
        }
        report.notes.iter().for_each(|note| {
            let _ = writeln!(body, "<p class=note>{}</p>", escape(note));
        });
        body += &classes(report);
    }
    for Picture { caption, png } in grids {
        let data = STANDARD.encode(png);
        let _ = writeln!(body, "<h2>{}</h2>\n<img alt=\"{0}\" src=\"data:image/png;base64,{data}\">", escape(caption));
    }
    Ok(format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>burn-var: figures</title>\n<style>\
         body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}\
         table{{border-collapse:collapse}}th,td{{padding:.2rem .8rem;border-bottom:1px solid #8884;text-align:right}}\
         th:first-child,td:first-child{{text-align:left}}.note{{color:#a60}}\
         img{{max-width:100%;image-rendering:pixelated}}</style>\n{body}</html>\n"
    ))
}

/// A column a set, a row a figure; what is possible beside the figures of the first.
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
        let possible = columns.first().map(|column| find(column, 2)).unwrap_or_default();
        format!("<tr><td>{}</td>{cells}<td>{possible}</td></tr>\n", escape(name))
    };
    let lines: String = names.into_iter().map(line).collect();
    format!("<table><tr><th></th>{heads}<th>real pictures</th></tr>\n{lines}</table>\n")
}

/// The Frechet distance from set to set, with the bounds of its interval.
fn curve(reports: &[(String, Report)]) -> Result<String> {
    let series = |name: &str, value: &dyn Fn(&Report) -> Option<f64>| {
        let points = reports.iter().enumerate();
        let points = points.filter_map(|(i, (_, report))| Some((i as f64, value(report)?))).collect();
        Series { name: name.to_owned(), points }
    };
    let interval = |report: &Report| report.scores.frechet_interval;
    let series = [
        series("Frechet distance", &|report| Some(report.scores.frechet)),
        series("2.5 of 100 draws below", &|report| interval(report).map(|interval| interval.low)),
        series("2.5 of 100 draws above", &|report| interval(report).map(|interval| interval.high)),
    ];
    let drawn: Vec<Series> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    let chart = Chart { smoothing: 0.0, ..Chart::new("Frechet distance, set by set", "Frechet distance") };
    Ok(chart.to_svg(&drawn)?)
}

/// The classes of a set, if they were measured.
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
