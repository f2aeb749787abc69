//! The harness of the end-to-end tests: it drives the launcher as users do, and builds images for tests.
//!
//! - [`Launcher`]: finds the launcher to test, or prints why there is none
//! - [`Invocation`], [`Running`], [`Output`]: one run of the launcher, always with a deadline
//! - [`Sandbox`]: a box that is removed with its value
//! - [`Terminal`]: a run of the launcher on a terminal of its own
//! - [`image`]: OCI layouts, valid and hostile
//!
//! Without hardware virtualization, everything goes through the software host, as it does for users.
#![forbid(unsafe_code)]

mod arch;
pub mod image;
mod invocation;
mod launcher;
mod run;
mod sandbox;
mod sys;
mod terminal;
mod transcript;

pub use arch::arch;
pub use image::Compression;
pub use invocation::{Invocation, Output, Running, SOFTHOST_NOTE};
pub use launcher::{BUSYBOX, DEBIAN, Launcher, is_long};
pub use sandbox::{Sandbox, unique};
pub use terminal::Terminal;
