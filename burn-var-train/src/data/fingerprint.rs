use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor, TensorData};

use crate::Result;

/// A 128-bit fingerprint of pictures or weights, the same on every machine (FNV-1a).
///
/// It tells whether two things are the same; it is no protection against someone who forges one.
///
/// ```
/// use burn_var_train::data::Fingerprint;
/// let both = Fingerprint::new().field(b"sneaker").field(b"bag").finish();
/// assert_ne!(both, Fingerprint::new().field(b"sneakerbag").finish());
/// ```
#[derive(Debug, Clone)]
pub struct Fingerprint(u128);

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}

impl Fingerprint {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    /// The fingerprint of nothing.
    pub fn new() -> Self {
        Self(Self::OFFSET)
    }

    /// Adds a field: its length, then its bytes, so that two fields never read as one.
    #[must_use]
    pub fn field(self, bytes: &[u8]) -> Self {
        self.raw(&(bytes.len() as u64).to_le_bytes()).raw(bytes)
    }

    /// Adds all saved tensors of a module, float and integer, in the module's order.
    ///
    /// # Errors
    /// [`burn_var::Error::Device`] if a tensor cannot be read back.
    pub fn module<M: Module>(self, module: &M) -> Result<Self> {
        let mut tensors = Tensors(Ok(self));
        module.visit(&mut tensors);
        tensors.0
    }

    /// The 32 hexadecimal digits.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.0)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(Self::PRIME);
        }
        self
    }
}

/// Adds every tensor that a module saves, until one cannot be read.
struct Tensors(Result<Fingerprint>);

impl Tensors {
    fn add<E: std::fmt::Display>(&mut self, data: std::result::Result<TensorData, E>) {
        let before = std::mem::replace(&mut self.0, Ok(Fingerprint::new()));
        let read = || data.map_err(burn_var::Error::device("read the weights for their fingerprint"));
        self.0 = before.and_then(|print| {
            let data = read()?;
            Ok(print.field(format!("{:?}", data.shape()).as_bytes()).field(data.as_bytes()))
        });
    }
}

impl ModuleVisitor for Tensors {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.add(param.val().try_into_data());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add(param.val().try_into_data());
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_module_is_known_by_its_weights() {
        let make = |value: f32, inputs: usize| -> Linear {
            let linear = LinearConfig::new(inputs, 6 / inputs).init(&Device::flex());
            Linear { weight: linear.weight.map(|weight| weight.full_like(value)), bias: None }
        };
        let print = |linear: &Linear| Fingerprint::new().module(linear).unwrap().finish();
        assert_eq!(print(&make(0.5, 2)), print(&make(0.5, 2)), "the same weights of another module");
        assert_ne!(print(&make(0.5, 2)), print(&make(0.25, 2)), "other weights");
        assert_ne!(print(&make(0.5, 2)), print(&make(0.5, 3)), "another shape");
    }

    #[test]
    fn bytes_hash_as_the_definition_says() {
        // The 128-bit test vector for "foobar" of draft-eastlake-fnv.
        assert_eq!(Fingerprint::new().raw(b"foobar").finish(), "343e1662793c64bf6f0d3597ba446f18", "FNV-1a of foobar");
    }
}
