//! Running other programs, cargo first of all, and putting files where they belong.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use boxlite_kernel::Arch;
use serde_json::Value;

use crate::cross::{Target, Toolchain};
use crate::{sign, sys};

/// The launcher's executable and package.
pub(crate) const LAUNCHER: &str = "boxlite-vmm";
/// The profile of programs for another architecture.
pub(crate) const CROSS_PROFILE: &str = "cross";

/// How many lines of what a failed program printed are shown.
const ERROR_LINES: usize = 20;

/// The repository's top folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// `cargo` at the repository's top.
pub(crate) fn cargo() -> Command {
    at_root(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// `program`, which is cargo or starts it, at the repository's top.
pub(crate) fn at_root(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    // Set for us by the cargo that started us; they would change what a second one rebuilds.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        command.env_remove(name);
    }
    command
}

/// Runs `command` quietly; what it printed is in the error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs `command` and returns its standard output; its standard error is in the error if it fails.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = name(command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.trim().lines().collect();
        let tail = lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n");
        bail!("{name} failed ({}):\n{tail}", output.status);
    }
    Ok(output.stdout)
}

/// Runs `cargo build` with `arguments` and returns the executable called `name` that it built.
///
/// Cargo's own messages go to standard error as they come.
pub(crate) fn cargo_build(name: &str, configure: impl FnOnce(&mut Command)) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.arg("build");
    configure(&mut cargo);
    executables(&mut cargo, name)?
        .into_iter()
        .find_map(|(target, program)| (target == name).then_some(program))
        .with_context(|| format!("cargo built no executable {name}"))
}

/// Builds the test programs of a package for the architecture, and returns each with its name.
pub(crate) fn test_programs(package: &str, arch: Arch) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = cargo();
    cargo.args(["test", "--no-run", "--package", package, "--lib", "--bins", "--tests"]);
    // The launcher's, so that both share what they depend on.
    cargo.args(["--profile", CROSS_PROFILE]);
    Toolchain::find(Target::Linux(arch))?.configure(&mut cargo, &[]);
    executables(&mut cargo, &format!("the tests of {package}"))
}

/// Runs `cargo`, which builds `what`, and returns the executables with the names of their targets.
fn executables(cargo: &mut Command, what: &str) -> Result<Vec<(String, PathBuf)>> {
    cargo.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let output =
        cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo build of {what} failed");
    }
    let program = |message: Value| {
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter_map(program)
        .collect())
}

/// Builds the launcher, optimized, and returns its path.
pub(crate) fn launcher() -> Result<PathBuf> {
    let launcher = cargo_build(LAUNCHER, |cargo| {
        cargo.args(["--release", "--package", LAUNCHER, "--bin", LAUNCHER]);
    })?;
    if sys::NEEDS_ENTITLEMENT {
        sign::sign(&launcher)?;
    }
    Ok(launcher)
}

/// Builds the launcher for an architecture; for another one than this machine's with the profile of tests, and linked
/// statically, because its software host sees the files of this machine.
pub(crate) fn launcher_for(arch: Arch) -> Result<PathBuf> {
    if arch == Arch::HOST {
        return launcher();
    }
    let toolchain = Toolchain::find(Target::Linux(arch))?;
    cargo_build(LAUNCHER, |cargo| {
        cargo.args(["--profile", CROSS_PROFILE, "--package", LAUNCHER, "--bin", LAUNCHER]);
        toolchain.configure(cargo, &[]);
    })
}

/// The launcher for aarch64 whose boxes run on the backend of macOS, over the double of its framework.
pub(crate) fn launcher_on_double() -> Result<PathBuf> {
    let toolchain = Toolchain::find(Target::Linux(Arch::Aarch64))?;
    cargo_build(LAUNCHER, |cargo| {
        cargo.args(["--profile", CROSS_PROFILE, "--package", LAUNCHER, "--bin", LAUNCHER]);
        cargo.args(["--features", "hvf-double"]);
        // Not over the launcher that users have from the same profile.
        cargo.arg("--target-dir").arg(target_dir().join("hvf-double"));
        toolchain.configure(cargo, &[]);
    })
}

/// The names of the workspace's packages, and their versions.
pub(crate) fn packages() -> Result<Vec<(String, String)>> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let text = |package: &Value, field: &str| package[field].as_str().map(str::to_owned);
    let named = |package: &Value| Some((text(package, "name")?, text(package, "version")?));
    Ok(packages.iter().filter_map(named).collect())
}

/// Puts `contents` into the file at `path`, whole or not at all; leaves it alone if it has them.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<bool> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() == contents.len() as u64)
        && fs::read(path).is_ok_and(|old| old == contents)
    {
        return Ok(false);
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let writing = || format!("cannot write {}", path.display());
    let mut file = tempfile::Builder::new()
        .permissions(permissions(0o644))
        .tempfile_in(parent)
        .with_context(writing)?;
    file.write_all(contents).with_context(writing)?;
    file.persist(path).with_context(writing)?;
    Ok(true)
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert!(write(&path, b"one").unwrap());
        assert!(!write(&path, b"one").unwrap());
        assert!(write(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = run(Command::new("sh").args(["-c", "echo broken >&2; exit 4"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 4):\nbroken");
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(fs::read_to_string(root().join("Cargo.toml")).unwrap().contains("[workspace]"));
    }
}
