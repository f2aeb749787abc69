//! Builds for other targets than this machine's own: Rust's standard library, the linker and the C
//! compiler that cargo needs for them.
//!
//! ```text
//!   library   standard library: the toolchain's, the cache's, rustup's, or built from Debian's source
//!   compiler  Debian's cross compiler; for a target that is only checked, a stand-in
//! ```

mod compiler;
mod library;
mod source;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use anyhow::Result;
use boxlite_kernel::Arch;

/// What code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// Linux with glibc.
    Linux(Arch),
    /// macOS on Apple silicon. Only checked: without Apple's linker nothing can be built.
    Darwin,
}

impl Target {
    /// Rust's name of the target.
    pub(crate) const fn triple(self) -> &'static str {
        match self {
            Self::Linux(Arch::X86_64) => "x86_64-unknown-linux-gnu",
            Self::Linux(Arch::Aarch64) => "aarch64-unknown-linux-gnu",
            Self::Darwin => "aarch64-apple-darwin",
        }
    }

    /// Whether programs can be built, not only checked.
    const fn links(self) -> bool {
        matches!(self, Self::Linux(_))
    }

    /// The name of a variable by which cargo is told `what` for this target.
    fn variable(self, what: &str) -> String {
        format!("CARGO_TARGET_{}_{what}", self.triple().replace('-', "_").to_uppercase())
    }
}

/// How cargo is told to compile for a target.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    target: Target,
    /// A folder with the standard library, if the toolchain has none for this target.
    sysroot: Option<PathBuf>,
    variables: Vec<(String, OsString)>,
}

impl Toolchain {
    /// Finds or makes what a build for `target` needs.
    ///
    /// # Errors
    /// Names what is missing and how to install it.
    pub(crate) fn find(target: Target) -> Result<Self> {
        // What was found once is not looked for again: an attempt may wait for a network.
        static FOUND: Mutex<Option<HashMap<Target, Toolchain>>> = Mutex::new(None);
        let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = found.get_or_insert_default();
        if let Some(toolchain) = found.get(&target) {
            return Ok(toolchain.clone());
        }
        let variables = compiler::variables(target)?;
        let sysroot = library::find(target, &variables)?;
        let toolchain = Self { target, sysroot, variables };
        found.insert(target, toolchain.clone());
        Ok(toolchain)
    }

    /// Makes `cargo` compile for the target, with `flags` for rustc instead of the environment's.
    /// Programs of Linux are linked statically: they run in whatever root file system.
    pub(crate) fn configure(&self, cargo: &mut Command, flags: &[&str]) {
        let mut all: Vec<OsString> = flags.iter().map(OsString::from).collect();
        if self.target.links() {
            all.push("-Ctarget-feature=+crt-static".into());
        }
        if let Some(sysroot) = &self.sysroot {
            let mut flag = OsString::from("--sysroot=");
            flag.push(sysroot);
            all.push(flag);
        }
        cargo
            .args(["--target", self.target.triple()])
            .env_remove("RUSTFLAGS")
            // Unlike the other variables, this one may have spaces in its flags.
            .env("CARGO_ENCODED_RUSTFLAGS", all.join("\x1f".as_ref()))
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_the_target_its_library_and_its_tools() {
        let toolchain = Toolchain {
            target: Target::Linux(Arch::Aarch64),
            sysroot: Some("/a cache/sysroot".into()),
            variables: vec![(Target::Linux(Arch::Aarch64).variable("LINKER"), "ld".into())],
        };
        let mut cargo = Command::new("cargo");
        toolchain.configure(&mut cargo, &["-Copt-level=1"]);
        let arguments: Vec<_> = cargo.get_args().collect();
        assert_eq!(arguments, ["--target", "aarch64-unknown-linux-gnu"]);
        let variable = |name: &str| cargo.get_envs().find(|(it, _)| *it == name).unwrap().1;
        assert_eq!(
            variable("CARGO_ENCODED_RUSTFLAGS").unwrap(),
            "-Copt-level=1\x1f-Ctarget-feature=+crt-static\x1f--sysroot=/a cache/sysroot"
        );
        assert_eq!(variable("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER").unwrap(), "ld");
        assert_eq!(variable("RUSTFLAGS"), None);
    }
}
