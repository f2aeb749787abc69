//! Images built for a test: OCI layouts whose layers are written entry by entry, so that they can be malformed in any way.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A layer of an image: a tar, written entry by entry. Entries belong to root by default.
#[derive(Debug, Default)]
pub struct Layer(Vec<u8>);

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Uncompressed.
    None,
    /// With gzip, as most images are.
    Gzip,
    /// With Zstandard.
    Zstd,
}

impl Compression {
    fn compress(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::None => tar.to_owned(),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).expect("writing to memory does not fail");
                encoder.finish().expect("writing to memory does not fail")
            }
            Self::Zstd => zstd::encode_all(tar, 1).expect("writing to memory does not fail"),
        }
    }
}

impl Layer {
    /// A layer with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A folder.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, |_| {}, b"")
    }

    /// A file.
    pub fn file(self, path: &str, mode: u32, contents: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, mode, |_| {}, contents.as_ref())
    }

    /// A file of this user and group.
    pub fn file_of(self, path: &str, owner: (u64, u64), contents: impl AsRef<[u8]>) -> Self {
        let own = |header: &mut Header| {
            header.set_uid(owner.0);
            header.set_gid(owner.1);
        };
        self.entry(path, EntryType::Regular, 0o644, own, contents.as_ref())
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(path, EntryType::Symlink, target)
    }

    /// A hard link to a file of an earlier entry.
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(path, EntryType::Link, target)
    }

    /// A character device.
    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        let number = |header: &mut Header| {
            header.set_device_major(major).expect("a GNU header has device numbers");
            header.set_device_minor(minor).expect("a GNU header has device numbers");
        };
        self.entry(path, EntryType::Char, 0o666, number, b"")
    }

    /// Extended attributes of the next entry.
    pub fn attributes(mut self, attributes: &[(&str, &[u8])]) -> Self {
        let mut records = Vec::new();
        for (name, value) in attributes {
            records.extend(pax_record(&format!("SCHILY.xattr.{name}"), value));
        }
        self = self.entry("pax", EntryType::XHeader, 0o644, |_| {}, &records);
        self
    }

    /// A file of `size` bytes in GNU's sparse format, all hole except `data` at `offset`, a multiple of 512.
    pub fn sparse(self, path: &str, size: u64, offset: u64, data: &[u8]) -> Self {
        assert!(
            offset.is_multiple_of(512) && data.len().is_multiple_of(512),
            "sparse segments are whole blocks"
        );
        let holes = |header: &mut Header| {
            let gnu = header.as_gnu_mut().expect("a GNU header");
            octal(&mut gnu.realsize, size);
            octal(&mut gnu.sparse[0].offset, offset);
            octal(&mut gnu.sparse[0].numbytes, data.len() as u64);
            octal(&mut gnu.sparse[1].offset, size);
            octal(&mut gnu.sparse[1].numbytes, 0);
        };
        self.entry(path, EntryType::GNUSparse, 0o644, holes, data)
    }

    /// The header of a file of `size` bytes, without the bytes.
    pub fn header_alone(self, path: &str, size: u64) -> Self {
        let mut header = header(path, EntryType::Regular, 0o644);
        header.set_size(size);
        header.set_cksum();
        let mut layer = self;
        layer.0.extend_from_slice(header.as_bytes());
        layer
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        edit: impl FnOnce(&mut Header),
        contents: &[u8],
    ) -> Self {
        let mut header = header(path, kind, mode);
        header.set_size(contents.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        let edit = |header: &mut Header| {
            header.set_link_name_literal(target).expect("the target is short enough");
        };
        self.entry(path, kind, 0o777, edit, b"")
    }

    /// The tar, compressed.
    pub fn compressed(self, compression: Compression) -> Vec<u8> {
        compression.compress(&self.finish())
    }

    /// The tar.
    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A header with exactly this name, even an invalid one, which the functions of the tar crate refuse.
fn header(path: &str, kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    let name = &mut header.as_old_mut().name;
    assert!(path.len() < name.len(), "{path} is too long for this writer");
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

/// `LENGTH NAME=VALUE\n`, where the length counts itself.
fn pax_record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    len = rest + len.to_string().len();
    [format!("{len} {name}=").as_bytes(), value, b"\n"].concat()
}

fn octal(field: &mut [u8; 12], value: u64) {
    field.copy_from_slice(format!("{value:011o}\0").as_bytes());
}

/// Builds an image.
#[derive(Debug)]
pub struct ImageBuilder {
    config: Value,
    layers: Vec<Value>,
    blobs: Vec<(String, Vec<u8>)>,
}

impl ImageBuilder {
    /// An image on top of the only layer of the image in the OCI layout `base`, without its configuration.
    pub fn on(base: &Path) -> Self {
        let index = read_json(&base.join("index.json"));
        let manifest = read_json(&blob(base, &index["manifests"][0]["digest"]));
        let config = read_json(&blob(base, &manifest["config"]["digest"]));
        let mut image = Self::empty();
        for (layer, diff_id) in
            array(&manifest["layers"]).iter().zip(array(&config["rootfs"]["diff_ids"]))
        {
            let digest = layer["digest"].as_str().expect("a layer has a digest").to_owned();
            let bytes = fs::read(blob(base, &layer["digest"])).expect("cannot read a layer");
            image.blobs.push((digest, bytes));
            image.layers.push(layer.clone());
            image.diff_ids().push(diff_id.clone());
        }
        image
    }

    /// An image without a layer.
    pub fn empty() -> Self {
        let config = json!({
            "architecture": oci_architecture(),
            "os": "linux",
            "config": { "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        Self { config, layers: Vec::new(), blobs: Vec::new() }
    }

    fn diff_ids(&mut self) -> &mut Vec<Value> {
        self.config["rootfs"]["diff_ids"].as_array_mut().expect("an array")
    }

    /// Adds a layer.
    pub fn layer(self, layer: Layer, compression: Compression) -> Self {
        let tar = layer.finish();
        let diff_id = digest(&tar);
        self.raw_layer(&tar, &diff_id, compression)
    }

    /// Adds a layer of these bytes, which need not be a tar, under this diff ID.
    pub fn raw_layer(mut self, tar: &[u8], diff_id: &str, compression: Compression) -> Self {
        let suffix = match compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        let bytes = compression.compress(tar);
        self.layers.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            "digest": digest(&bytes),
            "size": bytes.len(),
        }));
        self.blobs.push((digest(&bytes), bytes));
        self.diff_ids().push(diff_id.into());
        self
    }

    /// Sets a field of the configuration: `Env`, `Entrypoint`, `Cmd`, `WorkingDir`, `User`.
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config["config"][field] = value;
        self
    }

    /// Sets the architecture that the image is for.
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.config["architecture"] = architecture.into();
        self
    }

    /// Sets the variant of that architecture.
    pub fn variant(mut self, variant: &str) -> Self {
        self.config["variant"] = variant.into();
        self
    }

    /// Writes the OCI layout to `dir`.
    pub fn write(mut self, dir: &Path) -> Layout {
        let manifest = self.add_manifest();
        self.write_layout(dir, manifest);
        let layers = self.layers.iter().map(|layer| blob(dir, &layer["digest"])).collect();
        Layout { dir: dir.to_owned(), layers }
    }

    /// Adds the configuration and the manifest; returns the descriptor of the manifest.
    fn add_manifest(&mut self) -> Value {
        let config =
            self.add_json("application/vnd.oci.image.config.v1+json", &self.config.clone());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": self.layers,
        });
        self.add_json("application/vnd.oci.image.manifest.v1+json", &manifest)
    }

    /// Writes the blobs, and `entry` under the tag `latest`.
    fn write_layout(&self, dir: &Path, mut entry: Value) {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("cannot make the layout");
        for (digest, bytes) in &self.blobs {
            fs::write(blobs.join(&digest["sha256:".len()..]), bytes).expect("cannot write a blob");
        }
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("cannot write the layout");
        fs::write(dir.join("index.json"), index.to_string()).expect("cannot write the index");
    }

    /// Adds a blob and returns its descriptor.
    fn add_json(&mut self, media_type: &str, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        self.blobs.push((digest, bytes));
        descriptor
    }
}

/// An OCI layout on disk.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    /// The files of its layers, lowest first.
    pub layers: Vec<PathBuf>,
}

impl Layout {
    /// The image reference for `run`.
    pub fn reference(&self) -> String {
        format!("oci:{}", self.dir.display())
    }
}

/// Writes an OCI layout to `dir` whose one entry is an index of these images, each listed for the platform of its
/// configuration. Returns its reference.
pub fn write_index(dir: &Path, images: impl IntoIterator<Item = ImageBuilder>) -> String {
    let mut layout = ImageBuilder::empty();
    let entries: Vec<Value> = images
        .into_iter()
        .map(|mut image| {
            let mut entry = image.add_manifest();
            entry["platform"] = json!({});
            for field in ["os", "architecture", "variant"] {
                if let Some(value) = image.config.get(field) {
                    entry["platform"][field] = value.clone();
                }
            }
            layout.blobs.append(&mut image.blobs);
            entry
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries });
    let entry = layout.add_json(media_type, &index);
    layout.write_layout(dir, entry);
    format!("oci:{}", dir.display())
}

/// The digest of these bytes in OCI's notation.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// OCI's name of the boxes' architecture.
pub fn oci_architecture() -> &'static str {
    match &*crate::arch() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => panic!("there are no boxes of {other}"),
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn blob(layout: &Path, digest: &Value) -> PathBuf {
    let digest = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    layout.join("blobs/sha256").join(digest.expect("not a SHA-256 digest"))
}

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
