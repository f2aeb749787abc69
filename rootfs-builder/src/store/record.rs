//! Records, `refs/<hash of name>.json`: one small file for each image in the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::draft::write_whole;
use super::folders::{Folders, is_disk_name, record_stem};
use super::lock::StoreLock;
use crate::error::{Error, Remedy, Result};
use crate::file::read_small;
use crate::format::{Digest, ImageConfig, ImageName, ImageReference};
use crate::image::{Documents, Image, Origin, chain_id};
use crate::layer::{Layer, Location};
use crate::sys::Lock;

const VERSION: u32 = 1;
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// The record of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Name of an import, or reference of an image that is used where it lies.
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) chain_id: Digest,
    pub(super) config: ImageConfig,
    /// File in `disks/` and its length; none if no disk has been built yet.
    pub(super) disk: Option<String>,
    pub(super) disk_len: u64,
    /// Seconds since the epoch.
    pub(super) time: u64,
    pub(super) import: Option<Import>,
}

/// For an image of the store's own: its origin, and its layers in `blobs/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Import {
    #[serde(flatten)]
    pub(super) origin: Origin,
    pub(super) layers: Vec<StoredLayer>,
}

impl Import {
    /// All blobs that it needs.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let documents = self.origin.manifest.iter().chain(&self.origin.config);
        self.layers.iter().map(|layer| &layer.digest).chain(documents)
    }
}

/// A layer in `blobs/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredLayer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
}

impl Record {
    /// The record of an image and, if it has one, its disk: file name and length.
    pub(super) fn of(image: &Image, disk: Option<(&str, u64)>) -> Self {
        let layers = || {
            let stored = |layer: &Layer| {
                let (digest, diff_id) = (layer.digest.clone()?, layer.diff_id.clone());
                Some(StoredLayer { digest, size: layer.size?, diff_id })
            };
            image.layers.iter().filter_map(stored).collect()
        };
        let import = image.origin.clone().map(|origin| Import { origin, layers: layers() });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            name: image.reference.to_string(),
            digest: image.digest.clone(),
            chain_id: image.chain_id.clone(),
            config: image.config.clone(),
            disk: disk.map(|(name, _)| name.to_owned()),
            disk_len: disk.map_or(0, |(_, len)| len),
            time: now.as_secs(),
            import,
        }
    }

    /// The same image under another name.
    pub(super) fn renamed(&self, name: &ImageName) -> Self {
        Self { name: name.to_string(), ..self.clone() }
    }

    /// The image of an import, with its layers in the store.
    pub(super) fn image(&self, folders: &Folders) -> Option<Image> {
        let import = self.import.as_ref()?;
        let layers = import.layers.iter().map(|layer| Layer {
            digest: Some(layer.digest.clone()),
            size: Some(layer.size),
            diff_id: layer.diff_id.clone(),
            location: Location::File(folders.blob(&layer.digest)),
        });
        Some(Image {
            reference: ImageReference::Name(self.name.parse().ok()?),
            digest: self.digest.clone(),
            config: self.config.clone(),
            chain_id: self.chain_id.clone(),
            layers: layers.collect(),
            documents: Documents::default(),
            origin: Some(import.origin.clone()),
        })
    }

    /// The import part; an error for an image that is used where it lies.
    pub(super) fn import(&self) -> Result<&Import> {
        self.import.as_ref().ok_or_else(|| Error::Unsupported {
            what: format!("{}, which is used where it lies,", self.name),
            remedy: Remedy::Import,
        })
    }

    /// The digests that identify it: its own, and that of its index.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        let index = self.import.as_ref().and_then(|import| import.origin.index.as_ref());
        std::iter::once(&self.digest).chain(index)
    }

    /// Whether both are equal but for the time.
    fn says_the_same(&self, other: &Self) -> bool {
        Self { time: 0, ..self.clone() } == Self { time: 0, ..other.clone() }
    }

    /// Writes the record, unless the one on disk is equal.
    pub(super) fn save(&self, folders: &Folders) -> Result<()> {
        let path = folders.record(&self.name);
        if load(&path).is_ok_and(|old| self.says_the_same(&old)) {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::corrupt(format!("the record of {}", self.name), error))?;
        write_whole(&path, &json)
    }
}

/// Saves the record of an image. A disk built from the same layers remains its disk.
pub(super) fn save(folders: &Folders, image: &Image) -> Result<()> {
    let _guard = StoreLock::take(&folders.lock(), Lock::Shared)?;
    let mut record = Record::of(image, None);
    if let Ok(old) = load(&folders.record(&record.name))
        && old.chain_id == record.chain_id
    {
        (record.disk, record.disk_len) = (old.disk, old.disk_len);
    }
    record.save(folders)
}

/// Reads a record and checks it.
pub(super) fn load(path: &Path) -> Result<Record> {
    let json = read_small(path, MAX_RECORD_BYTES)?;
    let what = format!("the record {}", path.display());
    let record: Record =
        serde_json::from_slice(&json).map_err(|error| Error::corrupt(&what, error))?;
    let layers = record.import.iter().flat_map(|import| &import.layers);
    let chain_id = chain_id(layers.map(|layer| &layer.diff_id));
    let problem = if record.version != VERSION {
        "another version of this program wrote it"
    } else if path.file_stem().is_none_or(|stem| stem != &*record_stem(&record.name)) {
        "it belongs to another name"
    } else if record.disk.as_deref().is_some_and(|disk| !is_disk_name(disk)) {
        "its disk has an invalid name"
    } else if record.import.is_some() && chain_id.as_ref() != Some(&record.chain_id) {
        "its layers are not those of its chain ID"
    } else {
        return Ok(record);
    };
    Err(Error::corrupt(what, problem))
}

/// Whether a pull of `name` may replace a damaged record: nothing readable in it indicates another
/// origin or another release.
pub(super) fn may_be_pulled(path: &Path, name: &ImageName) -> bool {
    let json = read_small(path, MAX_RECORD_BYTES).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let is_ours = value.get("version").is_none_or(|version| *version == VERSION);
    let text = String::from_utf8_lossy(&json);
    let origin = text.split_once("\"from\":").map(|(_, origin)| origin.trim_start());
    let pulled = format!("\"docker://{name}\"");
    // The text may be cut off there.
    let is_pulled = |origin: &str| origin.starts_with(&pulled) || pulled.starts_with(origin);
    is_ours && origin.is_none_or(is_pulled)
}

/// All records, and those that cannot be read.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) good: Vec<Record>,
    pub(super) damaged: Vec<(PathBuf, Error)>,
}

impl Records {
    pub(super) fn load_all(folders: &Folders) -> Result<Self> {
        let mut records = Self::default();
        let dir = folders.refs();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let path = entry.map_err(Error::io("list", &dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match load(&path) {
                Ok(record) => records.good.push(record),
                // Removed since it was listed.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => records.damaged.push((path, error)),
            }
        }
        records.good.sort_by(|a, b| a.name.cmp(&b.name));
        records.damaged.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(records)
    }

    /// The record with this name, or those with this prefix of the digest.
    pub(super) fn matching(&self, text: &str) -> Vec<&Record> {
        let name = text.parse::<ImageReference>().map(|reference| reference.to_string());
        match name.ok().and_then(|name| self.named(&name)) {
            Some(record) => vec![record],
            None => self.with_digest(text),
        }
    }

    /// The one image with this name or digest.
    pub(super) fn one(&self, text: &str) -> Result<&Record> {
        let matching = self.matching(text);
        let Some(first) = matching.first() else {
            return Err(Error::NotFound { text: text.to_owned() });
        };
        if matching.iter().any(|record| record.digest != first.digest) {
            let names = matching.iter().map(|record| record.name.clone()).collect();
            return Err(Error::Ambiguous { text: text.to_owned(), names });
        }
        Ok(first)
    }

    /// The record with this name.
    fn named(&self, name: &str) -> Option<&Record> {
        self.good.iter().find(|record| record.name == name)
    }

    /// Records with this digest prefix, with or without the algorithm; none for short prefixes,
    /// which are more likely names.
    fn with_digest(&self, prefix: &str) -> Vec<&Record> {
        const MIN_PREFIX: usize = 6;
        let (algorithm, hex) = prefix.split_once(':').unwrap_or(("", prefix));
        let is_match = |digest: &Digest| {
            (algorithm.is_empty() || algorithm == digest.algorithm().name())
                && hex.len() >= MIN_PREFIX
                && digest.hex().starts_with(hex)
        };
        self.good.iter().filter(|record| record.digests().any(is_match)).collect()
    }
}
