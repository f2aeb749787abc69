//! Layers and the location of their bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::DirectoryTar;
use crate::error::{Error, Remedy, Result};
use crate::format::Digest;
use crate::sys;

/// One layer, not read yet.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Digest of the blob as stored; none if only the diff ID identifies it.
    pub(crate) digest: Option<Digest>,
    /// Length of the blob in bytes, if known beforehand.
    pub(crate) size: Option<u64>,
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    pub(crate) location: Location,
}

/// Location of a blob's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    /// A whole file.
    File(PathBuf),
    /// A range of an open file.
    Slice(Slice),
    /// A directory; the bytes are its tar stream.
    Directory(PathBuf),
}

impl Location {
    /// Opens a reader from the first byte.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => match sys::open_regular(path) {
                Ok(file) => Box::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::Missing {
                        what: format!("the layer {}", path.display()),
                        remedy: Remedy::Other(
                            "the image was moved or removed; make or import it again",
                        ),
                    });
                }
                Err(error) => return Err(Error::io("open", path)(error)),
            },
            Self::Slice(slice) => Box::new(slice.clone()),
            Self::Directory(dir) => Box::new(DirectoryTar::open(dir)?),
        })
    }
}

/// A range of an open file, read by position: any number of them share the file.
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

#[cfg(test)]
mod tests;
