//! Signs executables ad hoc with the entitlement without which Hypervisor.framework denies every call.
//!
//! Each build needs a new signature. What `cargo run` and `cargo test` start on macOS is signed by `hvf/sign-and-run`, the
//! runner in `.cargo/config.toml`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{apt, build};

/// Apple's tool for signatures.
const TOOL: &str = "codesign";

/// The property list with the entitlement.
const ENTITLEMENTS: &str = "hvf/hypervisor.entitlements";

#[derive(Args)]
pub(crate) struct Options {
    /// Executables; without any, the launchers that were built
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Signs the executables that the options name.
pub(crate) fn run(options: &Options) -> Result<()> {
    let paths = match &options.paths[..] {
        [] => built_launchers(&build::target_dir()),
        // Tools are started at the repository's top.
        given => given.iter().map(std::path::absolute).collect::<Result<_, _>>()?,
    };
    if paths.is_empty() {
        bail!("no launcher is built: cargo build --release -p {}", build::LAUNCHER);
    }
    for path in paths {
        sign(&path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Signs one executable.
pub(crate) fn sign(path: &Path) -> Result<()> {
    if apt::find(TOOL).is_none() {
        bail!("cannot sign {}: {TOOL} is not in PATH; it is part of macOS", path.display());
    }
    build::run(&mut codesign(path)).with_context(|| format!("cannot sign {}", path.display()))
}

/// The launchers in a folder of cargo's.
fn built_launchers(target: &Path) -> Vec<PathBuf> {
    let profiles = ["release", "debug"].map(|profile| target.join(profile).join(build::LAUNCHER));
    profiles.into_iter().filter(|path| path.is_file()).collect()
}

/// The command that signs, whatever signature there is.
fn codesign(path: &Path) -> Command {
    let mut command = build::at_root(TOOL);
    command.args(["--sign", "-", "--force", "--entitlements", ENTITLEMENTS]).arg(path);
    command
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn executables_are_signed_ad_hoc_with_the_entitlement() {
        let command = codesign(Path::new("/a b/boxlite-vmm"));
        let arguments: Vec<_> = command.get_args().collect();
        let expected =
            ["--sign", "-", "--force", "--entitlements", ENTITLEMENTS, "/a b/boxlite-vmm"];
        assert_eq!(arguments, expected);
        let list = fs::read_to_string(build::root().join(ENTITLEMENTS)).unwrap();
        assert!(list.contains("<key>com.apple.security.hypervisor</key>"), "{list}");
        let runner = fs::read_to_string(build::root().join("hvf/sign-and-run")).unwrap();
        assert!(runner.contains("hypervisor.entitlements"), "{runner}");
    }

    #[test]
    fn only_launchers_that_were_built_are_signed() {
        let target = tempfile::tempdir().unwrap();
        assert!(built_launchers(target.path()).is_empty());
        let built = target.path().join("debug").join(build::LAUNCHER);
        fs::create_dir(target.path().join("debug")).unwrap();
        fs::write(&built, "").unwrap();
        assert_eq!(built_launchers(target.path()), [built]);
    }

    #[test]
    fn without_the_tool_the_error_says_where_it_is() {
        if apt::find(TOOL).is_none() {
            let error = sign(Path::new("/x")).unwrap_err().to_string();
            assert!(error.contains("codesign") && error.contains("macOS"), "{error}");
        }
    }
}
