//! The nested host, "software host" for users: on a machine without hardware virtualization, the launcher runs itself
//! in a VM that QEMU emulates, including nested virtualization.
//!
//! ```text
//!   launcher ──┐ <home>/softhost/                ┌─ QEMU (TCG) ───────────────────┐
//!   launcher ──┼── control.sock ── keeper ───────┤ virtio-serial ── agent         │
//!   launcher ──┘   (agent protocol)   router     │   └ boxlite-vmm, with /dev/kvm │
//!                                                │ 9p: /      vda: home.ext4      │
//!                                                └────────────────────────────────┘
//! ```
//!
//! The first launcher of a home starts its *keeper*, which outlives it; later launchers share it. The nested host sees
//! the real host's file system, read-only below a temporary overlay. Only the home, at its usual path, is on a
//! persistent disk. So arguments need no change, and files that a command writes elsewhere are lost when the nested
//! host stops.
//!
//! The launcher in the nested host may be another one than the real host's, for another architecture (`inside`). QEMU
//! and the guest files are of that architecture. A home's disk belongs to one of them (`folder`).

mod busy;
pub mod detect;
mod elf;
mod error;
mod folder;
mod inside;
pub mod keeper;
mod launcher;
mod monitor;
mod ports;
mod qemu;
mod router;
mod server;
mod sys;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub use boxlite_contract::nested::HostEnvironment;
use boxlite_kernel::{Arch, GuestFiles};

pub use error::Error;
pub use inside::{InnerLauncher, LAUNCHER_VARIABLE};
pub use launcher::{NestedCommand, connect, run};
pub use qemu::{MEMORY_VARIABLE, find as find_qemu};
pub(crate) use server::NestedServer;

use crate::launcher::LAUNCHER_PATH_VARIABLE;

/// The variable for the path of the nested host's kernel, for tests of other kernels; default: that of boxes.
pub const KERNEL_VARIABLE: &str = "BOXLITE_SOFTHOST_KERNEL";

/// The subcommand that runs [`keeper::main`] with the arguments of [`Options::from_args`].
pub const KEEPER_SUBCOMMAND: &str = "softhost-keeper";

/// The subcommand that runs [`relay_ports`] with the home as its argument. QEMU starts it.
pub const PORTS_SUBCOMMAND: &str = "softhost-ports";

/// The subcommand that exits when no box of the home is live. The keeper runs it in the nested host before it stops
/// the nested host.
pub const AWAIT_SUBCOMMAND: &str = "await-boxes";

/// Forwards a box's request for ports of this host from standard input to the keeper of `home`.
///
/// # Errors
/// There is no keeper, or it has exited.
pub fn relay_ports(home: &Path) -> Result<(), Error> {
    let keeper = folder::HostFolder::open(home)?.connect_for_ports()?;
    ports::relay(keeper).map_err(Error::Runtime)
}

/// Lets a process in the nested host outlive the command that started it, whose control group is killed as a whole.
pub(crate) fn outlive(pid: u32) {
    // Each command has a control group of its own; the root is that of no command.
    const ROOT: &str = "/sys/fs/cgroup/cgroup.procs";
    if HostEnvironment::detect().is_nested()
        && let Err(e) = std::fs::write(ROOT, pid.to_string())
    {
        tracing::warn!("process {pid} may be killed with the command that started it: {e}");
    }
}

/// The state folder of a nested host, and the files that it boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The box home; an absolute path.
    pub home: PathBuf,
    /// The architecture of the guest files, and of the programs that run in the nested host.
    pub arch: Arch,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// An empty ext4 file system, compressed with zstd.
    pub template: PathBuf,
    /// The launcher that runs in the nested host; none: this machine's.
    pub inner: Option<InnerLauncher>,
    /// The program with [`KEEPER_SUBCOMMAND`]; none: this program.
    pub launcher: Option<PathBuf>,
    /// A line for standard error if the nested host is started rather than shared.
    pub notice: Option<String>,
}

impl Options {
    /// Options for the nested host of `home`, with the guest files of the launcher that runs in it.
    ///
    /// # Errors
    /// There are no guest files for it, the variable [`LAUNCHER_VARIABLE`] names no launcher, or `home` is relative to
    /// a current directory that does not exist any more.
    pub fn locate(home: &Path) -> crate::Result<Self> {
        let inner = InnerLauncher::from_env().map_err(crate::Error::soft_host)?;
        let guest = locate_guest_files(inner.as_ref())?;
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|e| crate::Error::soft_host(Error::Runtime(e)))
        };
        Ok(Self {
            home: absolute(home)?,
            arch: guest.manifest.arch,
            kernel: absolute(&own_kernel().unwrap_or(guest.kernel))?,
            initramfs: absolute(&guest.initramfs)?,
            template: absolute(&guest.template)?,
            inner,
            launcher: None,
            notice: None,
        })
    }

    /// Parses the arguments of the keeper.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        let arch = args.next()?.to_str()?.parse().ok()?;
        let mut next = || args.next().map(PathBuf::from);
        let (home, kernel, initramfs, template) = (next()?, next()?, next()?, next()?);
        let inner = next().map(|path| InnerLauncher { path, arch });
        Some(Self { home, arch, kernel, initramfs, template, inner, launcher: None, notice: None })
    }

    /// The program and arguments of the keeper.
    fn keeper_command(&self) -> (PathBuf, Vec<OsString>) {
        let program = self.launcher.clone().unwrap_or_else(this_program);
        let paths = [&self.home, &self.kernel, &self.initramfs, &self.template];
        let inner = self.inner.as_ref().map(|inner| &inner.path);
        let paths = paths.into_iter().chain(inner).map(|path| path.clone().into_os_string());
        let words = [KEEPER_SUBCOMMAND, self.arch.name()].map(OsString::from);
        (program, words.into_iter().chain(paths).collect())
    }

    /// The environment of a command: that of this process, with [`inner_variables`](Self::inner_variables).
    fn environment(&self) -> Vec<(OsString, OsString)> {
        let own = self.inner_variables();
        let replaced = |name: &OsStr| own.iter().any(|(own, _)| own == name);
        let mut env: Vec<_> = std::env::vars_os().filter(|(name, _)| !replaced(name)).collect();
        env.extend(own);
        env
    }

    /// The variables by which programs in the nested host find their launcher and their guest files, where those are
    /// not this machine's.
    fn inner_variables(&self) -> Vec<(OsString, OsString)> {
        let Some(inner) = &self.inner else { return Vec::new() };
        let guest = self.initramfs.parent().unwrap_or(Path::new("/"));
        let variable = |name: &str, value: &OsStr| (name.into(), value.into());
        vec![
            variable(LAUNCHER_PATH_VARIABLE, inner.path.as_os_str()),
            variable(boxlite_kernel::GUEST_DIR_VARIABLE, guest.as_os_str()),
        ]
    }
}

/// Whether the nested host has a launcher: this machine's own one is for Linux, or the user has chosen another.
pub fn has_launcher(inner: Option<&InnerLauncher>) -> bool {
    detect::RUNS_ITSELF || inner.is_some()
}

/// The guest files for the boxes of this machine: those of the launcher in the nested host if the user has chosen one.
///
/// # Errors
/// There are none, or they are damaged.
pub fn locate_guest_files(inner: Option<&InnerLauncher>) -> crate::Result<GuestFiles> {
    let found = match inner {
        None => GuestFiles::locate(),
        Some(inner) => GuestFiles::locate_for_launcher(inner.arch, &inner.path),
    };
    Ok(found?)
}

/// The nested host's kernel that the user has chosen.
fn own_kernel() -> Option<PathBuf> {
    std::env::var_os(KERNEL_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// This process's program. On Linux, the path leads to it even if its file was replaced.
fn this_program() -> PathBuf {
    let link = Path::new("/proc/self/exe");
    if link.exists() { link.to_owned() } else { std::env::current_exe().unwrap_or_default() }
}
