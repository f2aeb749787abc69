//! For the `boxlite-vmm` executable only: the subcommands that a runtime starts it with. Applications need none of it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use crate::remote::serve;

/// The subcommand that runs the process of a box, with the launcher's socket as standard input.
pub const MACHINE_SUBCOMMAND: &str = "machine";

/// The variable for the path of the `boxlite-vmm` executable that runs as the process of each box.
pub const LAUNCHER_PATH_VARIABLE: &str = "BOXLITE_VMM";

/// The subcommand that runs [`serve`].
pub const SERVE_SUBCOMMAND: &str = "serve";

/// The most open files that macOS allows a process whatever its hard limit says (`OPEN_MAX`).
const OPEN_MAX: u64 = 10_240;

/// Raises the soft limit on open files to the hard limit. The soft one is low for the sake of programs that use
/// `select`.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_open_file_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raise = |current| setrlimit(Resource::Nofile, Rlimit { current, maximum });
    match raise(maximum) {
        // macOS refuses a hard limit beyond what it allows, which is the usual one.
        Err(Errno::INVAL) => raise(Some(maximum.map_or(OPEN_MAX, |most| most.min(OPEN_MAX))))?,
        raised => raised?,
    }
    Ok(())
}
