//! Reads and writes tars, for both ends of a copy: PAX (POSIX.1-2017, pax) with extended attributes as
//! `SCHILY.xattr.*` and sparse files in GNU tar's format. The callers walk and create the trees.
//!
//! ```text
//!  read    blocks ─▶ members: headers, PAX and GNU extensions
//!            └▶ pax ─▶ sparse, time ─▶ number: the formats of records and fields
//!  write   members ─▶ headers, with PAX records for values that do not fit into ustar
//!  pack    files ─▶ members and their data
//!  holes   finds the data in a file, so that holes are not sent
//!  name    names, and the paths that they mean
//! ```
//!
//! **Invariant:** a tar is hostile input. Lengths are checked before memory is allocated, numbers before they are
//! used, and a malformed tar is an error that names the entry and the problem.

pub mod holes;
pub mod name;
mod number;
pub mod pack;
mod pax;
mod read;
mod sparse;
mod time;
mod write;

use std::io;

pub use read::{Archive, Device, Kind, Member};
pub use sparse::{Piece, SparseMap};
pub use tar::EntryType;
pub use time::Time;
pub use write::{Attributes, BLOCK, Entry, padding};

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a tar cannot be read, or must not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream does not begin with a header.
    #[error("the input is not a tar archive")]
    NotTar,
    /// The stream ended inside the first header.
    #[error("the input is shorter than a tar's header: it is truncated, or not a tar archive")]
    Short,
    /// An entry is malformed, impossible or forbidden.
    #[error("{0}; the tar is malformed, hostile, or conflicts with existing files")]
    Bad(String),
    /// The stream ended inside an entry.
    #[error("the tar ends in the middle of an entry; it is truncated")]
    Truncated,
    /// The stream of the tar failed.
    #[error("the tar's stream was cut off: {0}")]
    Read(#[source] io::Error),
}

impl ArchiveError {
    /// An error that describes the problem with an entry.
    pub fn bad(what: impl Into<String>) -> Self {
        Self::Bad(what.into())
    }

    fn reading(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Read(error),
        }
    }
}
