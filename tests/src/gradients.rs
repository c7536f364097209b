//! Gradients of a module under the names and in the layout of its checkpoints.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Gradients as Graph;
use burn::tensor::Tensor;
use burn_var::weights::{KeyMap, export};

use crate::golden::Array;

/// The gradient of every float parameter that one reached.
pub struct Gradients(BTreeMap<String, Option<Array>>);

impl Gradients {
    /// Reads the gradients of `module` from the graph of a backward pass.
    pub fn of<M: Module>(module: &M, graph: &Graph, keys: &KeyMap) -> Self {
        let mut swap = Swap { graph, keys, path: Vec::new(), without: Vec::new() };
        let swapped = module.clone().map(&mut swap);
        let without = swap.without;
        let dict = export(&swapped, keys).expect("a module has parameters, each of its own name");
        let read = |key: &str| {
            let data = dict.tensor(key).unwrap_or_else(|error| panic!("gradient of `{key}`: {error}"));
            let shape = data.shape().to_vec();
            Array {
                shape,
                values: data.try_into_vec_as().unwrap_or_else(|error| panic!("gradient of `{key}`: {error}")),
            }
        };
        Self(dict.keys().map(|key| (key.to_owned(), (!without.iter().any(|w| w == key)).then(|| read(key)))).collect())
    }

    /// Returns the gradient of the parameter `key`: `None` if there is no such parameter, `Some(None)` if no gradient
    /// reached it.
    pub fn get(&self, key: &str) -> Option<Option<&Array>> {
        self.0.get(key).map(Option::as_ref)
    }

    /// Returns the names of the parameters that no gradient reached.
    pub fn without(&self) -> Vec<&str> {
        self.0.iter().filter(|(_, gradient)| gradient.is_none()).map(|(key, _)| key.as_str()).collect()
    }

    /// Returns the Euclidean norm of all gradients together.
    pub fn norm(&self) -> f64 {
        self.0.values().flatten().flat_map(|gradient| &gradient.values).map(|x| x * x).sum::<f64>().sqrt()
    }
}

/// Replaces a module's parameters by their gradients.
struct Swap<'a> {
    graph: &'a Graph,
    keys: &'a KeyMap,
    path: Vec<String>,
    without: Vec<String>,
}

impl ModuleMapper for Swap<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.val().grad(self.graph) {
            Some(gradient) => Param::initialized(param.id, gradient),
            None => {
                self.without.extend(self.keys.parts(&self.path.join(".")));
                param
            }
        }
    }
}
