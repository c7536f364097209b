//! Loss curves as SVG, from the records of a run's log.

use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde_json::Value;

use crate::fs::atomic_write;
use crate::{Error, Result};

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Step and value, by rising step.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// The values under a dotted key (`loss`, `scales.3.accuracy`; a number indexes a list), by the records' `step`.
    ///
    /// Records without the key are left out, so training and validation records can share a log.
    pub fn from_log(records: &[Value], key: &str) -> Self {
        let pointer = format!("/{}", key.replace('.', "/"));
        let point = |record: &Value| Some((record.get("step")?.as_f64()?, record.pointer(&pointer)?.as_f64()?));
        Self { name: key.to_string(), points: records.iter().filter_map(point).collect() }
    }

    /// The moving average with `weight` in `[0, 1)` on the past, unbiased at the start.
    fn smoothed(&self, weight: f64) -> Vec<(f64, f64)> {
        let (mut sum, mut total) = (0.0, 0.0);
        let average = |&(step, value): &(f64, f64)| {
            sum = sum * weight + value;
            total = total * weight + 1.0;
            (step, sum / total)
        };
        self.points.iter().map(average).collect()
    }
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// Beside the vertical axis.
    pub unit: String,
    /// Below the horizontal axis.
    pub across: String,
    /// Logarithmic values; those of 0 and less are left out.
    pub log_scale: bool,
    /// Weight of the past in the line drawn over the faint raw one, in `[0, 1)`; 0 draws the raw one alone.
    pub smoothing: f64,
}

impl Chart {
    /// A linear chart with a light smoothing.
    pub fn new(title: impl Into<String>, unit: impl Into<String>) -> Self {
        let across = "step".to_owned();
        Self { title: title.into(), unit: unit.into(), across, log_scale: false, smoothing: 0.9 }
    }

    /// Draws the series and writes the file atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written, [`Error::Config`] for a smoothing outside `[0, 1)`.
    pub fn write(&self, path: impl AsRef<Path>, series: &[Series]) -> Result<()> {
        atomic_write(path, self.to_svg(series)?.as_bytes())
    }

    /// Draws the series.
    ///
    /// # Errors
    /// [`Error::Config`] for a smoothing outside `[0, 1)`.
    pub fn to_svg(&self, series: &[Series]) -> Result<String> {
        if !(0.0..1.0).contains(&self.smoothing) {
            return Err(Error::config("smoothing", self.smoothing, "a number from 0 up to, not including, 1"));
        }
        let series: Vec<_> = series.iter().map(|series| self.drawable(series)).collect();
        let points = || series.iter().flat_map(|s| s.points.iter());
        let (x0, x1) = bounds(points().map(|p| p.0));
        let (y0, y1) = bounds(points().map(|p| p.1));
        let mut svg = String::new();
        let drawn = if self.log_scale {
            // Without points the bounds are 0 and 1, and a logarithmic axis has no 0.
            let low = if y0 > 0.0 { y0 } else { y1 * 0.1 };
            self.draw(&mut svg, &series, x0..x1, (low..y1).log_scale())
        } else {
            self.draw(&mut svg, &series, x0..x1, y0..y1)
        };
        // Text in memory has no way to fail but through plotters itself.
        drawn.map_err(|reason| Error::config("chart", &self.title, reason))?;
        Ok(svg)
    }

    fn drawable(&self, series: &Series) -> Series {
        let shown = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite() && (!self.log_scale || p.1 > 0.0);
        Series { name: series.name.clone(), points: series.points.iter().filter(shown).copied().collect() }
    }

    fn draw<Y>(&self, svg: &mut String, series: &[Series], x: std::ops::Range<f64>, y: Y) -> Result<(), String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let root = SVGBackend::with_string(svg, (900, 540)).into_drawing_area();
        let draw = || -> Result<(), Box<dyn std::error::Error + '_>> {
            root.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&root)
                .caption(&self.title, ("sans-serif", 20))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(70)
                .build_cartesian_2d(x, y)?;
            chart.configure_mesh().max_light_lines(0).x_desc(&self.across).y_desc(&self.unit).draw()?;
            for (index, series) in series.iter().enumerate() {
                let color = Palette99::pick(index).to_rgba();
                let line = if self.smoothing > 0.0 {
                    chart.draw_series(LineSeries::new(series.points.iter().copied(), color.mix(0.25)))?;
                    series.smoothed(self.smoothing)
                } else {
                    series.points.clone()
                };
                chart
                    .draw_series(LineSeries::new(line, color.stroke_width(2)))?
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            }
            if !series.is_empty() {
                chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
            }
            root.present()?;
            Ok(())
        };
        draw().map_err(|e| e.to_string())
    }
}

/// One bar of [`Bars`].
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name beside the bar.
    pub name: String,
    /// Length of the bar, positive.
    pub value: f64,
    /// Interval of the value.
    pub interval: Option<[f64; 2]>,
    /// Single values behind the mean, drawn as dots.
    pub points: Vec<f64>,
}

/// A chart of horizontal bars from 0, one below the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// Above the chart.
    pub title: String,
    /// A value that all bars are compared with, drawn as a line.
    pub reference: Option<f64>,
}

impl Bars {
    const WIDTH: i32 = 900;
    const TOP: i32 = 50;
    const ROW: i32 = 30;
    /// Pixels for the names, and for the values at the end.
    const SIDES: [i32; 2] = [330, 150];

    /// Draws the bars and writes the file atomically.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>, bars: &[Bar]) -> Result<()> {
        atomic_write(path, self.to_svg(bars)?.as_bytes())
    }

    /// Draws the bars. Values that are not finite are left out.
    ///
    /// # Errors
    /// [`Error::Config`] if the chart cannot be drawn.
    pub fn to_svg(&self, bars: &[Bar]) -> Result<String> {
        let mut svg = String::new();
        // Text in memory has no way to fail but through plotters itself.
        self.draw(&mut svg, bars).map_err(|reason| Error::config("chart", &self.title, reason))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String, bars: &[Bar]) -> std::result::Result<(), String> {
        let values = |bar: &Bar| {
            let interval = bar.interval.into_iter().flatten();
            bar.points.iter().copied().chain(interval).chain([bar.value]).collect::<Vec<f64>>()
        };
        let all = bars.iter().flat_map(values).chain(self.reference);
        let most = all.filter(|value| value.is_finite()).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let [left, right] = Self::SIDES;
        let across = |value: f64| left + (value / most * f64::from(Self::WIDTH - left - right)).round() as i32;
        let height = Self::TOP + Self::ROW * bars.len() as i32 + 20;
        let root = SVGBackend::with_string(svg, (Self::WIDTH as u32, height as u32)).into_drawing_area();
        let draw = || -> std::result::Result<(), Box<dyn std::error::Error + '_>> {
            let font = |size: i32| ("sans-serif", size).into_font();
            root.fill(&WHITE)?;
            root.draw(&Text::new(self.title.clone(), (12, 12), font(22)))?;
            for (row, bar) in bars.iter().enumerate().filter(|(_, bar)| bar.value.is_finite()) {
                let top = Self::TOP + Self::ROW * row as i32;
                let middle = top + Self::ROW / 2;
                let color = Palette99::pick(row).to_rgba();
                root.draw(&Text::new(bar.name.clone(), (12, middle - 9), font(18)))?;
                root.draw(&Rectangle::new(
                    [(left, top + 4), (across(bar.value), top + Self::ROW - 4)],
                    color.mix(0.5).filled(),
                ))?;
                for value in bar.points.iter().filter(|value| value.is_finite()) {
                    root.draw(&Circle::new((across(*value), middle), 3, color.filled()))?;
                }
                let mut text = format!("{:.3}", bar.value);
                if let Some([low, high]) = bar.interval.filter(|ends| ends.iter().all(|end| end.is_finite())) {
                    root.draw(&PathElement::new(
                        [(across(low), middle), (across(high), middle)],
                        BLACK.stroke_width(1),
                    ))?;
                    for end in [low, high] {
                        let x = across(end);
                        root.draw(&PathElement::new([(x, middle - 5), (x, middle + 5)], BLACK.stroke_width(1)))?;
                    }
                    text += &format!(" ({low:.3} to {high:.3})");
                }
                root.draw(&Text::new(text, (Self::WIDTH - right + 8, middle - 8), font(16)))?;
            }
            if let Some(reference) = self.reference {
                let x = across(reference);
                let line = [(x, Self::TOP - 6), (x, height - 14)];
                root.draw(&PathElement::new(line, BLACK.mix(0.5).stroke_width(1)))?;
            }
            root.present()?;
            Ok(())
        };
        draw().map_err(|error| error.to_string())
    }
}

/// Lowest and highest value; a little room where they are the same, 0 and 1 where there is none.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        (0.0, 1.0)
    } else if low == high {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low - room, high + room)
    } else {
        (low, high)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn records() -> Vec<Value> {
        let train = (1..=40).map(|step| json!({ "step": step, "loss": 8.0 / step as f64, "scales": [step, -step] }));
        train.chain([json!({ "step": 40, "validation": { "loss": 0.3 } })]).collect()
    }

    #[test]
    fn reads_nested_keys_and_leaves_out_what_is_absent() {
        assert_eq!(Series::from_log(&records(), "loss").points.len(), 40, "one point a training record");
        assert_eq!(Series::from_log(&records(), "validation.loss").points, [(40.0, 0.3)], "a nested key");
        assert_eq!(Series::from_log(&records(), "scales.1").points[4], (5.0, -5.0), "a place in a list");
        assert_eq!(Series::from_log(&records(), "nothing").points, [], "an absent key");
    }

    #[test]
    fn draws_every_series_linear_and_logarithmic() {
        let series = ["loss", "validation.loss", "scales.1"].map(|key| Series::from_log(&records(), key));
        for log_scale in [false, true] {
            for smoothing in [0.0, 0.9] {
                let chart = Chart { log_scale, smoothing, ..Chart::new("Loss of a < b", "nats") };
                let svg = chart.to_svg(&series).expect("drawable");
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "a whole image");
                assert!(svg.contains("validation.loss") && svg.contains("nats"), "with legend and unit");
                assert!(svg.contains("a &lt; b"), "with its title escaped");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "without broken numbers");
            }
        }
    }

    #[test]
    fn few_points_or_odd_ones_do_no_harm() {
        let series = |points: &[(f64, f64)]| [Series { name: "x".into(), points: points.to_vec() }];
        for points in [&[][..], &[(1.0, 2.0)], &[(1.0, 0.0), (2.0, 0.0)], &[(1.0, f64::NAN), (2.0, f64::INFINITY)]] {
            for log_scale in [false, true] {
                let chart = Chart { log_scale, ..Chart::new("t", "u") };
                chart.to_svg(&series(points)).expect("drawable");
            }
        }
        Chart { smoothing: 1.0, ..Chart::new("t", "u") }.to_svg(&[]).expect_err("a smoothing of 1 shows nothing");
    }

    #[test]
    fn bars_show_values_intervals_and_points() {
        let bar = |name: &str, value: f64, interval: Option<[f64; 2]>, points: &[f64]| Bar {
            name: name.into(),
            value,
            interval,
            points: points.to_vec(),
        };
        let chart = Bars { title: "A < B".into(), reference: Some(1.0) };
        let bars = [
            bar("base", 1.0, None, &[]),
            bar("method", 0.8, Some([0.7, 0.9]), &[0.75, 0.85]),
            bar("broken", f64::NAN, Some([f64::INFINITY, 1.0]), &[f64::NAN]),
        ];
        let svg = chart.to_svg(&bars).expect("drawable");
        for text in ["A &lt; B", "base", "1.000", "0.800 (0.700 to 0.900)"] {
            assert!(svg.contains(text), "`{text}` in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 2, "two trainings");
        assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("broken"), "without broken numbers");
        chart.to_svg(&[]).expect("drawable");
    }

    #[test]
    fn smoothing_starts_at_the_first_value() {
        let series = Series { name: "x".into(), points: vec![(1.0, 4.0), (2.0, 8.0)] };
        assert_eq!(series.smoothed(0.5), [(1.0, 4.0), (2.0, (4.0 * 0.5 + 8.0) / 1.5)], "unbiased average");
    }
}
