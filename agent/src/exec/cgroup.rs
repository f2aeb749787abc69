//! A control group for each exec, so that `Kill` finds every descendant, whatever session, parent or process
//! group it has.
//!
//! The path is `/sys/fs/cgroup/boxlite/slot-N/exec-M`. An exec's own group has no controllers, which keeps it
//! cheap. The slot around it has the memory controller, which counts OOM kills. A slot has one exec at a time
//! and is used again: the kernel keeps a removed group with that controller (some 65 KiB) for as long as it
//! caches a page of a file that was first read or written there.
//!
//! Without cgroup v2, killing falls back to the process group of the exec. With cgroup v2, a command that
//! cannot get or enter its group is not run: killing its group would kill nothing.
//!
//! Groups are reached by descriptors, so mounts of the box over their directory do not matter.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io;

const PARENT: &str = "/sys/fs/cgroup/boxlite";

/// Limit on idle slots that are kept for later execs.
const MAX_IDLE: usize = 32;

/// The control groups of one server.
pub(crate) struct Cgroups {
    /// None where cgroup v2 is missing.
    parent: Option<OwnedFd>,
    /// Number of slots made so far.
    slots: u64,
    idle: Vec<Slot>,
    /// Groups of ended execs that still contain processes.
    leftover: Vec<Cgroup>,
}

/// The control group of an exec.
pub(crate) struct Cgroup {
    name: String,
    dir: OwnedFd,
    slot: Slot,
    /// The slot's count at the start of the exec.
    oom_kills: u64,
}

struct Slot {
    name: String,
    dir: OwnedFd,
}

impl Cgroups {
    pub(crate) fn new() -> Self {
        Self { parent: open_parent(), slots: 0, idle: Vec::new(), leftover: Vec::new() }
    }

    /// Makes the group of an exec; none without cgroup v2.
    pub(crate) fn create(&mut self, id: u64) -> io::Result<Option<Cgroup>> {
        let Some(parent) = &self.parent else { return Ok(None) };
        let name = format!("exec-{id}");
        // Root in the box may have removed an idle slot.
        while let Some(slot) = self.idle.pop() {
            if let Ok(dir) = make_dir(&slot.dir, &name) {
                return Ok(Some(Cgroup::new(name, dir, slot)));
            }
        }
        self.slots += 1;
        let slot = Slot::make(parent, self.slots)?;
        let dir = make_dir(&slot.dir, &name)?;
        Ok(Some(Cgroup::new(name, dir, slot)))
    }

    /// Removes the group of an ended exec, now or once it is empty.
    pub(crate) fn release(&mut self, group: Cgroup) {
        self.leftover.push(group);
        self.sweep();
    }

    /// Removes the groups that have become empty. To be called when processes have been reaped.
    pub(crate) fn sweep(&mut self) {
        let is_removed =
            |group: &mut Cgroup| remove_dir(&group.slot.dir, &group.name) != Err(io::Errno::BUSY);
        for Cgroup { slot, .. } in self.leftover.extract_if(.., is_removed) {
            if self.idle.len() < MAX_IDLE {
                self.idle.push(slot);
            } else if let Some(parent) = &self.parent {
                let _ = remove_dir(parent, &slot.name);
            }
        }
    }
}

impl Cgroup {
    fn new(name: String, dir: OwnedFd, slot: Slot) -> Self {
        Self { name, dir, oom_kills: slot.oom_kills(), slot }
    }

    /// Opens `cgroup.procs`: a process enters the group by writing `0` to it.
    pub(crate) fn open_procs(&self) -> io::Result<OwnedFd> {
        open(&self.dir, "cgroup.procs", OFlags::WRONLY)
    }

    /// Sends SIGKILL to every process in the group.
    pub(crate) fn kill(&self) -> io::Result<()> {
        rustix::io::write(open(&self.dir, "cgroup.kill", OFlags::WRONLY)?, b"1").map(drop)
    }

    /// Whether the kernel killed a process in it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.slot.oom_kills() > self.oom_kills
    }
}

impl Slot {
    fn make(parent: &OwnedFd, number: u64) -> io::Result<Self> {
        let name = format!("slot-{number}");
        Ok(Self { dir: make_dir(parent, &name)?, name })
    }

    /// Number of OOM kills in it; 0 without the controller.
    fn oom_kills(&self) -> u64 {
        let mut events = Vec::new();
        if let Ok(file) = open(&self.dir, "memory.events", OFlags::RDONLY) {
            let _ = std::fs::File::from(file).read_to_end(&mut events);
        }
        oom_kills(&events)
    }
}

/// Opens the directory of all groups, if this kernel can kill groups.
fn open_parent() -> Option<OwnedFd> {
    let parent = make_dir(rustix::fs::CWD, PARENT).ok()?;
    rustix::fs::statat(&parent, "cgroup.kill", AtFlags::empty()).ok()?;
    // Without the controller, an OOM kill looks like any other kill.
    if let Ok(control) = open(&parent, "cgroup.subtree_control", OFlags::WRONLY) {
        let _ = rustix::io::write(control, b"+memory");
    }
    Some(parent)
}

/// Makes and opens a directory. An existing one was made by an earlier server.
fn make_dir(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(io::Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    open(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
}

fn remove_dir(parent: &OwnedFd, name: &str) -> io::Result<()> {
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open(dir: impl AsFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Parses `memory.events` (kernel documentation, "Control Group v2").
fn oom_kills(events: &[u8]) -> u64 {
    let mut lines = events.split(|b| *b == b'\n');
    let count = lines.find_map(|line| line.strip_prefix(b"oom_kill "));
    count.and_then(|count| std::str::from_utf8(count).ok()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
