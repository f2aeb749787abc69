//! The launcher that runs in the nested host, if that is not this machine's own.
//!
//! Its architecture is that of the nested host, and so of the boxes.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use boxlite_contract::nested::HostEnvironment;
use boxlite_kernel::Arch;

use super::Error;
use super::elf::Executable;

/// The variable for the path of the launcher that runs in the nested host.
pub const LAUNCHER_VARIABLE: &str = "BOXLITE_SOFTHOST_LAUNCHER";

/// A launcher that the user has chosen for the nested host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerLauncher {
    /// Its absolute path, on this machine and in the nested host.
    pub path: PathBuf,
    /// Its architecture.
    pub arch: Arch,
}

impl InnerLauncher {
    /// The launcher that [`LAUNCHER_VARIABLE`] names, if it is set. In the nested host there is none: the variable is
    /// for the real host.
    ///
    /// # Errors
    /// The nested host cannot run that file.
    pub fn from_env() -> Result<Option<Self>, Error> {
        if HostEnvironment::detect().is_nested() {
            return Ok(None);
        }
        let path = std::env::var_os(LAUNCHER_VARIABLE).filter(|path| !path.is_empty());
        path.map(|path| Self::open(Path::new(&path))).transpose()
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let bad = |problem: String| Error::InnerLauncher { path: path.to_owned(), problem };
        let metadata = path.metadata().map_err(|e| bad(format!("cannot be opened: {e}")))?;
        // A FIFO, for one, would wait for its writer.
        if !metadata.is_file() {
            return Err(bad("is not a regular file".to_owned()));
        }
        let file = File::open(path).map_err(|e| bad(format!("cannot be opened: {e}")))?;
        let Executable { arch, loader } =
            Executable::read(&file).map_err(|problem| bad(problem.to_string()))?;
        // The nested host has this machine's files.
        if let Some(loader) = loader.filter(|loader| !loader.exists()) {
            return Err(bad(format!(
                "needs {}, which this machine does not have: name a launcher that is linked statically",
                loader.display()
            )));
        }
        let path = std::path::absolute(path).map_err(Error::Runtime)?;
        Ok(Self { path, arch })
    }

    /// Whether its boxes can only run in the nested host, because this machine's CPU is another one.
    pub fn is_foreign(&self) -> bool {
        self.arch != Arch::HOST
    }
}

impl fmt::Display for InnerLauncher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LAUNCHER_VARIABLE} ({}) is for {}", self.path.display(), self.arch)
    }
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::elf;
    use super::*;

    #[test]
    fn a_launcher_is_known_by_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            InnerLauncher::open(&path).map_err(|e| e.to_string())
        };
        let arm = open("arm", &elf(183, None)).unwrap();
        assert_eq!((arm.arch, arm.is_foreign()), (Arch::Aarch64, Arch::HOST != Arch::Aarch64));
        assert_eq!(arm.path, dir.path().join("arm"));
        let script = open("script", b"#!/bin/sh\n").unwrap_err();
        assert!(script.contains(LAUNCHER_VARIABLE) && script.contains("ELF"), "{script}");
        let dynamic = open("dynamic", &elf(183, Some(b"/no/such/loader\0"))).unwrap_err();
        assert!(dynamic.contains("/no/such/loader") && dynamic.contains("statically"), "{dynamic}");
        let folder = InnerLauncher::open(dir.path()).unwrap_err().to_string();
        assert!(folder.contains("regular file"), "{folder}");
        let missing = InnerLauncher::open(&dir.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains(LAUNCHER_VARIABLE) && missing.contains("missing"), "{missing}");
    }
}
