//! A control group per exec, so that `Kill` finds every descendant, whatever it did to its session,
//! its parent or its process group.
//!
//! `/sys/fs/cgroup/boxlite/exec-N`, with the memory controller only, which counts those whom the
//! kernel killed because memory ran out. Where there is no cgroup v2, killing falls back to the
//! process group of the exec.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io;

const PARENT: &str = "/sys/fs/cgroup/boxlite";

/// The control groups of one server.
pub(crate) struct Cgroups {
    /// None where cgroup v2 is missing.
    parent: Option<PathBuf>,
    /// Groups whose exec has ended and which something it left behind still runs in.
    leftover: Vec<PathBuf>,
}

impl Cgroups {
    pub(crate) fn new() -> Self {
        let parent = Path::new(PARENT);
        let usable = rustix::fs::mkdir(parent, Mode::from_raw_mode(0o755))
            .is_ok_and(|()| parent.join("cgroup.kill").exists())
            || parent.join("cgroup.kill").exists();
        // Without it, nobody knows why a command was killed.
        let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
        Self { parent: usable.then(|| parent.to_owned()), leftover: Vec::new() }
    }

    /// Makes the group of an exec.
    pub(crate) fn create(&self, id: u64) -> Option<Cgroup> {
        let path = self.parent.as_ref()?.join(format!("exec-{id}"));
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)).ok()?;
        Some(Cgroup { path })
    }

    /// Removes the group of an ended exec, now or once it is empty.
    pub(crate) fn release(&mut self, group: Cgroup) {
        self.leftover.push(group.path);
        self.sweep();
    }

    /// Removes the groups that have become empty. To be called when processes have been reaped.
    pub(crate) fn sweep(&mut self) {
        self.leftover.retain(|path| rustix::fs::rmdir(path) == Err(io::Errno::BUSY));
    }
}

/// The control group of an exec.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Where a process enters the group by writing `0`.
    pub(crate) fn entrance(&self) -> io::Result<OwnedFd> {
        self.open("cgroup.procs")
    }

    /// SIGKILL to everything in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        rustix::io::write(self.open("cgroup.kill")?, b"1").map(drop)
    }

    /// Whether the kernel killed anything in it because memory ran out (kernel documentation,
    /// "Control Group v2", `memory.events`).
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = std::fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        oom_kills(&events) > 0
    }

    fn open(&self, file: &str) -> io::Result<OwnedFd> {
        rustix::fs::open(self.path.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

fn oom_kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_count() {
        assert_eq!(oom_kills("low 0\nhigh 1\nmax 7\noom 3\noom_kill 2\noom_group_kill 9\n"), 2);
        assert_eq!(oom_kills("oom 3\noom_kill 0\n"), 0);
        assert_eq!(oom_kills(""), 0);
        assert_eq!(oom_kills("oom_kill x"), 0);
    }
}
