//! What is asked of a guest beside commands: its state, its processes, its files.
//!
//! As everything here, these messages never change once they have been used: a field more is a
//! message more.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The most processes in one answer.
pub const MAX_PROCESSES: usize = 4096;

/// The longest command line of a process, in bytes; what is longer is cut off.
pub const MAX_COMMAND: usize = 512;

/// The longest name of a process, in bytes. The kernel's own are of 15, its workers' of up to 63.
pub const MAX_NAME: usize = 64;

/// The longest target of a symlink, in bytes (`PATH_MAX`).
pub const MAX_LINK: usize = 4096;

/// How a machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMetrics {
    /// Bytes of memory that the kernel manages.
    pub memory_total: u64,
    /// Bytes in use that cannot be given to new programs: what is not available.
    pub memory_used: u64,
    /// Bytes that new programs can have, caches included.
    pub memory_available: u64,
    /// Bytes of swap.
    pub swap_total: u64,
    /// Bytes of swap in use.
    pub swap_used: u64,
    /// Bytes of the root file system.
    pub disk_size: u64,
    /// Bytes of it in use.
    pub disk_used: u64,
    /// Bytes of it that can be written; reserved ones are neither free nor used.
    pub disk_free: u64,
    /// Files and directories that the root file system can hold; 0 where there is no limit.
    pub files_total: u64,
    /// How many more it can hold.
    pub files_free: u64,
    /// Microseconds since the boot.
    pub uptime_us: u64,
    /// Load averages of the last 1, 5 and 15 minutes, times 100.
    pub load_x100: [u32; 3],
    /// Processes.
    pub processes: u32,
    /// CPUs.
    pub cpus: u32,
    /// Microseconds that all CPUs together spent in programs.
    pub cpu_user_us: u64,
    /// Microseconds that all CPUs together spent in the kernel, interrupts included.
    pub cpu_system_us: u64,
    /// Microseconds that all CPUs together had nothing to do, or waited for a disk.
    pub cpu_idle_us: u64,
    /// Processes that were killed because memory ran out.
    pub oom_kills: u64,
}

/// What became of the commands that hosts asked for, since the boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCounts {
    /// Commands that were started, a box's main command and its health checks among them.
    pub started: u64,
    /// Commands that could not be: there was no such program, user or directory, or too many ran.
    pub refused: u64,
    /// Those that run now.
    pub running: u64,
    /// Those that ended with another exit code than 0, or by a signal.
    pub failed: u64,
    /// Of these, those that ended because memory ran out.
    pub out_of_memory: u64,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its ID.
    pub pid: u32,
    /// The ID of its parent; 0 for the first ones.
    pub ppid: u32,
    /// Whom it runs as (the effective user).
    pub uid: u32,
    /// What it does, as the kernel abbreviates it: `R`unning, `S`leeping, in `D`isk sleep, a
    /// `Z`ombie, s`T`opped, …
    pub state: u8,
    /// Threads.
    pub threads: u32,
    /// Microseconds from the boot to its start.
    pub started_us: u64,
    /// Microseconds that it spent on CPUs.
    pub cpu_us: u64,
    /// Bytes of it in memory.
    pub rss: u64,
    /// Its name; at most [`MAX_NAME`] bytes.
    pub name: Vec<u8>,
    /// Its arguments, each ended by a NUL; at most [`MAX_COMMAND`] bytes, and none for a thread of
    /// the kernel's.
    pub command: Vec<u8>,
}

/// Asks what is at a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The path, from the root. Symlinks on the way are followed.
    pub path: Vec<u8>,
    /// Whether a symlink at the path itself is followed, too.
    pub follow: bool,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Bytes of a file.
    pub size: u64,
    /// Permissions with setuid, setgid and sticky bits (`0o7777`).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was changed: seconds since the Unix epoch.
    pub mtime: i64,
    /// When it was changed: nanoseconds after `mtime`.
    pub mtime_ns: u32,
    /// What a symlink says, at most [`MAX_LINK`] bytes; empty for everything else.
    pub link_target: Vec<u8>,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Something that this version does not know.
    Other,
}

/// Asks to unpack a tar.
///
/// As with `tar -x`, what is there is replaced, a directory is kept and gets what it lacks, and one
/// that is not empty is not replaced by something else. No entry is written outside of the directory,
/// whatever its name and whatever symlinks are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// The directory, from the root; symlinks are followed.
    pub path: Vec<u8>,
    /// Whether the directory, and those above it, are made if they are not there.
    pub create: bool,
    /// Whom everything is to belong to; none: as the tar says.
    pub owner: Option<Owner>,
}

/// Whom a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Asks for a tar.
///
/// Entries are named by the last component of the path and what is below it; by `.` and what is below
/// it where the path is `/` or ends in `/.`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOut {
    /// The file or directory, from the root. Symlinks on the way are followed.
    pub path: Vec<u8>,
    /// Whether a symlink at the path itself is followed, too. Those below never are.
    pub follow: bool,
}

/// Reads no more processes than there may be: a short one in the frame is a large one in memory.
pub(crate) fn bounded_processes<'de, D>(deserializer: D) -> Result<Vec<Process>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Bounded;

    impl<'de> Visitor<'de> for Bounded {
        type Value = Vec<Process>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_PROCESSES} processes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
            let mut processes = Vec::new();
            while let Some(process) = from.next_element()? {
                if processes.len() == MAX_PROCESSES {
                    return Err(A::Error::invalid_length(processes.len() + 1, &self));
                }
                processes.push(process);
            }
            Ok(processes)
        }
    }

    deserializer.deserialize_seq(Bounded)
}
