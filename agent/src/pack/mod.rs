//! Packs a file or a tree into a tar, for a host that may read it slowly or not at all.
//!
//! ```text
//!  walk     a tree ─▶ files, one directory open at a time
//!  archive  files ─▶ headers, sparse maps and data (in boxlite-proto; the host writes with it, too)
//! ```
//!
//! The box keeps running meanwhile. A file that disappears is left out; the data of a file that changes has the
//! size in its header. Symlinks below the path are never followed, not even one that has just replaced a directory.
//! Mount points of the kernel's own file systems (`/proc`, `/sys`, `/dev`) become empty directories.
//!
//! May use `inspect` and `sys`.

mod mounts;
mod walk;

use std::io::{self, BufWriter, Write};

use boxlite_proto::archive::pack::Packer;
use boxlite_proto::frame::MAX_DATA;
use boxlite_proto::guest::CopyOut;
use boxlite_proto::message::{Failure, FailureKind};
use rustix::io::Errno;

use crate::inspect::path_failure;
use crate::sys::process::unshare_working_directory;
use boxlite_proto::archive::name::shown;

/// A path that could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The path itself does not exist, or cannot be entered.
    #[error(transparent)]
    Path(Failure),
    /// A file below it could not be read.
    #[error("cannot {what} {}: {errno}", shown(.path))]
    System {
        /// The operation.
        what: &'static str,
        /// The name of the file in the tar.
        path: Vec<u8>,
        /// The kernel's error.
        errno: Errno,
    },
    /// The tar could not be written.
    #[error("the reader of the tar is gone: {0}")]
    Write(#[from] io::Error),
}

impl PackError {
    /// The failure for the host.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Path(failure) => failure.clone(),
            other => Failure { kind: FailureKind::Other, message: other.to_string() },
        }
    }
}

/// Turns the error of a system call for this operation into a [`PackError`].
fn cannot(what: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> PackError {
    move |errno| PackError::System { what, path: path.to_vec(), errno }
}

/// Writes the tar of the requested file or tree to `to`. Call it on a thread of its own: the thread gets its
/// own working directory.
pub fn pack(request: &CopyOut, to: impl Write) -> Result<(), PackError> {
    unshare_working_directory()
        .map_err(|errno| PackError::Path(path_failure("copy", &request.path, errno)))?;
    let mut to = Packer::new(BufWriter::with_capacity(MAX_DATA, to));
    walk::walk(request, &mut to)?;
    Ok(to.finish()?)
}
