//! The choice of the hypervisor backend: the only module that knows which backends exist.
//!
//! With the feature `hvf-double`, for tests, aarch64 Linux has the backend of macOS over a double of its framework.

#[cfg(all(target_os = "linux", not(all(target_arch = "aarch64", feature = "hvf-double"))))]
pub(crate) use boxlite_kvm::KvmVm as HostVm;

#[cfg(all(target_os = "linux", target_arch = "aarch64", feature = "hvf-double"))]
pub(crate) use {boxlite_hvf::HvfVm as HostVm, boxlite_hvf_double as _};

#[cfg(target_os = "macos")]
pub(crate) use boxlite_hvf::HvfVm as HostVm;
