//! A vCPU on KVM: KVM_RUN and its exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use boxlite_hv::{Error, Exit, Result, Vcpu};
use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, MsrList, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::call;
use super::kick::Kicks;
use super::x86_64::state::VcpuState;

/// A vCPU, on the thread that bound it.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    /// The page shared with KVM; `fd` keeps it mapped.
    run: *mut kvm_run,
    id: u32,
    /// The MSRs that this host's KVM saves and restores.
    msrs: Option<MsrList>,
    kicks: Arc<Kicks>,
}

impl KvmVcpu {
    pub(super) fn new(mut fd: VcpuFd, id: u32, msrs: Option<MsrList>, kicks: Arc<Kicks>) -> Self {
        let run = &raw mut *fd.get_kvm_run();
        kicks.register(id, run);
        Self { fd, run, id, msrs, kicks }
    }

    /// Finishes the instruction whose exit was answered last, without running the next one.
    fn complete_exit(&mut self) -> Result<()> {
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(|_| ());
        self.fd.set_kvm_immediate_exit(0);
        match result {
            Err(e) if e.errno() == libc::EINTR => Ok(()),
            Err(e) => Err(call("KVM_RUN")(e)),
            Ok(()) => {
                Err(Error::Vcpu { id: self.id, reason: "ran on past a completed exit".into() })
            }
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicks.forget(self.id);
    }
}

impl Vcpu for KvmVcpu {
    type State = VcpuState;

    fn run(&mut self) -> Result<Exit<'_>> {
        let (id, run) = (self.id, self.run);
        let stuck = |reason: String| Err(Error::Vcpu { id, reason });
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(gpa, data)) => Ok(Exit::MmioRead { gpa, data }),
            Ok(VcpuExit::MmioWrite(gpa, data)) => Ok(Exit::MmioWrite { gpa, data }),
            Ok(VcpuExit::IoIn(port, data)) => Ok(Exit::PioRead { port, data }),
            Ok(VcpuExit::IoOut(port, data)) => Ok(Exit::PioWrite { port, data }),
            Ok(VcpuExit::Shutdown) => Ok(Exit::Reset),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Ok(Exit::Shutdown),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH, _)) => {
                Ok(Exit::Reset)
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                stuck(format!("entry failed on host CPU {cpu}, hardware reason {reason:#x}"))
            }
            Ok(VcpuExit::InternalError) => {
                // SAFETY: the exit says that `internal` is the member in use; it is plain numbers.
                let error = unsafe { (*run).__bindgen_anon_1.internal };
                stuck(super::x86_64::internal_error(error.suberror, &error.data, error.ndata))
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Ok(Exit::Kicked),
            Ok(other) => stuck(format!("unexpected exit {other:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                // SAFETY: the page is mapped as long as `self.fd`; kicks write this byte atomically.
                let pending = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
                pending.store(0, Ordering::SeqCst);
                Ok(Exit::Kicked)
            }
            Err(e) => Err(call("KVM_RUN")(e)),
        }
    }

    fn resumed(&mut self) {
        // It is refused where the guest has no paravirtual clock: there is no other way to tell it.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn save(&mut self) -> Result<VcpuState> {
        self.complete_exit()?;
        VcpuState::save(&self.fd, self.msrs.as_ref())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<()> {
        state.restore(&self.fd)
    }
}
