//! `burn-var bench --check`: what a device computes, beside the CPU.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use burn_var::generation::TeacherInput;
use burn_var::ops::Precision;
use burn_var::pipeline::ModelPair;
use burn_var::{Condition, TokenPyramid, Tokenizer, ops};
use burn_var_train::engine::{Method, Trainer};
use serde::Serialize;
use tempfile::TempDir;

use super::made_up::{self, Trainable};
use super::{Args, Pair};
use crate::classes::equal_parts;
use crate::device::DeviceName;
use crate::generator::{Generator, Wanted};
use crate::output::{Output, usage};

/// Images that are compared, unless the command line says otherwise.
const IMAGES: usize = 2;
/// Training steps that are compared.
const STEPS: u64 = 3;
/// Largest relative difference of single-precision results whose sums are added up in another order.
const ALLOWED: f64 = 1e-3;
/// The same where the inputs of products are rounded, in roundings of one number: small gradients are sums of large terms.
const ROUNDINGS: f64 = 64.0;

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    /// Precision of sampling and of training on the device. The CPU computes both exactly.
    precision: [Precision; 2],
    reference: String,
    rows: Vec<Row>,
    /// Share of tokens that both draw alike. Rounding decides a draw now and then, and all tokens after it differ.
    same_tokens: f64,
}

/// A compared result.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Largest difference, relative to the largest value of the reference.
    difference: f64,
    allowed: f64,
    ok: bool,
}

/// Numbers, and what they are.
type Named = (String, Vec<f32>);
/// All that a device computes, in that order.
type Results = Vec<Named>;

pub(super) fn run(args: &Args, device: &Device, output: Output) -> Result<()> {
    let reference = DeviceName::default().open(true, false, None)?;
    if *device == reference {
        return Err(usage("--check compares a device with this one, the CPU: choose another with --device"));
    }
    let images = args.sampling.batch.map_or(IMAGES, |batch| batch as usize);
    output.note("computing on the CPU");
    let exact = Precision::Exact;
    let (model, mut generator) = args.generator(&reference, output)?;
    generator.pipeline = generator.pipeline.with_precision(exact);
    let labels = equal_parts(&generator.classes(), images);
    let (tokens, expected) = results(&generator, exact, &labels, None)?;
    output.note(format!("computing on {device:?}"));
    let (_, generator) = args.generator(device, output)?;
    let precision = [generator.pipeline.precision(), args.model.model.training_precision(device)];
    let [_, training] = precision;
    let (drawn, found) = results(&generator, training, &labels, Some(&tokens))?;

    let rows = compare(&expected, &found, precision)?;
    let pairs = tokens.iter().flatten().zip(drawn.iter().flatten());
    let (same, all) = (pairs.clone().filter(|(a, b)| a == b).count(), pairs.count());
    let report = Report {
        model,
        device: format!("{device:?}"),
        precision,
        reference: format!("{reference:?}"),
        rows,
        same_tokens: same as f64 / all as f64,
    };
    output.result(&report, || text(&report))?;
    let wrong = report.rows.iter().filter(|row| !row.ok).count();
    match wrong {
        0 => Ok(()),
        _ if std::env::var_os(CHILD).is_some() => bail!("{wrong} results differ from those of the CPU"),
        _ => bail!("{wrong} results differ from those of the CPU. {}", cause(output)),
    }
}

fn text(report: &Report) -> String {
    let Report { model, device, precision: [sampling, training], reference, rows, same_tokens } = report;
    let line = |row: &Row| {
        let Row { name, difference, allowed, ok } = row;
        let verdict = if *ok { "ok" } else { "WRONG" };
        format!("{name:<58} {difference:>9.1e} of {allowed:.0e} {verdict}\n")
    };
    // Of the many gradients those that are wrong and the worst are enough.
    let (gradients, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.name.starts_with(GRADIENT));
    let worst = gradients.iter().copied().filter(|row| row.ok).max_by(|a, b| a.difference.total_cmp(&b.difference));
    let wrong = gradients.iter().copied().filter(|row| !row.ok);
    let lines: String = others.into_iter().chain(wrong).chain(worst).map(line).collect();
    let count = gradients.len();
    format!(
        "model {model}, {device} ({sampling}, training {training}) beside {reference}: largest difference, relative to the \
         largest value\n{lines}\
         {count} gradients compared; {:.1}% of the tokens are drawn alike\n",
        100.0 * same_tokens
    )
}

/// Name of a gradient, before that of its weight.
const GRADIENT: &str = "gradient of ";

/// Returns the tokens that a device draws and the results for given ones, its own if there are none: logits, images,
/// gradients, losses of a few training steps.
fn results(
    generator: &Generator,
    precision: Precision,
    labels: &[usize],
    given: Option<&[Vec<u32>]>,
) -> Result<(Vec<Vec<u32>>, Results)> {
    let mut drawn = Vec::new();
    generator.run(labels, Wanted::default(), |batch| {
        drawn.extend(batch.output.tokens.to_rows()?);
        Ok(())
    })?;
    let device = generator.pipeline.device();
    let tokens = TokenPyramid::from_rows(generator.pipeline.scales().clone(), given.unwrap_or(&drawn), &device)?;
    let mut results = Results::new();
    let output = generator.teacher_forced(labels, 0, tokens.clone())?;
    for (k, logits) in output.logits.into_iter().enumerate() {
        results.push((format!("logits of scale {}", k + 1), numbers(logits)?));
    }
    results.push(("images".to_owned(), numbers(output.images)?));
    match generator.pair()? {
        Pair::Var(pair) => training(pair, precision, labels, &tokens, &mut results)?,
        Pair::FlexVar(pair) => training(pair, precision, labels, &tokens, &mut results)?,
        Pair::LlamaGen(pair) => training(pair, precision, labels, &tokens, &mut results)?,
    }
    Ok((drawn, results))
}

fn training<M: Trainable>(
    pair: &ModelPair<M::Tokenizer, M>,
    precision: Precision,
    labels: &[usize],
    tokens: &TokenPyramid,
    results: &mut Results,
) -> Result<()> {
    let device = &pair.tokenizer.device();
    let on_graph = device.clone().autodiff();
    let model =
        M::init_zeros(pair.transformer.config(), &on_graph)?.load_record(pair.transformer.clone().into_record());
    let input = TeacherInput::of(&pair.tokenizer, tokens).on_graph();
    let conditions = Condition::classes(labels);
    let logits = precision.scope(|| model.teacher_forced(&conditions, input, tokens.scales(), None))?;
    let loss = ops::cross_entropy(logits, tokens.sequence(), 0.0).mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let mut read = ReadGradients { gradients: &gradients, path: Vec::new(), results, failed: None };
    model.visit(&mut read);
    read.failed.map_or(Ok(()), Err)?;

    let folder = TempDir::new().context("cannot make a temporary folder")?;
    let batch = labels.len();
    let scales = tokens.scales();
    let trainer = made_up::transformer_trainer(pair, scales, folder.path(), batch, device)?;
    steps("transformer", trainer.with_precision(precision)?, results)?;
    let trainer = made_up::tokenizer_trainer(&pair.tokenizer, scales, folder.path(), batch, device)?;
    steps("tokenizer", trainer.with_precision(precision)?, results)
}

/// Trains for a few steps. The first loss is a forward pass, the first norm a backward pass, the rest is the optimizer's.
fn steps<M: Method>(name: &str, mut trainer: Trainer<M>, results: &mut Results) -> Result<()> {
    for step in 0..STEPS {
        let metrics = trainer.step(step, true)?;
        for (metric, value) in metrics.iter().filter(|(metric, _)| ["loss", "grad_norm"].contains(&metric.as_str())) {
            results.push((format!("training the {name}, step {}: {metric}", step + 1), vec![*value as f32]));
        }
    }
    Ok(())
}

struct ReadGradients<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    results: &'a mut Results,
    failed: Option<anyhow::Error>,
}

impl ModuleVisitor for ReadGradients<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        match numbers(gradient) {
            Ok(values) => self.results.push((format!("{GRADIENT}{}", self.path.join(".")), values)),
            Err(error) => self.failed = Some(error),
        }
    }
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|error| burn_var::Error::device("read results")(error).into())
}

/// Returns the largest relative difference in a precision.
fn allowed(precision: Precision) -> f64 {
    match precision {
        Precision::Exact => ALLOWED,
        Precision::Tf32 | Precision::F16 => ROUNDINGS * 2f64.powi(-11),
        Precision::Bf16 => ROUNDINGS * 2f64.powi(-8),
    }
}

/// Compares numbers, images and logits in the first precision and training in the second. A value that is not finite is wrong
/// wherever the reference is finite.
fn compare(expected: &Results, found: &Results, [sampling, training]: [Precision; 2]) -> Result<Vec<Row>> {
    let names =
        |results: &Results| results.iter().map(|(name, values)| (name.clone(), values.len())).collect::<Vec<_>>();
    if names(expected) != names(found) {
        bail!("the devices computed results of other names or sizes: this is a defect, please report it");
    }
    // A gradient that is nearly zero beside all others says nothing: it is what rounding leaves.
    let largest = |values: &[f32]| values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let gradients = expected.iter().filter(|(name, _)| name.starts_with(GRADIENT));
    let floor = 1e-4 * gradients.map(|(_, values)| largest(values)).fold(0f32, f32::max);
    let row = |((name, expected), (_, found)): (&Named, &Named)| {
        let is_training = name.starts_with(GRADIENT) || name.starts_with("training");
        let allowed = allowed(if is_training { training } else { sampling });
        let unit = largest(expected).max(if name.starts_with(GRADIENT) { floor } else { 0.0 }).max(f32::MIN_POSITIVE);
        let off = |(a, b): (&f32, &f32)| if a == b { 0.0 } else { f64::from(a - b).abs() / f64::from(unit) };
        // Not `max`, which ignores NaN.
        let difference = expected
            .iter()
            .zip(found)
            .map(off)
            .fold(0.0, |most, off| if off > most || off.is_nan() { off } else { most });
        Row { name: name.clone(), difference, allowed, ok: difference <= allowed }
    };
    Ok(expected.iter().zip(found).map(row).collect())
}

/// Set in the processes that look for the cause.
const CHILD: &str = "BURN_VAR_CHECK_CAUSE";

/// Runs the command again without fusion, without the kernels of this project, and without both; says which is right.
fn cause(output: Output) -> String {
    let ways = [
        (&["--no-fusion"][..], "all", "with --no-fusion: the cause is Burn's fusion of operations"),
        (&[], "generic", "with BURN_VAR_KERNELS=generic: the cause is a kernel of burn-var, please report it"),
        (&["--no-fusion"], "generic", "with --no-fusion and BURN_VAR_KERNELS=generic together only"),
    ];
    for (flags, kernels, verdict) in ways {
        output.note(format!("looking for the cause: once more {verdict}"));
        let Ok(program) = std::env::current_exe() else { break };
        let mut command = std::process::Command::new(program);
        command.args(std::env::args_os().skip(1)).args(flags).env("BURN_VAR_KERNELS", kernels).env(CHILD, "1");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if status.is_ok_and(|status| status.success()) {
            return format!("They are right {verdict}");
        }
    }
    "Neither --no-fusion nor BURN_VAR_KERNELS=generic changes that: the cause may be the driver or Burn's kernels"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: [Precision; 2] = [Precision::Exact; 2];

    fn results(values: [f32; 2]) -> Results {
        vec![("images".to_owned(), values.to_vec()), (format!("{GRADIENT}a"), vec![1.0])]
    }

    #[test]
    fn differences_are_relative_to_the_largest_value() {
        let rows = compare(&results([4.0, 1.0]), &results([4.0, 1.002]), EXACT).expect("of the same names");
        assert!(rows.iter().all(|row| row.ok), "{rows:?}");
        assert!((rows[0].difference - 0.0005).abs() < 1e-6, "{rows:?}");
        assert!(!compare(&results([4.0, 1.0]), &results([4.0, 1.02]), EXACT).expect("of the same names")[0].ok);
    }

    #[test]
    fn a_value_that_is_not_finite_is_wrong() {
        for value in [f32::NAN, f32::INFINITY] {
            assert!(
                !compare(&results([4.0, 1.0]), &results([value, 1.0]), EXACT).expect("of the same names")[0].ok,
                "{value}"
            );
        }
    }

    #[test]
    fn gradients_that_rounding_leaves_are_not_compared_with_themselves() {
        let tiny = |value: f32| vec![(format!("{GRADIENT}a"), vec![1.0]), (format!("{GRADIENT}b"), vec![value])];
        assert!(compare(&tiny(1e-9), &tiny(-3e-9), EXACT).expect("of the same names")[1].ok);
        assert!(!compare(&tiny(1e-3), &tiny(3e-3), EXACT).expect("of the same names")[1].ok);
    }

    #[test]
    fn each_result_is_allowed_the_rounding_of_its_precision() {
        let pair =
            [results([4.0, 1.0]), vec![("images".to_owned(), vec![4.0, 1.2]), (format!("{GRADIENT}a"), vec![1.2])]];
        for (precision, right) in [
            (EXACT, [false, false]),
            ([Precision::Bf16, Precision::Tf32], [true, false]),
            ([Precision::Exact, Precision::Bf16], [false, true]),
        ] {
            let rows = compare(&pair[0], &pair[1], precision).expect("of the same names");
            assert_eq!([rows[0].ok, rows[1].ok], right, "{rows:?}");
        }
    }
}
