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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_hash_as_the_definition_says() {
        // The 128-bit test vector for "foobar" of draft-eastlake-fnv.
        assert_eq!(Fingerprint::new().raw(b"foobar").finish(), "343e1662793c64bf6f0d3597ba446f18", "FNV-1a of foobar");
    }
}
