//! The event log of a home: one line of JSON for each event in `<home>/events.jsonl`, appended by the process
//! that causes the event, which may be a runtime or a box's VM process. A log that has grown long is moved
//! to `<home>/events.old.jsonl`.
//!
//! Each log but the first begins with a line that numbers it. By this number a follower notices a rotation
//! that happened between two reads.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_durable::{self as durable, Durability};
use boxlite_proto::message::ExitStatus;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::status::HealthStatus;

/// Timeout for the log's lock.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// The longest pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Something that happened to a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// When: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The box's ID.
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The box was created.
    Created {
        /// Its name.
        name: String,
        /// Its image.
        image: String,
    },
    /// The box was renamed.
    Renamed {
        /// The new name.
        name: String,
    },
    /// The VM process began to boot the guest.
    Starting,
    /// The guest serves requests.
    Running,
    /// The box was paused.
    Paused,
    /// The box was resumed.
    Resumed,
    /// The box began to stop.
    Stopping,
    /// The restart policy restarted the main command or the VM.
    Restarted {
        /// Restarts so far.
        restarts: u32,
    },
    /// The health status changed.
    Health {
        /// The new status.
        status: HealthStatus,
    },
    /// The box ended without a failure.
    Stopped {
        /// The exit code of the main command, if the box had one and it exited.
        code: Option<u8>,
    },
    /// The box failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// A command was started in the box.
    ExecStarted {
        /// The command's process in the guest.
        pid: u32,
        /// The program; its arguments may be secret.
        program: String,
    },
    /// A command in the box exited.
    ExecEnded {
        /// The command's process in the guest.
        pid: u32,
        /// Its exit status.
        status: ExitStatus,
    },
    /// The network policy denied a flow or a name; reported once for each.
    Denied {
        /// The flow or name: `tcp to 192.0.2.1:80`.
        what: String,
        /// The rule that denied it, or the default.
        why: String,
    },
    /// The box was removed.
    Removed,
}

impl Event {
    /// An event of the box with this ID.
    pub fn new(at_ms: u64, id: impl Into<String>, kind: EventKind) -> Self {
        Self { at_ms, id: id.into(), kind }
    }

    /// Appends the event to a log that is open for appending. Lines of concurrent writers don't mix.
    pub fn append(&self, log: &File) -> io::Result<()> {
        self.append_within(log, LOCK_LIMIT).map(drop)
    }

    /// Appends the event, and waits for the log's lock for `limit` at most. Returns whether the lock was
    /// acquired: an event that is written without it is lost if the log is rotated at that moment.
    pub fn append_within(&self, log: &File, limit: Duration) -> io::Result<bool> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let locked = lock(log, limit)?;
        let written = (&mut &*log).write_all(&line);
        if locked {
            flock(log, FlockOperation::Unlock)?;
        }
        written.map(|()| locked)
    }
}

/// The path of the log before the one at `path`.
pub fn older(path: &Path) -> PathBuf {
    path.with_extension("old.jsonl")
}

/// The first line of every log but the first.
#[derive(Serialize, Deserialize)]
struct Heading {
    /// The number of logs before this one.
    log: u64,
}

/// The longest heading, in bytes.
const MAX_HEADING: usize = 64;

/// The number of logs before this one; `None` while the log is being rotated.
pub fn number(log: &File) -> io::Result<Option<u64>> {
    let mut start = [0; MAX_HEADING];
    let read = log.read_at(&mut start, 0)?;
    let start = start.get(..read).unwrap_or_default();
    let line = start.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(match serde_json::from_slice::<Heading>(line) {
        Ok(Heading { log }) => Some(log),
        // The first log has no heading. A rotated one gets its heading before anything else.
        Err(_) if read == 0 => None,
        Err(_) => Some(0),
    })
}

/// Rotates a log of more than `max` bytes: its content replaces that of the [`older`] log. The log itself
/// stays the same file, because other processes have it open.
pub fn rotate(path: &Path, max: u64) -> io::Result<()> {
    if std::fs::metadata(path)?.len() <= max {
        return Ok(());
    }
    let log = File::options().append(true).open(path)?;
    if !lock(&log, LOCK_LIMIT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let moved = rotate_locked(path, &log, max);
    flock(&log, FlockOperation::Unlock)?;
    moved
}

fn rotate_locked(path: &Path, mut log: &File, max: u64) -> io::Result<()> {
    if log.metadata()?.len() > max {
        let number = number(&File::open(path)?)?.unwrap_or(0);
        let mut heading = serde_json::to_vec(&Heading { log: number + 1 })?;
        heading.push(b'\n');
        // Atomic for readers, and on stable storage before the log is truncated.
        let copy = |to: &mut File| io::copy(&mut File::open(path)?, to).map(drop);
        durable::replace_with(&older(path), Durability::Power, copy)?;
        log.set_len(0)?;
        log.write_all(&heading)?;
    }
    Ok(())
}

/// Locks a log against other writers, and waits for the lock for `limit` at most. Returns whether the lock
/// was acquired.
fn lock(log: &File, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        match flock(log, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {}
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LOCK_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_rotated_and_open_writers_keep_appending() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let log = File::options().append(true).create(true).open(&path).unwrap();
        let note = |id: &str| {
            let event = Event { at_ms: 1, id: id.into(), kind: EventKind::Running };
            event.append(&log).unwrap();
        };
        let ids = |path: &Path| -> Vec<String> {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().flat_map(serde_json::from_str::<Event>).map(|event| event.id).collect()
        };
        note("a");
        let len = log.metadata().unwrap().len();
        rotate(&path, len).unwrap();
        assert!(!older(&path).exists());
        note("b");
        assert_eq!(number(&File::open(&path).unwrap()).unwrap(), Some(0));
        // Left by a process that was killed during a rotation.
        std::fs::write(dir.path().join(".events.old.jsonl.new"), "half").unwrap();
        rotate(&path, len).unwrap();
        note("c");
        assert_eq!(number(&File::open(&path).unwrap()).unwrap(), Some(1));
        assert_eq!(number(&File::open(older(&path)).unwrap()).unwrap(), Some(0));
        assert_eq!(
            (ids(&older(&path)), ids(&path)),
            (vec!["a".into(), "b".into()], vec!["c".into()])
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left over");
    }
}
