//! Images as sets of files.

use crate::error::Result;
use crate::format::Descriptor;
use crate::layer::Location;
use crate::resolve::{Content, Kind};

/// The files of an image: a directory, or the inside of an archive. Paths are relative, with
/// slashes.
pub(crate) trait Files {
    /// Name of the source in messages: `oci:/some/dir`.
    fn label(&self) -> String;
    /// The content of a small file; none if it does not exist.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;
    /// Location and length of a file; none if it does not exist.
    fn locate(&self, path: &str) -> Result<Option<(Location, u64)>>;
}

impl Content for &dyn Files {
    fn label(&self) -> String {
        (**self).label()
    }
    fn document(&self, _: Kind, blob: &Descriptor, limit: u64) -> Result<Option<Vec<u8>>> {
        self.read(&blob.digest.blob_path(), limit)
    }
    fn layer(&self, layer: &Descriptor) -> Result<Option<(Location, u64)>> {
        self.locate(&layer.digest.blob_path())
    }
}
