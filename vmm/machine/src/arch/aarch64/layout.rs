//! The guest-physical address map of aarch64, the same under every hypervisor.
//!
//! ```text
//!   0x0800_0000   GIC distributor (boxlite_hv::gic)
//!   0x0a00_0000   GIC redistributors, one for each vCPU; 32 MiB are kept free
//!   0x0c00_0000   16550
//!   0x0c00_1000   PL031
//!   0x0c01_0000   virtio-mmio devices …
//!   0x8000_0000   memory: the kernel at the start, the initramfs and the device tree at the end
//! ```

use boxlite_devices::legacy::{PL031_LEN, SERIAL_LEN};
use boxlite_devices::virtio::MMIO_LEN;
use boxlite_hv::gic;
use vm_memory::GuestAddress;

/// `COMMAND_LINE_SIZE` of Linux on arm64, with the terminating NUL.
pub(crate) const CMDLINE_MAX: usize = 2048;

/// The serial port (16550).
pub(super) const SERIAL_START: u64 = 0x0c00_0000;
pub(super) const SERIAL_IRQ: u32 = 0;
/// The real-time clock (PL031). It has no interrupt line, as it has no alarm.
pub(super) const RTC_START: u64 = 0x0c00_1000;

/// The first virtio-mmio device. The others follow without a gap.
pub(crate) const MMIO_START: u64 = 0x0c01_0000;

/// SPIs for devices, counted from 0.
pub(crate) const DEVICE_IRQS: [u32; 64] = {
    let mut irqs = [0; 64];
    let mut n = 0;
    while n < irqs.len() {
        irqs[n] = SERIAL_IRQ + 1 + n as u32;
        n += 1;
    }
    irqs
};

pub(super) const MEMORY_START: GuestAddress = GuestAddress(0x8000_0000);

/// The memory ranges of a guest with `size` bytes of memory: address and length.
pub(crate) fn memory_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    vec![(MEMORY_START, size)]
}

// What is below memory does not overlap, in the order of the addresses.
const _: () = {
    let devices_end = MMIO_START + DEVICE_IRQS.len() as u64 * MMIO_LEN;
    assert!(gic::DISTRIBUTOR + gic::DISTRIBUTOR_SIZE <= gic::REDISTRIBUTORS);
    assert!(gic::REDISTRIBUTORS + gic::REDISTRIBUTORS_RESERVED <= SERIAL_START);
    assert!(SERIAL_START + SERIAL_LEN <= RTC_START);
    assert!(RTC_START + PL031_LEN <= MMIO_START);
    assert!(devices_end <= MEMORY_START.0);
    assert!(DEVICE_IRQS[DEVICE_IRQS.len() - 1] < gic::SPIS);
};

#[cfg(test)]
mod tests {
    use vm_memory::Address;

    use super::*;

    #[test]
    fn memory_is_one_range_that_the_kernel_can_be_at_the_start_of() {
        const KERNEL_ALIGNMENT: u64 = 2 << 20;
        for size in [128 << 20, 64 << 30] {
            let ranges = memory_ranges(size);
            assert_eq!(ranges, [(MEMORY_START, size)]);
            assert!(MEMORY_START.raw_value().is_multiple_of(KERNEL_ALIGNMENT));
        }
    }

    #[test]
    fn no_line_belongs_to_two_devices() {
        let mut irqs = DEVICE_IRQS.to_vec();
        irqs.push(SERIAL_IRQ);
        irqs.sort_unstable();
        irqs.dedup();
        assert_eq!(irqs.len(), DEVICE_IRQS.len() + 1);
    }
}
