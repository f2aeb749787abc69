//! `cargo xtask softhost`: builds what the software host needs and runs a command in it. And the
//! emulator, for whatever runs boxes where only the software host can.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use boxlite_kernel::Arch;

use crate::{apt, build, guest};

#[derive(clap::Args)]
pub(crate) struct Options {
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
    apt::ensure(&[("qemu-system-x86_64", "qemu-system-x86")])
}

/// Whether `/proc/cpuinfo` lists what KVM needs. Less than that, and `/dev/kvm` is of no use.
fn has_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// Runs the command; its exit code is ours.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    apt::ensure(&[("qemu-system-x86_64", "qemu-system-x86")])?;
    let guest = guest::build(&guest::Options::for_arch(Arch::HOST))?;
    let launcher = build::launcher()?;
    let status = Command::new(&launcher)
        .env("BOXLITE_GUEST_DIR", guest)
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
