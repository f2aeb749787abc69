//! The boundary between the VMM and the hypervisor that runs its vCPUs.
//!
//! Two traits: [`Vm`] is the address space, the interrupt lines and the vCPUs; [`Vcpu`] runs until
//! something happens that the VMM must handle, an [`Exit`]. Register files, CPUID, MSRs,
//! PSCI, timers and system registers stay inside the backend, so that KVM and Hypervisor.framework
//! both fit. The [conformance] suite is written once and run by every backend.
//!
//! Devices see only [`Interrupt`] and [`Doorbell`] of the hypervisor.
//!
//! **Architecture Invariant:** nothing here names a hypervisor, and only `sys` makes system calls.

#![deny(unsafe_code)]

pub mod conformance;
mod exit;
pub mod gic;
mod lines;
mod mappings;
mod sys;

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use exit::Exit;
pub use lines::{Doorbell, Interrupt};
pub use mappings::Mappings;

/// What a VM is created with. It cannot change later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the vCPUs have virtualization extensions and performance counters, as far as the backend supports them.
    pub nested: bool,
    /// The end of the guest-physical address space in use: memory and devices are below it. aarch64: the VM gets the
    /// smallest intermediate physical address size that holds it, as fewer levels of translation are faster.
    pub address_end: u64,
}

impl VmConfig {
    /// The smallest size of guest-physical addresses that holds [`address_end`](Self::address_end), in bits: 32 at
    /// least, which every hypervisor has.
    pub fn address_bits(&self) -> u32 {
        const SMALLEST: u32 = 32;
        (u64::BITS - self.address_end.saturating_sub(1).leading_zeros()).max(SMALLEST)
    }
}

/// A virtual machine: guest-physical memory, interrupt controller and vCPUs.
pub trait Vm: Send + Sync + 'static {
    /// This hypervisor's vCPU. It may be `!Send`: some hypervisors bind a vCPU to its thread.
    type Vcpu: Vcpu;

    /// All state that the guest can observe and that belongs to no vCPU: interrupt controller, timers, clocks.
    type State: Serialize + DeserializeOwned;

    /// Maps `len` bytes of host memory at `host` to guest-physical address `gpa`. Both addresses
    /// and `len` are multiples of the page size; mappings must not overlap.
    ///
    /// # Safety
    ///
    /// `host..host + len` is mapped memory, stays so until [`unmap`](Self::unmap) or the end of the
    /// VM, and is accessed by the host as memory that changes at any time (volatile).
    #[allow(unsafe_code)]
    unsafe fn map(&self, gpa: u64, host: *mut u8, len: usize, perms: Perms) -> Result<()>;

    /// Removes a mapping, exactly as it was made.
    fn unmap(&self, gpa: u64, len: usize) -> Result<()>;

    /// The interrupt line `line`: x86_64 an I/O APIC pin (GSI), aarch64 an SPI counted from 0.
    fn irq(&self, line: u32) -> Result<Interrupt>;

    /// An event that a 32-bit guest write of any value to `gpa` signals without an exit. `None` where
    /// the hypervisor cannot: the write exits, and the VMM rings instead.
    fn doorbell(&self, gpa: u64) -> Option<Doorbell>;

    /// Creates vCPU `id` (0-based). Called once per vCPU, in the order of their IDs, on the thread that will run it:
    /// Hypervisor.framework assigns GIC redistributors in the order of creation.
    fn bind_vcpu(&self, id: u32, boot: &BootState) -> Result<Self::Vcpu>;

    /// Makes vCPU `id` leave [`Vcpu::run`] with [`Exit::Kicked`], now or at its next entry. Does
    /// nothing to a vCPU that is not bound.
    fn kick(&self, id: u32) -> Result<()>;

    /// The VM's state, while all vCPUs exist and are outside the guest.
    fn save(&self) -> Result<Self::State>;

    /// Loads a saved state into this VM, which has the same configuration: when all vCPUs exist and none has run, before
    /// their own states are restored.
    fn restore(&self, state: &Self::State) -> Result<()>;
}

/// A virtual CPU, used on the thread that bound it.
pub trait Vcpu {
    /// All state that the guest can observe, for [`save`](Self::save) and [`restore`](Self::restore).
    type State: Serialize + DeserializeOwned + Send;

    /// Runs the guest until the next exit. The guest receives the data of a read exit at the next call.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// Called before the first run after a pause of the VM: tells the guest of the pause, where the hypervisor can, so
    /// that the guest's watchdogs don't fire.
    fn resumed(&mut self) {}

    /// The state of this vCPU, between two runs with no read exit unanswered.
    fn save(&mut self) -> Result<Self::State>;

    /// Loads a saved state into this vCPU, whose VM has the same configuration. All vCPUs of the VM are restored before one
    /// of them runs: they share a counter, which continues from the last state that was loaded.
    fn restore(&mut self, state: &Self::State) -> Result<()>;
}

/// The initial state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootState {
    /// Runs at once, in the state that the boot protocol of Linux requires: x86_64 in 64-bit mode
    /// with flat segments and interrupts off, aarch64 at EL1 with the MMU off.
    Start {
        /// GPA of the first instruction.
        entry: u64,
        /// x86_64: RSI, the zero page; aarch64: X0, the device tree.
        argument: u64,
        /// x86_64: GPA of the top-level page table (CR3); aarch64: unused, 0.
        page_table: u64,
    },
    /// Waits until another vCPU starts it (INIT and SIPI, PSCI CPU_ON).
    Parked,
}

/// What the guest may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perms {
    /// Reads and instruction fetches; a write exits as [`Exit::MmioWrite`].
    ReadExecute,
    /// Reads, writes and instruction fetches.
    ReadWriteExecute,
}

/// Result of a hypervisor call.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of the hypervisor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call to the hypervisor failed.
    #[error("{call}: {source}")]
    Call {
        /// The call, as in `KVM_SET_SREGS`.
        call: &'static str,
        /// The error that the call returned.
        source: io::Error,
    },
    /// The hypervisor lacks something that this VM needs.
    #[error("the hypervisor lacks {0}")]
    Missing(&'static str),
    /// A mapping is misaligned, empty, overlaps another or does not exist.
    #[error("bad guest memory range {gpa:#x} of {len:#x} bytes: {reason}")]
    Range {
        /// The first address.
        gpa: u64,
        /// Its length.
        len: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The VM has no such vCPU.
    #[error("the VM has no vCPU {id} to bind")]
    NoVcpu {
        /// The vCPU.
        id: u32,
    },
    /// The VM has no such interrupt line.
    #[error("the VM has no interrupt line {line}")]
    NoLine {
        /// The interrupt line.
        line: u32,
    },
    /// The vCPU stopped and cannot continue.
    #[error("vCPU {id} cannot continue: {reason}")]
    Vcpu {
        /// The vCPU.
        id: u32,
        /// The hypervisor's reason.
        reason: String,
    },
}

impl Error {
    /// The error of `call` from the current `errno`.
    pub fn last_os_error(call: &'static str) -> Self {
        Self::Call { call, source: io::Error::last_os_error() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_size_is_the_smallest_that_holds_all() {
        const GIB: u64 = 1 << 30;
        for (address_end, bits) in
            [(0, 32), (GIB, 32), (4 * GIB, 32), (4 * GIB + 1, 33), (6 * GIB, 33), (u64::MAX, 64)]
        {
            let config = VmConfig { vcpus: 1, nested: false, address_end };
            assert_eq!(config.address_bits(), bits, "{address_end:#x}");
        }
    }
}
