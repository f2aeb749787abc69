//! The choice of the hypervisor: the one place that knows which there are.

#[cfg(target_os = "linux")]
mod choice {
    pub(crate) use crate::kvm::KvmVm as Machine;

    /// A machine for so many vCPUs on this host's hypervisor.
    pub(crate) fn open(vcpus: u8) -> boxlite_hv::Result<Machine> {
        Machine::new(vcpus.into())
    }
}

pub(crate) use choice::{Machine, open};
