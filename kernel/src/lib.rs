//! The guest files (kernel, initramfs, empty disk and their manifest) and how a launcher finds
//! them. `boxlite-kernel-builder` builds the kernel, `cargo xtask guest` writes the folder:
//!
//! ```text
//!   building (cargo xtask guest)                        running (the launcher)
//!
//!   kernel-builder ─► kernel ─┐                         GuestFiles::locate()
//!                             ├──► guest/ ◄───────────      manifest.json, kernel,
//!   initramfs, template ──────┘    Manifest                 initramfs, template
//! ```
//!
//! Uses the file system, serde and SHA-256 only: every embedder of the runtime compiles this crate.
//!
//! Invariant: a folder with a manifest is complete, and an opened one has files of the sizes that
//! the manifest says.

#![forbid(unsafe_code)]

mod arch;
mod error;
mod guest;
mod hash;

pub use arch::{Arch, UnknownArch};
pub use error::LocateError;
pub use guest::{
    FileInfo, GUEST_DIR_VARIABLE, GuestFiles, INITRAMFS_FILE, MANIFEST_FILE, Manifest, SourceInfo,
    TEMPLATE_FILE, TEMPLATE_SIZE,
};
pub use hash::{sha256_bytes, sha256_file};
