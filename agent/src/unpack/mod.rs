//! Unpacks tars: the layers of an image, each onto the layers below, and copies into a directory of a box.
//!
//! A layer is unpacked by a thread whose root directory *is* the disk, so that all paths, links and symlinks of
//! the tar resolve inside the disk. A copy is confined to its directory: the directory that a path led to is
//! checked before use. Names are normalized in both cases, and a name that climbs above the root is an error
//! that names the entry.
//!
//! ```text
//!  archive     blocks ─▶ members (in boxlite-proto; the host reads with it, too)
//!  tree        members ─▶ files, links, nodes, directories
//!  below       directories confined to the destination of a copy
//!  attributes  extended attributes, access control lists
//!  whiteout    deletes entries of the layers below, and none of the layer's own
//! ```
//!
//! Where the specification is silent, layers are unpacked as containerd does: a later entry of the same name
//! wins; a directory over a directory keeps its content; any other entry replaces the existing one; global PAX
//! headers are ignored; a tar may end without its two zero blocks, but not inside an entry. In a copy,
//! whiteouts are ordinary files, and a directory is replaced by another kind of entry only if it is empty.
//!
//! May use `inspect` and `sys`.

mod attributes;
mod below;
mod tree;
mod whiteout;

use std::io::BufRead;
use std::path::Path;

use boxlite_proto::archive::{Archive, ArchiveError, name};
use boxlite_proto::guest::{CopyIn, Owner};
use boxlite_proto::message::{Failure, FailureKind};
use rustix::fs::CWD;
use rustix::io::Errno;

pub(crate) use self::below::make_directories;
use self::tree::Tree;
use crate::inspect::{from_root, path_failure};
use crate::sys::process::{chroot_this_thread, unshare_working_directory};

/// The extent of an unpacked tar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the tar, whiteouts included.
    pub entries: u64,
    /// Bytes of file content written; holes are not.
    pub bytes: u64,
}

/// Why a tar could not be unpacked: the entry and the problem.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", shown_entry(.entry))]
pub struct UnpackError {
    /// The name of the entry, as the tar has it; empty before the first.
    entry: Vec<u8>,
    problem: Problem,
}

/// The problem with an entry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot {0}: the disk is full; make it larger")]
    Full(&'static str),
    #[error("cannot {what}: {errno}")]
    System { what: &'static str, errno: Errno },
}

impl Problem {
    fn bad(what: impl Into<String>) -> Self {
        Self::Archive(ArchiveError::bad(what))
    }
}

/// Turns the error of a system call for this operation into a [`Problem`].
fn cannot(what: &'static str) -> impl Fn(Errno) -> Problem {
    move |errno| match errno {
        Errno::NOSPC | Errno::DQUOT => Problem::Full(what),
        errno => Problem::System { what, errno },
    }
}

impl UnpackError {
    /// The failure for the host.
    pub fn failure(&self) -> Failure {
        let kind = match &self.problem {
            Problem::Archive(
                ArchiveError::NotTar
                | ArchiveError::Short
                | ArchiveError::Bad(_)
                | ArchiveError::Truncated,
            ) => FailureKind::BadLayer,
            Problem::Full(_) => FailureKind::DiskFull,
            // Errors that only a name, a link or a size in the tar can cause.
            Problem::System {
                errno:
                    Errno::NAMETOOLONG
                    | Errno::LOOP
                    | Errno::NOTDIR
                    | Errno::NOENT
                    | Errno::INVAL
                    | Errno::FBIG
                    | Errno::PERM
                    | Errno::MLINK
                    | Errno::RANGE
                    | Errno::TOOBIG
                    | Errno::OVERFLOW,
                ..
            } => FailureKind::BadLayer,
            Problem::Archive(ArchiveError::Read(_)) | Problem::System { .. } => FailureKind::Other,
        };
        Failure { kind, message: self.to_string() }
    }
}

fn shown_entry(entry: &[u8]) -> String {
    if entry.is_empty() { String::new() } else { format!("entry {}: ", name::shown(entry)) }
}

/// Unpacks `tar` onto the directory `root`, to its end. Needs root's privileges. Call it on a thread of its
/// own: `root` becomes the thread's root directory.
pub fn unpack_in_root(root: &Path, tar: impl BufRead) -> Result<Unpacked, UnpackError> {
    let outside =
        |what| move |errno| UnpackError { entry: Vec::new(), problem: cannot(what)(errno) };
    chroot_this_thread(root).map_err(outside("enter the disk"))?;
    unpack(Tree::of_layer().map_err(outside("read the disk"))?, tar)
}

/// Unpacks `tar` below the requested directory, to its end. Needs root's privileges. Call it on a thread of
/// its own: the thread gets its own working directory and umask.
pub fn unpack_below(request: &CopyIn, tar: impl BufRead) -> Result<Unpacked, Failure> {
    let failed = |errno| path_failure("copy into", &request.path, errno);
    if let Some(Owner { uid: u32::MAX, .. } | Owner { gid: u32::MAX, .. }) = request.owner {
        // To the kernel, this ID means "unchanged".
        let message = format!("no file can belong to user or group {}", u32::MAX);
        return Err(Failure { kind: FailureKind::UnknownUser, message });
    }
    unshare_working_directory().map_err(failed)?;
    let path = from_root(&request.path).map_err(failed)?;
    if request.create {
        below::make_directories(path.to_bytes(), request.owner).map_err(failed)?;
    }
    let base = below::open_dir(CWD, path.to_bytes()).map_err(failed)?;
    rustix::process::fchdir(&base).map_err(failed)?;
    unpack(Tree::of_copy(base, request.owner), tar).map_err(|e| {
        let mut failure = e.failure();
        if failure.kind == FailureKind::BadLayer {
            failure.kind = FailureKind::BadArchive;
        }
        failure
    })
}

fn unpack(mut tree: Tree, tar: impl BufRead) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(tar);
    let mut unpacked = Unpacked::default();
    let mut unpack = || -> Result<(), Problem> {
        while let Some(member) = archive.next_member()? {
            unpacked.bytes += tree.add(&member, &mut archive)?;
            unpacked.entries += 1;
        }
        Ok(archive.drain()?)
    };
    match unpack() {
        Ok(()) => {
            tree.finish();
            Ok(unpacked)
        }
        Err(problem) => Err(UnpackError { entry: archive.last_name().to_vec(), problem }),
    }
}
