//! Errors of the search for guest files. They state facts; the runtime adds what to do.

use std::io;
use std::path::PathBuf;

use crate::arch::Arch;

/// Guest files are missing or damaged.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No folder holds guest files for the architecture.
    #[error("no guest files for {arch}; looked in\n  {}", join_paths(.searched))]
    NotFound {
        /// The architecture.
        arch: Arch,
        /// The searched folders, in order.
        searched: Vec<PathBuf>,
    },
    /// A file cannot be read.
    #[error("cannot read guest file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is invalid, or of an unknown format.
    #[error("{}: {problem}", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file differs from its manifest entry.
    #[error(
        "guest file {} is damaged: {what} is {actual}, its manifest says {expected}",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// "size" or "SHA-256".
        what: &'static str,
        /// The manifest's value.
        expected: String,
        /// The file's value.
        actual: String,
    },
}

fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n  ")
}
