//! `cargo xtask softhost`: builds what the software host needs and runs a command in it. And the
//! emulator, for whatever runs boxes where only the software host can.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use boxlite_kernel::Arch;
use boxlite_kernel_builder::PageSize;

use crate::{apt, build, guest};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The architecture of the software host: x86_64 or aarch64
    #[arg(long, default_value_t = Arch::HOST)]
    arch: Arch,
    /// The size of the pages of the software host's kernel: 4k or 16k. Its boxes have 4k
    #[arg(long, value_name = "SIZE", default_value_t = PageSize::default())]
    pages: PageSize,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Makes sure that there is an emulator where boxes need one.
///
/// # Errors
/// Names the command that installs it, where this user may not.
pub(crate) fn ensure_emulator() -> Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if has_virtualization(&cpuinfo) && File::options().write(true).open("/dev/kvm").is_ok() {
        return Ok(());
    }
    ensure_qemu(Arch::HOST)
}

/// Makes sure that there is QEMU for an architecture.
fn ensure_qemu(arch: Arch) -> Result<()> {
    apt::ensure(&[match arch {
        Arch::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }])
}

/// The variable of the launcher in a software host of another architecture.
pub(crate) const LAUNCHER: &str = "BOXLITE_SOFTHOST_LAUNCHER";

/// This machine's launcher, and what makes it run boxes of an architecture.
pub(crate) struct Prepared {
    pub(crate) launcher: PathBuf,
    /// The launcher's environment.
    pub(crate) variables: Vec<(&'static str, PathBuf)>,
}

/// Builds the launcher and what it needs for boxes of an architecture.
///
/// # Errors
/// Something does not build, or a package is missing that this user may not install.
pub(crate) fn prepare(arch: Arch, pages: PageSize) -> Result<Prepared> {
    let mut dir = guest::build(&guest::Options::for_arch(arch))?;
    let launcher = build::launcher()?;
    let mut variables = Vec::new();
    if arch != Arch::HOST {
        ensure_qemu(arch)?;
        variables.push((LAUNCHER, build::launcher_for(arch)?));
        // The folder with the guest files of all architectures.
        dir.pop();
    }
    if pages != PageSize::default() {
        variables.push(("BOXLITE_SOFTHOST_KERNEL", guest::host_kernel(arch, pages)?));
    }
    variables.push(("BOXLITE_GUEST_DIR", dir));
    Ok(Prepared { launcher, variables })
}

/// A home for boxes of another architecture: a home has boxes of one. A software host that runs keeps its kernel.
pub(crate) fn home(arch: Arch, pages: PageSize) -> PathBuf {
    let name = match pages {
        PageSize::K4 => format!("home-{arch}"),
        PageSize::K16 => format!("home-{arch}-{pages}"),
    };
    build::target_dir().join(name)
}

/// Whether `/proc/cpuinfo` lists what KVM needs. Less than that, and `/dev/kvm` is of no use.
fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// Runs the command; its exit code is ours.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure_qemu(options.arch)?;
    let Prepared { launcher, variables } = prepare(options.arch, options.pages)?;
    let mut command = Command::new(&launcher);
    if options.arch != Arch::HOST && env::var_os("BOXLITE_HOME").is_none() {
        command.env("BOXLITE_HOME", home(options.arch, options.pages));
    }
    let status = command
        .envs(variables)
        .args(["softhost", "--"])
        .args(&options.command)
        .status()
        .with_context(|| format!("cannot run {}", launcher.display()))?;
    Ok(exit_code(status))
}

/// The exit code that passes on how a program ended; 128 and the signal's number for one that was
/// killed.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtualization_is_a_flag_of_the_cpu() {
        assert!(has_virtualization("processor\t: 0\nflags\t\t: fpu svm sse\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\nvmx flags\t: vnmi\n"));
        assert!(!has_virtualization(""));
    }
}
