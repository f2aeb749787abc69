//! Images as sets of files.

use crate::error::Result;
use crate::format::Descriptor;
use crate::layer::Location;
use crate::resolve::{Content, Kind};

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
