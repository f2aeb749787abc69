//! Disk images: the files behind the disks of boxes.
//!
//! ```text
//!   box's disk.qcow2 (overlay, read-write)  ──▶  base image (raw, read-only)
//! ```
//!
//! Two programs use this crate. Each has a feature of its own, so that it does not compile the other's
//! code:
//!
//! - `create`: [`create_overlay`] formats the overlay of a new box.
//! - `open`: [`Disk`] opens an image and its backing images, reads into guest memory and writes
//!   from it, flushes, and recovers an image whose writer was killed.
//!
//! The image formats are implemented by imago, recovery by this crate. Nothing here depends on
//! virtio, a hypervisor or an event loop.
//!
//! **Invariant:** callers pass open files. A file name inside an image is never followed: an image may
//! be untrusted, and could make the host read any file that it names. A damaged image is an error,
//! never a panic.

#![forbid(unsafe_code)]

#[cfg(any(test, feature = "create"))]
mod create;
#[cfg(any(test, feature = "open"))]
mod disk;
mod error;
#[cfg(any(test, feature = "open"))]
mod recovery;

use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "create"))]
pub use create::create_overlay;
#[cfg(any(test, feature = "open"))]
pub use disk::{Disk, DiskImage, DiskOptions};
pub use error::DiskError;

/// The unit of a disk's size and addresses, in bytes.
pub const SECTOR: u64 = 512;

/// The largest disk, in bytes. No host file holds a larger one, and sums of offsets below it cannot
/// overflow.
pub const MAX_SIZE: u64 = 1 << 52;

/// How an image stores the bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 3; version 2 works without discard.
    Qcow2,
}

/// Checks that a disk can have this size.
#[cfg(any(test, feature = "create"))]
fn check_size(disk: &str, size: u64) -> Result<(), DiskError> {
    match size.is_multiple_of(SECTOR) && (SECTOR..=MAX_SIZE).contains(&size) {
        true => Ok(()),
        false => Err(DiskError::Size { disk: disk.to_owned(), size }),
    }
}
