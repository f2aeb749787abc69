//! The architecture of the boxes under test. A software host of another architecture than this machine's cannot run
//! this machine's programs, so it has programs of its own.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// The architecture of the boxes, as `uname -m` prints it; unset: this machine's.
const ARCH: &str = "BOXLITE_TEST_ARCH";

/// A folder with programs for a software host of another architecture: `bin` with commands such as `sh`, and each test
/// program that runs again there, under its own name.
const PROGRAMS: &str = "BOXLITE_TEST_PROGRAMS";

/// The launcher's variable for the launcher in such a software host.
const LAUNCHER: &str = "BOXLITE_SOFTHOST_LAUNCHER";

/// The architecture of the boxes, as `uname -m` prints it.
pub fn arch() -> String {
    env::var(ARCH).unwrap_or_else(|_| env::consts::ARCH.to_owned())
}

/// The programs of a software host of another architecture.
#[derive(Debug)]
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// None if the software host runs this machine's programs.
    pub(crate) fn find() -> Option<Self> {
        env::var_os(PROGRAMS).map(|folder| Self(folder.into()))
    }

    /// This test program, as the software host can run it.
    pub(crate) fn this(&self) -> PathBuf {
        // Cargo adds a hash to the name: e2e-0123456789abcdef.
        let this = env::current_exe().expect("this test has no executable");
        let name = this.file_name().expect("a file").to_string_lossy();
        self.0.join(name.split_once('-').map_or(&*name, |(name, _)| name))
    }

    /// The launcher that the software host runs.
    pub(crate) fn launcher(&self) -> OsString {
        env::var_os(LAUNCHER).unwrap_or_else(|| panic!("{PROGRAMS} is set, but {LAUNCHER} is not"))
    }

    /// The `PATH` with this folder's commands first.
    pub(crate) fn path(&self) -> OsString {
        let path = env::var_os("PATH").unwrap_or_default();
        let commands = std::iter::once(self.0.join("bin")).chain(env::split_paths(&path));
        env::join_paths(commands).expect("a folder for PATH")
    }
}
