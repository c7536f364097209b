//! Scaled Spatial Guidance, against scipy's transforms and torch's interpolation.

use burn::tensor::{Device, Tensor, TensorData};
use burn_var::guidance::{
    BatchInfo, Cfg, Dse, DseFill, DseScale, Guidance, Logits, Schedule, Ssg, SsgConfig, SsgOrder,
};
use burn_var::math::{Resize, dct_matrix};
use burn_var::{MapSize, Result, Scales, ops};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::{Array, Case};

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    transforms(case, checks);
    let beta: f64 = case.get("/config/beta");
    for name in case.names().filter(|name| name.starts_with("beta_k_K")) {
        let count: usize = name.trim_start_matches("beta_k_K").parse().unwrap_or_default();
        let scales = Scales::square(&(1..=count).collect::<Vec<_>>())?;
        let values = scales.iter().map(|at| Schedule::Decay(beta).at(at)).collect();
        checks.array(name, "*", Array { shape: vec![count], values });
    }
    priors(case, device, checks)?;
    pyramid(case, beta, device, checks)
}

/// Compares the transform itself, in double precision.
fn transforms(case: &Case, checks: &mut Checks<'_>) {
    for name in case.names().filter(|name| name.starts_with("dct_in_")) {
        let Array { shape, values } = case.array(name);
        let [height, width, channels] = shape[..] else { return checks.fail(format!("`{name}` has no 3 axes")) };
        let (rows, columns) = (dct_matrix(height), dct_matrix(width));
        let at = |y: usize, x: usize, c: usize| values[(y * width + x) * channels + c];
        let entry = |i: usize| {
            let (v, u, c) = (i / channels / width, i / channels % width, i % channels);
            let row = |y: usize| (0..width).map(|x| columns[u * width + x] * at(y, x, c)).sum::<f64>();
            (0..height).map(|y| rows[v * height + y] * row(y)).sum()
        };
        let found = Array { values: (0..values.len()).map(entry).collect(), shape };
        checks.array(&name.replace("dct_in", "dct_out"), "dct_out_*", found);
    }
}

/// Compares the prior of every pair of sizes, in every variant.
fn priors(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let resizes = [("nearest", Resize::Nearest), ("bilinear", Resize::Bilinear), ("bicubic", Resize::Bicubic)];
    let scales = [("amp", DseScale::Amplitude), ("lit", DseScale::Literal)];
    for [h, w, height, width] in case.get::<Vec<[usize; 4]>>("/config/pairs") {
        let pair = format!("{h}x{w}_to_{height}x{width}");
        let (from, to) = (MapSize { height: h, width: w }, MapSize { height, width });
        let before: Tensor<3> = case.tensor(&format!("prev_{pair}"), device);
        let channels = before.dims()[2];
        let before = before.reshape([from.area(), channels]);
        let mut compare = |name: String, dse: Dse| -> Result<()> {
            let matrix = TensorData::new(dse.matrix(from, to)?, [to.area(), from.area()]);
            let prior = ops::exact_matmul(Tensor::<2>::from_data(matrix, device), before.clone());
            checks.floats(&name, "*", prior.reshape([height, width, channels]));
            Ok(())
        };
        for (kind, resize) in resizes {
            let dse = Dse { resize, ..Dse::default() };
            compare(format!("interp_{kind}_{pair}"), Dse { fill: DseFill::Spatial, ..dse })?;
            for (form, scale) in scales {
                compare(format!("dse_{form}_{kind}_{pair}"), Dse { scale, ..dse })?;
            }
        }
        for (form, scale) in scales {
            compare(format!("dse_zero_{form}_{pair}"), Dse { fill: DseFill::Zero, scale, ..Dse::default() })?;
        }
    }
    Ok(())
}

/// Compares the guidance chain over a whole scale schedule, in every order and variant.
fn pyramid(case: &Case, beta: f64, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    let scales = Scales::square(&case.get::<Vec<usize>>("/config/scales"))?;
    let cfg = || Box::new(Cfg::ramp(case.get("/config/cfg"))) as Box<dyn Guidance>;
    let paper = SsgConfig::paper(beta);
    let ssg = |config: SsgConfig| Box::new(Ssg::new(config)) as Box<dyn Guidance>;
    let dse = |fill, scale| ssg(SsgConfig { dse: Dse { fill, scale, ..Dse::default() }, ..paper.clone() });
    let chains: [(&str, Vec<Box<dyn Guidance>>); 7] = [
        ("cfg", vec![cfg()]),
        ("ssg_post", vec![cfg(), ssg(paper.clone())]),
        ("ssg_pre", vec![ssg(SsgConfig { order: SsgOrder::PerBranch, ..paper.clone() }), cfg()]),
        ("ssg_condonly", vec![ssg(SsgConfig { order: SsgOrder::CondOnly, ..paper.clone() }), cfg()]),
        ("ssg_recursive", vec![cfg(), ssg(SsgConfig { recursive: true, ..paper.clone() })]),
        ("ssg_lit", vec![cfg(), dse(DseFill::Interpolated, DseScale::Literal)]),
        ("ssg_zero", vec![cfg(), dse(DseFill::Zero, DseScale::Amplitude)]),
    ];
    let batch = BatchInfo { scales: &scales, images: 1, seed: 0, first: 0, device };
    for (name, mut chain) in chains {
        chain.iter_mut().try_for_each(|part| part.begin(&batch))?;
        for k in 0..scales.len() {
            let MapSize { height, width } = scales.size(k);
            let branch = |name: &str| {
                let map: Tensor<3> = case.tensor(&format!("pyr_{name}_{k}"), device);
                let channels = map.dims()[2];
                map.reshape([1, height * width, channels])
            };
            let mut logits = Logits { null: Some(branch("uncond")), ..Logits::cond(branch("cond")) };
            for part in &mut chain {
                logits = part.logits(scales.at(k), logits)?;
            }
            let found = logits.cond.reshape([height as i64, width as i64, -1]);
            let array = format!("pyr_{name}_{k}");
            // The case stores some variants from the second scale on only.
            if case.has(&array) || k > 0 {
                checks.floats::<3>(&array, "*", found);
            }
        }
    }
    Ok(())
}
