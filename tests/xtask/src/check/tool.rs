//! Programs of crates.io that checks use: the machine's own, else the cache's, which CI fills.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use boxlite_kernel_builder::Cache;

use crate::ui::Step;
use crate::{apt, build};

/// A program, and how CI installs it.
pub(super) struct Tool {
    /// The name of the crate and of its program.
    pub(super) name: &'static str,
    /// What CI installs, as `cargo install --version` has it.
    pub(super) version: &'static str,
    /// The oldest release that does, of three numbers.
    pub(super) oldest: [u32; 3],
    /// The folder in the cache.
    pub(super) folder: &'static str,
    /// Further arguments of `cargo install`.
    pub(super) arguments: &'static [&'static str],
    /// Variables of `cargo install`.
    pub(super) variables: &'static [(&'static str, &'static str)],
}

impl Tool {
    /// The program; `None` if it is not installed and this is not CI.
    ///
    /// # Errors
    /// CI cannot install it.
    pub(super) fn program(&self) -> Result<Option<PathBuf>> {
        if let Some(program) = apt::find(self.name).filter(|program| self.serves(program)) {
            return Ok(Some(program));
        }
        let root = Cache::open()?.dir(self.folder)?;
        let program = root.join("bin").join(self.name);
        if program.is_file() {
            return Ok(Some(program));
        }
        if env::var_os("CI").is_none_or(|ci| ci.is_empty() || ci == "false") {
            return Ok(None);
        }
        let step = Step::start(self.name);
        step.say("installing it into the cache");
        let mut install = build::cargo();
        install.args(["install", "--quiet", "--locked", self.name, "--version", self.version]);
        install.args(self.arguments).envs(self.variables.iter().copied()).arg("--root").arg(&root);
        build::run(&mut install)?;
        step.done(program.display());
        Ok(Some(program))
    }

    /// The command that installs it for this user.
    pub(super) fn remedy(&self) -> String {
        format!("cargo install --locked {} --version {}", self.name, self.version)
    }

    /// Whether the program is recent enough.
    fn serves(&self, program: &PathBuf) -> bool {
        let output = build::output(Command::new(program).arg("--version")).unwrap_or_default();
        release(&String::from_utf8_lossy(&output)) >= Some(self.oldest)
    }
}

/// The release in what a program answers to `--version`: `cargo-deny 0.20.2`.
fn release(answer: &str) -> Option<[u32; 3]> {
    let version = answer.split_ascii_whitespace().nth(1)?;
    let mut numbers = version.split(['.', '-', '+']).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(release("cargo-deny 0.20.2\n"), Some([0, 20, 2]));
        assert_eq!(release("cargo-nextest 0.9.143 (60fa45f63 2026-08-04)\n"), Some([0, 9, 143]));
        assert_eq!(release("x 0.9.100-rc.1"), Some([0, 9, 100]));
        assert!(release("x 0.9.98") < release("x 0.9.100"));
        assert_eq!(release("a program without a version"), None);
        assert_eq!(release(""), None);
    }
}
