//! The guest-physical address map of x86_64.
//!
//! ```text
//!   0x0000_7000   zero page (boot_params)
//!   0x0000_9000   page tables
//!   0x0002_0000   kernel command line
//!   0x0009_f000   MP table, found by its pointer at 0x9_fc00
//!   0x0010_0000   memory: the kernel at 16 MiB, the initramfs at the end
//!   0xd000_0000   the 32-bit gap: virtio-mmio devices …
//!   0xfec0_0000   I/O APIC
//!   0xfee0_0000   local APIC
//!   0xfffb_c000   pages that KVM needs on Intel processors
//!   0x1_0000_0000 memory again, if there is more than 3.25 GiB
//! ```

use vm_memory::{Address, GuestAddress};

pub(super) const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
pub(super) const PAGE_TABLES: u64 = 0x9000;
pub(super) const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// `COMMAND_LINE_SIZE` of Linux on x86, with the terminating NUL.
pub(crate) const CMDLINE_MAX: usize = 2048;

pub(super) const MP_TABLE: u64 = 0x9_f000;
/// The MP floating pointer: kernels search the last KiB below 640 KiB for it.
pub(super) const MP_POINTER: u64 = 0x9_fc00;
/// The end of usable low memory; from here to 1 MiB there is none.
pub(super) const LOW_MEMORY_END: u64 = 0x9_f000;
pub(super) const LOW_RESERVED_END: u64 = 0xa_0000;

pub(super) const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);
/// The start of the 32-bit gap: no memory from here to 4 GiB.
pub(super) const GAP_START: GuestAddress = GuestAddress(0xd000_0000);
pub(super) const GAP_END: GuestAddress = GuestAddress(0x1_0000_0000);

pub(super) const IO_APIC: u32 = 0xfec0_0000;
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;

/// The memory ranges of a guest with `size` bytes of memory: address and length.
pub(crate) fn memory_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let below = size.min(GAP_START.raw_value());
    let mut ranges = vec![(GuestAddress(0), below)];
    if size > below {
        ranges.push((GAP_END, size - below));
    }
    ranges
}

/// The first virtio-mmio device. The others follow without a gap.
pub(crate) const MMIO_START: u64 = 0xd000_0000;

/// I/O APIC pins for devices: all but those of the legacy devices (timer, keyboard, cascade, serial,
/// RTC, FPU).
pub(crate) const DEVICE_IRQS: [u32; 18] =
    [5, 6, 7, 9, 10, 11, 12, 14, 15, 3, 16, 17, 18, 19, 20, 21, 22, 23];

/// The first serial port (16550).
pub(super) const SERIAL_PORT: u64 = 0x3f8;
pub(super) const SERIAL_IRQ: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_stays_free() {
        const GIB: u64 = 1 << 30;
        for size in [128 << 20, 3 * GIB, 3 * GIB + GIB / 4, 4 * GIB, 64 * GIB] {
            let ranges = memory_ranges(size);
            assert_eq!(ranges.iter().map(|(_, len)| len).sum::<u64>(), size);
            for (start, len) in ranges {
                let end = start.raw_value() + len;
                assert!(end <= GAP_START.raw_value() || start >= GAP_END);
            }
        }
    }
}
