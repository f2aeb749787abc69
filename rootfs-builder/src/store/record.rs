//! Records: one small file for each image that the store knows, `refs/<hash of its name>.json`.

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
use crate::image::{Documents, Image, Imported, chain_id};
use crate::layer::{Layer, Location};
use crate::sys::Lock;

const VERSION: u32 = 1;
const MAX_RECORD_BYTES: u64 = 16 << 20;

/// What the store knows of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The name of an import, or the reference of an image used where it lies.
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) chain_id: Digest,
    pub(super) config: ImageConfig,
    /// The file in `disks/` and its length; none: no disk has been built yet.
    pub(super) disk: Option<String>,
    pub(super) disk_len: u64,
    /// Seconds since the epoch.
    pub(super) time: u64,
    pub(super) import: Option<Import>,
}

/// Of an imported image: where it was from, and its layers in `blobs/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Import {
    #[serde(flatten)]
    pub(super) origin: Imported,
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
    /// Of an image and its disk, if it has one: the file and its length.
    pub(super) fn of(image: &Image, disk: Option<(&str, u64)>) -> Self {
        let layers = || {
            let stored = |layer: &Layer| {
                let (digest, diff_id) = (layer.digest.clone()?, layer.diff_id.clone());
                Some(StoredLayer { digest, size: layer.size?, diff_id })
            };
            image.layers.iter().filter_map(stored).collect()
        };
        let import = image.imported.clone().map(|origin| Import { origin, layers: layers() });
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

    /// The image of an import, its layers in the store.
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
            imported: Some(import.origin.clone()),
        })
    }

    /// The part that an image of the store's own has.
    pub(super) fn import(&self) -> Result<&Import> {
        self.import.as_ref().ok_or_else(|| Error::Unsupported {
            what: format!("{}, which is used where it lies,", self.name),
            remedy: Remedy::Import,
        })
    }

    /// The digests by which people know it: its own, and that of the index it is in.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        let index = self.import.as_ref().and_then(|import| import.origin.index.as_ref());
        std::iter::once(&self.digest).chain(index)
    }

    /// Whether it says the same, at whatever time.
    fn says_the_same(&self, other: &Self) -> bool {
        Self { time: 0, ..self.clone() } == Self { time: 0, ..other.clone() }
    }

    /// Writes it, unless the one on disk says the same already.
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

/// Records an image in the store. A disk that was built of the same layers stays its disk.
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

/// Reads a record and checks that it can be relied on.
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
        "it is of another name"
    } else if record.disk.as_deref().is_some_and(|disk| !is_disk_name(disk)) {
        "it names no disk"
    } else if record.import.is_some() && chain_id.as_ref() != Some(&record.chain_id) {
        "its layers are not those of its chain ID"
    } else {
        return Ok(record);
    };
    Err(Error::corrupt(what, problem))
}

/// Whether a damaged record may be replaced by what a registry has under its name: nothing that is still to be
/// read in it says that its image came from elsewhere, or that another release wrote it.
pub(super) fn may_be_pulled(path: &Path, name: &ImageName) -> bool {
    let json = read_small(path, MAX_RECORD_BYTES).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let is_ours = value.get("version").is_none_or(|version| *version == VERSION);
    let text = String::from_utf8_lossy(&json);
    let origin = text.split_once("\"from\":").map(|(_, origin)| origin.trim_start());
    let pulled = format!("\"docker://{name}\"");
    // It may have been cut off there.
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

    /// The record that is named so, or those whose digest begins so.
    pub(super) fn matching(&self, text: &str) -> Vec<&Record> {
        let name = text.parse::<ImageReference>().map(|reference| reference.to_string());
        match name.ok().and_then(|name| self.named(&name)) {
            Some(record) => vec![record],
            None => self.with_digest(text),
        }
    }

    /// The one image that is meant, under whichever of its names.
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

    /// The record of that name.
    fn named(&self, name: &str) -> Option<&Record> {
        self.good.iter().find(|record| record.name == name)
    }

    /// The records whose digest begins so, with or without the algorithm; none for short prefixes,
    /// which would be names rather.
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
