//! The choice of the hypervisor backend: the only module that knows which backends exist.

#[cfg(target_os = "linux")]
mod choice {
    pub(crate) use boxlite_kvm::KvmVm as HostVm;

    /// Creates a VM with `vcpus` vCPUs on this host's hypervisor. `nested`: whether the guest sees virtualization
    /// extensions and performance counters.
    pub(crate) fn open(vcpus: u8, nested: bool) -> boxlite_hv::Result<HostVm> {
        HostVm::new(vcpus.into(), nested)
    }
}

pub(crate) use choice::{HostVm, open};
