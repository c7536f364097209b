//! Settings of the GPU backends.

use burn::tensor::{Device, Tensor};
use burn_var::gpu::GpuSettings;
use cubecl::config::memory::{CudaAllocator, PersistentMemory};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// The first test of the process that touches the GPU decides; the settings of the others stay without effect.
#[test]
fn settings_hold_from_the_first_operation_on() {
    let _alone = crate::alone();
    GpuSettings { training: true, ..GpuSettings::default() }.apply().expect("with fusion there is nothing to refuse");
    let first = CubeClRuntimeConfig::get();
    Tensor::<1>::ones([1], &Device::wgpu(Default::default())).into_data();
    let error = GpuSettings { fusion: false, ..GpuSettings::default() }.apply().expect_err("too late").to_string();
    assert!(error.contains("switch fusion off") && error.contains("start of your program"), "{error}");
    let later = CubeClRuntimeConfig::get();
    assert!(std::sync::Arc::ptr_eq(&first, &later), "settings are not replaced");
    // Another test may have come first, with Burn's defaults.
    let ours = matches!(first.memory.cuda.allocator, CudaAllocator::Async);
    assert_eq!(ours, matches!(first.memory.persistent_memory, PersistentMemory::SizeMatch), "all of ours or none");
}
