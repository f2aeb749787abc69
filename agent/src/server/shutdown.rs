//! Shuts the guest down: ends all processes, unmounts the disks, answers the host, resets the VM.

use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

use crate::exec::reaper::{Reaped, reap};
use crate::host::connection::Connection;
use crate::inspect::mountinfo::MountTable;
use crate::sys;

/// Timeout for killed processes to exit: one in an uninterruptible system call may never exit.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout for the host to take the last frame.
const LAST_FRAME_TIMEOUT: Duration = Duration::from_secs(1);

/// A shutdown in progress: all processes have been asked to exit.
pub(crate) struct Shutdown {
    deadline: Instant,
    no_processes_left: bool,
    /// The connection and stream of the request, which is answered at the end.
    pub(crate) requested_by: Option<(u64, u32)>,
}

impl Shutdown {
    /// Asks all processes to exit, if there is a grace period.
    pub(crate) fn begin(grace: Duration, requested_by: Option<(u64, u32)>) -> Self {
        if !grace.is_zero() {
            let _ = sys::signal::signal_all(libc::SIGTERM);
            // A stopped process handles SIGTERM only once it continues.
            let _ = sys::signal::signal_all(libc::SIGCONT);
        }
        Self { deadline: Instant::now() + grace, no_processes_left: false, requested_by }
    }

    /// When the grace period ends.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Records that all processes have exited.
    pub(crate) fn no_processes_left(&mut self) {
        self.no_processes_left = true;
    }

    /// Whether all processes have exited, or the grace period is over.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.no_processes_left || now >= self.deadline
    }
}

/// Writes all cached data to the disk, and waits for it.
pub(crate) fn sync() -> io::Result<()> {
    // syncfs, unlike sync, reports errors.
    let root = rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    rustix::fs::sync();
    rustix::fs::syncfs(root)
}

/// Kills the remaining processes and unmounts the file systems, so that they need no recovery.
pub(crate) fn kill_and_unmount() {
    let _ = sys::signal::signal_all(libc::SIGKILL);
    let deadline = Instant::now() + KILL_TIMEOUT;
    while !matches!(reap(), Reaped::NoChildren) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    for point in mounts_to_unmount(&MountTable::read()) {
        let _ = unmount(&point[..], UnmountFlags::DETACH);
    }
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    rustix::fs::sync();
}

/// The mount points to unmount, innermost first: not those of the kernel's own file systems, and not the root,
/// which is remounted read-only.
fn mounts_to_unmount(table: &MountTable) -> Vec<Vec<u8>> {
    let mounts = table.mounts().filter(|mount| !mount.is_kernel());
    mounts.map(|mount| mount.point()).filter(|point| point != b"/").rev().collect()
}

/// Sends the last frame, and waits until the host has taken it or the timeout is over.
pub(crate) fn send_last(mut connection: Connection) {
    if connection.is_serial() {
        send_last_on_port(connection);
        return;
    }
    let deadline = Instant::now() + LAST_FRAME_TIMEOUT;
    while Instant::now() < deadline {
        connection.notify(crate::sys::poller::Ready { write: true, ..Default::default() });
        if connection.flush().is_err() {
            return;
        }
        if connection.session.waiting() == 0 && sys::ioctl::unsent_bytes(connection.fd()) == Ok(0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends the last frame on a virtio-serial port. A blocking write there returns once the host has taken the
/// bytes. If the host never takes them, the write never returns, so a second thread resets the VM.
fn send_last_on_port(mut connection: Connection) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(connection.fd()) {
        let _ = rustix::fs::fcntl_setfl(connection.fd(), flags - OFlags::NONBLOCK);
    }
    let watchdog = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(LAST_FRAME_TIMEOUT);
        reset();
    });
    if watchdog.is_ok() {
        connection.notify(crate::sys::poller::Ready { write: true, ..Default::default() });
        let _ = connection.flush();
    }
}

/// Resets the VM, which ends it.
pub(crate) fn reset() {
    if let Err(e) = reboot(RebootCommand::Restart) {
        crate::log::error(format_args!("cannot reset the VM: {e}"));
    }
}

#[cfg(test)]
mod tests;
