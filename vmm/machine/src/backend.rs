//! The choice of the hypervisor: the one place that knows which there are.

#[cfg(target_os = "linux")]
mod choice {
    pub(crate) use boxlite_kvm::KvmVm as HostVm;

    /// A machine for so many vCPUs on this host's hypervisor; `nested`: its guest may run machines of
    /// its own, and count what its processor does.
    pub(crate) fn open(vcpus: u8, nested: bool) -> boxlite_hv::Result<HostVm> {
        HostVm::new(vcpus.into(), nested)
    }
}

pub(crate) use choice::{HostVm, open};
