//! Images out of the store: a tar of an OCI layout.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::images::ImageStore;
use super::lock::StoreLock;
use super::record::{Record, Records, StoredLayer};
use crate::error::{Error, Result};
use crate::file::read_small;
use crate::format::{
    Digest, Document, ImageConfig, ImageName, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Platform,
};
use crate::layer::Compression;
use crate::progress::{Event, LayerProgress, Pace, Progress};
use crate::sys::{self, Lock};

impl ImageStore {
    /// Writes images, with their names, as a tar of an OCI layout, which `skopeo` (`oci-archive:`),
    /// `podman load` and [`load`](Self::load) read.
    ///
    /// # Errors
    /// An image does not exist, is only used where it lies, or lacks layers; the output fails.
    pub fn save(
        &self,
        names: &[&str],
        output: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        let (records, guard) = self.records_with_blobs()?;
        let mut writer = LayoutWriter { tar: tar::Builder::new(output), written: Vec::new() };
        let mut entries = Vec::new();
        for name in names {
            let record = records.one(name)?;
            entries.push(self.save_image(record, &mut writer, progress)?);
        }
        writer.finish(entries)?;
        drop(guard);
        self.collect_garbage();
        Ok(())
    }

    /// All records, and the lock that keeps their blobs. A concurrent removal does not wait for it,
    /// and leaves the blobs to the next garbage collection.
    fn records_with_blobs(&self) -> Result<(Records, StoreLock)> {
        let _none_is_removed = StoreLock::take(&self.folders.lock(), Lock::Shared)?;
        let guard = StoreLock::take(&self.folders.import_lock(), Lock::Shared)?;
        Ok((Records::load_all(&self.folders)?, guard))
    }

    /// Writes one image; returns its entry for the index.
    fn save_image(
        &self,
        record: &Record,
        writer: &mut LayoutWriter<'_>,
        progress: &dyn Progress,
    ) -> Result<Value> {
        let import = record.import()?;
        let mut layers = Vec::new();
        for (index, layer) in import.layers.iter().enumerate() {
            let path = self.folders.blob(&layer.digest);
            let file = sys::open_regular(&path).map_err(Error::io("open", &path))?;
            let media_type = layer_type(&path)?;
            layers.push(descriptor(media_type, &layer.digest, layer.size));
            let mut pace = Pace::default();
            let mut done = 0;
            let reading = Reporting {
                file,
                report: |count| {
                    done += count;
                    if pace.is_due(done) || done == layer.size {
                        let (layers, total) = (import.layers.len(), Some(layer.size));
                        let at = LayerProgress { layer: index, layers, done, total };
                        progress.report(Event::Copying(at));
                    }
                },
            };
            writer.blob(&layer.digest, layer.size, reading)?;
        }
        let stored = |digest: &Option<Digest>, limit: u64| {
            let blob = digest.as_ref().map(|digest| self.folders.blob(digest));
            blob.map(|blob| read_small(&blob, limit)).transpose()
        };
        let config = match stored(&import.origin.config, MAX_CONFIG_BYTES)? {
            Some(config) => config,
            None => config_json(&record.config, &import.layers).to_string().into_bytes(),
        };
        let manifest = stored(&import.origin.manifest, MAX_MANIFEST_BYTES)?;
        let named = manifest.as_deref().and_then(|manifest| name_of_config(manifest, &config));
        let config_digest = named.unwrap_or_else(|| Digest::sha256(&config));
        writer.blob(&config_digest, config.len() as u64, config.as_slice())?;
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => manifest_json(&config_digest, config.len(), &layers).to_string().into_bytes(),
        };
        let digest = match &import.origin.manifest {
            Some(digest) => digest.clone(),
            None => Digest::sha256(&manifest),
        };
        writer.blob(&digest, manifest.len() as u64, manifest.as_slice())?;
        let media_type = serde_json::from_slice::<Value>(&manifest).ok();
        let media_type = media_type.as_ref().and_then(|json| json.get("mediaType")?.as_str());
        let mut entry =
            descriptor(media_type.unwrap_or(MANIFEST_TYPE), &digest, manifest.len() as u64);
        if let (Some(entry), Ok(name)) = (entry.as_object_mut(), record.name.parse::<ImageName>()) {
            let full = name.full();
            entry.insert(
                "annotations".into(),
                json!({ "org.opencontainers.image.ref.name": full, "io.containerd.image.name": full }),
            );
        }
        Ok(entry)
    }
}

/// The digest that the manifest has for this config, which may be of another algorithm than the
/// store's.
fn name_of_config(manifest: &[u8], config: &[u8]) -> Option<Digest> {
    match Document::parse(manifest).ok()? {
        Document::Manifest { config: named, .. } => {
            let digest = named.digest;
            (Digest::of(digest.algorithm(), config) == digest).then_some(digest)
        }
        Document::Index(_) => None,
    }
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// The media type of a layer blob, by its magic.
fn layer_type(path: &Path) -> Result<&'static str> {
    let file = sys::open_regular(path).map_err(Error::io("open", path))?;
    let mut magic = Vec::new();
    let read = file.take(Compression::MAGIC_LEN as u64).read_to_end(&mut magic);
    read.map_err(Error::io("read", path))?;
    Ok(match Compression::of(&magic) {
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    })
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// A manifest for an image without one, or whose layers are compressed differently now.
fn manifest_json(config: &Digest, config_len: usize, layers: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, config, config_len as u64),
        "layers": layers,
    })
}

/// A config for an image without one.
fn config_json(config: &ImageConfig, layers: &[StoredLayer]) -> Value {
    let host = Platform::host();
    let or = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let mut json = json!({
        "architecture": or(&config.architecture, &host.architecture),
        "os": or(&config.os, &host.os),
        "config": {
            "Env": config.env, "Entrypoint": config.entrypoint, "Cmd": config.cmd,
            "WorkingDir": config.working_dir, "User": config.user,
            "StopSignal": config.stop_signal, "Labels": config.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    if let (false, Some(json)) = (config.created.is_empty(), json.as_object_mut()) {
        json.insert("created".into(), config.created.clone().into());
    }
    json
}

/// Writer of an OCI layout as a tar.
struct LayoutWriter<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    written: Vec<Digest>,
}

impl LayoutWriter<'_> {
    /// Writes a blob, unless it was written for another image.
    fn blob(&mut self, digest: &Digest, size: u64, content: impl Read) -> Result<()> {
        if self.written.contains(digest) {
            return Ok(());
        }
        // A length other than the header's would break the tar.
        let mut content = ExactReader { inner: content, left: size };
        self.member(&digest.blob_path(), size, &mut content)?;
        self.written.push(digest.clone());
        Ok(())
    }

    fn finish(mut self, entries: Vec<Value>) -> Result<()> {
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#;
        self.member("oci-layout", version.len() as u64, &mut &version[..])?;
        let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        self.member("index.json", index.len() as u64, &mut index.as_bytes())?;
        let output = self.tar.into_inner().map_err(failed)?;
        output.flush().map_err(failed)
    }

    fn member(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.tar.append_data(&mut header, path, content).map_err(failed)
    }
}

/// The error of writing the archive, or of reading a blob for it.
fn failed(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("write", Path::new("the archive"))(error),
    }
}

/// A reader of exactly `left` bytes; less is an error.
struct ExactReader<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for ExactReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let count = self.inner.read(buf.get_mut(..wanted).unwrap_or_default())?;
        if count == 0 && wanted > 0 {
            let reason = "it is shorter than recorded; pull or import the image again";
            return Err(Error::corrupt("a blob in the store", reason).into_io());
        }
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// A file that reports its reads.
struct Reporting<F> {
    file: File,
    report: F,
}

impl<F: FnMut(u64)> Read for Reporting<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buf)?;
        (self.report)(count as u64);
        Ok(count)
    }
}
