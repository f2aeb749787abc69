//! The choice of the hypervisor backend: the only module that knows which backends exist.

#[cfg(target_os = "linux")]
pub(crate) use boxlite_kvm::KvmVm as HostVm;
