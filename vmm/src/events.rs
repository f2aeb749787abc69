//! What happens to boxes: one line of JSON for each event in `<home>/events.jsonl`, appended by
//! whoever makes it happen, a box's process among them.

use std::fs::File;
use std::io::{self, Write};

use boxlite_proto::message::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::machine::HealthStatus;

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
    /// It was removed.
    Removed,
}

impl Event {
    /// Appends the event to a log that is open for appending: whole, whatever others append.
    pub(crate) fn append(&self, mut log: &File) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        log.write_all(&line)
    }
}
