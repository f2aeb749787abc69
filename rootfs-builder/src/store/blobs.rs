//! Copies of layers and documents in the store: an imported image outlives its source.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;

use super::draft::{Draft, write_whole};
use super::folders::Folders;
use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::{Algorithm, Digest, Hasher};
use crate::image::{Documents, Image};
use crate::layer::{Compression, Layer, Location, Metered, VerifiedLayer};
use crate::progress::{Event, LayerProgress, Pace, Progress};
use boxlite_durable as durable;

/// Fast, and still smaller than gzip.
const ZSTD_LEVEL: i32 = 3;

/// Copied layers, by their digests in the source.
pub(super) type Copied = HashMap<(Option<Digest>, Digest), Layer>;

/// Copies layers into the store.
pub(super) struct LayerCopier<'a> {
    pub(super) folders: &'a Folders,
    pub(super) limit: u64,
    pub(super) progress: &'a dyn Progress,
}

impl LayerCopier<'_> {
    /// Copies the layers of an image that have not been copied yet; returns all layers as stored.
    pub(super) fn copy(&self, image: &Image, copied: &mut Copied) -> Result<Vec<Layer>> {
        let copy = |(index, layer): (usize, &Layer)| {
            let key = (layer.digest.clone(), layer.diff_id.clone());
            if let Some(layer) = copied.get(&key) {
                return Ok(layer.clone());
            }
            let layer = self.copy_layer(image, index, layer)?;
            copied.insert(key, layer.clone());
            Ok(layer)
        };
        image.layers.iter().enumerate().map(copy).collect()
    }

    fn copy_layer(&self, image: &Image, index: usize, layer: &Layer) -> Result<Layer> {
        let (folders, limit) = (self.folders, self.limit);
        let copying = Copying { folders, layer, what: image.layer_label(index), limit };
        let mut pace = Pace::default();
        let mut report = |done: u64, force: bool| {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if pace.is_due(done) || force {
                self.progress.report(Event::Copying(LayerProgress {
                    layer: index,
                    layers: image.layers.len(),
                    done,
                    total: layer.size,
                }));
            }
            Ok(())
        };
        copying.run(&mut report, self.progress)
    }
}

/// Receives the bytes read of a layer, and whether these are all; an error ends the copy.
type Report<'a> = dyn FnMut(u64, bool) -> Result<()> + 'a;

struct Copying<'a> {
    folders: &'a Folders,
    layer: &'a Layer,
    what: String,
    limit: u64,
}

impl Copying<'_> {
    fn run(&self, report: &mut Report<'_>, progress: &dyn Progress) -> Result<Layer> {
        match &self.layer.digest {
            Some(digest) if self.is_compressed()? => self.verbatim(digest, report, progress),
            _ => self.compressed(report, progress),
        }
    }

    fn is_compressed(&self) -> Result<bool> {
        let mut magic = Vec::new();
        let blob = self.layer.location.open()?;
        let read = blob.take(Compression::MAGIC_LEN as u64).read_to_end(&mut magic);
        read.map_err(|error| Error::from_io(error, || self.what.clone()))?;
        Ok(Compression::of(&magic) != Compression::None)
    }

    /// Copies a compressed blob as it is. Its diff ID is checked when a disk is built from it.
    fn verbatim(
        &self,
        digest: &Digest,
        report: &mut Report<'_>,
        progress: &dyn Progress,
    ) -> Result<Layer> {
        let target = self.folders.blob(digest);
        if let Some(layer) = self.already_stored(digest)? {
            return Ok(layer);
        }
        let mut draft = self.begin(&target, progress)?;
        // Another process may have copied it while this one waited.
        if let Some(layer) = self.already_stored(digest)? {
            return Ok(layer);
        }
        let blob = self.layer.location.open()?;
        let mut blob = Metered::new(blob, self.layer.size, Some(digest.clone()));
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = blob.read(&mut buffer);
            let count = count.map_err(|error| Error::from_io(error, || self.what.clone()))?;
            report(blob.count(), count == 0)?;
            if count == 0 {
                break;
            }
            let written = draft.write_all(buffer.get(..count).unwrap_or_default());
            written.map_err(Error::write(&target, blob.count()))?;
        }
        blob.finish(&self.what)?;
        let size = blob.count();
        draft.seal()?;
        draft.publish(&target)?;
        Ok(self.stored(digest.clone(), size))
    }

    /// The layer, if its blob is in the store and sound.
    fn already_stored(&self, digest: &Digest) -> Result<Option<Layer>> {
        let Ok(file) = std::fs::File::open(self.folders.blob(digest)) else { return Ok(None) };
        let mut blob = Metered::new(file, self.layer.size, Some(digest.clone()));
        Ok(blob.finish(&self.what).is_ok().then(|| self.stored(digest.clone(), blob.count())))
    }

    /// Copies an uncompressed tar: verifies and compresses it.
    fn compressed(&self, report: &mut Report<'_>, progress: &dyn Progress) -> Result<Layer> {
        let place = self.folders.blob(&self.layer.diff_id);
        let draft = self.begin(&place, progress)?;
        let mut layer = VerifiedLayer::open(self.layer, self.what.clone(), self.limit)?;
        let output =
            HashingWriter { inner: draft, hasher: Hasher::new(Algorithm::Sha256), count: 0 };
        let failed = |error: io::Error| Error::write(&place, self.layer.size.unwrap_or(1))(error);
        let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL).map_err(failed)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = layer.read_verified(&mut buffer)?;
            report(layer.consumed(), count == 0)?;
            if count == 0 {
                break;
            }
            encoder.write_all(buffer.get(..count).unwrap_or_default()).map_err(failed)?;
        }
        let output = encoder.finish().map_err(failed)?;
        let digest = output.hasher.finish();
        output.inner.seal()?;
        output.inner.publish(&self.folders.blob(&digest))?;
        Ok(self.stored(digest, output.count))
    }

    fn begin(&self, target: &Path, progress: &dyn Progress) -> Result<Draft> {
        let folder = target.parent().unwrap_or(target);
        durable::create_dir_all(folder, 0o700).map_err(Error::write(folder, 1))?;
        Draft::begin(target, || progress.report(Event::Waiting { file: target }))
    }

    fn stored(&self, digest: Digest, size: u64) -> Layer {
        let location = Location::File(self.folders.blob(&digest));
        let diff_id = self.layer.diff_id.clone();
        Layer { digest: Some(digest), size: Some(size), diff_id, location }
    }
}

/// Hashes and counts what is written through it.
struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        self.hasher.update(buf.get(..count).unwrap_or_default());
        self.count += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Stores manifest and config beside the layers.
pub(super) fn store_documents(
    folders: &Folders,
    manifest: &Digest,
    documents: &Documents,
) -> Result<()> {
    let config = documents.config.as_deref().map(|json| (Digest::sha256(json), json));
    let manifest = documents.manifest.as_deref().map(|json| (manifest.clone(), json));
    for (digest, json) in config.into_iter().chain(manifest) {
        let path = folders.blob(&digest);
        let folder = path.parent().unwrap_or(&path);
        durable::create_dir_all(folder, 0o700).map_err(Error::write(folder, 1))?;
        if read_small(&path, json.len() as u64).is_ok_and(|stored| stored == json) {
            continue;
        }
        write_whole(&path, json)?;
    }
    Ok(())
}
