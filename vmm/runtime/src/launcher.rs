//! For the `boxlite-vmm` executable only: the subcommands that a runtime starts it with. Applications need none of it.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use crate::remote::serve;

/// The subcommand that runs the process of a box, with the launcher's socket as standard input.
pub const MACHINE_SUBCOMMAND: &str = "machine";

/// The variable for the path of the `boxlite-vmm` executable that runs as the process of each box.
pub const LAUNCHER_PATH_VARIABLE: &str = "BOXLITE_VMM";

/// The subcommand that runs [`serve`].
pub const SERVE_SUBCOMMAND: &str = "serve";

/// Raises the soft limit on open files to the hard limit. The soft one is low for the sake of programs that use
/// `select`.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_open_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
