//! The device to compute on.

use anyhow::Result;
use burn::tensor::Device;
use clap::ValueEnum;

use crate::output::usage;

/// A device by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// The CPU, fast.
    Flex,
    /// The CPU, slow: to compare results with.
    Ndarray,
    /// A GPU, through WebGPU.
    Wgpu,
    /// A GPU, through Vulkan.
    Vulkan,
    /// An NVIDIA GPU.
    Cuda,
}

impl Default for DeviceName {
    fn default() -> Self {
        if cfg!(feature = "flex") { Self::Flex } else { Self::Ndarray }
    }
}

impl DeviceName {
    /// Refuses the number of a GPU on a CPU.
    ///
    /// # Errors
    /// A usage error.
    pub(crate) fn check_number(self, number: Option<usize>) -> Result<()> {
        if number.is_some() && matches!(self, Self::Flex | Self::Ndarray) {
            return Err(usage("--devices numbers GPUs: choose one with --device, `--device cuda` for instance"));
        }
        Ok(())
    }

    /// Opens the device, and checks that it computes. On a GPU, operations are fused if `fusion` is set, and memory is sorted
    /// for `training`; `number` is that of the GPU, the default one if absent.
    pub(crate) fn open(self, fusion: bool, training: bool, number: Option<usize>) -> Result<Device> {
        self.check_number(number)?;
        #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
        if matches!(self, Self::Wgpu | Self::Vulkan | Self::Cuda) {
            burn_var::gpu::GpuSettings { fusion, training }.apply()?;
        }
        #[cfg(not(any(feature = "wgpu", feature = "vulkan", feature = "cuda")))]
        let _ = (fusion, training);
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated, reason = "it is here to compare results with")]
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => probe("wgpu", move || Device::wgpu(kind(number))),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => probe("vulkan", move || Device::vulkan(kind(number))),
            #[cfg(feature = "cuda")]
            Self::Cuda => probe("cuda", move || Device::cuda(number.unwrap_or(0))),
            #[allow(unreachable_patterns, reason = "with all features there is no other")]
            other => {
                let name = other.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
                Err(usage(format!(
                    "this burn-var was built without the device `{name}`; build it with \
                     `cargo build --release -p burn-var-cli --features {name}`"
                )))
            }
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "vulkan"))]
fn kind(number: Option<usize>) -> burn::tensor::DeviceKind {
    number.map_or_else(Default::default, burn::tensor::DeviceKind::DiscreteGpu)
}

/// Checks a device before any work, by an operation that on CUDA needs the toolkit. Burn panics where there is no such GPU; here
/// that becomes an error.
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "cuda"))]
fn probe(name: &str, open: impl FnOnce() -> Device + std::panic::UnwindSafe) -> Result<Device> {
    use burn::tensor::Tensor;

    use crate::failure::{Unusable, message_of};

    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = std::panic::catch_unwind(move || {
        let device = open();
        Tensor::<1>::ones([1], &device).tanh().try_into_data().map(|_| device).map_err(|error| error.to_string())
    });
    std::panic::set_hook(hook);
    match found {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(reason)) => Err(Unusable::new(name, &reason).into()),
        Err(panic) => Err(Unusable::new(name, message_of(&*panic)).into()),
    }
}
