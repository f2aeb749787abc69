//! Descriptions of the images in the store.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::folders::Folders;
use super::images::ImageStore;
use super::record::{Record, Records, StoredLayer};
use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::{Digest, ImageConfig, MAX_CONFIG_BYTES};

/// An image in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredImage {
    /// Name; for an image that is used without an import, its reference.
    pub name: String,
    /// See [`Image::digest`](crate::Image::digest).
    pub digest: Digest,
    /// Digest of the index that the image was selected from, if it is one of several platforms':
    /// the digest that registries and docker show.
    pub index: Option<Digest>,
    /// See [`Image::chain_id`](crate::Image::chain_id).
    pub chain_id: Digest,
    /// What to run and how.
    pub config: ImageConfig,
    /// Where it was pulled (`docker://…`) or imported from; none if it is used where it lies, and
    /// only its disk is cached.
    pub imported_from: Option<String>,
    /// Time of the pull, import or first use.
    pub time: SystemTime,
    /// Bytes that its disk and layers occupy on the host's disk, shared ones included.
    pub size: u64,
    /// Its base disk, as in [`BaseDisk::path`](crate::BaseDisk::path); none if it has not been
    /// built yet.
    pub disk: Option<PathBuf>,
    /// What is wrong with its disk, if anything. The next use rebuilds it.
    pub disk_problem: Option<String>,
}

/// Result of [`ImageStore::list`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// Images, by name.
    pub images: Vec<StoredImage>,
    /// Unreadable records.
    pub damaged: Vec<DamagedRecord>,
}

/// An unreadable record; [`ImageStore::remove`] accepts its ID.
#[derive(Debug)]
#[non_exhaustive]
pub struct DamagedRecord {
    /// Hash of the image's name.
    pub id: String,
    /// What is wrong with it.
    pub error: Error,
}

/// Result of [`ImageStore::inspect`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImageDetails {
    /// Its entry in the list.
    pub image: StoredImage,
    /// All names of this image in the store, this one included.
    pub names: Vec<String>,
    /// Layers, lowest first; empty for an image that is used where it lies.
    pub layers: Vec<LayerDetails>,
    /// Its config (JSON) as it came, if the store has it.
    pub config_json: Option<Vec<u8>>,
}

/// A layer in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerDetails {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
}

impl ImageStore {
    /// Lists all images in the store.
    ///
    /// # Errors
    /// The folder cannot be read. Damaged records and disks are no errors: they are in the list.
    pub fn list(&self) -> Result<Listing> {
        let records = Records::load_all(&self.folders)?;
        let damaged = records.damaged.into_iter().map(|(path, error)| DamagedRecord {
            id: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            error,
        });
        Ok(Listing {
            images: records.good.iter().map(|record| describe(&self.folders, record)).collect(),
            damaged: damaged.collect(),
        })
    }

    /// Describes an image by its name, its reference, or six or more digits of its digest.
    ///
    /// # Errors
    /// There is no such image, or several different ones.
    pub fn inspect(&self, text: &str) -> Result<ImageDetails> {
        let records = Records::load_all(&self.folders)?;
        let record = records.one(text)?;
        let is_same = |other: &&Record| other.digest == record.digest;
        let import = record.import.as_ref();
        let config = import.and_then(|import| import.origin.config.as_ref());
        let details = |layer: &StoredLayer| LayerDetails {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.size,
        };
        Ok(ImageDetails {
            image: describe(&self.folders, record),
            names: records.good.iter().filter(is_same).map(|it| it.name.clone()).collect(),
            layers: import.iter().flat_map(|import| &import.layers).map(details).collect(),
            config_json: config
                .and_then(|config| read_small(&self.folders.blob(config), MAX_CONFIG_BYTES).ok()),
        })
    }
}

/// Describes the image of a record.
pub(super) fn describe(folders: &Folders, record: &Record) -> StoredImage {
    let (disk_size, disk_problem) = inspect_disk(folders, record);
    let import = record.import.as_ref();
    let layers = import.iter().flat_map(|import| &import.layers);
    StoredImage {
        name: record.name.clone(),
        digest: record.digest.clone(),
        index: import.and_then(|import| import.origin.index.clone()),
        chain_id: record.chain_id.clone(),
        config: record.config.clone(),
        imported_from: import.map(|import| import.origin.from.clone()),
        time: UNIX_EPOCH + Duration::from_secs(record.time.min(u32::MAX.into())),
        size: layers.map(|layer| layer.size).fold(disk_size, u64::saturating_add),
        disk: record.disk.as_ref().map(|disk| folders.disk(disk)),
        disk_problem,
    }
}

/// Bytes that a disk occupies, and what is wrong with it.
fn inspect_disk(folders: &Folders, record: &Record) -> (u64, Option<String>) {
    use std::os::unix::fs::MetadataExt;
    let Some(disk) = &record.disk else { return (0, None) };
    match folders.disk(disk).metadata() {
        Ok(disk) => {
            let problem = (disk.len() != record.disk_len)
                .then(|| format!("it has {} bytes instead of {}", disk.len(), record.disk_len));
            (disk.blocks().saturating_mul(512), problem)
        }
        Err(error) => (0, Some(error.to_string())),
    }
}
