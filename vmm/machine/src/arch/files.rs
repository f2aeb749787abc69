//! Boot files into guest memory, the same way on every architecture.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use boxlite_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootFiles};

/// The smallest page of a guest kernel, in bytes.
const PAGE_SIZE: u64 = 4096;

/// Opens a boot file; returns it with its length.
pub(super) fn open(path: &Path) -> Result<(File, u64), BootError> {
    let read = |source| BootError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let len = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    Ok((file, len))
}

/// Reads the initramfs to the end of `room`, which is guest memory, at the start of a page. Returns where it is.
pub(super) fn load_initramfs(
    memory: &GuestMemory,
    path: &Path,
    room: Range<u64>,
) -> Result<Range<u64>, BootError> {
    let (mut file, len) = open(path)?;
    let start = room.end.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1));
    let Some(start) = start.filter(|start| *start >= room.start) else {
        return Err(BootError::Memory { what: "the initramfs" });
    };
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)
        .map_err(|e| BootError::Read { path: path.to_owned(), source: std::io::Error::other(e) })?;
    Ok(start..start + len)
}

/// Checks the length of the kernel command line against the kernel's limit, which includes a NUL.
pub(super) fn check_cmdline(files: &BootFiles<'_>, limit: usize) -> Result<(), BootError> {
    let (len, max) = (files.cmdline.len(), limit - 1);
    if len > max { Err(BootError::Cmdline { len, max }) } else { Ok(()) }
}
