//! Values of a piece on their way from one rank to the others.

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::{Error, Result};

/// Action in messages about a tensor that cannot be read.
const READ: &str = "read a tensor for the other ranks";

/// Bytes of one rank: values are read in the order in which they were written.
#[derive(Debug, Default)]
pub struct Packet {
    bytes: Vec<u8>,
    position: usize,
}

impl Packet {
    /// Opens what another rank wrote.
    pub fn received(bytes: Vec<u8>) -> Self {
        Self { bytes, position: 0 }
    }

    /// Returns the bytes to send.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let rest = &self.bytes[self.position..];
        let found = rest.get(..count).ok_or_else(|| Error::config("message of a rank", rest.len(), "more bytes"))?;
        self.position += count;
        Ok(found)
    }

    /// Writes the sizes of a tensor, and its numbers.
    fn write<const D: usize, const B: usize>(
        &mut self,
        dims: [usize; D],
        numbers: impl Iterator<Item = [u8; B]>,
    ) -> Result<()> {
        dims.to_vec().pack(self)?;
        self.bytes.extend(numbers.flatten());
        Ok(())
    }

    /// Reads what [`Packet::write`] wrote.
    fn read<T, const B: usize>(&mut self, device: &Device, number: fn([u8; B]) -> T) -> Result<(Vec<usize>, Vec<T>)> {
        let dims = Vec::<usize>::unpack(self, device)?;
        let bytes = self.take(B * dims.iter().product::<usize>())?;
        let numbers = bytes.as_chunks::<B>().0.iter().map(|bytes| number(*bytes)).collect();
        Ok((dims, numbers))
    }
}

/// A value that ranks exchange. Numbers and tensors arrive with the same bits.
pub trait Portable: Sized {
    /// Writes the value.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    fn pack(self, to: &mut Packet) -> Result<()>;

    /// Reads a value; its tensors are uploaded to `device`.
    ///
    /// # Errors
    /// If the packet holds another kind of value.
    fn unpack(from: &mut Packet, device: &Device) -> Result<Self>;
}

impl Portable for u64 {
    fn pack(self, to: &mut Packet) -> Result<()> {
        to.bytes.extend(self.to_le_bytes());
        Ok(())
    }

    fn unpack(from: &mut Packet, _: &Device) -> Result<Self> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(from.take(8)?);
        Ok(Self::from_le_bytes(bytes))
    }
}

impl Portable for f64 {
    fn pack(self, to: &mut Packet) -> Result<()> {
        self.to_bits().pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        Ok(Self::from_bits(u64::unpack(from, device)?))
    }
}

impl Portable for usize {
    fn pack(self, to: &mut Packet) -> Result<()> {
        (self as u64).pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        Ok(u64::unpack(from, device)? as Self)
    }
}

impl Portable for String {
    fn pack(self, to: &mut Packet) -> Result<()> {
        self.len().pack(to)?;
        to.bytes.extend(self.into_bytes());
        Ok(())
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        let count = usize::unpack(from, device)?;
        Ok(Self::from_utf8_lossy(from.take(count)?).into_owned())
    }
}

impl<T: Portable> Portable for Vec<T> {
    fn pack(self, to: &mut Packet) -> Result<()> {
        self.len().pack(to)?;
        self.into_iter().try_for_each(|value| value.pack(to))
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        (0..usize::unpack(from, device)?).map(|_| T::unpack(from, device)).collect()
    }
}

impl<T: Portable> Portable for Option<T> {
    fn pack(self, to: &mut Packet) -> Result<()> {
        self.into_iter().collect::<Vec<T>>().pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        Ok(Vec::unpack(from, device)?.pop())
    }
}

impl<A: Portable, B: Portable> Portable for (A, B) {
    fn pack(self, to: &mut Packet) -> Result<()> {
        self.0.pack(to)?;
        self.1.pack(to)
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        Ok((A::unpack(from, device)?, B::unpack(from, device)?))
    }
}

impl<const D: usize> Portable for Tensor<D> {
    fn pack(self, to: &mut Packet) -> Result<()> {
        let dims = self.dims();
        let values = self.try_into_vec_as::<f32>().map_err(burn_var::Error::device(READ))?;
        to.write(dims, values.iter().map(|value| value.to_le_bytes()))
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        let (dims, values) = from.read(device, f32::from_le_bytes)?;
        Ok(Self::from_data(TensorData::new(values, dims), device))
    }
}

impl<const D: usize> Portable for Tensor<D, Int> {
    fn pack(self, to: &mut Packet) -> Result<()> {
        let dims = self.dims();
        let values = self.try_into_vec_as::<i64>().map_err(burn_var::Error::device(READ))?;
        to.write(dims, values.iter().map(|value| value.to_le_bytes()))
    }

    fn unpack(from: &mut Packet, device: &Device) -> Result<Self> {
        let (dims, values) = from.read(device, i64::from_le_bytes)?;
        Ok(Self::from_data(TensorData::new(values, dims), device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_arrive_as_they_were() {
        let device = Device::default();
        let tensor = Tensor::<2>::from_floats([[1.5, -0.0, 3e-39]], &device);
        let ids = Tensor::<1, Int>::from_ints([7, -1], &device);
        let metrics = vec![("loss".to_owned(), 0.1 + 0.2), ("empty".to_owned(), f64::NEG_INFINITY)];
        let mut packet = Packet::default();
        metrics.clone().pack(&mut packet).unwrap();
        (tensor.clone(), Some(ids.clone())).pack(&mut packet).unwrap();
        None::<f64>.pack(&mut packet).unwrap();
        let mut received = Packet::received(packet.into_bytes());
        assert_eq!(Vec::<(String, f64)>::unpack(&mut received, &device).unwrap(), metrics);
        let (found, found_ids) = <(Tensor<2>, Option<Tensor<1, Int>>)>::unpack(&mut received, &device).unwrap();
        assert_eq!(found.into_data().bytes(), tensor.into_data().bytes());
        assert_eq!(found_ids.unwrap().into_data(), ids.into_data());
        assert_eq!(Option::<f64>::unpack(&mut received, &device).unwrap(), None);
        assert!(u64::unpack(&mut received, &device).is_err(), "nothing is left");
    }
}
