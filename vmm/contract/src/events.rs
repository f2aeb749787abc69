//! What happens to boxes: one line of JSON for each event in `<home>/events.jsonl`, appended by
//! whoever makes it happen, a box's process among them. The log before it is
//! `<home>/events.old.jsonl`.
//!
//! A log that has one before it begins with a line that numbers it, by which followers know that it was moved
//! aside while they looked elsewhere.

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

/// How long the log's lock is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Between two tries to get it, at most.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Something that happened to a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// When: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The box's ID.
    pub id: String,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// It was made.
    Created {
        /// Its name.
        name: String,
        /// Its image.
        image: String,
    },
    /// Its name was changed.
    Renamed {
        /// The new one.
        name: String,
    },
    /// Its process began to boot the guest.
    Starting,
    /// The guest serves.
    Running,
    /// It stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// It has been asked to end.
    Stopping,
    /// Its main command, or its machine, began anew.
    Restarted {
        /// How often it has.
        restarts: u32,
    },
    /// Health checks changed their mind.
    Health {
        /// What they say now.
        status: HealthStatus,
    },
    /// It ended in good order.
    Stopped {
        /// The exit code of its main command, if it had one that ended.
        code: Option<u8>,
    },
    /// It ended otherwise.
    Failed {
        /// How.
        reason: String,
    },
    /// A command was started in it.
    ExecStarted {
        /// The command's process in the guest.
        pid: u32,
        /// The program; its arguments may be secret.
        program: String,
    },
    /// A command in it ended.
    ExecEnded {
        /// The command's process in the guest.
        pid: u32,
        /// How.
        status: ExitStatus,
    },
    /// Its network policy denied something; each flow and name is told of once.
    Denied {
        /// The flow or name: `tcp to 192.0.2.1:80`.
        what: String,
        /// The rule, or the default.
        why: String,
    },
    /// It was removed.
    Removed,
}

impl Event {
    /// An event of the box of this ID.
    pub fn new(at_ms: u64, id: impl Into<String>, kind: EventKind) -> Self {
        Self { at_ms, id: id.into(), kind }
    }

    /// Appends the event to a log that is open for appending: whole, whatever others append.
    pub fn append(&self, log: &File) -> io::Result<()> {
        self.append_within(log, LOCK_LIMIT).map(drop)
    }

    /// Appends the event, and waits for the log's lock so long at most. Returns whether it was had:
    /// an event that is written without it is lost if the log is just then moved aside.
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

/// The log before the one at `path`.
pub fn older(path: &Path) -> PathBuf {
    path.with_extension("old.jsonl")
}

/// The first line of a log, if there is one before it.
#[derive(Serialize, Deserialize)]
struct Heading {
    /// How many logs there have been before it.
    log: u64,
}

/// The longest heading, in bytes.
const MAX_HEADING: usize = 64;

/// Which log a file is: how many there have been before it. None while it is being begun anew.
pub fn number(log: &File) -> io::Result<Option<u64>> {
    let mut start = [0; MAX_HEADING];
    let read = log.read_at(&mut start, 0)?;
    let start = start.get(..read).unwrap_or_default();
    let line = start.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(match serde_json::from_slice::<Heading>(line) {
        Ok(Heading { log }) => Some(log),
        // The first has no heading. What is written anew has one before anything else.
        Err(_) if read == 0 => None,
        Err(_) => Some(0),
    })
}

/// Moves what is in a log of more than `max` bytes aside, in place of what was there. The log stays
/// the same file: others have it open.
pub fn move_aside(path: &Path, max: u64) -> io::Result<()> {
    if std::fs::metadata(path)?.len() <= max {
        return Ok(());
    }
    let log = File::options().append(true).open(path)?;
    if !lock(&log, LOCK_LIMIT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let moved = move_locked(path, &log, max);
    flock(&log, FlockOperation::Unlock)?;
    moved
}

fn move_locked(path: &Path, mut log: &File, max: u64) -> io::Result<()> {
    if log.metadata()?.len() > max {
        let number = number(&File::open(path)?)?.unwrap_or(0);
        let mut heading = serde_json::to_vec(&Heading { log: number + 1 })?;
        heading.push(b'\n');
        // In one step, for whoever reads it, and for good before the log is emptied.
        let copy = |to: &mut File| io::copy(&mut File::open(path)?, to).map(drop);
        durable::replace_with(&older(path), Durability::Power, copy)?;
        log.set_len(0)?;
        log.write_all(&heading)?;
    }
    Ok(())
}

/// Locks a log against others who write to it, and waits for them so long at most. Returns whether it
/// is locked.
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
    fn a_long_log_is_moved_aside_and_who_has_it_open_goes_on() {
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
        move_aside(&path, len).unwrap();
        assert!(!older(&path).exists());
        note("b");
        assert_eq!(number(&File::open(&path).unwrap()).unwrap(), Some(0));
        // Of a process that was killed right there.
        std::fs::write(dir.path().join(".events.old.jsonl.new"), "half").unwrap();
        move_aside(&path, len).unwrap();
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
