//! x86_64: the 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst), with an MP table
//! instead of ACPI.

mod boot_params;
pub(crate) mod layout;
pub(crate) mod legacy;
mod mptable;
mod paging;

use std::fmt::Write;

use boxlite_contract::nested::{HostEnvironment, NO_CMPXCHG16B};
use boxlite_devices::GuestMemory;
use boxlite_hv::BootState;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestMemoryBackend};

use super::files::{self, BootFile};
use super::{BootError, BootFiles, Hardware, Window};

/// The words of the kernel command line for this board, whose devices the kernel would not find otherwise. Without ACPI,
/// the kernel resets the VM by the keyboard controller.
pub(crate) fn cmdline(host: HostEnvironment, hardware: &Hardware<'_>) -> String {
    let mut words = String::from("console=ttyS0 reboot=k");
    if host.is_nested() {
        words.push(' ');
        words.push_str(NO_CMPXCHG16B);
    }
    for Window { start, irq } in hardware.devices {
        // A String takes everything.
        let _ = write!(words, " virtio_mmio.device=4K@{start:#x}:{irq}");
    }
    words
}

/// Loads kernel, initramfs and tables into memory. Returns the entry point of the boot vCPU.
pub(crate) fn load(
    memory: &GuestMemory,
    hardware: &Hardware<'_>,
    boot: &BootFiles<'_>,
) -> Result<BootState, BootError> {
    let mut kernel = BootFile::open(boot.kernel)?.file;
    let loaded = Elf::load(memory, None, &mut kernel, Some(layout::HIGH_MEMORY))
        .map_err(|e| BootError::Kernel { path: boot.kernel.to_owned(), reason: e.to_string() })?;
    // At the top of low memory, out of the way of the kernel's own relocations.
    let low_end = (memory.last_addr().raw_value() + 1).min(layout::GAP_START.raw_value());
    let initramfs = files::load_initramfs(memory, boot.initramfs, loaded.kernel_end..low_end)?;
    load_cmdline(memory, boot)?;
    let tables = || BootError::Memory { what: "the boot tables" };
    let page_table = paging::write(memory).ok_or_else(tables)?;
    mptable::write(memory, hardware.vcpus).ok_or_else(tables)?;
    boot_params::write(memory, &initramfs, boot.cmdline.len()).ok_or_else(tables)?;
    Ok(BootState::Start {
        entry: loaded.kernel_load.raw_value(),
        argument: layout::ZERO_PAGE.raw_value(),
        page_table,
    })
}

fn load_cmdline(memory: &GuestMemory, boot: &BootFiles<'_>) -> Result<(), BootError> {
    files::check_cmdline(boot, layout::CMDLINE_MAX)?;
    let mut bytes = boot.cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, layout::CMDLINE)
        .map_err(|_| BootError::Memory { what: "the kernel command line" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_every_device() {
        let devices =
            [Window { start: 0xd000_0000, irq: 5 }, Window { start: 0xd000_1000, irq: 6 }];
        assert_eq!(
            cmdline(HostEnvironment::Real, &Hardware { vcpus: 1, devices: &devices }),
            "console=ttyS0 reboot=k virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
        );
        assert_eq!(
            cmdline(HostEnvironment::Nested, &Hardware { vcpus: 1, devices: &[] }),
            format!("console=ttyS0 reboot=k {NO_CMPXCHG16B}")
        );
    }
}
