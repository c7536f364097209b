use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

/// Constants that are computed on the host once, and uploaded once per device.
///
/// The matrices, masks and tables that a method defines depend on a few sizes only. Building them in every step costs
/// an upload each; on a GPU that is a wait for the host inside the step.
pub(crate) struct Constants<K, const D: usize>(LazyLock<Mutex<Table<K, D>>>);

/// Sizes can come from a request or from a random schedule, so that their number has no bound: a table starts again beyond
/// this many numbers (256 MB).
const CAPACITY: usize = 1 << 26;

struct Table<K, const D: usize> {
    known: HashMap<K, Vec<OnDevice<D>>>,
    /// Numbers in all of them.
    numbers: usize,
}

impl<K, const D: usize> Default for Table<K, D> {
    fn default() -> Self {
        Self { known: HashMap::new(), numbers: 0 }
    }
}

struct OnDevice<const D: usize> {
    device: Device,
    /// Two devices are equal whether or not they record a graph; their tensors do not mix.
    autodiff: bool,
    tensor: Tensor<D>,
}

impl<K: Hash + Eq, const D: usize> Constants<K, D> {
    pub(crate) const fn new() -> Self {
        Self(LazyLock::new(Default::default))
    }

    /// Returns the constant of a key on a device; `values` computes its numbers, row-major, and its shape.
    pub(crate) fn get(&self, key: K, device: &Device, values: impl FnOnce() -> (Vec<f32>, [usize; D])) -> Tensor<D> {
        let Ok(tensor) = self.try_get(key, device, || Ok::<_, std::convert::Infallible>(values()));
        tensor
    }

    /// Returns the constant of a key like [`Constants::get`], for constants that do not exist for every key.
    pub(crate) fn try_get<E>(
        &self,
        key: K,
        device: &Device,
        values: impl FnOnce() -> Result<(Vec<f32>, [usize; D]), E>,
    ) -> Result<Tensor<D>, E> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let autodiff = device.is_autodiff();
        let fits = |known: &&OnDevice<D>| known.autodiff == autodiff && known.device == *device;
        if let Some(found) = table.known.get(&key).and_then(|known| known.iter().find(fits)) {
            return Ok(found.tensor.clone());
        }
        let (values, shape) = values()?;
        let numbers = values.len();
        if table.numbers + numbers > CAPACITY {
            *table = Table::default();
        }
        let tensor = Tensor::from_data(TensorData::new(values, shape), device);
        let entry = OnDevice { device: device.clone(), autodiff, tensor: tensor.clone() };
        table.known.entry(key).or_default().push(entry);
        table.numbers += numbers;
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_constant_is_computed_once_per_device_and_graph() {
        static TABLE: Constants<usize, 1> = Constants::new();
        let computed = Cell::new(0);
        let get = |key: usize, device: &Device| {
            let values = || {
                computed.set(computed.get() + 1);
                (vec![key as f32; 2], [2])
            };
            TABLE.get(key, device, values).into_data().try_into_vec::<f32>().unwrap()
        };
        let device = Device::default();
        assert_eq!([get(3, &device), get(3, &device), get(4, &device)], [vec![3.0; 2], vec![3.0; 2], vec![4.0; 2]]);
        assert_eq!(computed.get(), 2, "one per key");
        get(3, &device.clone().autodiff());
        get(3, &device.autodiff());
        assert_eq!(computed.get(), 3, "and one with a graph");
    }
}
