//! Errors of the search for guest files, each with its remedy.

use std::io;
use std::path::PathBuf;

use crate::arch::Arch;

/// Guest files were not found, or what was found is damaged.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No folder holds guest files for the architecture.
    #[error(
        "no guest files for {arch}; looked in\n  {}\n\
         Make them with `cargo xtask guest`, or name their folder in BOXLITE_GUEST_DIR.",
        join_paths(.searched)
    )]
    NotFound {
        /// The architecture looked for.
        arch: Arch,
        /// Every folder looked at, in order.
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
    /// The manifest is not one, or of a form this version does not know.
    #[error("{}: {problem}; make the guest files again with `cargo xtask guest`", path.display())]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is not the one the manifest describes.
    #[error(
        "guest file {} is damaged: {what} is {actual}, its manifest says {expected}; \
         make it again with `cargo xtask guest`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// "size" or "SHA-256".
        what: &'static str,
        /// What the manifest says.
        expected: String,
        /// What the file has.
        actual: String,
    },
}

fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n  ")
}
