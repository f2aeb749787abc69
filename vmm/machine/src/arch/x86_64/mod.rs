//! x86_64: the 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst), with an MP table
//! instead of ACPI.

mod boot_params;
pub(crate) mod layout;
mod mptable;
mod paging;

use std::fs::File;
use std::io::{Seek, SeekFrom};

use boxlite_devices::GuestMemory;
use boxlite_hv::BootState;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::{BootError, BootFiles};

/// Loads kernel, initramfs and tables into memory. Returns the entry point of the boot vCPU.
pub(crate) fn load(
    memory: &GuestMemory,
    vcpus: u8,
    files: &BootFiles<'_>,
) -> Result<BootState, BootError> {
    let mut kernel = open(files.kernel)?;
    let loaded = Elf::load(memory, None, &mut kernel, Some(layout::HIGH_MEMORY))
        .map_err(|e| BootError::Kernel { path: files.kernel.to_owned(), reason: e.to_string() })?;
    let initramfs = load_initramfs(memory, files, loaded.kernel_end)?;
    load_cmdline(memory, files.cmdline)?;
    let tables = || BootError::Memory { what: "the boot tables" };
    let page_table = paging::write(memory).ok_or_else(tables)?;
    mptable::write(memory, vcpus).ok_or_else(tables)?;
    boot_params::write(memory, &initramfs, files.cmdline.len()).ok_or_else(tables)?;
    Ok(BootState::Start {
        entry: loaded.kernel_load.raw_value(),
        argument: layout::ZERO_PAGE.raw_value(),
        page_table,
    })
}

/// The place of the initramfs in guest memory.
struct Initramfs {
    start: u32,
    size: u32,
}

fn open(path: &std::path::Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::Read { path: path.to_owned(), source })
}

/// Puts the initramfs at the top of low memory, out of the way of the kernel's own relocations.
fn load_initramfs(
    memory: &GuestMemory,
    files: &BootFiles<'_>,
    kernel_end: u64,
) -> Result<Initramfs, BootError> {
    let read = |source| BootError::Read { path: files.initramfs.to_owned(), source };
    let no_room = BootError::Memory { what: "the initramfs" };
    let mut file = open(files.initramfs)?;
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let low_end = (memory.last_addr().raw_value() + 1).min(layout::GAP_START.raw_value());
    let start = low_end.checked_sub(size).map(|start| start & !(layout::PAGE_SIZE - 1));
    let Some(start) = start.filter(|start| *start >= kernel_end) else { return Err(no_room) };
    let (Ok(start), Ok(size)) = (u32::try_from(start), u32::try_from(size)) else {
        return Err(no_room);
    };
    memory
        .read_exact_volatile_from(GuestAddress(start.into()), &mut file, size as usize)
        .map_err(|e| read(std::io::Error::other(e)))?;
    Ok(Initramfs { start, size })
}

fn load_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let max = layout::CMDLINE_MAX - 1;
    if cmdline.len() > max {
        return Err(BootError::Cmdline { len: cmdline.len(), max });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, layout::CMDLINE)
        .map_err(|_| BootError::Memory { what: "the kernel command line" })
}
