//! What the `boxlite-vmm` executable is to do for the runtime, over what an application needs: the
//! subcommands by which a runtime starts it.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use crate::remote::serve;

/// The subcommand that is to run the process of a box, with its launcher's socket as standard input.
pub const MACHINE_SUBCOMMAND: &str = "machine";

/// The subcommand that is to run [`serve`].
pub const SERVE_SUBCOMMAND: &str = "serve";

/// Raises the soft limit on open files, which is low for programs that use `select`, to the hard one.
///
/// # Errors
/// The system's.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
