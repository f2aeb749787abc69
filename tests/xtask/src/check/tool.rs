//! Programs of crates.io and PyPI that checks use: the machine's own, else the cache's, which CI fills.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use boxlite_kernel_builder::Cache;

use crate::ui::Step;
use crate::{apt, build};

/// A program, and how CI installs it.
pub(super) struct Tool {
    /// The name of the program, and of the crate or package that has it.
    pub(super) name: &'static str,
    /// What CI installs, as `cargo install --version` has it, or pip after `==`.
    pub(super) version: &'static str,
    /// The oldest release that does, of three numbers.
    pub(super) oldest: [u32; 3],
    /// The folder in the cache.
    pub(super) folder: &'static str,
    /// Where it comes from.
    pub(super) origin: Origin,
}

/// A registry of programs.
pub(super) enum Origin {
    /// A crate, which cargo compiles.
    Crates {
        /// Further arguments of `cargo install`.
        arguments: &'static [&'static str],
        /// Variables of `cargo install`.
        variables: &'static [(&'static str, &'static str)],
    },
    /// A package of PyPI that has the program compiled. Needs python3 with pip.
    PyPi,
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
        build::run(&mut self.installer(&root))?;
        step.done(program.display());
        Ok(Some(program))
    }

    /// The command that installs it below `root`.
    fn installer(&self, root: &Path) -> Command {
        match self.origin {
            Origin::Crates { arguments, variables } => {
                let mut cargo = build::cargo();
                cargo.args(["install", "--quiet", "--locked", self.name]);
                cargo.args(["--version", self.version]).args(arguments);
                cargo.envs(variables.iter().copied()).arg("--root").arg(root);
                cargo
            }
            Origin::PyPi => {
                let mut python = apt::command("python3");
                python.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
                python.args(["--no-deps", "--only-binary=:all:", "--retries=1"]);
                python.arg("--target").arg(root).arg(format!("{}=={}", self.name, self.version));
                python
            }
        }
    }

    /// The command that installs it for this user.
    pub(super) fn remedy(&self) -> String {
        let Self { name, version, .. } = self;
        match self.origin {
            Origin::Crates { .. } => format!("cargo install --locked {name} --version {version}"),
            Origin::PyPi => format!("pipx install {name}=={version}"),
        }
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
    fn each_tool_is_installed_below_its_folder() {
        let tool =
            |origin| Tool { name: "x", version: "1.2.3", oldest: [1, 2, 3], folder: "x", origin };
        let line = |tool: Tool| {
            let installer = tool.installer(Path::new("/root"));
            let words = installer.get_args().map(|word| word.to_string_lossy().into_owned());
            words.collect::<Vec<_>>().join(" ")
        };
        let cargo = Origin::Crates { arguments: &["--no-default-features"], variables: &[] };
        assert_eq!(
            line(tool(cargo)),
            "install --quiet --locked x --version 1.2.3 --no-default-features --root /root"
        );
        let pip = line(tool(Origin::PyPi));
        assert!(
            pip.starts_with("-m pip install ") && pip.ends_with("--target /root x==1.2.3"),
            "{pip}"
        );
    }

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
