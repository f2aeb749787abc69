//! The file behind a virtio disk: a raw or qcow2 image, perhaps on top of others.
//!
//! All files come already open. Names of other files inside an image are never followed: an image
//! may come from anybody, and would else make the host read any file it names.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use rustix::fs::{OFlags, fcntl_getfl};
use vm_memory::VolatileSlice;

use super::qcow2_recovery;

/// The unit of virtio-blk's addresses, in bytes (virtio 1.3, section 5.2.4).
pub(super) const SECTOR: u64 = 512;

/// Larger disks are refused: no host file holds one, and sums of offsets cannot overflow below.
const MAX_SIZE: u64 = 1 << 52;

/// The cluster size of new overlays, in bytes. The first write to a cluster copies the rest of it
/// from the base: with QEMU's 64 KiB a first write of 4 KiB takes about eight times as long.
const CLUSTER_SIZE: usize = 16 * 1024;

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 3; version 2 works without discard.
    Qcow2,
}

/// An open image file. Open it for writing if the disk, or overlay, is to be written.
#[derive(Debug)]
pub struct DiskImage {
    /// The file or block device.
    pub file: File,
    /// Its format, never guessed from its content: a guest may write a qcow2 header to a raw disk.
    pub format: DiskFormat,
}

/// What a disk is made of.
#[derive(Debug)]
pub struct DiskSpec {
    /// The image that is read and written.
    pub image: DiskImage,
    /// The images below a qcow2 image, nearest first; they are only read.
    pub backing: Vec<DiskImage>,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether the disk is thrown away with the machine: a flush then has nothing to do.
    pub ephemeral: bool,
    /// Whether the last writer of a qcow2 image may have been killed: then the image is put right first.
    pub recover: bool,
    /// The identification string, as in the guest's `/dev/disk/by-id/virtio-*`; at most 20 bytes
    /// of it are used.
    pub id: String,
}

impl DiskSpec {
    /// A writable disk of one image.
    pub fn new(image: DiskImage, id: impl Into<String>) -> Self {
        let (read_only, ephemeral, recover) = (false, false, false);
        Self { image, backing: Vec::new(), read_only, ephemeral, recover, id: id.into() }
    }
}

/// Why a disk cannot be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image is damaged, or its file cannot be read.
    #[error("disk {id}, image {layer}: {source}")]
    Open {
        /// The disk.
        id: String,
        /// 0 for the image itself, then counting the backing images.
        layer: usize,
        /// What happened.
        source: io::Error,
    },
    /// The file of a writable disk is open for reading only.
    #[error(
        "disk {0}: its file is open for reading only: open it for writing, or make the disk read-only"
    )]
    FileReadOnly(String),
    /// The image keeps its data in another file.
    #[error("disk {0}: qcow2 images with an external data file are not supported: convert it")]
    DataFile(String),
    /// The image is damaged so that nothing can be written to it.
    #[error("disk {0}: the qcow2 image has no refcounts: run `qemu-img check -r all` on it")]
    Refcounts(String),
    /// The image needs an image below it and none was given.
    #[error("disk {0}: the qcow2 image has a backing file, which must be given with it")]
    BackingMissing(String),
    /// There is an image below one that cannot have one.
    #[error("disk {0}: only a qcow2 image can have a backing image")]
    BackingUnused(String),
    /// An overlay does not reach to the end of its base.
    #[error("disk {id}: {size} bytes are fewer than its backing image's {backing}: make it larger")]
    SmallerThanBacking {
        /// The disk.
        id: String,
        /// In bytes.
        size: u64,
        /// In bytes.
        backing: u64,
    },
    /// The size is no number of sectors, none at all, or absurd.
    #[error("disk {id}: {size} bytes is not a size between 512 bytes and 4 PiB in steps of 512")]
    Size {
        /// The disk.
        id: String,
        /// In bytes.
        size: u64,
    },
    /// A new image cannot be written.
    #[error("cannot create a disk image of {size} bytes: {source}")]
    Create {
        /// In bytes.
        size: u64,
        /// What happened.
        source: io::Error,
    },
}

/// Formats `file`, open for reading and writing, as an empty qcow2 image of `size` bytes, a
/// multiple of 512. What was in the file is lost.
///
/// Use it as a disk's image with its base as `backing`: clusters that were never written are read
/// from there. The name of the base is not recorded in it. `size` must reach to the base's end.
pub fn create_overlay(file: File, size: u64) -> Result<(), DiskError> {
    check_size("overlay", size)?;
    let create = || {
        file.set_len(0)?;
        Qcow2::<Storage>::create_builder(Storage::try_from(file)?)
            .size(size)
            .cluster_size(CLUSTER_SIZE)
            .create()
    };
    create().map_err(|source| DiskError::Create { size, source })
}

fn check_size(id: &str, size: u64) -> Result<(), DiskError> {
    match size.is_multiple_of(SECTOR) && (SECTOR..=MAX_SIZE).contains(&size) {
        true => Ok(()),
        false => Err(DiskError::Size { id: id.to_owned(), size }),
    }
}

/// An open disk.
#[derive(Debug)]
pub(super) struct Disk {
    image: FormatAccess<Storage>,
    /// A second handle to the image's file, to sync its data only; `None` if that is not needed.
    sync: Option<File>,
    ephemeral: bool,
    pub(super) read_only: bool,
    pub(super) size: u64,
    /// The unit in which the image allocates, in bytes.
    pub(super) granularity: u64,
}

impl Disk {
    pub(super) fn open(spec: DiskSpec) -> Result<Self, DiskError> {
        let DiskSpec { image, backing, read_only, ephemeral, recover, id } = spec;
        let failed = |layer| {
            let id = id.clone();
            move |source| DiskError::Open { id, layer, source }
        };
        if !read_only {
            let flags = fcntl_getfl(&image.file).map_err(io::Error::from).map_err(failed(0))?;
            if flags & OFlags::ACCMODE != OFlags::RDWR {
                return Err(DiskError::FileReadOnly(id));
            }
        }
        if recover && !read_only && image.format == DiskFormat::Qcow2 {
            qcow2_recovery::count_all_clusters(&image.file).map_err(failed(0))?;
        }
        let sync = match read_only || ephemeral {
            true => None,
            false => Some(image.file.try_clone().map_err(failed(0))?),
        };
        let mut below: Option<FormatAccess<Storage>> = None;
        let layers = std::iter::once(image).chain(backing).enumerate().collect::<Vec<_>>();
        for (layer, image) in layers.into_iter().rev() {
            let write = layer == 0 && !read_only;
            below = Some(open_layer(image, write, below, &id, layer)?);
        }
        let Some(image) = below else { unreachable!("the image itself is a layer") };
        let size = image.size();
        let granularity = image.inner().zero_granularity().unwrap_or(4096);
        Ok(Self { image, sync, ephemeral, read_only, size, granularity })
    }

    /// Reads into `buffers`, which fit the disk at `offset`.
    pub(super) fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        contained(|| self.image.readv(vector, offset))
    }

    /// Writes `buffers`, which fit the disk at `offset`.
    pub(super) fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        contained(|| self.image.writev(vector, offset))
    }

    /// Brings all that was written to stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        let Some(file) = &self.sync else { return Ok(()) };
        contained(|| self.image.flush())?;
        file.sync_data()
    }

    /// Hands all that was written to the host's kernel, which outlives this process.
    pub(super) fn write_back(&self) -> io::Result<()> {
        match self.ephemeral {
            true => Ok(()),
            false => contained(|| self.image.flush()),
        }
    }

    /// Frees a range. What it reads as afterwards is not defined.
    pub(super) fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match contained(|| self.image.discard_to_any(offset, len)) {
            // A discard is a hint.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Makes a range read as zeros, and frees it if `unmap` says so.
    pub(super) fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        contained(|| match unmap {
            true => self.image.discard_to_zero(offset, len),
            false => self.image.write_zeroes(offset, len),
        })
    }
}

/// The offset of `refcount_table_offset` in a qcow2 header.
const REFCOUNT_TABLE_OFFSET: u64 = 48;

/// Whether the first refcount block, which counts the header itself, exists. An allocation in an
/// image without one would overwrite the header, and never end.
fn counts_its_header(file: &File) -> io::Result<bool> {
    let mut number = [0; 8];
    file.read_exact_at(&mut number, REFCOUNT_TABLE_OFFSET)?;
    let table = u64::from_be_bytes(number);
    file.read_exact_at(&mut number, table)?;
    Ok(u64::from_be_bytes(number) & !0x1ff != 0)
}

/// Makes an error of a panic in the image library, which takes some damaged metadata for granted.
fn contained<T>(operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // What it leaves half done is in memory, and in an image that was damaged before.
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the image's metadata is damaged"))
    })
}

/// Opens one image on top of the ones below it.
fn open_layer(
    image: DiskImage,
    write: bool,
    below: Option<FormatAccess<Storage>>,
    id: &str,
    layer: usize,
) -> Result<FormatAccess<Storage>, DiskError> {
    let failed = |source| DiskError::Open { id: id.to_owned(), layer, source };
    if write
        && image.format == DiskFormat::Qcow2
        && !counts_its_header(&image.file).map_err(failed)?
    {
        return Err(DiskError::Refcounts(id.to_owned()));
    }
    let storage = Storage::try_from(image.file).map_err(failed)?;
    let backing_size = below.as_ref().map(FormatAccess::size);
    let opened = match image.format {
        DiskFormat::Raw if below.is_some() => return Err(DiskError::BackingUnused(id.to_owned())),
        DiskFormat::Raw => FormatAccess::new(
            Raw::builder(storage)
                .write(write)
                .open(DenyImplicitOpenGate::default())
                .map_err(failed)?,
        ),
        DiskFormat::Qcow2 => {
            let builder = Qcow2::builder(storage).write(write).backing(below).data_file(None);
            let qcow2 =
                contained(|| builder.open(DenyImplicitOpenGate::default())).map_err(failed)?;
            if qcow2.requires_external_data_file() {
                return Err(DiskError::DataFile(id.to_owned()));
            }
            if qcow2.implicit_backing_file().is_some() && backing_size.is_none() {
                return Err(DiskError::BackingMissing(id.to_owned()));
            }
            FormatAccess::new(qcow2)
        }
    };
    let size = opened.size();
    check_size(id, size)?;
    match backing_size {
        Some(backing) if backing > size => {
            Err(DiskError::SmallerThanBacking { id: id.to_owned(), size, backing })
        }
        _ => Ok(opened),
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
