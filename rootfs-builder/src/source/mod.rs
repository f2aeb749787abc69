//! Where images come from: OCI layouts, archives of `docker save`, directories.

mod archive;
mod directory;
mod layout;
mod sparse;
mod tar_entry;
mod tar_index;

pub(crate) use archive::Archive;
pub(crate) use directory::DirectoryTar;
pub(crate) use layout::LayoutDir;

use crate::digest::Digest;
use crate::error::Result;
use crate::image::{Location, Parts};
use crate::manifest::Descriptor;
use crate::platform::Platform;

/// A set of files that an image consists of: a directory, or the inside of an archive. Paths are
/// relative, with slashes.
pub(crate) trait Files {
    /// What these files are, for messages: `oci:/some/dir`.
    fn place(&self) -> String;
    /// The whole content of a small file; none if there is no such file.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;
    /// Where the content of a file is and how long it is; none if there is no such file.
    fn locate(&self, path: &str) -> Result<Option<(Location, u64)>>;
}

/// What descriptors speak of, wherever it is.
pub(crate) trait Content {
    /// What this is, for messages: `oci:/some/dir`, a registry.
    fn place(&self) -> String;
    /// A manifest, index or config, at most `limit` bytes; none if there is no such thing.
    fn document(&self, kind: Kind, blob: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>>;
    /// Where a layer is (or will be) and how long it is; none if there is no such layer.
    fn layer(&self, layer: &Descriptor) -> Result<Option<(Location, u64)>>;
}

/// Of two kinds of documents: a registry has them in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A manifest or an index.
    Manifest,
    /// The config of an image.
    Config,
}

impl Content for &dyn Files {
    fn place(&self) -> String {
        (**self).place()
    }
    fn document(&self, _: Kind, blob: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>> {
        self.read(&blob.digest.blob_path(), limit)
    }
    fn layer(&self, layer: &Descriptor) -> Result<Option<(Location, u64)>> {
        self.locate(&layer.digest.blob_path())
    }
}

/// Finds the one image that this manifest or index (whose digest is that) and the platform select.
pub(crate) fn resolve_document(
    content: &dyn Content,
    digest: Digest,
    json: Vec<u8>,
    host: &Platform,
) -> Result<Parts> {
    layout::resolve_document(content, digest, json, host)
}

/// Finds the one image in an OCI layout that `tag` and the platform select.
pub(crate) fn resolve_layout(
    files: &dyn Files,
    tag: Option<&str>,
    host: &Platform,
) -> Result<Parts> {
    layout::resolve(files, tag, host)
}

/// The image that a directory is.
pub(crate) fn resolve_directory(
    dir: &std::path::Path,
    progress: &dyn crate::progress::Progress,
) -> Result<Parts> {
    directory::resolve(dir, progress)
}
