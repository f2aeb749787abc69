//! aarch64: the boot protocol of Linux (Documentation/arch/arm64/booting.rst), with a device tree.
//!
//! ```text
//!   memory   │ kernel, its zeroed data │  …  │ initramfs │ device tree │  …  │
//!            start                                        2 MiB         end, or 32 GiB after the start
//! ```

mod fdt;
mod image;
pub(crate) mod layout;
pub(crate) mod legacy;

use boxlite_contract::nested::HostEnvironment;
use boxlite_devices::GuestMemory;
use boxlite_hv::BootState;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use self::fdt::{Seeds, Tree};
use super::files;
use super::{BootError, BootFiles, Hardware};

/// The most bytes of a device tree, which the kernel maps with this alignment.
const FDT_MAX: u64 = 2 << 20;
/// The initramfs is in the same window as the kernel, which has this size and begins at a multiple of 1 GiB.
const INITRAMFS_WINDOW: u64 = 32 << 30;

/// The words of the kernel command line for this board. The devices are in the device tree.
pub(crate) fn cmdline(_host: HostEnvironment, _hardware: &Hardware<'_>) -> String {
    "console=ttyS0".to_owned()
}

/// Loads kernel, initramfs and device tree into memory. Returns the entry point of the boot vCPU.
pub(crate) fn load(
    memory: &GuestMemory,
    hardware: &Hardware<'_>,
    boot: &BootFiles<'_>,
) -> Result<BootState, BootError> {
    let no_tree = || BootError::Memory { what: "the device tree" };
    files::check_cmdline(boot, layout::CMDLINE_MAX)?;
    let (start, end) = (layout::MEMORY_START.raw_value(), memory.last_addr().raw_value() + 1);
    let kernel = image::load(memory, boot.kernel, start..end)?;
    let window_end = end.min(start + INITRAMFS_WINDOW);
    let fdt = window_end.checked_sub(FDT_MAX).ok_or_else(no_tree)? & !(FDT_MAX - 1);
    let initramfs = files::load_initramfs(memory, boot.initramfs, kernel.end..fdt)?;
    let tree = Tree {
        hardware,
        memory: start..end,
        cmdline: boot.cmdline,
        initramfs,
        seeds: Seeds::random().as_ref(),
    }
    .blob()
    // The names are constants and the command line was checked: the tree can only be too large.
    .map_err(|_| no_tree())?;
    if tree.len() as u64 > FDT_MAX {
        return Err(no_tree());
    }
    memory.write_slice(&tree, GuestAddress(fdt)).map_err(|_| no_tree())?;
    Ok(BootState::Start { entry: kernel.start, argument: fdt, page_table: 0 })
}

#[cfg(test)]
mod tests;
