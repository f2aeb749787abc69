//! Base disks: built once from the layers of an image, read-only afterwards.

use std::error::Error as StdError;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::builder::{DiskBuilder, VerifiedLayers};
use super::draft::{Draft, is_at};
use super::folders::Folders;
use super::lock::StoreLock;
use super::record::{Record, Records};
use crate::error::{Error, Result, chain_is_disk_full};
use crate::format::Digest;
use crate::image::Image;
use crate::layer::Location;
use crate::progress::{Event, Progress};
use crate::sys::{self, Lock};

/// An open base disk. It is not removed while this, or a copy of its file descriptor in any
/// process, is open.
#[derive(Debug)]
pub struct BaseDisk {
    file: File,
    path: PathBuf,
    len: u64,
}

impl BaseDisk {
    /// Path of the disk. Persistent boxes should hard-link it into their own folder, to keep it
    /// when the image is removed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is 0: never, for a disk from the store.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The disk, open for reading; the file holds the lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The disk, open for reading: a duplicate of the file keeps the disk in use. Closed on exec
    /// unless changed.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Opens and locks the disk; none if it does not exist.
    fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        sys::lock(&file, Lock::Shared).map_err(Error::io("lock", path))?;
        if !is_at(&file, path)? {
            return Ok(None);
        }
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        Ok(Some(Self { file, path: path.to_owned(), len }))
    }
}

/// Raise it when the same layers and builder would make another disk.
const FORMAT: u32 = 1;

/// File name of the disk that this builder makes from this chain of layers.
pub(super) fn disk_name(chain_id: &Digest, builder: &dyn DiskBuilder) -> String {
    let key = Digest::sha256(format!("{FORMAT}\n{}", builder.key()).as_bytes());
    let key = key.hex().get(..16).unwrap_or_default();
    format!("{}-{key}.raw", chain_id.hex())
}

/// Returns the disk of an image, from the cache or newly built, and saves its record.
pub(super) fn obtain(
    folders: &Folders,
    image: &Image,
    builder: &dyn DiskBuilder,
    limit: u64,
    progress: &dyn Progress,
) -> Result<BaseDisk> {
    let name = disk_name(&image.chain_id, builder);
    let path = folders.disk(&name);
    loop {
        if let Some(disk) = reuse(folders, image, &name, progress)? {
            return Ok(disk);
        }
        let draft = Draft::begin(&path, || progress.report(Event::Waiting { file: &path }))?;
        // Another process may have built it while this one waited.
        if let Some(disk) = reuse(folders, image, &name, progress)? {
            return Ok(disk);
        }
        build(image, builder, draft.path(), limit, progress)?;
        progress.report(Event::Syncing);
        draft.seal()?;

        // No garbage collection while the disk gets its name, lock and record.
        let _guard = StoreLock::take(&folders.lock(), Lock::Shared)?;
        draft.publish(&path)?;
        if let Some(disk) = BaseDisk::open(&path)? {
            Record::of(image, Some((&name, disk.len))).save(folders)?;
            return Ok(disk);
        }
    }
}

/// The disk, if it exists with its recorded length.
fn reuse(
    folders: &Folders,
    image: &Image,
    name: &str,
    progress: &dyn Progress,
) -> Result<Option<BaseDisk>> {
    let path = folders.disk(name);
    let _guard = StoreLock::take(&folders.lock(), Lock::Shared)?;
    let Some(disk) = BaseDisk::open(&path)? else { return Ok(None) };
    if disk.is_empty() || !is_recorded_len(folders, name, disk.len)? {
        let warning = format!("the disk {} is damaged; rebuilding it", path.display());
        progress.report(Event::Warning(&warning));
        return Ok(None);
    }
    Record::of(image, Some((name, disk.len))).save(folders)?;
    Ok(Some(disk))
}

/// Whether this is the disk's recorded length, or the disk has no record.
fn is_recorded_len(folders: &Folders, disk: &str, len: u64) -> Result<bool> {
    let records = Records::load_all(folders)?;
    let is_of_it = |record: &&Record| record.disk.as_deref() == Some(disk);
    let mut lens = records.good.iter().filter(is_of_it).map(|record| record.disk_len);
    let Some(first) = lens.next() else { return Ok(true) };
    Ok(first == len || lens.any(|other| other == len))
}

fn build(
    image: &Image,
    builder: &dyn DiskBuilder,
    disk: &Path,
    limit: u64,
    progress: &dyn Progress,
) -> Result<()> {
    let reference = image.reference.to_string();
    let mut layers = VerifiedLayers::new(image, limit, progress);
    let result = builder.build(disk, &mut layers);
    let tally = layers.into_tally();
    if let Some(failure) = tally.failure {
        discard_damaged(image, tally.verified, &failure);
        return Err(failure);
    }
    if let Err(error) = result {
        return Err(builder_error(reference, disk, error));
    }
    let is_empty = disk.metadata().map_err(Error::io("read", disk))?.len() == 0;
    if tally.verified != image.layers.len() || is_empty {
        let (read, layers) = (tally.verified, image.layers.len());
        return Err(Error::Unread { image: reference, read, layers });
    }
    Ok(())
}

/// Removes a damaged layer that can be pulled again: the image counts as missing then.
fn discard_damaged(image: &Image, layer: usize, failure: &Error) {
    let is_damage = matches!(failure, Error::Corrupt { .. } | Error::DigestMismatch { .. });
    if let Some(Location::File(blob)) = image.layers.get(layer).map(|layer| &layer.location)
        && is_damage
        && image.is_pulled()
    {
        // If it stays, the next pull detects it.
        let _ = std::fs::remove_file(blob);
    }
}

/// Classifies the builder's error: an error of this crate, a full disk, or the builder's own.
fn builder_error(image: String, disk: &Path, error: Box<dyn StdError + Send + Sync>) -> Error {
    // A VM sees only I/O errors when the host's disk is full: check the free space.
    const NEARLY_NOTHING: u64 = 1 << 20;
    let error = match error.downcast::<Error>() {
        Ok(error) => return *error,
        Err(error) => error,
    };
    let folder = disk.parent().unwrap_or(disk).to_owned();
    let available = sys::free_bytes(&folder).unwrap_or(u64::MAX);
    if chain_is_disk_full(error.as_ref()) || available < NEARLY_NOTHING {
        let wanted = disk.metadata().map_or(0, |metadata| metadata.len());
        return Error::DiskFull { folder, wanted, available };
    }
    Error::Build { image, source: error }
}
