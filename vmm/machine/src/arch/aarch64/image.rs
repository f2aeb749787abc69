//! The kernel file of arm64, an uncompressed `Image` (Documentation/arch/arm64/booting.rst, "Call the kernel image").
//!
//! linux-loader has a loader for it, but only on aarch64, where few people run the tests, and it checks neither the
//! byte order nor that the kernel has the memory that its header asks for.

use std::io::Read;
use std::ops::Range;
use std::path::Path;

use boxlite_devices::GuestMemory;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::arch::BootError;
use crate::arch::files::BootFile;

/// The kernel is placed `text_offset` bytes from an address that is a multiple of this.
const ALIGNMENT: u64 = 2 << 20;
const MAGIC: [u8; 4] = *b"ARM\x64";
const BIG_ENDIAN: u64 = 1;

/// The header of an `Image`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    /// Instructions: the entry point is the start of the file.
    pub(super) code: [u8; 8],
    pub(super) text_offset: U64,
    /// The memory that the kernel occupies, from its first byte to the end of its zeroed data.
    pub(super) image_size: U64,
    pub(super) flags: U64,
    pub(super) reserved: [U64; 3],
    pub(super) magic: [u8; 4],
    pub(super) pe_offset: [u8; 4],
}

impl Header {
    /// What makes this no kernel that can run here, if anything.
    fn fault(&self) -> Option<&'static str> {
        if self.magic != MAGIC {
            return Some(
                "it has no header of an arm64 Image; a compressed kernel has to be unpacked",
            );
        }
        if self.image_size == 0 {
            return Some("its header has no image size, as before Linux 3.17");
        }
        if self.flags.get() & BIG_ENDIAN != 0 {
            return Some("it is big-endian");
        }
        if self.text_offset.get() >= ALIGNMENT {
            return Some("its text offset is 2 MiB or more");
        }
        None
    }
}

/// Loads the kernel into `free`, which is guest memory that begins at a multiple of 2 MiB. Returns the memory that the
/// kernel occupies; its entry point is the start.
pub(super) fn load(
    memory: &GuestMemory,
    path: &Path,
    free: Range<u64>,
) -> Result<Range<u64>, BootError> {
    let bad = |reason: &str| BootError::Kernel { path: path.to_owned(), reason: reason.into() };
    let too_large = BootError::Memory { what: "the kernel" };
    let mut kernel = BootFile::open(path)?;
    let mut header = Header::new_zeroed();
    if kernel.file.read_exact(header.as_mut_bytes()).is_err() {
        return Err(bad("it has no header of an arm64 Image"));
    }
    if let Some(fault) = header.fault() {
        return Err(bad(fault));
    }
    let start = free.start.checked_add(header.text_offset.get());
    let end = start.and_then(|start| start.checked_add(header.image_size.get().max(kernel.len)));
    let (Some(start), Some(end)) = (start, end.filter(|end| *end <= free.end)) else {
        return Err(too_large);
    };
    kernel.load(memory, start)?;
    Ok(start..end)
}
