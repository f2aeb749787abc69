//! A resolved image: what it is, and where the bytes of its layers are.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::ImageReference;
use crate::source::DirectoryTar;
use crate::sys;

/// An image that was found and whose manifest and config are verified. Its layers are verified
/// when they are read.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) reference: ImageReference,
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) chain_id: Digest,
    pub(crate) layers: Vec<Layer>,
    pub(crate) documents: Documents,
    /// None: it is used where it lies.
    pub(crate) imported: Option<Imported>,
}

impl Image {
    pub(crate) fn new(reference: &ImageReference, parts: Parts) -> Result<Self> {
        let chain_id = chain_id(parts.layers.iter().map(|layer| &layer.diff_id));
        let chain_id = chain_id.ok_or_else(|| Error::Unsupported {
            what: format!("{reference}: an image without layers"),
            remedy: "there is nothing to boot in it; use another image".into(),
        })?;
        Ok(Self {
            reference: reference.clone(),
            digest: parts.digest,
            config: parts.config,
            chain_id,
            layers: parts.layers,
            documents: parts.documents,
            imported: None,
        })
    }

    /// How it was asked for (after an import: its new name).
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// Its identity: the digest of the manifest; of the config where the source has no manifest
    /// (`docker save`); of the tar stream for a directory.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// What to run and how.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The identity of its file system: the OCI chain ID of all layers.
    pub fn chain_id(&self) -> &Digest {
        &self.chain_id
    }

    /// How many layers it has.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Whether it came from a registry under this very name, and so can be had again by it.
    pub(crate) fn is_pulled(&self) -> bool {
        let again = format!("docker://{}", self.reference);
        self.imported.as_ref().is_some_and(|origin| origin.from == again)
    }

    /// How a layer is called in messages.
    pub(crate) fn layer_label(&self, index: usize) -> String {
        let layer = self.layers.get(index);
        let digest = layer.map(|layer| layer.digest.as_ref().unwrap_or(&layer.diff_id).to_string());
        let digest = digest.unwrap_or_default();
        format!("layer {} of {} of {} ({digest})", index + 1, self.layers.len(), self.reference)
    }
}

/// What a source finds out about an image.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
    pub(crate) documents: Documents,
}

/// The JSON of an image as it was found: to be stored with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Documents {
    /// What [`Image::digest`] is the digest of, where the image has a manifest.
    pub(crate) manifest: Option<Arc<[u8]>>,
    /// What the layers are, and what to run.
    pub(crate) config: Option<Arc<[u8]>>,
}

/// What the store knows of an image besides its layers, when they are its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Imported {
    /// The reference from which it came.
    pub(crate) from: String,
    /// Of the index through which it was found, where there was one.
    #[serde(default)]
    pub(crate) index: Option<Digest>,
    /// Of its manifest in the store.
    #[serde(default)]
    pub(crate) manifest: Option<Digest>,
    /// Of its config in the store.
    #[serde(default)]
    pub(crate) config: Option<Digest>,
}

/// One layer, not read yet.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Digest of the blob as it is stored; none where nothing vouches for it but the diff id.
    pub(crate) digest: Option<Digest>,
    /// Length of the blob in bytes, where known beforehand.
    pub(crate) size: Option<u64>,
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    pub(crate) location: Location,
}

/// Where the bytes of a blob are.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// A whole file.
    File(PathBuf),
    /// A part of an open file.
    Slice(Slice),
    /// The tar stream made of a directory.
    Directory(PathBuf),
}

impl Location {
    /// Starts reading from the beginning.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => match sys::open_regular(path) {
                Ok(file) => Box::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::Missing {
                        what: format!("the layer {}", path.display()),
                        remedy: "the image was moved or removed; make it, or import it, anew"
                            .into(),
                    });
                }
                Err(error) => return Err(Error::io("open", path)(error)),
            },
            Self::Slice(slice) => Box::new(slice.clone()),
            Self::Directory(dir) => Box::new(DirectoryTar::open(dir)?),
        })
    }
}

/// A part of an open file, read by position: any number of them share the file.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) file: Arc<File>,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Read for Slice {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.len).unwrap_or(usize::MAX).min(buf.len());
        let count = self.file.read_at(buf.get_mut(..wanted).unwrap_or_default(), self.start)?;
        self.start += count as u64;
        self.len -= count as u64;
        Ok(count)
    }
}

/// The OCI chain ID of layers, lowest first; none of none. (OCI image spec, config, "Layer ChainID")
pub(crate) fn chain_id<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Option<Digest> {
    diff_ids.into_iter().fold(None, |chain: Option<Digest>, diff_id| {
        Some(match chain {
            None => diff_id.clone(),
            Some(chain) => Digest::sha256(format!("{chain} {diff_id}").as_bytes()),
        })
    })
}

/// Reads a whole small file: an error if it is longer than `limit`.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = sys::open_regular(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { what: path.display().to_string(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_spec() {
        let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
        assert_eq!(chain_id([]), None);
        assert_eq!(chain_id([&a]), Some(a.clone()));
        let both = Digest::sha256(format!("{a} {b}").as_bytes());
        assert_eq!(chain_id([&a, &b]), Some(both.clone()));
        let three = Digest::sha256(format!("{both} {a}").as_bytes());
        assert_eq!(chain_id([&a, &b, &a]), Some(three));
    }

    #[test]
    fn slices_end_where_they_should() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let slice = |start, len| {
            let mut text = String::new();
            let mut slice = Slice { file: Arc::new(file.try_clone().unwrap()), start, len };
            slice.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(slice(2, 3), "234");
        assert_eq!(slice(8, 5), "89");
        assert_eq!(slice(20, 5), "");
    }
}
