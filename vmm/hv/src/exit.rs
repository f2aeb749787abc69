//! The exits of a vCPU.

/// An action of the guest that the VMM must handle. Data is 1, 2, 4 or 8 bytes where the hypervisor splits
/// accesses; a device must accept any length.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit<'a> {
    /// A read of an address without memory. Fill `data`.
    MmioRead {
        /// Guest-physical address.
        gpa: u64,
        /// The bytes the guest will see.
        data: &'a mut [u8],
    },
    /// A write to an address without memory.
    MmioWrite {
        /// Guest-physical address.
        gpa: u64,
        /// The bytes written.
        data: &'a [u8],
    },
    /// x86: `in`. Fill `data`; a string instruction reads several items at once.
    PioRead {
        /// The port.
        port: u16,
        /// The bytes the guest will see.
        data: &'a mut [u8],
    },
    /// x86: `out`.
    PioWrite {
        /// The port.
        port: u16,
        /// The bytes written.
        data: &'a [u8],
    },
    /// The guest powered itself off (PSCI SYSTEM_OFF and the like).
    Shutdown,
    /// The guest reset itself (PSCI SYSTEM_RESET, an x86 triple fault).
    Reset,
    /// [`Vm::kick`](crate::Vm::kick) was called, or a signal arrived.
    Kicked,
}
