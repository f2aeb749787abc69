//! The end of the machine: everything ends, everything is on disk, the host knows, reset.

use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

use crate::exec::reaper::{Reaped, reap};
use crate::host::connection::Connection;
use crate::inspect::mountinfo::MountTable;
use crate::sys;

/// How long killed processes are waited for: one in an uninterruptible call may never end.
const KILLED: Duration = Duration::from_secs(2);

/// How long the last frame may take to leave.
const LAST_FRAME: Duration = Duration::from_secs(1);

/// A shutdown under way: all processes have been asked to end.
pub(crate) struct Shutdown {
    deadline: Instant,
    everyone_is_gone: bool,
    /// The connection and stream that asked for it and are to be answered.
    pub(crate) requested_by: Option<(u64, u32)>,
}

impl Shutdown {
    /// Asks all processes to end.
    pub(crate) fn begin(grace: Duration, requested_by: Option<(u64, u32)>) -> Self {
        if !grace.is_zero() {
            let _ = sys::signal::signal_everyone(libc::SIGTERM);
            // A stopped process ends only once it goes on.
            let _ = sys::signal::signal_everyone(libc::SIGCONT);
        }
        Self { deadline: Instant::now() + grace, everyone_is_gone: false, requested_by }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn everyone_is_gone(&mut self) {
        self.everyone_is_gone = true;
    }

    /// Whether nothing is left to be waited for.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.everyone_is_gone || now >= self.deadline
    }
}

/// Writes everything to the disk and waits until it is there.
pub(crate) fn sync() -> io::Result<()> {
    // syncfs, unlike sync, reports errors.
    let root = rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    rustix::fs::sync();
    rustix::fs::syncfs(root)
}

/// Kills what is left and takes the file systems down, so that they need no recovery.
pub(crate) fn end_everything() {
    let _ = sys::signal::signal_everyone(libc::SIGKILL);
    let deadline = Instant::now() + KILLED;
    while !matches!(reap(), Reaped::NoChildren) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    for point in mounts_to_end(&MountTable::read()) {
        let _ = unmount(&point[..], UnmountFlags::DETACH);
    }
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    rustix::fs::sync();
}

/// Mount points to be unmounted, innermost first: of file systems that are not the kernel's own, and not the
/// root, which is remounted read-only.
fn mounts_to_end(table: &MountTable) -> Vec<Vec<u8>> {
    let mounts = table.mounts().filter(|mount| !mount.is_kernel());
    mounts.map(|mount| mount.point()).filter(|point| point != b"/").rev().collect()
}

/// Sends the last frame and sees it leave the machine, for a moment at most.
pub(crate) fn send_last(mut connection: Connection) {
    if connection.is_serial() {
        send_last_on_port(connection);
        return;
    }
    let deadline = Instant::now() + LAST_FRAME;
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

/// A blocking write to a virtio-serial port returns once the host has the bytes; if it never takes
/// them, the write never returns, so the machine is reset from beside it.
fn send_last_on_port(mut connection: Connection) {
    if let Ok(flags) = rustix::fs::fcntl_getfl(connection.fd()) {
        let _ = rustix::fs::fcntl_setfl(connection.fd(), flags - OFlags::NONBLOCK);
    }
    let watchdog = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(LAST_FRAME);
        reset();
    });
    if watchdog.is_ok() {
        connection.notify(crate::sys::poller::Ready { write: true, ..Default::default() });
        let _ = connection.flush();
    }
}

/// Resets the machine, which ends it.
pub(crate) fn reset() {
    if let Err(e) = reboot(RebootCommand::Restart) {
        crate::log::error(format_args!("cannot reset the machine: {e}"));
    }
}

#[cfg(test)]
mod tests;
