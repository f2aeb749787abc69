//! The crate's error.

use std::io;

/// Why a disk cannot be opened or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The image is damaged, or its file cannot be read.
    #[error("disk {disk}, image {layer}: {source}")]
    Open {
        /// Name of the disk.
        disk: String,
        /// 0 for the image itself, 1 for its backing image, and so on.
        layer: usize,
        /// The cause.
        source: io::Error,
    },
    /// The file of a writable disk is open for reading only.
    #[error(
        "disk {0}: its file is open for reading only: open the file for writing, or the disk read-only"
    )]
    FileReadOnly(String),
    /// The image keeps its data in another file.
    #[error("disk {0}: an external data file is not supported: convert it with `qemu-img convert`")]
    DataFile(String),
    /// The image is too damaged to be written to.
    #[error("disk {0}: the qcow2 image has no refcounts: run `qemu-img check -r all` on it")]
    Refcounts(String),
    /// The image needs a backing image, and none was given.
    #[error("disk {0}: the qcow2 image needs a backing image, and none was given")]
    BackingMissing(String),
    /// A backing image was given for an image that cannot have one.
    #[error("disk {0}: only a qcow2 image can have a backing image")]
    BackingUnused(String),
    /// An overlay is smaller than its backing image.
    #[error("disk {disk}: size {size} is smaller than its backing image's, {backing}")]
    SmallerThanBacking {
        /// Name of the disk.
        disk: String,
        /// Size of the overlay in bytes.
        size: u64,
        /// Size of the backing image in bytes.
        backing: u64,
    },
    /// The size is not a multiple of 512, or out of range.
    #[error("disk {disk}: size {size} is not a multiple of 512 between 512 bytes and 4 PiB")]
    Size {
        /// Name of the disk.
        disk: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A new image cannot be written.
    #[error("cannot create a disk image of {size} bytes: {source}")]
    Create {
        /// Size of the disk in bytes.
        size: u64,
        /// The cause.
        source: io::Error,
    },
}
