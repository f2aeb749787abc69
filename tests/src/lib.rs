//! The harness of the end-to-end tests: the launcher driven as its users drive it, and images made for the occasion.
//!
//! - [`Launcher`]: finds what is to be tested, or says why there is nothing to test
//! - [`Invocation`], [`Running`], [`Output`]: one run of the launcher, which always has a deadline
//! - [`Sandbox`]: a box that stays for as long as a test has it
//! - [`Terminal`]: a run of the launcher on a terminal of its own
//! - [`image`]: OCI layouts, honest and hostile
//!
//! Where there is no hardware virtualization, everything goes through the software host, as it does for users.
#![forbid(unsafe_code)]

pub mod image;
mod invocation;
mod launcher;
mod sandbox;
mod terminal;
mod transcript;

pub use image::Compression;
pub use invocation::{Invocation, Output, Running, SOFTHOST_NOTE};
pub use launcher::{BUSYBOX, DEBIAN, Launcher, is_long};
pub use sandbox::{Sandbox, unique};
pub use terminal::Terminal;
