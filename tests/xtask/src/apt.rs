//! Programs from Debian packages: found where they are, installed where we may, named where we may
//! not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::Access;

use crate::build::run;

/// Folders of system programs that a normal user's `PATH` lacks.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Makes sure that each program, given with the package that has it, is there.
///
/// # Errors
/// Names the missing programs and the command that installs them, where this user may not.
pub(crate) fn ensure(programs: &[(&str, &str)]) -> Result<()> {
    let missing = |programs: &[(&str, &str)]| -> Vec<(String, String)> {
        programs
            .iter()
            .filter(|(program, _)| find(program).is_none())
            .map(|(program, package)| ((*program).to_owned(), (*package).to_owned()))
            .collect()
    };
    let lacking = missing(programs);
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().map(|(_, package)| package.as_str()).collect();
    install(&packages)?;
    match missing(programs).as_slice() {
        [] => Ok(()),
        [(program, package), ..] => bail!("{package} is installed, but there is no {program}"),
    }
}

/// Installs packages where this user may.
///
/// # Errors
/// Says which command installs them, where this user may not.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let mut packages = packages.to_vec();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("needs the programs of these Debian packages, by whatever name they go here: {list}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("needs packages that are not installed; run: sudo apt-get install {list}");
    }
    eprintln!("installing {list}");
    let install =
        || run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&packages));
    // The package lists of a fresh machine are missing or old.
    install().or_else(|_| {
        run(apt_get().arg("update"))?;
        install()
    })
}

/// Downloads the `.deb` of `package` into `dir` and returns its path; needs no root once there are
/// package lists.
pub(crate) fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    let download = || run(apt_get().args(["download", package]).current_dir(dir));
    download()
        .or_else(|error| {
            if !rustix::process::geteuid().is_root() {
                return Err(error.context("run first: sudo apt-get update"));
            }
            run(apt_get().arg("update"))?;
            download()
        })
        .with_context(|| format!("cannot download the Debian package {package}"))?;
    let prefix = format!("{package}_");
    let is_package = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".deb")
    };
    let paths = dir.read_dir()?.flatten().map(|entry| entry.path());
    paths.into_iter().find(is_package).context("apt-get download left no package")
}

/// The path of a program, looked for in `PATH` and among the system's programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRS.map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok())
}

/// A command that runs `program`, found as [`find`] finds it.
pub(crate) fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| PathBuf::from(program)))
}

fn apt_get() -> Command {
    let mut command = command("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Only root may drop to apt's own user, and that user cannot write into our folders.
        .args([
            "--quiet=2",
            "--option=DPkg::Lock::Timeout=300",
            "--option=APT::Sandbox::User=root",
        ]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_missing_ones_are_not() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("boxlite-no-such-program"), None);
        assert_eq!(find(""), None, "a folder is no program");
        ensure(&[("sh", "dash")]).unwrap();
    }
}
