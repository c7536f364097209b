//! Weight initialization on the host: the same on every backend, in whatever order modules are built.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};

use crate::rng::Rng;

/// Initial values of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// Values as the module built them (zeros for weights and biases, ones for norm scales).
    Keep,
    /// One constant value.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Normal, with a standard deviation for each run of elements `(length, std)`; the runs repeat.
    NormalRuns(Vec<(usize, f64)>),
    /// Uniform in `[-bound, bound)`.
    Uniform(f64),
    /// Given values, row-major, one per element.
    Values(Vec<f32>),
}

/// Description of a parameter for an initialization rule.
#[derive(Debug)]
pub struct ParamInfo<'a> {
    /// Path in the module, such as `blocks.0.attn.proj.weight`.
    pub path: &'a str,
    /// Shape. Linear weights are `[in, out]`.
    pub shape: &'a [usize],
}

/// Initializes a module's float parameters by a rule, with random numbers keyed by `(seed, path)`.
pub fn initialize<M: Module>(module: M, seed: u64, rule: impl Fn(&ParamInfo<'_>) -> Init) -> M {
    module.map(&mut Initializer { seed, rule, path: Vec::new() })
}

/// Returns PyTorch's default for convolutions and linear layers: uniform within `1 / sqrt(fan_in)`, biases included.
pub fn fan_in_bound(fan_in: usize) -> Init {
    Init::Uniform(1.0 / (fan_in.max(1) as f64).sqrt())
}

struct Initializer<F> {
    seed: u64,
    rule: F,
    path: Vec<String>,
}

impl<F: Fn(&ParamInfo<'_>) -> Init> ModuleMapper for Initializer<F> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let shape = param.lazy_shape().to_vec();
        let count: usize = shape.iter().product();
        let mut rng = Rng::new(self.seed, &path, 0);
        let values: Vec<f32> = match (self.rule)(&ParamInfo { path: &path, shape: &shape }) {
            Init::Keep => return param,
            Init::Constant(value) => vec![value as f32; count],
            Init::Normal(std) => (0..count).map(|_| (rng.normal() * std) as f32).collect(),
            Init::NormalRuns(runs) => {
                let stds = runs.iter().flat_map(|&(length, std)| std::iter::repeat_n(std, length)).cycle();
                stds.take(count).map(|std| (rng.normal() * std) as f32).collect()
            }
            Init::Values(values) => values,
            Init::Uniform(bound) => (0..count).map(|_| ((rng.uniform() * 2.0 - 1.0) * bound) as f32).collect(),
        };
        let device = param.lazy_device();
        let trainable = param.is_require_grad();
        let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), &device);
        Param::initialized(param.id, tensor).set_require_grad(trainable)
    }
}
