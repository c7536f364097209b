//! Loads the parameters of a module from a checkpoint, and exports them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Element, Tensor, TensorData, bf16, f16};

use super::entry::Entry;
use super::{FloatType, KeyMap, LoadReport, MisShaped, StateDict};
use crate::{Error, Result};

/// Options of [`load()`]. The default is strict, in single precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Keep the module's own values of parameters that the checkpoint lacks.
    pub allow_missing: bool,
    /// Ignore tensors that are not part of the module.
    pub allow_unused: bool,
    /// Element type of the weights of linear layers in memory; all other parameters are in single precision.
    pub linear: FloatType,
}

/// Casts the weights of all linear layers to `linear`.
pub fn cast_linear<M: Module>(module: M, linear: FloatType) -> M {
    module.map(&mut Caster { path: ModulePath::default(), linear })
}

struct Caster {
    path: ModulePath,
    linear: FloatType,
}

impl ModuleMapper for Caster {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.path.is_transposed() {
            true => param.map(|weight| weight.cast(self.linear.dtype())),
            false => param,
        }
    }
}

/// Loads the float parameters of `module` from `dict`, whose names `map` translates.
///
/// Names and shapes are compared first. If they fit, tensors are read one at a time, each to the device of its
/// parameter. Parameters keep their identifier and stay trainable or frozen. A parameter that is not initialized yet
/// is never initialized only to be overwritten. Weights of Burn's `Linear` are transposed to its layout.
///
/// # Errors
/// [`Error::Weights`] with all that is missing, unused or mis-shaped, unless `options` allows it; [`Error::Format`] if
/// the file ends early, or a weight is not a finite number.
pub fn load<M: Module>(module: M, dict: &StateDict, map: &KeyMap, options: LoadOptions) -> Result<(M, LoadReport)> {
    let report = compare(&module, dict, map);
    let tolerable = report.mis_shaped.is_empty()
        && (options.allow_missing || report.missing.is_empty())
        && (options.allow_unused || report.unused.is_empty());
    if !tolerable {
        return Err(Error::Weights(Box::new(report)));
    }
    let wanted = report.loaded.iter().map(String::as_str).collect();
    let mut loader = Loader { dict, map, wanted, options, path: ModulePath::default(), failed: None };
    let module = module.map(&mut loader);
    match loader.failed {
        Some(error) => Err(error),
        None => Ok((module, report)),
    }
}

/// Returns the float parameters of `module` under the names and in the layout of a checkpoint.
///
/// A parameter is initialized and copied from the device when its tensor in the result is read, not before.
///
/// # Errors
/// [`Error::Format`] if the module has no float parameters, or the map gives two of them one name.
pub fn export<M: Module>(module: &M, map: &KeyMap) -> Result<StateDict> {
    let mut exporter = Exporter { map, path: ModulePath::default(), entries: Vec::new() };
    module.visit(&mut exporter);
    StateDict::new(map.format.into(), exporter.entries, BTreeMap::new())
}

/// The path of the current parameter, while a visitor or mapper walks through a module.
#[derive(Default)]
struct ModulePath {
    names: Vec<String>,
    containers: Vec<String>,
}

impl ModulePath {
    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    fn keys(&self, map: &KeyMap) -> Vec<String> {
        map.parts(&self.names.join("."))
    }

    /// Returns true for the weight of Burn's `Linear`, which is `[in, out]`; PyTorch's is `[out, in]`.
    fn is_transposed(&self) -> bool {
        self.containers.last().is_some_and(|container| container == "Struct:Linear")
            && self.names.last().is_some_and(|name| name == "weight")
    }

    /// Returns the shape of one of the `parts` tensors of the parameter in the checkpoint's layout.
    fn file_shape(&self, shape: &[usize], parts: usize) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if self.is_transposed() {
            shape.reverse();
        }
        if parts > 1 {
            shape[0] /= parts;
        }
        shape
    }
}

fn compare<M: Module>(module: &M, dict: &StateDict, map: &KeyMap) -> LoadReport {
    let report = LoadReport { origin: dict.origin().into(), format: map.format, ..Default::default() };
    let mut comparer = Comparer { dict, map, path: ModulePath::default(), seen: BTreeSet::new(), report };
    module.visit(&mut comparer);
    let Comparer { seen, mut report, .. } = comparer;
    for key in dict.keys().filter(|key| !seen.contains(*key)) {
        let list = if map.is_buffer(key) { &mut report.ignored } else { &mut report.unused };
        list.push(key.to_owned());
    }
    report
}

struct Comparer<'a> {
    dict: &'a StateDict,
    map: &'a KeyMap,
    path: ModulePath,
    seen: BTreeSet<String>,
    report: LoadReport,
}

impl ModuleVisitor for Comparer<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let keys = self.path.keys(self.map);
        let expected = self.path.file_shape(&param.lazy_shape(), keys.len());
        for key in keys {
            let is_buffer = self.map.is_buffer(&key);
            match self.dict.shape(&key) {
                Some(found) if found == expected => self.report.loaded.push(key.clone()),
                None if is_buffer => {}
                None => self.report.missing.push(key.clone()),
                Some(_) if is_buffer => self.report.ignored.push(key.clone()),
                Some(found) => self.report.mis_shaped.push(MisShaped {
                    key: key.clone(),
                    expected: expected.clone(),
                    found: found.to_vec(),
                }),
            }
            self.seen.insert(key);
        }
    }
}

struct Loader<'a> {
    dict: &'a StateDict,
    map: &'a KeyMap,
    wanted: BTreeSet<&'a str>,
    options: LoadOptions,
    path: ModulePath,
    failed: Option<Error>,
}

impl Loader<'_> {
    /// Reads a parameter, whose parts follow one another along its first axis.
    fn read(&self, keys: &[String]) -> Result<TensorData> {
        let mut parts = keys.iter().map(|key| self.read_part(key)).collect::<Result<Vec<_>>>()?;
        let mut whole = parts.remove(0);
        if !parts.is_empty() {
            let mut shape = whole.shape().to_vec();
            shape[0] *= keys.len();
            let all: Vec<&[u8]> = std::iter::once(&whole).chain(&parts).map(TensorData::as_bytes).collect();
            whole = TensorData::from_bytes_vec(all.concat(), shape, whole.dtype());
        }
        if !self.path.is_transposed() {
            return Ok(whole);
        }
        transpose(whole).map_err(|reason| Error::format(self.dict.origin(), format!("`{}`: {reason}", keys[0])))
    }

    fn read_part(&self, key: &str) -> Result<TensorData> {
        let data = self.dict.tensor(key)?;
        let dtype = if self.path.is_transposed() { self.options.linear.dtype() } else { DType::F32 };
        let damaged = |reason: String| Error::format(self.dict.origin(), format!("tensor `{key}`: {reason}"));
        let data = data.try_cast(dtype).map_err(|error| damaged(error.to_string()))?;
        if let broken @ 1.. = non_finite(&data) {
            let all = data.num_elements();
            return Err(damaged(format!(
                "{broken} of {all} values are not finite in {dtype:?}; the file is damaged, the training run had \
                 diverged, or a wider type is needed"
            )));
        }
        Ok(data)
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let keys = self.path.keys(self.map);
        if self.failed.is_some() || !keys.iter().all(|key| self.wanted.contains(key.as_str())) {
            return param;
        }
        match self.read(&keys) {
            Ok(data) => {
                let dtype = data.dtype();
                let tensor = Tensor::from_data(data, (&param.lazy_device(), dtype));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Err(error) => {
                self.failed = Some(error);
                param
            }
        }
    }
}

struct Exporter<'a> {
    map: &'a KeyMap,
    path: ModulePath,
    entries: Vec<(String, Entry)>,
}

impl ModuleVisitor for Exporter<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let keys = self.path.keys(self.map);
        let transposed = self.path.is_transposed();
        let (count, shape) = (keys.len(), self.path.file_shape(&param.lazy_shape(), keys.len()));
        // A parameter that is not initialized yet stays so until it is read.
        let dtype = if param.is_initialized() { param.val().dtype() } else { DType::F32 };
        for (i, key) in keys.into_iter().enumerate() {
            let (param, name) = (param.clone(), key.clone());
            let read = move || {
                let whole = param.transform_for_save().val();
                // The file's first axis.
                let axis = usize::from(transposed);
                let share = whole.dims()[axis] / count;
                let part = if count == 1 { whole } else { whole.narrow(axis, i * share, share) };
                let data = part.try_into_data().map_err(|error| format!("`{name}` cannot be read back: {error}"))?;
                if transposed { transpose(data).map_err(|reason| format!("`{name}`: {reason}")) } else { Ok(data) }
            };
            self.entries.push((key, Entry { shape: shape.clone(), dtype, read: Arc::new(read) }));
        }
    }
}

/// Returns the number of values of a float tensor that are infinite or not a number.
fn non_finite(data: &TensorData) -> usize {
    fn typed<E: Element>(data: &TensorData, is_finite: fn(&E) -> bool) -> usize {
        data.as_slice::<E>().map_or(0, |values| values.iter().filter(|value| !is_finite(value)).count())
    }
    match data.dtype() {
        DType::F32 => typed::<f32>(data, |value| value.is_finite()),
        DType::F16 => typed::<f16>(data, |value| value.is_finite()),
        DType::BF16 => typed::<bf16>(data, |value| value.is_finite()),
        _ => 0,
    }
}

/// Transposes a float matrix.
fn transpose(data: TensorData) -> std::result::Result<TensorData, String> {
    fn typed<E: Element>(data: TensorData) -> std::result::Result<TensorData, String> {
        let [rows, columns] = *data.shape().as_slice() else {
            return Err(format!("a matrix was expected, found shape {:?}", data.shape()));
        };
        let values = data.try_into_vec::<E>().map_err(|error| error.to_string())?;
        Ok(TensorData::new(transposed(&values, rows, columns), [columns, rows]))
    }
    match data.dtype() {
        DType::F32 => typed::<f32>(data),
        DType::F16 => typed::<f16>(data),
        DType::BF16 => typed::<bf16>(data),
        DType::F64 => typed::<f64>(data),
        dtype => Err(format!("a float matrix was expected, found {dtype:?}")),
    }
}

/// Transposes in tiles, because each element of a column lies in another cache line.
fn transposed<E: Copy>(values: &[E], rows: usize, columns: usize) -> Vec<E> {
    const TILE: usize = 32;
    let mut result = values.to_vec();
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..rows.min(row_tile + TILE) {
                for column in column_tile..columns.min(column_tile + TILE) {
                    result[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Initializer, ParamId};
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Net {
        fc: Linear,
        pos: Param<Tensor<2>>,
        hits: Param<Tensor<1>>,
    }

    fn device() -> Device {
        Device::flex().autodiff()
    }

    /// Returns a parameter that fails the test if it is initialized.
    fn lazy<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
        let init = |_: &Device, _| panic!("a parameter was initialized only to be overwritten");
        Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
    }

    fn lazy_net(device: &Device) -> Net {
        let mut fc = LinearConfig::new(3, 2).init(device);
        fc.weight = lazy([3, 2], device);
        fc.bias = Some(lazy([2], device));
        Net { fc, pos: lazy([2, 3], device), hits: Initializer::Ones.init([4], device) }
    }

    fn map() -> KeyMap {
        KeyMap::new("test format", &["hits", "mask"], |path| path.replace("fc.", "fc.1."))
    }

    fn dict(shapes: &[(&str, &[usize])]) -> StateDict {
        let shapes = shapes.iter().map(|(key, shape)| (key.to_string(), shape.to_vec()));
        StateDict::generated("test", shapes, |_, shape| (0..shape.iter().product()).map(|i| i as f32).collect())
            .unwrap()
    }

    fn values<const D: usize>(param: &Param<Tensor<D>>) -> Vec<f32> {
        param.val().into_data().try_into_vec().unwrap()
    }

    const FULL: [(&str, &[usize]); 4] =
        [("fc.1.weight", &[2, 3]), ("fc.1.bias", &[2]), ("pos", &[2, 3]), ("blocks.0.mask", &[9])];

    #[test]
    fn lazy_parameters_are_filled_and_linear_weights_turned() {
        let net = lazy_net(&device());
        let id = net.pos.id;
        let (net, report) = load(net, &dict(&FULL), &map(), LoadOptions::default()).unwrap();
        assert_eq!(values(&net.fc.weight), [0., 3., 1., 4., 2., 5.], "a Linear's weight is transposed");
        assert_eq!(values(&net.pos), [0., 1., 2., 3., 4., 5.], "any other matrix is not");
        assert_eq!(values(&net.hits), [1.0; 4], "a buffer that the file lacks keeps its value");
        assert_eq!(net.pos.id, id, "identity is kept");
        assert!(net.pos.val().is_require_grad(), "still trained");
        assert_eq!(report.loaded.len(), 3, "{report:?}");
        assert_eq!(report.ignored, ["blocks.0.mask"], "{report:?}");
    }

    #[test]
    fn parts_in_the_file_make_up_one_parameter() {
        // The linear layer's rows, and those of the matrix, are two tensors each.
        let halves = |key: &str| match key {
            "fc.1.weight" | "pos" => Some(vec![format!("{key}.a"), format!("{key}.b")]),
            _ => None,
        };
        let map = map().with_split(halves);
        let shapes: [(&str, &[usize]); 5] = [
            ("fc.1.weight.a", &[1, 3]),
            ("fc.1.weight.b", &[1, 3]),
            ("fc.1.bias", &[2]),
            ("pos.a", &[1, 3]),
            ("pos.b", &[1, 3]),
        ];
        let shapes = shapes.map(|(key, shape)| (key.to_owned(), shape.to_vec()));
        let start = |key: &str| if key.ends_with(".b") { 3 } else { 0 };
        let values_of = move |key: &str, shape: &[usize]| {
            (0..shape.iter().product::<usize>()).map(|i| (start(key) + i) as f32).collect()
        };
        let dict = StateDict::generated("test", shapes, values_of).unwrap();
        let (net, report) = load(lazy_net(&device()), &dict, &map, LoadOptions::default()).unwrap();
        assert_eq!(values(&net.fc.weight), [0., 3., 1., 4., 2., 5.], "joined, then transposed");
        assert_eq!(values(&net.pos), [0., 1., 2., 3., 4., 5.], "joined");
        assert_eq!(report.loaded.len(), 5, "{report:?}");
        let again = export(&net, &map).unwrap();
        for key in dict.keys() {
            assert_eq!(again.tensor(key).unwrap(), dict.tensor(key).unwrap(), "{key}");
        }
        let lacking = StateDict::generated("test", [("pos.a".to_owned(), vec![1, 3])], |_, _| vec![0.0; 3]).unwrap();
        let Error::Weights(report) = load(lazy_net(&device()), &lacking, &map, LoadOptions::default()).unwrap_err()
        else {
            panic!("another error")
        };
        assert!(report.missing.contains(&"pos.b".to_owned()), "{report:?}");
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let wrong = dict(&[("fc.1.weight", &[3, 2]), ("pos", &[2, 3]), ("extra", &[1]), ("hits", &[9])]);
        let error = load(lazy_net(&device()), &wrong, &map(), LoadOptions::default()).unwrap_err();
        let Error::Weights(report) = error else { panic!("another error: {error}") };
        assert_eq!(report.missing, ["fc.1.bias"], "missing");
        assert_eq!(report.unused, ["extra"], "unused");
        let mis_shaped = MisShaped { key: "fc.1.weight".into(), expected: vec![2, 3], found: vec![3, 2] };
        assert_eq!(report.mis_shaped, [mis_shaped], "mis-shaped, in the file's layout");
        assert_eq!(report.ignored, ["hits"], "a buffer of another shape");
    }

    #[test]
    fn partial_loads_are_explicit() {
        let net = Net { fc: LinearConfig::new(3, 2).init(&device()), ..lazy_net(&device()) };
        let before = values(net.fc.bias.as_ref().unwrap());
        let part = dict(&[("fc.1.weight", &[2, 3]), ("pos", &[2, 3]), ("extra", &[1])]);
        let options = LoadOptions { allow_missing: true, allow_unused: true, ..Default::default() };
        let (net, report) = load(net, &part, &map(), options).unwrap();
        assert_eq!((report.missing.len(), report.unused.len()), (1, 1), "still reported");
        assert_eq!(values(net.fc.bias.as_ref().unwrap()), before, "what the file lacks is as before");
    }

    #[test]
    fn linear_weights_are_held_as_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        let half = super::super::SaveOptions { precision: Some(FloatType::F16), ..Default::default() };
        super::super::save(&dict(&FULL), &path, &half).unwrap();
        let file = StateDict::open(&path).unwrap();
        for (linear, dtype) in
            [(FloatType::F32, DType::F32), (FloatType::F16, DType::F16), (FloatType::Bf16, DType::BF16)]
        {
            let options = LoadOptions { linear, ..Default::default() };
            let (loaded, _) = load(lazy_net(&Device::flex()), &file, &map(), options).unwrap();
            let (single, _) = load(lazy_net(&Device::flex()), &file, &map(), LoadOptions::default()).unwrap();
            for net in [loaded, cast_linear(single, linear)] {
                assert_eq!(net.fc.weight.val().dtype(), dtype, "the weight of a linear layer");
                assert_eq!(net.fc.bias.as_ref().unwrap().val().dtype(), DType::F32, "its bias");
                assert_eq!(net.pos.val().dtype(), DType::F32, "another matrix");
                let weight = net.fc.weight.val().cast(DType::F32).into_data().try_into_vec::<f32>().unwrap();
                assert_eq!(weight, [0., 3., 1., 4., 2., 5.], "values");
            }
        }
    }

    #[test]
    fn weights_that_are_not_finite_are_refused() {
        let with = |value: f32| {
            let shapes = FULL.iter().map(|(key, shape)| (key.to_string(), shape.to_vec()));
            let make =
                move |key: &str, shape: &[usize]| vec![if key == "pos" { value } else { 0.0 }; shape.iter().product()];
            load(
                lazy_net(&device()),
                &StateDict::generated("test", shapes, make).unwrap(),
                &map(),
                LoadOptions::default(),
            )
        };
        assert!(with(f32::MAX).is_ok(), "the largest number is one");
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let error = with(value).unwrap_err().to_string();
            assert!(error.contains("tensor `pos`: 6 of 6 values are not finite"), "{error}");
        }
    }

    #[test]
    fn export_is_the_inverse_of_load() {
        let full = dict(&FULL);
        let (net, _) = load(lazy_net(&device()), &full, &map(), LoadOptions::default()).unwrap();
        let exported = export(&net, &map()).unwrap();
        assert_eq!(exported.keys().collect::<Vec<_>>(), ["fc.1.bias", "fc.1.weight", "hits", "pos"], "names");
        for key in ["fc.1.bias", "fc.1.weight", "pos"] {
            assert_eq!(exported.shape(key), full.shape(key), "shape of {key}");
            assert_eq!(exported.tensor(key).unwrap(), full.tensor(key).unwrap(), "values of {key}");
        }
    }

    #[test]
    fn tiles_cover_ragged_matrices() {
        let (rows, columns) = (33, 70);
        let values: Vec<usize> = (0..rows * columns).collect();
        let turned = transposed(&values, rows, columns);
        assert!((0..columns).all(|c| (0..rows).all(|r| turned[c * rows + r] == r * columns + c)), "every element");
        assert_eq!(transposed(&turned, columns, rows), values, "there and back");
    }
}
