//! Memory that a process takes.

use burn::tensor::Device;

/// Returns the bytes that this process holds of a GPU's memory, with what is kept for later; on a CPU the largest resident set of
/// the process so far. `None` where the system does not report it.
pub fn held(device: &Device) -> Option<u64> {
    #[cfg(feature = "gpu")]
    if let Some(held) = crate::ops::memory_held(device) {
        return Some(held);
    }
    let _ = device;
    peak_resident()
}

/// Returns the largest resident set of this process so far, in bytes; `None` where the system does not report it.
pub fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
