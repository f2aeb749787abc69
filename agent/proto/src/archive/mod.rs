//! Tars as both ends of a copy read and write them: PAX (POSIX.1-2017, pax) with extended attributes as
//! `SCHILY.xattr.*` and sparse files as GNU tar stores them. Trees are the
//! business of whoever reads or writes an archive.
//!
//! ```text
//!  read    blocks ─▶ members: headers, PAX and GNU extensions
//!            └▶ pax ─▶ sparse, time ─▶ number: the formats of what they say
//!  write   members ─▶ headers with PAX records where ustar has no room
//!  pack    files ─▶ members and their data
//!  holes   where the data of a file is, so that holes do not travel
//!  name    names, and the paths that they mean
//! ```
//!
//! Whoever made a tar is not trusted: lengths are checked before memory is allocated, numbers before they are
//! used, and every answer to a malformed tar is an error that says what is wrong with which entry.

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

/// A tar that cannot be read, or that must not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// An entry is malformed, or what it asks for is impossible or forbidden.
    #[error("{0}; the tar is malformed, hostile, or does not fit to what is there")]
    Bad(String),
    /// There is no more of it.
    #[error("the tar ends in the middle of an entry; it is truncated")]
    Truncated,
    /// The stream that it comes from failed.
    #[error("the tar's stream was cut off: {0}")]
    Read(#[source] io::Error),
}

impl ArchiveError {
    /// An error of an entry, of which it says what is wrong.
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
