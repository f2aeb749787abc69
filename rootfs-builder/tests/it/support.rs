//! Shared by the tests: handmade layouts and archives, and a builder that concatenates layers.

use std::error::Error as StdError;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use boxlite_rootfs_builder::{
    Digest, DiskBuilder, Error, Event, Image, ImageReference, ImageStore, LayerStreams, Progress,
    Silent,
};
use serde_json::{Value, json};

pub(crate) const HOST: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
pub(crate) const FOREIGN: &str = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
/// The variant of the architecture that every CPU has.
pub(crate) const LEAST: &str = if cfg!(target_arch = "aarch64") { "v8" } else { "v1" };

/// Builds "disks" that are the layers one after the other.
#[derive(Default)]
pub(crate) struct Concatenate {
    pub(crate) key: String,
    pub(crate) delay: Duration,
    pub(crate) built: AtomicUsize,
}

impl DiskBuilder for Concatenate {
    fn key(&self) -> String {
        self.key.clone()
    }

    fn build(
        &self,
        disk: &Path,
        layers: &mut dyn LayerStreams,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let mut disk = OpenOptions::new().write(true).open(disk)?;
        assert_eq!(disk.metadata()?.len(), 0);
        self.built.fetch_add(1, Ordering::Relaxed);
        while let Some(mut layer) = layers.next_layer()? {
            io::copy(&mut layer, &mut disk)?;
        }
        std::thread::sleep(self.delay);
        Ok(())
    }
}

/// Records the events that it gets.
#[derive(Default)]
pub(crate) struct Notes(pub(crate) Mutex<Vec<String>>);

impl Progress for Notes {
    fn report(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

impl Notes {
    pub(crate) fn has(&self, text: &str) -> bool {
        self.0.lock().unwrap().iter().any(|note| note.contains(text))
    }
}

/// A folder for a store and for images.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> ImageStore {
        ImageStore::open(self.path("store")).unwrap()
    }

    /// All files in the store, relative, without the two locks.
    pub(crate) fn store_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.path("store")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push(path),
                }
            }
        }
        let root = self.path("store");
        let relative = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
        let mut files: Vec<_> =
            files.into_iter().map(relative).filter(|name| !name.ends_with(".lock")).collect();
        files.sort();
        files
    }

    /// Waits for a condition.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while !is_so() {
            assert!(std::time::Instant::now() < deadline, "{what}: {:?}", self.store_files());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn resolve(&self, reference: &str) -> Result<Image, Error> {
        self.store().resolve(&reference.parse::<ImageReference>()?, &Silent)
    }

    /// Resolves and builds; returns what is on the disk.
    pub(crate) fn build(&self, reference: &str) -> Result<Vec<u8>, Error> {
        let image = self.resolve(reference)?;
        let disk = self.store().disk(&image, &Concatenate::default(), &Silent)?;
        Ok(fs::read(disk.path()).unwrap())
    }
}

/// A handmade OCI layout.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

/// A layer: its stored and its uncompressed bytes.
#[derive(Clone)]
pub(crate) struct TestLayer {
    pub(crate) blob: Vec<u8>,
    pub(crate) plain: Vec<u8>,
    pub(crate) media_type: &'static str,
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl TestLayer {
    pub(crate) fn plain(bytes: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        Self { blob: bytes.to_vec(), plain: bytes.to_vec(), media_type }
    }

    pub(crate) fn gzip(bytes: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { blob: gzip(bytes), plain: bytes.to_vec(), media_type }
    }

    pub(crate) fn zstd(bytes: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        let blob = zstd::encode_all(bytes, 1).unwrap();
        Self { blob, plain: bytes.to_vec(), media_type }
    }

    /// A valid tar of one file.
    pub(crate) fn tar(path: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
        builder.into_inner().unwrap()
    }
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// Stores a blob; returns its descriptor.
    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    pub(crate) fn json_blob(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    pub(crate) fn config(architecture: &str, layers: &[TestLayer]) -> Value {
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| Digest::sha256(&layer.plain).to_string()).collect();
        json!({
            "architecture": architecture, "os": "linux", "created": null,
            "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Entrypoint": null },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
    }

    /// Stores an image with this config; returns the descriptor of its manifest.
    pub(crate) fn image_with(&self, config: &Value, layers: &[TestLayer]) -> Value {
        let config = self.json_blob("application/vnd.oci.image.config.v1+json", config);
        let layers: Vec<Value> =
            layers.iter().map(|layer| self.blob(layer.media_type, &layer.blob)).collect();
        self.json_blob(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({ "schemaVersion": 2, "config": config, "layers": layers }),
        )
    }

    pub(crate) fn image(&self, architecture: &str, layers: &[TestLayer]) -> Value {
        self.image_with(&Self::config(architecture, layers), layers)
    }

    pub(crate) fn index_blob(&self, manifests: &[Value]) -> Value {
        self.json_blob(
            "application/vnd.oci.image.index.v1+json",
            &json!({ "schemaVersion": 2, "manifests": manifests }),
        )
    }

    pub(crate) fn write_index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    /// A layout with this one image.
    pub(crate) fn single(dir: PathBuf, layers: &[TestLayer]) -> Self {
        let layout = Self::new(dir);
        let manifest = layout.image(HOST, layers);
        layout.write_index(&[tagged(manifest, "latest")]);
        layout
    }

    pub(crate) fn reference(&self) -> String {
        format!("oci:{}", self.dir.display())
    }
}

pub(crate) fn tagged(mut descriptor: Value, tag: &str) -> Value {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    descriptor
}

pub(crate) fn for_platform(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
    descriptor
}

pub(crate) fn for_variant(descriptor: &Value, variant: &str) -> Value {
    let mut descriptor = for_platform(descriptor.clone(), HOST);
    descriptor["platform"]["variant"] = variant.into();
    descriptor
}

/// Whether a tool is installed; prints `SKIPPED` if not.
pub(crate) fn has_tool(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The members of a tar: path and content of regular files, path and target of links.
pub(crate) fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (path, content)
    });
    entries.collect()
}

/// The disk that [`Concatenate`] builds of these layers: each padded to whole blocks.
pub(crate) fn on_disk(layers: &[&[u8]]) -> Vec<u8> {
    layers.iter().fold(Vec::new(), |mut disk, layer| {
        disk.extend_from_slice(layer);
        disk.resize(disk.len().next_multiple_of(512), 0);
        disk
    })
}
