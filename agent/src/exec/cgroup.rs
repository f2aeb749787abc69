//! A control group per exec, so that `Kill` finds every descendant, whatever it did to its session,
//! its parent or its process group.
//!
//! `/sys/fs/cgroup/boxlite/slot-N/exec-M`. An exec's own group has no controllers, which keeps it
//! cheap. The slot around it has the memory controller, which counts those whom the kernel killed
//! because memory ran out. A slot has one exec at a time, and many one after another: the kernel keeps
//! a removed group with that controller (some 65 KiB) for as long as it caches a page of a file that
//! was first read or written there.
//!
//! Where there is no cgroup v2, killing falls back to the process group of the exec.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io;

const PARENT: &str = "/sys/fs/cgroup/boxlite";

/// More slots than this are not kept for later.
const MAX_IDLE: usize = 32;

/// The control groups of one server.
pub(crate) struct Cgroups {
    /// None where cgroup v2 is missing.
    parent: Option<PathBuf>,
    /// Slots that were made.
    slots: u64,
    idle: Vec<Slot>,
    /// Groups whose exec has ended and which something it left behind still runs in.
    leftover: Vec<Cgroup>,
}

/// The control group of an exec.
pub(crate) struct Cgroup {
    path: PathBuf,
    slot: Slot,
    /// What the slot had counted before.
    oom_kills: u64,
}

struct Slot {
    path: PathBuf,
}

impl Cgroups {
    pub(crate) fn new() -> Self {
        let parent = Path::new(PARENT);
        let usable = make_dir(parent).is_ok() && parent.join("cgroup.kill").exists();
        if usable {
            // Without it, nobody knows why a command was killed.
            let _ = std::fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let parent = usable.then(|| parent.to_owned());
        Self { parent, slots: 0, idle: Vec::new(), leftover: Vec::new() }
    }

    /// Makes the group of an exec.
    pub(crate) fn create(&mut self, id: u64) -> Option<Cgroup> {
        let parent = self.parent.as_ref()?;
        let slot = match self.idle.pop() {
            Some(slot) => slot,
            None => {
                self.slots += 1;
                Slot::make(parent.join(format!("slot-{}", self.slots))).ok()?
            }
        };
        let path = slot.path.join(format!("exec-{id}"));
        match make_dir(&path) {
            Ok(()) => Some(Cgroup { path, oom_kills: slot.oom_kills(), slot }),
            Err(_) => {
                self.idle.push(slot);
                None
            }
        }
    }

    /// Removes the group of an ended exec, now or once it is empty.
    pub(crate) fn release(&mut self, group: Cgroup) {
        self.leftover.push(group);
        self.sweep();
    }

    /// Removes the groups that have become empty. To be called when processes have been reaped.
    pub(crate) fn sweep(&mut self) {
        let is_gone = |group: &mut Cgroup| rustix::fs::rmdir(&group.path) != Err(io::Errno::BUSY);
        for Cgroup { slot, .. } in self.leftover.extract_if(.., is_gone) {
            if self.idle.len() < MAX_IDLE {
                self.idle.push(slot);
            } else {
                let _ = rustix::fs::rmdir(&slot.path);
            }
        }
    }
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

    /// Whether the kernel killed anything in it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.slot.oom_kills() > self.oom_kills
    }

    fn open(&self, file: &str) -> io::Result<OwnedFd> {
        rustix::fs::open(self.path.join(file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

impl Slot {
    fn make(path: PathBuf) -> io::Result<Self> {
        make_dir(&path).map(|()| Self { path })
    }

    /// How many the kernel has killed in it; without the controller, it does not know.
    fn oom_kills(&self) -> u64 {
        oom_kills(&std::fs::read(self.path.join("memory.events")).unwrap_or_default())
    }
}

/// One that is there already is a former server's.
fn make_dir(path: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(io::Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Out of `memory.events` (kernel documentation, "Control Group v2").
fn oom_kills(events: &[u8]) -> u64 {
    let mut lines = events.split(|b| *b == b'\n');
    let count = lines.find_map(|line| line.strip_prefix(b"oom_kill "));
    count.and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_count() {
        assert_eq!(oom_kills(b"low 0\nhigh 1\nmax 7\noom 3\noom_kill 2\noom_group_kill 9\n"), 2);
        assert_eq!(oom_kills(b"oom 3\noom_kill 0\n"), 0);
        assert_eq!(oom_kills(b""), 0);
        assert_eq!(oom_kills(b"oom_kill x"), 0);
    }
}
