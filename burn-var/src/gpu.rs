//! Settings of Burn's GPU backends, for a whole process.

use burn_cubecl::fusion;
use cubecl::config::memory::{CudaAllocator, PersistentMemory};
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use crate::{Error, Result};

/// Settings of Burn's GPU backends. They hold for the whole process, from before the first operation on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuSettings {
    /// Fuses operations to larger kernels: fewer launches, and less memory that is read and written. Without it every
    /// operation is a kernel of its own, which is to find out whether fusion causes a wrong result.
    pub fusion: bool,
    /// Sorts memory for training, where the same sizes return in each step: memory of the size of a weight is not cut up.
    pub training: bool,
}

impl Default for GpuSettings {
    /// Returns the settings for generation, with fusion.
    fn default() -> Self {
        Self { fusion: true, training: false }
    }
}

impl GpuSettings {
    /// Applies the settings.
    ///
    /// Kernels that were compiled or timed are kept in the user's cache folder, for the next process. A file `cubecl.toml`
    /// or a section `[cubecl]` of `burn.toml`, in the working folder or above, has precedence over all of this but fusion,
    /// and variables of the environment (`CUBECL_AUTOTUNE_LEVEL` and others) over the file. If the process has already set
    /// or read Burn's settings, they stay.
    ///
    /// # Errors
    /// [`Error::Device`] for fusion that should be off after the first operation on a GPU.
    pub fn apply(self) -> Result<()> {
        CubeClRuntimeConfig::try_set(self.runtime());
        if !self.fusion {
            for name in fusion::BUILTIN_NAMES {
                fusion::remove(name).map_err(Error::device("switch fusion off"))?;
            }
        }
        Ok(())
    }

    /// Returns the settings of the runtime: those of a file if there is one, else our own.
    fn runtime(self) -> CubeClRuntimeConfig {
        #[cfg(not(target_family = "wasm"))]
        {
            let in_file = CubeClRuntimeConfig::from_current_dir();
            let changed =
                serde_json::to_value(&in_file).ok() != serde_json::to_value(CubeClRuntimeConfig::default()).ok();
            let config = if changed { in_file } else { self.own() };
            config.override_from_env()
        }
        #[cfg(target_family = "wasm")]
        self.own()
    }

    fn own(self) -> CubeClRuntimeConfig {
        let mut config = CubeClRuntimeConfig::default();
        #[cfg(feature = "tuned")]
        {
            config.compilation.cache = true;
        }
        #[cfg(not(target_family = "wasm"))]
        {
            config.environment.path = cubecl::config::cache::CacheConfig::Global;
        }
        config.memory.cuda.allocator = CudaAllocator::Async;
        if self.training {
            config.memory.persistent_memory = PersistentMemory::SizeMatch;
        }
        config
    }
}
