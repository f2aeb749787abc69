//! A vCPU on KVM: KVM_RUN and its exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use boxlite_hv::{Error, Exit, Result, Vcpu};
use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::{Platform, VcpuState};
use crate::failed;
use crate::kick::Kicks;

/// A vCPU, on the thread that bound it.
#[derive(Debug)]
pub struct KvmVcpu {
    fd: VcpuFd,
    /// The page shared with KVM; `fd` keeps it mapped.
    run: *mut kvm_run,
    id: u32,
    platform: Arc<Platform>,
    kicks: Arc<Kicks>,
}

impl KvmVcpu {
    pub(super) fn new(mut fd: VcpuFd, id: u32, platform: Arc<Platform>, kicks: Arc<Kicks>) -> Self {
        let run = &raw mut *fd.get_kvm_run();
        kicks.register(id, run);
        Self { fd, run, id, platform, kicks }
    }

    /// Finishes the instruction whose exit was answered last, without running the next one.
    fn complete_exit(&mut self) -> Result<()> {
        // It stays set, as clearing it could lose a kick: the next run exits at once, as kicked.
        self.immediate_exit().store(1, Ordering::SeqCst);
        match self.fd.run().map(|_| ()) {
            Err(e) if e.errno() == libc::EINTR => Ok(()),
            Err(e) => Err(failed("KVM_RUN")(e)),
            Ok(()) => {
                Err(Error::Vcpu { id: self.id, reason: "ran on past a completed exit".into() })
            }
        }
    }

    /// The byte that makes KVM_RUN return at once.
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as `self.fd`; kicks write this byte atomically, too.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) }
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
        let (id, run, fd) = (self.id, self.run, &raw mut self.fd);
        let stuck = |reason: String| Err(Error::Vcpu { id, reason });
        // SAFETY: `fd` is this vCPU's own, and no other reference to it is alive. As a pointer, because the borrow
        // checker takes it for borrowed in the arms that do not return data.
        match unsafe { &mut *fd }.run() {
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
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Ok(Exit::Kicked),
            // SAFETY: the page is mapped as long as `fd`, and holds the exit of the call above, whose result is not
            // used any more.
            Ok(_) => match unsafe { Platform::on_exit(&*fd, run) } {
                Ok(()) => Ok(Exit::Kicked),
                Err(reason) => stuck(reason),
            },
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.immediate_exit().store(0, Ordering::SeqCst);
                Ok(Exit::Kicked)
            }
            Err(e) => Err(failed("KVM_RUN")(e)),
        }
    }

    fn resumed(&mut self) {
        Platform::resumed(&self.fd);
    }

    fn save(&mut self) -> Result<VcpuState> {
        self.complete_exit()?;
        self.platform.save_vcpu(&self.fd)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<()> {
        self.platform.restore_vcpu(&self.fd, state)
    }
}
