//! Messages about the guest's state, processes and files.
//!
//! As all messages of this crate, they never change once they are in use: a new field needs a new message.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Limit on the processes in one response.
pub const MAX_PROCESSES: usize = 4096;

/// Limit on the command line of a process, in bytes; the rest is cut off.
pub const MAX_COMMAND: usize = 512;

/// Limit on the name of a process, in bytes. Names have up to 15, those of kernel workers up to 63.
pub const MAX_NAME: usize = 64;

/// Limit on the target of a symlink, in bytes (`PATH_MAX`).
pub const MAX_LINK: usize = 4096;

/// Metrics of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMetrics {
    /// Bytes of memory that the kernel manages.
    pub memory_total: u64,
    /// Bytes of memory that are not available to new programs.
    pub memory_used: u64,
    /// Bytes of memory that are available to new programs, caches included.
    pub memory_available: u64,
    /// Bytes of swap.
    pub swap_total: u64,
    /// Bytes of swap in use.
    pub swap_used: u64,
    /// Bytes of the root file system.
    pub disk_size: u64,
    /// Bytes of it in use.
    pub disk_used: u64,
    /// Bytes of it that can be written; reserved bytes are neither free nor used.
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
    /// Microseconds that all CPUs together were idle, or waited for a disk.
    pub cpu_idle_us: u64,
    /// Processes that were killed because memory ran out.
    pub oom_kills: u64,
}

/// Counters of the commands since the boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCounts {
    /// Commands that were started, including a box's main command and its health checks.
    pub started: u64,
    /// Commands that could not be started: no such program, user or directory, or too many running commands.
    pub refused: u64,
    /// Commands that run now.
    pub running: u64,
    /// Commands that exited with a code other than 0, or by a signal.
    pub failed: u64,
    /// Failed commands that ended because memory ran out.
    pub out_of_memory: u64,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its ID.
    pub pid: u32,
    /// The ID of its parent; 0 for the first ones.
    pub ppid: u32,
    /// The effective user.
    pub uid: u32,
    /// Its state, as the kernel abbreviates it: `R`unning, `S`leeping, in `D`isk sleep, a `Z`ombie, s`T`opped, …
    pub state: u8,
    /// Threads.
    pub threads: u32,
    /// Microseconds from the boot to its start.
    pub started_us: u64,
    /// Microseconds that it spent on CPUs.
    pub cpu_us: u64,
    /// Bytes of its resident memory.
    pub rss: u64,
    /// Its name; at most [`MAX_NAME`] bytes.
    pub name: Vec<u8>,
    /// Its arguments, each ended by a NUL; at most [`MAX_COMMAND`] bytes, and empty for a kernel thread.
    pub command: Vec<u8>,
}

/// Requests the metadata of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// The path, from the root. Symlinks on the way are followed.
    pub path: Vec<u8>,
    /// Whether a symlink at the path itself is followed, too.
    pub follow: bool,
}

/// The metadata of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// The kind of the file.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permissions with setuid, setgid and sticky bits (`0o7777`).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of the last modification, in seconds since the Unix epoch.
    pub mtime: i64,
    /// Nanoseconds to add to `mtime`.
    pub mtime_ns: u32,
    /// The target of a symlink, at most [`MAX_LINK`] bytes; empty for other kinds.
    pub link_target: Vec<u8>,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
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
    /// A kind that this version does not know.
    Other,
}

/// Requests to unpack a tar into a directory.
///
/// As with `tar -x`, existing files are replaced, directories are merged, and a directory that is not empty is not
/// replaced by another kind of file. No entry is written outside of the directory, whatever its name and whatever
/// symlinks exist there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// The directory, from the root; symlinks are followed.
    pub path: Vec<u8>,
    /// Whether to create the directory and its parents if they are missing.
    pub create: bool,
    /// The owner of all entries; none for the owners in the tar.
    pub owner: Option<Owner>,
}

/// The owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Requests a tar of a file or a tree.
///
/// The names of the entries start with the last component of the path, or with `.` if the path is `/` or ends in
/// `/.`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOut {
    /// The file or directory, from the root. Symlinks on the way are followed.
    pub path: Vec<u8>,
    /// Whether a symlink at the path itself is followed, too. Those below never are.
    pub follow: bool,
}

/// Deserializes at most [`MAX_PROCESSES`]: a process that is short in the frame is large in memory.
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
