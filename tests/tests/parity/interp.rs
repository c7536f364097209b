//! Resizing, against `torch.nn.functional.interpolate`.

use burn::tensor::{Device, Tensor};
use burn_var::math::Resize;
use burn_var::{MapSize, Result};
use burn_var_tests::checks::Checks;
use burn_var_tests::golden::Case;

/// An operation, parsed from its name: `bicubic_3x2_to_7x5`, `linear1d_4_to_9`.
struct Operation {
    resize: Resize,
    size: Vec<usize>,
}

impl Operation {
    fn parse(name: &str) -> Option<Self> {
        let (from, to) = name.split_once("_to_")?;
        let (method, _) = from.rsplit_once('_')?;
        let resize = match method {
            "area" | "adaptive_avg_pool1d" => Resize::Area,
            "bicubic" => Resize::Bicubic,
            "bilinear" | "linear1d" => Resize::Bilinear,
            "nearest" => Resize::Nearest,
            _ => return None,
        };
        let size = to.split('x').map(|side| side.parse().ok()).collect::<Option<_>>()?;
        Some(Self { resize, size })
    }
}

pub(super) fn read(case: &Case, device: &Device, checks: &mut Checks<'_>) -> Result<()> {
    for name in case.get::<Vec<String>>("/ops") {
        match Operation::parse(&name) {
            Some(Operation { resize, size }) => match size[..] {
                [height, width] => {
                    compare(case, &name, device, checks, |x| resize.apply(x, MapSize { height, width }));
                }
                [length] => compare(case, &name, device, checks, |x| resize.apply_1d(x, length)),
                _ => checks.fail(format!("operation `{name}` has {} axes", size.len())),
            },
            None => checks.fail(format!("operation `{name}` is unknown")),
        }
    }
    Ok(())
}

/// Compares the result and, where the case has it, the gradient of the result's sum of squares.
fn compare<const D: usize>(
    case: &Case,
    name: &str,
    device: &Device,
    checks: &mut Checks<'_>,
    apply: impl Fn(Tensor<D>) -> Tensor<D>,
) {
    let input = format!("{name}.x");
    checks.floats(&format!("{name}.y"), "floats", apply(case.tensor(&input, device)));
    let gradient = format!("{name}.dx");
    if case.has(&gradient) {
        let x = case.tensor::<D>(&input, &device.clone().autodiff()).require_grad();
        let graph = apply(x.clone()).square().sum().backward();
        match x.grad(&graph) {
            Some(found) => checks.floats(&gradient, "grads", found),
            None => checks.fail(format!("`{gradient}`: no gradient arrives")),
        }
    }
}
