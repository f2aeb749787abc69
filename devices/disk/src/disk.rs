//! An open disk: a raw or qcow2 image, with its backing images.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use rustix::fs::{OFlags, fcntl_getfl};
use vm_memory::VolatileSlice;

use crate::{DiskError, DiskFormat, check_size, recovery};

/// An open image file. Open it for writing if the disk is to be written.
#[derive(Debug)]
pub struct DiskImage {
    /// The file or block device.
    pub file: File,
    /// Its format, never guessed from its content: a guest may write a qcow2 header to a raw disk.
    pub format: DiskFormat,
}

/// Options for opening a disk.
#[derive(Debug)]
pub struct DiskOptions {
    /// The image that is read and written.
    pub image: DiskImage,
    /// The backing images of a qcow2 image, nearest first; they are only read.
    pub backing: Vec<DiskImage>,
    /// Refuse writes.
    pub read_only: bool,
    /// The image is deleted after use: a flush does nothing.
    pub ephemeral: bool,
    /// The last writer of a qcow2 image may have been killed: recover the image before use.
    pub recover: bool,
    /// Name of the disk, in errors and as its identification string: the guest's
    /// `/dev/disk/by-id/virtio-*` has up to 20 bytes of it.
    pub name: String,
}

impl DiskOptions {
    /// A writable disk of one image.
    pub fn new(image: DiskImage, name: impl Into<String>) -> Self {
        let (read_only, ephemeral, recover) = (false, false, false);
        Self { image, backing: Vec::new(), read_only, ephemeral, recover, name: name.into() }
    }
}

/// An open disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    image: FormatAccess<Storage>,
    /// A second handle to the image's file, to sync its data only; none if flushes do nothing.
    sync: Option<File>,
    ephemeral: bool,
    read_only: bool,
    size: u64,
    granularity: u64,
}

impl Disk {
    /// Opens the images, the lowest first, and checks that they are compatible.
    pub fn open(options: DiskOptions) -> Result<Self, DiskError> {
        let DiskOptions { image, backing, read_only, ephemeral, recover, name } = options;
        let failed = |layer| {
            let disk = name.clone();
            move |source| DiskError::Open { disk, layer, source }
        };
        if !read_only {
            let flags = fcntl_getfl(&image.file).map_err(io::Error::from).map_err(failed(0))?;
            if flags & OFlags::ACCMODE != OFlags::RDWR {
                return Err(DiskError::FileReadOnly(name));
            }
        }
        if recover && !read_only && image.format == DiskFormat::Qcow2 {
            recovery::mark_clusters_used(&image.file).map_err(failed(0))?;
        }
        let sync = match read_only || ephemeral {
            true => None,
            false => Some(image.file.try_clone().map_err(failed(0))?),
        };
        let mut below: Option<FormatAccess<Storage>> = None;
        let layers = std::iter::once(image).chain(backing).enumerate().collect::<Vec<_>>();
        for (layer, image) in layers.into_iter().rev() {
            let write = layer == 0 && !read_only;
            below = Some(open_layer(image, write, below, &name, layer)?);
        }
        let Some(image) = below else { unreachable!("the image itself is a layer") };
        let size = image.size();
        let granularity = image.inner().zero_granularity().unwrap_or(4096);
        Ok(Self { name, image, sync, ephemeral, read_only, size, granularity })
    }

    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of the disk in bytes, a multiple of [`SECTOR`](crate::SECTOR).
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The unit in which the image allocates and frees space, in bytes.
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// Whether the disk is read-only. The caller checks this before it writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Reads into `buffers`. The caller has checked that they fit the disk at `offset`.
    pub fn read(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVectorMut::from_volatile_slice(buffers);
        catch_panic(|| self.image.readv(vector, offset))
    }

    /// Writes `buffers`. The caller has checked that they fit the disk at `offset`.
    pub fn write(&self, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let (vector, _guard) = IoVector::from_volatile_slice(buffers);
        catch_panic(|| self.image.writev(vector, offset))
    }

    /// Brings everything written so far to stable storage.
    pub fn flush(&self) -> io::Result<()> {
        let Some(file) = &self.sync else { return Ok(()) };
        catch_panic(|| self.image.flush())?;
        file.sync_data()
    }

    /// Hands everything written so far to the host's kernel, which outlives this process.
    pub fn write_back(&self) -> io::Result<()> {
        match self.ephemeral {
            true => Ok(()),
            false => catch_panic(|| self.image.flush()),
        }
    }

    /// Frees a range of bytes. Its content is undefined afterwards.
    pub fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match catch_panic(|| self.image.discard_to_any(offset, len)) {
            // A discard is a hint.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Fills a range of bytes with zeros; `unmap` frees its space.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        catch_panic(|| match unmap {
            true => self.image.discard_to_zero(offset, len),
            false => self.image.write_zeroes(offset, len),
        })
    }
}

/// The offset of `refcount_table_offset` in a qcow2 header, in bytes.
const REFCOUNT_TABLE_OFFSET: u64 = 48;

/// Whether the first refcount block exists, which has the header's refcount. In an image without it,
/// an allocation would overwrite the header and loop forever.
fn has_first_refcount_block(file: &File) -> io::Result<bool> {
    let mut number = [0; 8];
    file.read_exact_at(&mut number, REFCOUNT_TABLE_OFFSET)?;
    let table = u64::from_be_bytes(number);
    file.read_exact_at(&mut number, table)?;
    Ok(u64::from_be_bytes(number) & !0x1ff != 0)
}

/// Turns a panic of the image library into an error: imago trusts some metadata that may be damaged.
fn catch_panic<T>(operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // Unwind safety: a panic leaves a partial change only in an image that was damaged before.
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the image's metadata is damaged"))
    })
}

/// Opens one image with its backing image, if any.
fn open_layer(
    image: DiskImage,
    write: bool,
    below: Option<FormatAccess<Storage>>,
    name: &str,
    layer: usize,
) -> Result<FormatAccess<Storage>, DiskError> {
    let failed = |source| DiskError::Open { disk: name.to_owned(), layer, source };
    if write
        && image.format == DiskFormat::Qcow2
        && !has_first_refcount_block(&image.file).map_err(failed)?
    {
        return Err(DiskError::Refcounts(name.to_owned()));
    }
    let storage = Storage::try_from(image.file).map_err(failed)?;
    let backing_size = below.as_ref().map(FormatAccess::size);
    let opened = match image.format {
        DiskFormat::Raw if below.is_some() => {
            return Err(DiskError::BackingUnused(name.to_owned()));
        }
        DiskFormat::Raw => FormatAccess::new(
            Raw::builder(storage)
                .write(write)
                .open(DenyImplicitOpenGate::default())
                .map_err(failed)?,
        ),
        DiskFormat::Qcow2 => {
            let builder = Qcow2::builder(storage).write(write).backing(below).data_file(None);
            let qcow2 =
                catch_panic(|| builder.open(DenyImplicitOpenGate::default())).map_err(failed)?;
            if qcow2.requires_external_data_file() {
                return Err(DiskError::DataFile(name.to_owned()));
            }
            if qcow2.implicit_backing_file().is_some() && backing_size.is_none() {
                return Err(DiskError::BackingMissing(name.to_owned()));
            }
            FormatAccess::new(qcow2)
        }
    };
    let size = opened.size();
    check_size(name, size)?;
    match backing_size {
        Some(backing) if backing > size => {
            Err(DiskError::SmallerThanBacking { disk: name.to_owned(), size, backing })
        }
        _ => Ok(opened),
    }
}

#[cfg(test)]
mod tests;
