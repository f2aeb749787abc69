//! Packing a file or a tree into a tar, for a host that may read it slowly or not at all.
//!
//! ```text
//!  walk     a tree ─▶ files, one directory open at a time
//!  archive  files ─▶ headers, sparse maps and data (boxlite-proto, with which the host writes as well)
//! ```
//!
//! The box goes on meanwhile. What disappears is left out; a file keeps the size that its header
//! announced, whatever becomes of it. Symlinks below the path are never followed, also not where
//! a directory was a moment ago, and what is mounted there of the kernel's own (`/proc`, `/sys`,
//! `/dev`) is an empty directory.

mod mounts;
mod walk;

use std::io::{self, BufWriter, Write};

use boxlite_proto::archive::pack::Packer;
use boxlite_proto::frame::MAX_DATA;
use boxlite_proto::guest::CopyOut;
use boxlite_proto::message::{Failure, FailureKind};
use rustix::io::Errno;

use crate::inspect::path_failure;
use crate::sys::process::own_working_directory;
use boxlite_proto::archive::name::shown;

/// A path that could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The path itself: it is not there, or cannot be entered.
    #[error(transparent)]
    Path(Failure),
    /// Something below it could not be read.
    #[error("cannot {what} {}: {errno}", shown(.path))]
    System {
        /// What was to be done.
        what: &'static str,
        /// To what.
        path: Vec<u8>,
        /// What the kernel said.
        errno: Errno,
    },
    /// The tar could not be written.
    #[error("the reader of the tar is gone: {0}")]
    Write(#[from] io::Error),
}

impl PackError {
    /// The failure as the host learns it.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Path(failure) => failure.clone(),
            other => Failure { kind: FailureKind::Other, message: other.to_string() },
        }
    }
}

/// Says what a failed system call was for.
fn cannot(what: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> PackError {
    move |errno| PackError::System { what, path: path.to_vec(), errno }
}

/// Writes the tar of what `request` names to `to`. The calling thread is left with a working
/// directory of its own, so it should be one of its own.
pub fn pack(request: &CopyOut, to: impl Write) -> Result<(), PackError> {
    own_working_directory()
        .map_err(|errno| PackError::Path(path_failure("copy", &request.path, errno)))?;
    let mut to = Packer::new(BufWriter::with_capacity(MAX_DATA, to));
    walk::walk(request, &mut to)?;
    Ok(to.finish()?)
}
