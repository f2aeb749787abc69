//! Boot files into guest memory, the same way on every architecture.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use boxlite_devices::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, BootFiles};

/// The smallest page of a guest kernel, in bytes.
const PAGE_SIZE: u64 = 4096;

/// An open boot file.
pub(super) struct BootFile<'a> {
    path: &'a Path,
    pub(super) file: File,
    /// Its length in bytes.
    pub(super) len: u64,
}

impl<'a> BootFile<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, BootError> {
        let open = || {
            let mut file = File::open(path)?;
            let len = file.seek(SeekFrom::End(0))?;
            file.rewind()?;
            Ok((file, len))
        };
        let (file, len) = open().map_err(|e| failed(path, e))?;
        Ok(Self { path, file, len })
    }

    /// Reads the whole file into guest memory.
    pub(super) fn load(&mut self, memory: &GuestMemory, start: u64) -> Result<(), BootError> {
        let len = usize::try_from(self.len).map_err(io::Error::other);
        let read = |len| {
            self.file.rewind()?;
            let at = GuestAddress(start);
            memory.read_exact_volatile_from(at, &mut self.file, len).map_err(io::Error::other)
        };
        len.and_then(read).map_err(|e| failed(self.path, e))
    }
}

fn failed(path: &Path, source: io::Error) -> BootError {
    BootError::Read { path: path.to_owned(), source }
}

/// Reads the initramfs to the end of `free`, which is guest memory, at the start of a page. Returns where it is.
pub(super) fn load_initramfs(
    memory: &GuestMemory,
    path: &Path,
    free: Range<u64>,
) -> Result<Range<u64>, BootError> {
    let mut file = BootFile::open(path)?;
    let start = free.end.checked_sub(file.len).map(|start| start & !(PAGE_SIZE - 1));
    let Some(start) = start.filter(|start| *start >= free.start) else {
        return Err(BootError::Memory { what: "the initramfs" });
    };
    file.load(memory, start)?;
    Ok(start..start + file.len)
}

/// Checks the kernel command line: its length against the kernel's limit, which includes a NUL, and that it has no NUL
/// before.
pub(super) fn check_cmdline(files: &BootFiles<'_>, limit: usize) -> Result<(), BootError> {
    let (len, max) = (files.cmdline.len(), limit - 1);
    if len > max {
        return Err(BootError::Cmdline { len, max });
    }
    if files.cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    Ok(())
}
