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

use crate::error::Result;
use crate::image::{Location, Parts};
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
