//! Why a vCPU came back to the machine.

/// What the guest did that the machine must deal with. Data lengths are 1, 2, 4 or 8 bytes, as far as
/// the hypervisor splits accesses; a device must cope with any.
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
    /// x86: `in`. Fill `data`; a string instruction asks for several items at once.
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
    /// The guest switched itself off (PSCI SYSTEM_OFF and its kind).
    Shutdown,
    /// The guest reset itself (PSCI SYSTEM_RESET, an x86 triple fault).
    Reset,
    /// [`Vm::kick`](crate::Vm::kick) was called, or a signal arrived.
    Kicked,
}
