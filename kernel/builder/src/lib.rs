//! Builds the guest kernel: configuration fragments, pinned sources, compiler, cache. For
//! `cargo xtask` only; launchers use the locator in `boxlite-kernel`. The cache and the access to
//! Debian's archive serve `cargo xtask` otherwise, too.
//!
//! ```text
//!   kernel/config/*.config ─ config ─┐
//!                                    ├─ Builder ─► kernel in the Cache
//!   pins ─ source ───────────────────┘
//! ```
//!
//! Needs a Linux machine with a C toolchain, and for sources that are not in the cache `curl` or
//! `wget`, or apt.
//!
//! Invariant: a source is pinned by hash or vouched for by Debian's signed index, each setting of
//! the fragments took effect, and a file with its final name in the cache is complete.

#![forbid(unsafe_code)]

mod archive;
mod builder;
mod cache;
mod command;
pub mod config;
mod error;
mod pins;
mod progress;
mod source;
mod toolchain;
mod version;

pub use archive::{Archive, Offer, debian_name};
pub use builder::{Builder, Kernel};
pub use cache::{Cache, Lock};
pub use config::PageSize;
pub use error::{BuildError, MissingTool};
pub use progress::Event;
pub use toolchain::Toolchain;
pub use version::{BadVersion, Lts, UnknownLts, Version};
