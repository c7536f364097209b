//! Clipping by the norm of all gradients together, as `torch.nn.utils.clip_grad_norm_`.
//!
//! Burn's own clipping treats each tensor by itself, which changes the direction of the step.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::Result;
use crate::tensor::scalar;

/// Scales the gradients of `module` so that their global norm is at most `max`, and returns the norm before that.
///
/// `max = None` only measures. Without any gradient the norm is 0.
///
/// # Errors
/// `burn_var::Error::NonFinite` naming `step`, and the first parameters whose gradient is not finite;
/// `burn_var::Error::Device` if the norm cannot be read back.
pub fn clip_grad_norm<M: Module>(module: &M, grads: &mut GradientsParams, max: Option<f64>, step: u64) -> Result<f64> {
    let mut squares = SumOfSquares { grads, sum: None };
    module.visit(&mut squares);
    let Some(sum) = squares.sum else { return Ok(0.0) };
    let norm = scalar(&sum.sqrt(), "measure the gradients")?;
    if !norm.is_finite() {
        return Err(non_finite(module, grads, norm, step)?.into());
    }
    if let Some(max) = max {
        // The same small number as in PyTorch.
        let factor = max / (norm + 1e-6);
        if factor < 1.0 {
            scale_grads(module, grads, factor);
        }
    }
    Ok(norm)
}

fn non_finite<M: Module>(module: &M, grads: &GradientsParams, norm: f64, step: u64) -> Result<burn_var::Error> {
    let mut find = FindNonFinite { grads, path: Vec::new(), found: Vec::new(), failure: None };
    module.visit(&mut find);
    if let Some(failure) = find.failure {
        return Err(failure);
    }
    const NAMED: usize = 3;
    let mut parameters = find.found.iter().take(NAMED).map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
    if find.found.len() > NAMED {
        parameters += &format!(" and {} more", find.found.len() - NAMED);
    }
    if parameters.is_empty() {
        parameters = "no single gradient, their sum overflows".into();
    }
    Ok(not_finite(format!("the gradient norm at step {step} (not finite: {parameters})"), norm))
}

fn not_finite(what: String, found: f64) -> burn_var::Error {
    let hint = "lower the learning rate, or resume from the last checkpoint with another seed";
    burn_var::Error::NonFinite { what, found, hint }
}

/// Norm of all gradients of a module together, before clipping.
#[derive(Debug, Clone)]
pub enum GradNorm {
    /// A finite number.
    Known(f64),
    /// Three numbers on a device, see [`JointUpdate::run`](burn_var::ops::JointUpdate::run): nobody waits for them unless they
    /// are read.
    OnDevice(Box<Tensor<1>>),
}

impl GradNorm {
    /// Returns the norm.
    ///
    /// # Errors
    /// `burn_var::Error::NonFinite` naming the first step whose norm was not finite; `burn_var::Error::Device` if it cannot be
    /// read back.
    pub fn read(&self) -> Result<f64> {
        let numbers = match self {
            Self::Known(norm) => return Ok(*norm),
            Self::OnDevice(numbers) => Tensor::clone(numbers).try_into_vec_as::<f64>(),
        };
        match numbers.map_err(burn_var::Error::device("measure the gradients"))?[..] {
            [norm, step, _] if step < 0.0 => Ok(norm),
            [_, step, norm] => Err(not_finite(format!("the gradient norm at step {step}"), norm).into()),
            _ => unreachable!("three numbers"),
        }
    }
}

/// Multiplies all gradients of `module` by `factor`.
pub(crate) fn scale_grads<M: Module>(module: &M, grads: &mut GradientsParams, factor: f64) {
    module.visit(&mut Scale { grads, factor });
}

struct SumOfSquares<'a> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SumOfSquares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.get::<D>(param.id) else { return };
        let square = grad.square().sum();
        self.sum = Some(match self.sum.take() {
            Some(sum) => sum + square,
            None => square,
        });
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.factor));
        }
    }
}

struct FindNonFinite<'a> {
    grads: &'a GradientsParams,
    path: Vec<String>,
    found: Vec<String>,
    failure: Option<crate::Error>,
}

impl ModuleVisitor for FindNonFinite<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.get::<D>(param.id) else { return };
        // 0 for finite numbers, NaN for all others; unlike the sum of squares it cannot overflow.
        match scalar(&(grad.clone() - grad).sum(), "look for non-finite gradients") {
            Ok(zero) if zero.is_nan() => self.found.push(self.path.join(".")),
            Ok(_) => {}
            Err(failure) => self.failure = Some(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    /// Gradients 3 for each of the weight's 3 x 5 entries, 4 for each of the bias's 5.
    fn linear_with_gradients(weight: f32) -> (Linear, GradientsParams) {
        let device = Device::flex();
        let linear = LinearConfig::new(3, 5).init(&device);
        let mut grads = GradientsParams::new();
        grads.register(linear.weight.id, Tensor::<2>::full([3, 5], weight, &device));
        let bias = linear.bias.as_ref().expect("a bias by default");
        grads.register(bias.id, Tensor::<1>::full([5], 4.0, &device));
        (linear, grads)
    }

    fn first(linear: &Linear, grads: &GradientsParams) -> f64 {
        let grad = grads.get::<2>(linear.weight.id).expect("weight gradient").flatten::<1>(0, 1).slice(0..1);
        scalar(&grad, "test").expect("readable")
    }

    #[test]
    fn one_norm_over_all_parameters() {
        let norm = (15.0f64 * 9.0 + 5.0 * 16.0).sqrt();
        for (max, factor) in [(None, 1.0), (Some(100.0), 1.0), (Some(2.0), 2.0 / norm)] {
            let (linear, mut grads) = linear_with_gradients(3.0);
            let found = clip_grad_norm(&linear, &mut grads, max, 0).expect("finite");
            assert!((found - norm).abs() < 1e-5, "norm {found}, expected {norm}");
            let value = first(&linear, &grads);
            assert!((value - 3.0 * factor).abs() < 1e-5, "max {max:?}: {value}, expected {}", 3.0 * factor);
        }
    }

    #[test]
    fn non_finite_names_step_and_parameter() {
        for bad in [f32::NAN, f32::INFINITY] {
            let (linear, mut grads) = linear_with_gradients(bad);
            let error = clip_grad_norm(&linear, &mut grads, None, 17).expect_err("must stop").to_string();
            assert!(error.contains("step 17") && error.contains("`weight`"), "names step and parameter: {error}");
            assert!(!error.contains("bias"), "does not name the finite one: {error}");
        }
    }

    #[test]
    fn an_overflow_of_the_sum_is_told_apart() {
        let (linear, mut grads) = linear_with_gradients(1e30);
        let error = clip_grad_norm(&linear, &mut grads, None, 1).expect_err("must stop").to_string();
        assert!(error.contains("overflows"), "says that the sum overflows: {error}");
    }
}
