//! The guest kernel: what is in it, where its source comes from, how it is built, and where a
//! launcher finds it.
//!
//! Two halves that meet in the [`Manifest`]:
//!
//! ```text
//!   building (cargo xtask guest)                        running (the launcher)
//!
//!   config/*.config ─ config ─┐                         GuestFiles::locate()
//!                             ├─ Builder ─► kernel ─┐       │ manifest.json, kernel,
//!   pins ─ source ────────────┘   initramfs, disk ──┴► guest/ initramfs, template
//! ```
//!
//! The builder needs a Linux machine with a C toolchain; the locator needs nothing.

#![forbid(unsafe_code)]

mod arch;
mod builder;
mod cache;
mod command;
pub mod config;
mod error;
mod guest;
mod hash;
mod pins;
mod progress;
mod source;
mod toolchain;
mod version;

pub use arch::Arch;
pub use builder::{Builder, Kernel};
pub use cache::Cache;
pub use error::{BuildError, LocateError};
pub use guest::{
    FileInfo, GuestFiles, INITRAMFS_FILE, MANIFEST_FILE, Manifest, TEMPLATE_FILE, TEMPLATE_SIZE,
};
pub use hash::{sha256_bytes, sha256_file};
pub use progress::Event;
pub use source::SourceInfo;
pub use toolchain::{MissingTool, Toolchain};
pub use version::{Lts, Version};
