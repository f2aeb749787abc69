//! The store itself: opens it, finds images, returns their disks.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::builder::DiskBuilder;
use super::disk::{self, BaseDisk};
use super::folders::Folders;
use super::garbage::{self, Leftovers};
use super::lock::StoreLock;
use super::partial;
use super::pull;
use super::record::{self, Record, Records};
use crate::error::{Error, Result};
use crate::format::{ImageName, ImagePlatform, ImageReference, Platform};
use crate::image::Image;
use crate::layer::Layer;
use crate::progress::{Event, Progress};
use crate::registry::RegistryOptions;
use crate::resolve;
use crate::source::{self, Lookup, Scratch};
use boxlite_durable as durable;

/// Default limit of a decompressed layer or archive, in bytes: 64 GiB. See
/// [`ImageStore::with_layer_limit`].
pub const DEFAULT_LAYER_LIMIT: u64 = 64 << 30;

/// A folder of images. Cheap to open; any number may be open at once.
#[derive(Debug)]
pub struct ImageStore {
    pub(super) folders: Folders,
    pub(super) layer_limit: u64,
    registries: RegistryOptions,
}

/// When to ask a registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PullPolicy {
    /// If no stored image has the name; an imported image counts.
    #[default]
    Missing,
    /// Each time: a tag may have moved. The answer replaces an image that was imported under the name.
    /// Stored layers are not fetched again.
    Always,
    /// Never: the image must be stored.
    Never,
}

impl ImageStore {
    /// Opens the store in `dir` (`$BOXLITE_HOME/images`), creates it if missing, and removes what
    /// killed processes left behind.
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

    /// Sets the limit of a decompressed layer, in bytes.
    #[must_use]
    pub fn with_layer_limit(self, bytes: u64) -> Self {
        Self { layer_limit: bytes, ..self }
    }

    /// Sets how registries are reached.
    #[must_use]
    pub fn with_registries(self, registries: RegistryOptions) -> Self {
        Self { registries, ..self }
    }

    /// How registries are reached.
    pub fn registries(&self) -> &RegistryOptions {
        &self.registries
    }

    /// Resolves an image: verifies its manifest and config. A directory is read as a whole to
    /// compute its digest; a compressed archive is expanded; a name that the store lacks is pulled
    /// from its registry.
    ///
    /// # Errors
    /// The image is missing, damaged, for another platform, or cannot be fetched.
    pub fn resolve(&self, reference: &ImageReference, progress: &dyn Progress) -> Result<Image> {
        self.resolve_with(reference, PullPolicy::Missing, None, progress)
    }

    /// As [`resolve`](Self::resolve), with a policy for names, and for a platform. A pulled image of a higher variant
    /// than the platform's counts as missing; an import is not replaced.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve); boxes here cannot run the platform; the stored image is of a higher variant, and
    /// may not be pulled.
    pub fn resolve_with(
        &self,
        reference: &ImageReference,
        policy: PullPolicy,
        platform: Option<&ImagePlatform>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let host = platform_of_boxes(platform)?;
        match source::look_up(reference, &host, &self.scratch(), progress)? {
            Lookup::Here(resolved) => Image::new(reference, *resolved),
            Lookup::Name(name) => self.named(name, policy, &host, progress),
        }
    }

    /// Archives are expanded beside the blobs.
    pub(super) fn scratch(&self) -> Scratch {
        Scratch { dir: self.folders.blobs(), limit: self.layer_limit }
    }

    /// Pulls the current image of that name from its registry; fetches only what the store lacks.
    ///
    /// # Errors
    /// [`Error::Registry`] has the registry's answer. [`Error::Cancelled`] on cancellation by
    /// `progress`; what was fetched is kept for the next attempt.
    pub fn pull(&self, name: &ImageName, progress: &dyn Progress) -> Result<Image> {
        self.pull_for(name, &Platform::host(), progress)
    }

    fn pull_for(
        &self,
        name: &ImageName,
        host: &Platform,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let image = pull::pull(&self.folders, &self.registries, name, host, progress)?;
        self.collect_garbage();
        Ok(image)
    }

    fn named(
        &self,
        name: &ImageName,
        policy: PullPolicy,
        host: &Platform,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let stored = match policy {
            PullPolicy::Always => Ok(None),
            PullPolicy::Missing | PullPolicy::Never => self.stored(name),
        };
        match (stored, policy) {
            (Ok(Some(image)), policy) => {
                match resolve::check_platform(name.as_str(), image.config(), host) {
                    Ok(()) => Ok(image),
                    // Its origin is no registry, or one that may have another image of this name.
                    Err(error) if policy == PullPolicy::Never || !image.is_pulled() => Err(error),
                    Err(_) => self.pull_for(name, host, progress),
                }
            }
            (Ok(None), PullPolicy::Never) => Err(Error::NotStored { name: name.to_string() }),
            (Ok(None), _) => self.pull_for(name, host, progress),
            (Err(damage), PullPolicy::Missing) if self.is_repairable(name, &damage) => {
                self.repair(name, damage, host, progress)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether the registry can replace the image of a damaged record.
    fn is_repairable(&self, name: &ImageName, damage: &Error) -> bool {
        let is_damage = matches!(damage, Error::Corrupt { .. } | Error::TooLarge { .. });
        is_damage && record::may_be_pulled(&self.folders.record(name.as_str()), name)
    }

    /// Pulls again an image whose record is damaged.
    fn repair(
        &self,
        name: &ImageName,
        damage: Error,
        host: &Platform,
        progress: &dyn Progress,
    ) -> Result<Image> {
        progress.report(Event::Warning(&format!("{damage}; asking the registry for {name}")));
        self.pull_for(name, host, progress).map_err(|error| match error {
            Error::Cancelled => error,
            error => {
                progress.report(Event::Warning(&error.to_string()));
                damage
            }
        })
    }

    /// The image of that name, or with the digest that pins the name. None, too, for a pulled image
    /// that lacks layers: the registry has those.
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

    /// Returns the disk of an image, cached or newly built (once, however many processes ask).
    ///
    /// # Errors
    /// A layer is damaged, the builder failed, or the disk is full.
    pub fn disk(
        &self,
        image: &Image,
        builder: &dyn DiskBuilder,
        progress: &dyn Progress,
    ) -> Result<BaseDisk> {
        disk::obtain(&self.folders, image, builder, self.layer_limit, progress)
    }

    /// Collects garbage, unless another process works in the store: the next one does it then.
    pub(super) fn collect_garbage(&self) {
        let collect = || match StoreLock::try_exclusive(&self.folders.lock())? {
            Some(_guard) => garbage::sweep(&self.folders, Leftovers::Keep),
            None => Ok(0),
        };
        if let Err(error) = collect() {
            tracing::warn!("cannot tidy up the image store: {error}");
        }
    }
}

/// The platform of boxes on this machine, no more than `wanted`.
fn platform_of_boxes(wanted: Option<&ImagePlatform>) -> Result<Platform> {
    let host = Platform::host();
    let Some(wanted) = wanted else { return Ok(host) };
    host.narrowed(wanted).ok_or_else(|| Error::UnsupportedPlatform {
        platform: wanted.clone(),
        host: host.to_string(),
    })
}
