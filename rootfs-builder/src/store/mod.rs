//! The image store: a folder with base disks, layers of imported images, and a record for each
//! image it knows.
//!
//! ```text
//! images/
//!   blobs/<algorithm>/<hex>    layers, manifests and configs of pulled and imported images
//!   blobs/….partial            a blob that is being pulled, or whose pull was interrupted
//!   disks/<chain>-<key>.raw    base disks, read-only; shared lock: in use
//!   disks/….raw.part           a disk that is being built; exclusive lock: its builder lives
//!   refs/<hash of name>.json   records
//!   refs/<hash of name>.pull   what a pull that has not ended will need
//!   .lock                      shared while a disk gets record and name, exclusive to remove things
//!   .import.lock               shared while layers are copied or pulled, exclusive to remove layers
//! ```
//!
//! Any number of processes use it at once. Everything appears by a rename, so that a crash at any
//! moment leaves a store that opens; what it leaves behind is recognized by its lock, which died
//! with its process, and removed by whoever opens the store next. What an interrupted pull has fetched
//! is kept for three days, for the next attempt.
//!
//! Names of imports and of registries are of one kind: a name means what was imported or pulled under it
//! last, and only where the store has nothing is a registry asked (see [`PullPolicy`]).

mod blobs;
mod disk;
mod draft;
mod garbage;
mod journal;
mod partial;
mod pull;
mod record;
mod removal;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blobs::Copied;
pub use disk::{BaseDisk, DiskBuilder};
use draft::StoreLock;
use garbage::Leftovers;
pub use pull::PullPolicy;
use record::{Record, Records, record_stem};
pub use removal::{Pruned, Removed};
pub use transfer::{ImageDetails, LayerDetails};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::{ImageName, ImageReference};
use crate::registry::RegistryOptions;
use crate::source::{Archive, LayoutDir, resolve_directory, resolve_layout};
use crate::sys::Lock;
use boxlite_durable as durable;

/// A layer (or an archive that is compressed as a whole) may decompress to this many bytes unless
/// [`ImageStore::with_layer_limit`] says otherwise: 64 GiB.
pub const DEFAULT_LAYER_LIMIT: u64 = 64 << 30;

/// A folder of images. Cheap to open; any number may be open at once.
#[derive(Debug)]
pub struct ImageStore {
    folders: Folders,
    layer_limit: u64,
    registries: RegistryOptions,
}

/// An image in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredImage {
    /// Its name; of one that was used without being imported, the reference.
    pub name: String,
    /// See [`Image::digest`].
    pub digest: Digest,
    /// Of the index in which the image was found, where it is one of several for different
    /// platforms: the digest that registries and docker show.
    pub index: Option<Digest>,
    /// See [`Image::chain_id`].
    pub chain_id: Digest,
    /// What to run and how.
    pub config: ImageConfig,
    /// From where it was pulled (`docker://…`) or imported; none: it is used where it lies, and only its
    /// disk is cached.
    pub imported_from: Option<String>,
    /// When it was pulled, imported or first used.
    pub time: SystemTime,
    /// Bytes that its disk and its layers take on the host's disk, shared ones included.
    pub size: u64,
    /// Its base disk, as [`BaseDisk::path`] has it; none: it has not been built yet.
    pub disk: Option<PathBuf>,
    /// What is wrong with its disk, if anything. It is built anew when next used.
    pub disk_problem: Option<String>,
}

/// What [`ImageStore::list`] finds.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The images, by name.
    pub images: Vec<StoredImage>,
    /// Records that cannot be read.
    pub damaged: Vec<DamagedRecord>,
}

/// A record that cannot be read. [`ImageStore::remove`] takes its ID.
#[derive(Debug)]
#[non_exhaustive]
pub struct DamagedRecord {
    /// A hash of the name that it had.
    pub id: String,
    /// What is wrong with it.
    pub error: Error,
}

impl ImageStore {
    /// Opens the store in this folder (`$BOXLITE_HOME/images`); creates it where it is missing, and
    /// removes what killed processes left behind.
    ///
    /// # Errors
    /// The folder cannot be created or used.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let root = std::path::absolute(dir).map_err(Error::io("find", dir))?;
        let store = Self {
            folders: Folders { root },
            layer_limit: DEFAULT_LAYER_LIMIT,
            registries: RegistryOptions::default(),
        };
        for folder in [store.folders.blobs(), store.folders.disks(), store.folders.refs()] {
            durable::create_dir_all(&folder, 0o700).map_err(Error::write(&folder, 1))?;
        }
        store.collect_garbage();
        Ok(store)
    }

    /// Changes how many bytes a layer may have when it is decompressed.
    #[must_use]
    pub fn with_layer_limit(self, bytes: u64) -> Self {
        Self { layer_limit: bytes, ..self }
    }

    /// Changes how registries are reached.
    #[must_use]
    pub fn with_registries(self, registries: RegistryOptions) -> Self {
        Self { registries, ..self }
    }

    /// How registries are reached.
    pub fn registries(&self) -> &RegistryOptions {
        &self.registries
    }

    /// Finds an image, and verifies its manifest and config. A directory is read as a whole to
    /// learn its identity; an archive that is compressed is expanded; a name that the store does not
    /// have is pulled from its registry.
    ///
    /// # Errors
    /// It is missing, damaged, for another platform, or not to be had.
    pub fn resolve(&self, reference: &ImageReference, progress: &dyn Progress) -> Result<Image> {
        self.resolve_with(reference, PullPolicy::Missing, progress)
    }

    /// As [`resolve`](Self::resolve), and says when to ask a registry for a name.
    ///
    /// # Errors
    /// It is missing, damaged, for another platform, or not to be had.
    pub fn resolve_with(
        &self,
        reference: &ImageReference,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let host = Platform::host();
        let parts = match reference {
            ImageReference::OciLayout { dir, tag } => {
                resolve_layout(&LayoutDir { dir }, tag.as_deref(), &host)?
            }
            ImageReference::DockerArchive { file, tag } => {
                let temp = self.folders.blobs();
                let archive = Archive::open(file, &temp, self.layer_limit, progress)?;
                archive.resolve(tag.as_deref(), &host)?
            }
            ImageReference::Directory { dir } => resolve_directory(dir, progress)?,
            ImageReference::Name(name) => return self.named(name, policy, progress),
        };
        Image::new(reference, parts)
    }

    /// Gets an image from its registry as it is there now; fetches only what the store has not.
    ///
    /// # Errors
    /// [`Error::Registry`] says what the registry answers. [`Error::Cancelled`] if the progress says
    /// so: what was fetched is kept for the next attempt.
    pub fn pull(&self, name: &ImageName, progress: &dyn Progress) -> Result<Image> {
        let image = pull::pull(&self.folders, &self.registries, name, progress)?;
        self.collect_garbage();
        Ok(image)
    }

    fn named(
        &self,
        name: &ImageName,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let stored = match policy {
            PullPolicy::Always => Ok(None),
            PullPolicy::Missing | PullPolicy::Never => self.stored(name),
        };
        match (stored, policy) {
            (Ok(Some(image)), _) => Ok(image),
            (Ok(None), PullPolicy::Never) => Err(Error::NotStored { name: name.to_string() }),
            (Ok(None), _) => self.pull(name, progress),
            (Err(damage), PullPolicy::Missing) if self.may_be_healed(name, &damage) => {
                self.heal(name, damage, progress)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether the registry can give what a damaged record was of.
    fn may_be_healed(&self, name: &ImageName, damage: &Error) -> bool {
        let is_damage = matches!(damage, Error::Corrupt { .. } | Error::TooLarge { .. });
        is_damage && record::may_be_pulled(&self.folders.record(name.as_str()), name)
    }

    /// Gets an image anew whose record is damaged.
    fn heal(&self, name: &ImageName, damage: Error, progress: &dyn Progress) -> Result<Image> {
        progress.report(Event::Warning(&format!("{damage}; asking the registry for {name}")));
        self.pull(name, progress).map_err(|error| match error {
            Error::Cancelled => error,
            error => {
                progress.report(Event::Warning(&error.to_string()));
                damage
            }
        })
    }

    /// The image of that name, or with the digest that the name is pinned to. None, too, where it
    /// came from a registry and lacks layers: that can give them again.
    fn stored(&self, name: &ImageName) -> Result<Option<Image>> {
        let path = self.folders.record(name.as_str());
        let record = match (path.exists(), name.digest()) {
            (true, _) => Some(record::load(&path)?),
            (false, Some(digest)) => {
                let records = Records::load_all(&self.folders)?.good;
                let is_meant = |record: &Record| record.digests().any(|known| *known == digest);
                records.into_iter().find(is_meant)
            }
            (false, None) => None,
        };
        Ok(record.and_then(|record| record.image(&self.folders)).filter(|image| {
            let is_there = |layer: &Layer| match (&layer.digest, layer.size) {
                (Some(digest), Some(size)) => partial::is_stored(&self.folders.blob(digest), size),
                _ => true,
            };
            !image.is_pulled() || image.layers.iter().all(is_there)
        }))
    }

    /// The disk of an image: from the cache, or built now (once, however many processes ask).
    ///
    /// # Errors
    /// A layer is damaged or not what the image says, the builder failed, the disk is full.
    pub fn disk(
        &self,
        image: &Image,
        builder: &dyn DiskBuilder,
        progress: &dyn Progress,
    ) -> Result<BaseDisk> {
        disk::obtain(&self.folders, image, builder, self.layer_limit, progress)
    }

    /// Copies an image into the store under a name of its own, and builds its disk.
    ///
    /// # Errors
    /// The name is none; whatever [`resolve`](Self::resolve) and [`disk`](Self::disk) may say.
    pub fn import(
        &self,
        reference: &ImageReference,
        name: &str,
        builder: &dyn DiskBuilder,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let name = transfer::parse_name(name)?;
        let image = self.resolve(reference, progress)?;
        let guard = StoreLock::take(&self.folders.import_lock(), Lock::Shared)?;
        let image = self.keep(image, name, &mut Copied::default(), progress)?;
        self.disk(&image, builder, progress)?;
        drop(guard);
        self.collect_garbage();
        Ok(image)
    }

    /// All images that the store knows.
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
            images: records.good.iter().map(|record| self.folders.describe(record)).collect(),
            damaged: damaged.collect(),
        })
    }

    /// Removes what nobody needs, unless somebody is at work in the store: then that is the
    /// business of the next one.
    fn collect_garbage(&self) {
        let collect = || match StoreLock::try_exclusive(&self.folders.lock())? {
            Some(_guard) => garbage::sweep(&self.folders, Leftovers::Keep),
            None => Ok(0),
        };
        if let Err(error) = collect() {
            tracing::warn!("cannot tidy up the image store: {error}");
        }
    }
}

/// Where things are in the store.
#[derive(Clone, Debug)]
struct Folders {
    root: PathBuf,
}

impl Folders {
    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    fn lock(&self) -> PathBuf {
        self.root.join(".lock")
    }

    fn import_lock(&self) -> PathBuf {
        self.root.join(".import.lock")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.blob_path())
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.disks().join(name)
    }

    fn record(&self, name: &str) -> PathBuf {
        self.refs().join(format!("{}.json", record_stem(name)))
    }

    /// Whether a disk of this length is what a record says, or there is no record of it.
    fn is_recorded_len(&self, disk: &str, len: u64) -> Result<bool> {
        let records = Records::load_all(self)?;
        let is_of_it = |record: &&Record| record.disk.as_deref() == Some(disk);
        let mut lens = records.good.iter().filter(is_of_it).map(|record| record.disk_len);
        let Some(first) = lens.next() else { return Ok(true) };
        Ok(first == len || lens.any(|other| other == len))
    }

    /// What people are told of a record.
    fn describe(&self, record: &Record) -> StoredImage {
        let (disk_size, disk_problem) = self.inspect_disk(record);
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
            disk: record.disk.as_ref().map(|disk| self.disk(disk)),
            disk_problem,
        }
    }

    /// How many bytes a disk takes, and what is wrong with it.
    fn inspect_disk(&self, record: &Record) -> (u64, Option<String>) {
        use std::os::unix::fs::MetadataExt;
        let Some(disk) = &record.disk else { return (0, None) };
        match self.disk(disk).metadata() {
            Ok(disk) => {
                let problem = (disk.len() != record.disk_len)
                    .then(|| format!("it has {} bytes instead of {}", disk.len(), record.disk_len));
                (disk.blocks().saturating_mul(512), problem)
            }
            Err(error) => (0, Some(error.to_string())),
        }
    }
}
