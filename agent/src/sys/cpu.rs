//! What depends on the CPU.

/// Whether the first CPU of the nested host must run no guest: QEMU's emulation of x86 requires it (for the reason, see
/// `keep_off_first_cpu` in `boot`).
pub(crate) const FIRST_RUNS_NO_GUEST: bool = cfg!(target_arch = "x86_64");
