//! Errors of a kernel build: what failed, on which file or program, and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use boxlite_kernel::Arch;

use crate::config::{BadFragment, Mismatch, PageSize};
use crate::version::{BadVersion, Lts};

/// A guest kernel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The attempted operation, e.g. "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No cache folder: neither its variables nor `HOME` are set.
    #[error("no cache folder: set BOXLITE_CACHE_DIR or HOME")]
    NoCacheDir,
    /// A program could not be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program's name.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}):\n{output}")]
    Command {
        /// The program's name.
        program: String,
        /// Its exit status.
        status: String,
        /// The last lines of its output.
        output: String,
    },
    /// The machine lacks tools that the build needs.
    #[error(
        "the kernel build needs {}; install with: apt-get install {}",
        join(.0, |tool| tool.tool),
        join_packages(.0)
    )]
    MissingTools(Vec<MissingTool>),
    /// A configuration fragment is malformed.
    #[error(transparent)]
    Fragment(#[from] BadFragment),
    /// The architecture has no pages of this size.
    #[error("a kernel of {arch} has no pages of {pages}; only aarch64 has 16k")]
    NoSuchPages {
        /// The architecture.
        arch: Arch,
        /// The size.
        pages: PageSize,
    },
    /// kconfig dropped settings of the fragments.
    #[error(
        "Linux {version} for {arch} does not take over {} settings of kernel/config:\n  {}\n\
         Correct them, or mark those this version does not know with `# since X.Y` or \
         `# before X.Y`.",
        .mismatches.len(),
        join_lines(.mismatches)
    )]
    Dropped {
        /// The kernel's version.
        version: String,
        /// The architecture configured for.
        arch: Arch,
        /// The settings that did not take effect.
        mismatches: Vec<Mismatch>,
    },
    /// A kernel source is invalid.
    #[error("{}: {problem}", path.display())]
    BadSource {
        /// The tarball or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The source is of another series.
    #[error("{}: this is Linux {found}, not of series {wanted}", path.display())]
    WrongSeries {
        /// The tarball or folder.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The requested series.
        wanted: Lts,
    },
    /// A file has another hash than pinned.
    #[error(
        "{}: SHA-256 is {actual}, expected {expected}: a damaged download or another file",
        path.display()
    )]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// The pinned hash.
        expected: String,
        /// The file's hash.
        actual: String,
    },
    /// No source of the kernel could be fetched.
    #[error("no source of Linux {series}:\n{}", .attempts.join("\n"))]
    NoSource {
        /// The requested series.
        series: Lts,
        /// One line for each attempt, with the reason.
        attempts: Vec<String>,
    },
    /// A version could not be parsed.
    #[error(transparent)]
    Version(#[from] BadVersion),
}

/// Something the build needs and the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingTool {
    /// The program or header.
    pub tool: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// Adds the operation and the file to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, BuildError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| BuildError::Io { action, path: path.to_owned(), source })
    }
}

fn join<T>(items: &[T], text: impl Fn(&T) -> &'static str) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn join_packages(tools: &[MissingTool]) -> String {
    let mut packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages.join(" ")
}

fn join_lines(mismatches: &[Mismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}
