use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Int, Tensor, TensorData};

use crate::Result;

/// A fingerprint of images or weights, the same on every machine: their BLAKE3 hash.
///
/// Runs and caches of earlier versions recorded a 128-bit FNV-1a hash, half as many digits. [`Fingerprint::like`] computes
/// it again, so that they are still recognized.
///
/// ```
/// use burn_var_train::data::Fingerprint;
/// let both = Fingerprint::new().field(b"sneaker").field(b"bag").finish();
/// assert_ne!(both, Fingerprint::new().field(b"sneakerbag").finish());
/// ```
#[derive(Debug, Clone)]
pub struct Fingerprint(Hash);

#[derive(Debug, Clone)]
enum Hash {
    // A hasher is a kilobyte and a half.
    Blake3(Box<blake3::Hasher>),
    Fnv1a(u128),
}

/// Fields of at least this many bytes are worth several threads.
const PARALLEL: usize = 128 << 10;
/// Hexadecimal digits of an FNV-1a fingerprint.
const FNV_DIGITS: usize = 32;
const FNV_OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const FNV_PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

impl Default for Fingerprint {
    fn default() -> Self {
        Self::new()
    }
}

impl Fingerprint {
    /// Creates the fingerprint of nothing.
    pub fn new() -> Self {
        Self(Hash::Blake3(Box::default()))
    }

    /// Creates the fingerprint of nothing with the hash function that made `recorded`, for a comparison with it.
    pub fn like(recorded: &str) -> Self {
        match Self::is_old(recorded) {
            true => Self(Hash::Fnv1a(FNV_OFFSET)),
            false => Self::new(),
        }
    }

    /// Returns true if an earlier version made `recorded`, by FNV-1a.
    pub fn is_old(recorded: &str) -> bool {
        recorded.len() == FNV_DIGITS
    }

    /// Adds a field: its length, then its bytes, so that two fields differ from one with the bytes of both.
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

    /// Returns the fingerprint in hexadecimal digits: 64, or 32 of FNV-1a.
    pub fn finish(&self) -> String {
        match &self.0 {
            Hash::Blake3(hasher) => hasher.finalize().to_string(),
            Hash::Fnv1a(hash) => format!("{hash:032x}"),
        }
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        match &mut self.0 {
            Hash::Blake3(hasher) if bytes.len() >= PARALLEL => _ = hasher.update_rayon(bytes),
            Hash::Blake3(hasher) => _ = hasher.update(bytes),
            Hash::Fnv1a(hash) => {
                *hash = bytes.iter().fold(*hash, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(FNV_PRIME));
            }
        }
        self
    }
}

/// Adds every tensor that a module saves, up to the first that cannot be read.
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
    fn bytes_hash_as_the_definitions_say() {
        let old = "343e1662793c64bf6f0d3597ba446f18";
        // The 128-bit test vector for "foobar" of draft-eastlake-fnv.
        assert_eq!(Fingerprint::like(old).raw(b"foobar").finish(), old, "FNV-1a of foobar");
        // The first of BLAKE3's official test vectors.
        let new = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Fingerprint::new().finish(), new, "BLAKE3 of nothing");
        assert_eq!(Fingerprint::like(new).finish(), new, "recorded by this version");
    }

    #[test]
    fn large_fields_hash_alike_on_any_number_of_threads() {
        let bytes: Vec<u8> = (0..3 * PARALLEL + 7).map(|i| (i * 31 % 251) as u8).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
        assert_eq!(Fingerprint::new().field(&bytes).finish(), hasher.finalize().to_string());
    }
}
