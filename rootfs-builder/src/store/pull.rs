//! Pulls: from an image in a registry to one in the store.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::blobs::store_documents;
use super::folders::Folders;
use super::journal::Journal;
use super::lock::StoreLock;
use super::partial::{self, Fetch};
use super::record;
use crate::error::{Error, RegistryProblem, Remedy, Result};
use crate::file::read_small;
use crate::format::{Descriptor, Digest, ImageName, ImageReference, Platform};
use crate::image::{Documents, Image, Origin};
use crate::layer::{Layer, Location};
use crate::progress::{Event, LayerProgress, Pace, Progress};
use crate::registry::{
    Document, Driver, Endpoint, RegistryOptions, Session, find_login, on_own_thread,
};
use crate::resolve::{self, Content, Kind};
use crate::sys::{self, Lock};

/// Pulls an image from a mirror or its registry, and records it.
pub(super) fn pull(
    folders: &Folders,
    options: &RegistryOptions,
    name: &ImageName,
    host: &Platform,
    progress: &dyn Progress,
) -> Result<Image> {
    let mut endpoints = options.endpoints(name.registry())?;
    let origin = endpoints.pop();
    let pull = |endpoint: &Endpoint| {
        let repository = name.repository();
        let login = find_login(options, endpoint, &repository, progress);
        on_own_thread(|| {
            let driver = Driver::new(progress)?;
            progress.report(Event::Asking { registry: &endpoint.registry });
            let session = Session::begin(options, endpoint, &repository, name.as_str(), login);
            let session = driver.run(session)?;
            Pull { folders, options, name, host, session: &session, driver: &driver, progress }
                .run()
        })
    };
    for mirror in &endpoints {
        match pull(mirror) {
            Err(error) if !is_final(&error) => {
                let warning = format!("skipping the mirror: {error}");
                progress.report(Event::Warning(&warning));
            }
            other => return other,
        }
    }
    match origin {
        Some(origin) => pull(&origin),
        None => Err(Error::NotStored { name: name.to_string() }),
    }
}

/// Whether another registry could not help, either.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::Cancelled | Error::DiskFull { .. } | Error::Io { .. } | Error::WrongPlatform { .. }
    )
}

struct Pull<'a> {
    folders: &'a Folders,
    options: &'a RegistryOptions,
    name: &'a ImageName,
    host: &'a Platform,
    session: &'a Session,
    driver: &'a Driver<'a>,
    progress: &'a dyn Progress,
}

impl Pull<'_> {
    fn run(&self) -> Result<Image> {
        let (top, json) = self.top_document()?;
        let parts = resolve::document(self, top.clone(), json, self.host)?;
        let documents = parts.documents.clone();
        let mut image = Image::new(&ImageReference::Name(self.name.clone()), parts)?;
        let config = documents.config.as_deref().map(Digest::sha256);
        image.origin = Some(Origin {
            from: format!("docker://{}", self.name),
            index: (top != image.digest).then_some(top),
            manifest: Some(image.digest.clone()),
            config: config.clone(),
        });

        // From here on, garbage collection spares the blobs.
        let _guard = StoreLock::take(&self.folders.import_lock(), Lock::Shared)?;
        let layers = unique(&image.layers);
        let mut needed: Vec<&Digest> = layers.iter().map(|(_, digest, _)| *digest).collect();
        needed.push(&image.digest);
        needed.extend(&config);
        let journal = Journal::write(self.folders, self.name.as_str(), &needed)?;
        self.fetch_layers(&image, &layers)?;
        store_documents(self.folders, &image.digest, &documents)?;
        image.documents = Documents::default();
        record::save(self.folders, &image)?;
        journal.end();
        Ok(image)
    }

    /// The digest and JSON of the tag's or digest's document, verified.
    fn top_document(&self) -> Result<(Digest, Vec<u8>)> {
        let pinned = self.name.digest();
        let tag = self.name.tag().unwrap_or("latest");
        let reference = pinned.as_ref().map_or(tag.to_owned(), Digest::to_string);
        let Document { bytes, media_type, digest } =
            self.driver.run(async { self.ask(self.session.manifest(&reference).await) })?;
        if is_old(&media_type, &bytes) {
            return Err(Error::Unsupported {
                what: format!("{}: a manifest of Docker's old schema 1", self.name),
                remedy: Remedy::Other(
                    "push the image again with a current tool, e.g. `skopeo copy --format oci`",
                ),
            });
        }
        let what = format!("the manifest of {}", self.name);
        match pinned.or(digest) {
            Some(expected) => self.verify(what, &bytes, &expected).map(|()| (expected, bytes)),
            None => Ok((Digest::sha256(&bytes), bytes)),
        }
    }

    fn fetch_layers(&self, image: &Image, layers: &[(usize, &Digest, u64)]) -> Result<()> {
        let missing = |&(_, digest, size): &(usize, &Digest, u64)| {
            let blob = self.folders.blob(digest);
            let len = |path: PathBuf| path.metadata().map_or(0, |file| file.len());
            let stored =
                if partial::is_stored(&blob, size) { size } else { len(partial::path_of(&blob)) };
            size.saturating_sub(stored)
        };
        let wanted = layers.iter().map(missing).fold(0, u64::saturating_add);
        let folder = self.folders.blobs();
        let available = sys::free_bytes(&folder).map_err(Error::io("look at", &folder))?;
        if wanted > available {
            return Err(Error::DiskFull { folder, wanted, available });
        }
        let parallel = self.options.parallel_layers.max(1);
        let work = stream::iter(layers.iter().copied())
            .map(|(index, digest, size)| self.fetch_layer(image, index, digest, size))
            .buffer_unordered(parallel);
        self.driver.run(work.try_collect::<Vec<()>>()).map(drop)
    }

    async fn fetch_layer(
        &self,
        image: &Image,
        index: usize,
        digest: &Digest,
        size: u64,
    ) -> Result<()> {
        let at = |done| LayerProgress {
            layer: index,
            layers: image.layers.len(),
            done,
            total: Some(size),
        };
        if self.is_sound(digest, size).await? {
            self.progress.report(Event::Present(at(size)));
            return Ok(());
        }
        let pace = Mutex::new(Pace::default());
        let report = |done| {
            let is_due = pace.lock().is_ok_and(|mut pace| pace.is_due(done));
            if is_due || done == size {
                self.progress.report(Event::Pulling(at(done)));
            }
        };
        let what = image.layer_label(index);
        let (folders, session, progress) = (self.folders, self.session, self.progress);
        Fetch { folders, session, what, digest, size, progress, report: &report }.run().await
    }

    /// Whether a blob is in the store and sound; a damaged one is removed.
    async fn is_sound(&self, digest: &Digest, size: u64) -> Result<bool> {
        let path = self.folders.blob(digest);
        if !path.exists() {
            return Ok(false);
        }
        if partial::is_sound(&path, digest, size).await {
            return Ok(true);
        }
        self.progress.report(Event::Warning(&format!("{digest} is damaged; fetching it again")));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path)(error))
            }
            _ => Ok(false),
        }
    }

    fn verify(&self, what: String, bytes: &[u8], expected: &Digest) -> Result<()> {
        let actual = Digest::of(expected.algorithm(), bytes);
        if actual == *expected {
            return Ok(());
        }
        let expected = expected.clone();
        self.ask(Err(RegistryProblem::WrongDigest { what, expected, actual }))
    }

    fn ask<T>(&self, answer: Result<T, RegistryProblem>) -> Result<T> {
        answer.map_err(|problem| {
            Error::registry(self.name.as_str(), self.session.registry(), problem)
        })
    }
}

impl Content for Pull<'_> {
    fn label(&self) -> String {
        self.name.to_string()
    }

    fn document(&self, kind: Kind, blob: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>> {
        let digest = &blob.digest;
        let stored = read_small(&self.folders.blob(digest), limit).ok();
        if let Some(bytes) = stored.filter(|bytes| Digest::of(digest.algorithm(), bytes) == *digest)
        {
            return Ok(Some(bytes));
        }
        let what = match kind {
            Kind::Manifest => format!("the manifest {digest}"),
            Kind::Config => format!("the config {digest}"),
        };
        let bytes = self.driver.run(async {
            self.ask(match kind {
                Kind::Manifest => {
                    self.session.manifest(&digest.to_string()).await.map(|found| found.bytes)
                }
                Kind::Config => self.session.small_blob(&what, digest, limit).await,
            })
        })?;
        self.verify(what, &bytes, digest).map(|()| Some(bytes))
    }

    fn layer(&self, layer: &Descriptor) -> Result<Option<(Location, u64)>> {
        Ok(Some((Location::File(self.folders.blob(&layer.digest)), layer.size)))
    }
}

/// Whether this is a manifest of Docker's schema 1 (before 2017).
fn is_old(media_type: &str, json: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        schema_version: u64,
    }
    media_type.starts_with("application/vnd.docker.distribution.manifest.v1+")
        || serde_json::from_slice::<Versioned>(json).is_ok_and(|it| it.schema_version == 1)
}

/// Each distinct blob: index of its first layer, digest, length.
fn unique(layers: &[Layer]) -> Vec<(usize, &Digest, u64)> {
    let mut first = HashMap::new();
    for (index, layer) in layers.iter().enumerate() {
        if let (Some(digest), Some(size)) = (&layer.digest, layer.size) {
            first.entry(digest).or_insert((index, size));
        }
    }
    let mut unique: Vec<_> =
        first.into_iter().map(|(digest, (index, size))| (index, digest, size)).collect();
    unique.sort();
    unique
}
