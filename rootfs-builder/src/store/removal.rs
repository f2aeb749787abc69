//! Removal of images and of unneeded files.

use std::fs;
use std::path::Path;

use super::folders::record_stem;
use super::garbage::{self, Leftovers};
use super::images::ImageStore;
use super::listing::{StoredImage, describe};
use super::lock::StoreLock;
use super::record::{Record, Records};
use crate::error::{Error, Result};
use crate::format::ImageReference;
use crate::sys::Lock;
use boxlite_durable as durable;

/// Result of [`ImageStore::remove`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Removed {
    /// Name of the image, or ID of a damaged record.
    pub name: String,
    /// Bytes freed on the host's disk.
    pub freed: u64,
}

/// Result of [`ImageStore::prune`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Pruned {
    /// Names of the removed images.
    pub removed: Vec<String>,
    /// Bytes freed on the host's disk.
    pub freed: u64,
}

/// Whether a stopped box needs an image. (Running boxes are known by their locks.)
type InUse<'a> = &'a dyn Fn(&StoredImage) -> bool;

impl ImageStore {
    /// Removes an image by its name, its reference, six or more digits of its digest, or the ID of
    /// a damaged record; and with it the disk and layers that no other image needs.
    ///
    /// # Errors
    /// There is no such image, or several; a box uses its disk.
    pub fn remove(&self, text: &str) -> Result<Removed> {
        self.remove_with(text, false, &|_| false)
    }

    /// As [`remove`](Self::remove), and refuses images that `in_use` says boxes need. With `force`,
    /// such an image loses its name nevertheless (all its names, if `text` is a digest); its disk
    /// is removed with the last box that has it open or a hard link to it.
    ///
    /// # Errors
    /// There is no such image, or several; a box uses it.
    pub fn remove_with(&self, text: &str, force: bool, in_use: InUse<'_>) -> Result<Removed> {
        let _guard = StoreLock::take(&self.folders.lock(), Lock::Exclusive)?;
        let records = Records::load_all(&self.folders)?;
        let matching = records.matching(text);
        let names = || matching.iter().map(|record| record.name.clone()).collect::<Vec<_>>();
        match matching.as_slice() {
            [] => return self.remove_damaged(&records, text),
            [_, _, ..] if !force => {
                return Err(Error::Ambiguous { text: text.to_owned(), names: names() });
            }
            some => {
                for record in some {
                    if !force && self.is_in_use(&records, record, in_use)? {
                        return Err(Error::InUse { name: record.name.clone() });
                    }
                    self.remove_record(record)?;
                }
            }
        }
        let freed = garbage::sweep(&self.folders, Leftovers::Keep)?;
        Ok(Removed { name: names().join(", "), freed })
    }

    /// Removes unneeded files: remains of interrupted pulls, layers and disks of no image, and
    /// cached disks of images that are used where they lie. With `all`, also every image that no
    /// box uses, judged by locks, hard links and `in_use`.
    ///
    /// # Errors
    /// The store cannot be read or changed.
    pub fn prune(&self, all: bool, in_use: InUse<'_>) -> Result<Pruned> {
        let _guard = StoreLock::take(&self.folders.lock(), Lock::Exclusive)?;
        let records = Records::load_all(&self.folders)?;
        let mut pruned = Pruned::default();
        for record in &records.good {
            let is_candidate = all || record.import.is_none();
            if is_candidate && !self.is_in_use(&records, record, in_use)? {
                self.remove_record(record)?;
                pruned.removed.push(record.name.clone());
            }
        }
        pruned.freed = garbage::sweep(&self.folders, Leftovers::Discard)?;
        Ok(pruned)
    }

    /// Whether a box needs this image; a disk that another image keeps does not count.
    fn is_in_use(&self, records: &Records, record: &Record, in_use: InUse<'_>) -> Result<bool> {
        if in_use(&describe(&self.folders, record)) {
            return Ok(true);
        }
        let Some(disk) = &record.disk else { return Ok(false) };
        let has_it = |other: &&Record| other.disk.as_ref() == Some(disk);
        let is_last = records.good.iter().filter(has_it).count() == 1;
        Ok(is_last && garbage::is_in_use(&self.folders.disk(disk))?)
    }

    fn remove_record(&self, record: &Record) -> Result<()> {
        let path = self.folders.record(&record.name);
        remove(&path)
    }

    fn remove_damaged(&self, records: &Records, text: &str) -> Result<Removed> {
        let stem = text.parse::<ImageReference>().map(|name| record_stem(&name.to_string()));
        let is_meant = |path: &Path| {
            path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|id| {
                text.len() >= 6 && id.starts_with(text)
                    || stem.as_ref().is_ok_and(|stem| stem == id)
            })
        };
        let paths: Vec<_> =
            records.damaged.iter().map(|(path, _)| path).filter(|path| is_meant(path)).collect();
        match paths.as_slice() {
            [path] => {
                remove(path)?;
                let freed = garbage::sweep(&self.folders, Leftovers::Keep)?;
                Ok(Removed { name: text.to_owned(), freed })
            }
            [] => Err(Error::NotFound { text: text.to_owned() }),
            several => Err(Error::Ambiguous {
                text: text.to_owned(),
                names: several.iter().map(|path| path.display().to_string()).collect(),
            }),
        }
    }
}

/// Removes a record durably, before what it needs: a loss of power must not bring it back without
/// that.
fn remove(record: &Path) -> Result<()> {
    fs::remove_file(record).map_err(Error::io("remove", record))?;
    durable::sync_parent(record).map_err(Error::io("sync the folder of", record))
}
