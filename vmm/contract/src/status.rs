//! The status of a VM process: `status.json` in the box's folder, replaced atomically at each change.
//!
//! The lock of the folder says whether the box runs. The status says what the box does, and how it ended.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_durable::{self as durable, Durability};
use boxlite_net_policy::PublishedPort;
use boxlite_proto::message::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::boot::BootStage;

/// The name of the file in the box's folder.
pub const STATUS_FILE: &str = "status.json";

/// The state of a box's VM process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What the process does.
    pub phase: Phase,
    /// The process ID.
    pub pid: u32,
    /// When the process started: milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The stages of the last boot, each in microseconds since the boot began.
    pub stages: Vec<(BootStage, u64)>,
    /// The main command's process ID in the guest, while the command runs.
    pub main_pid: Option<u32>,
    /// The number of restarts by the restart policy.
    pub restarts: u32,
    /// The health, if the box has a health check.
    pub health: Option<Health>,
    /// The published ports.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// How the box ended; with [`Phase::Ended`].
    pub ended: Option<BoxEnd>,
    /// Whether the box's disks were synced before this status was written; with [`Phase::Ended`].
    #[serde(default)]
    pub disk_synced: bool,
}

/// What a VM process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The guest boots, or is about to.
    Starting,
    /// The guest serves requests.
    Running,
    /// The vCPUs are paused.
    Paused,
    /// The box is ending.
    Stopping,
    /// The box has ended.
    Ended,
}

/// How and when a box ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxEnd {
    /// Why.
    #[serde(rename = "end")]
    pub cause: EndCause,
    /// When: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How the main command ended, if it ran and ended.
    pub main: Option<MainEnd>,
}

/// How a main command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MainEnd {
    /// The command ran and exited.
    Exited {
        /// Its exit code or signal.
        status: ExitStatus,
        /// Whether the guest's kernel killed the command because it ran out of memory.
        out_of_memory: bool,
    },
    /// The command could not be started.
    NotStarted {
        /// The exit code that a shell would return: 127 for not found, 126 for not executable, else 125.
        code: u8,
        /// Why.
        message: String,
    },
}

/// Why a box ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndCause {
    /// The main command exited.
    Main,
    /// The guest powered itself off or reset itself.
    Guest,
    /// The box was stopped on request.
    Stopped,
    /// The box was killed on request.
    Killed,
    /// The process that started the box exited, and the box is not detached.
    Orphaned,
    /// The guest's kernel panicked; the last lines of its console.
    Panic(Vec<String>),
    /// The agent gave up; its message.
    Agent(String),
    /// The guest was not ready in time.
    NotReady {
        /// The timeout in milliseconds.
        timeout_ms: u64,
        /// The last stage that the boot reached.
        stage: Option<BootStage>,
    },
    /// The host had no space left for the guest's writes to this disk.
    DiskFull(String),
    /// A published port could not be opened: which and why.
    Port(String),
    /// The health checks failed; the output of the last one.
    Unhealthy(String),
    /// The VM could not be built or could not continue.
    Failed(String),
}

impl fmt::Display for EndCause {
    /// One line for people. It contains text from the guest, unescaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => write!(f, "its main command ended"),
            Self::Guest => write!(f, "the guest switched itself off"),
            Self::Stopped => write!(f, "it was stopped"),
            Self::Killed => write!(f, "it was killed"),
            Self::Orphaned => write!(f, "the process that started it is gone"),
            Self::Panic(lines) => {
                let line = lines.iter().rev().find(|line| line.contains("panic"));
                write!(f, "the guest's kernel panicked: {}", line.map_or("", |line| line.trim()))
            }
            Self::Agent(message) => write!(f, "the guest's agent gave up: {message}"),
            Self::NotReady { timeout_ms, stage } => {
                let doing = stage.map_or("the machine was being built", BootStage::doing);
                write!(f, "the guest was not ready within {timeout_ms} ms: {doing}")
            }
            Self::DiskFull(disk) => {
                write!(f, "the host has no room left for what the box writes to {disk}")
            }
            Self::Unhealthy(last) => write!(f, "its health checks failed: {}", last.trim()),
            Self::Port(message) | Self::Failed(message) => write!(f, "{message}"),
        }
    }
}

impl BoxEnd {
    /// Why the box failed; `None` if its main command exited or it was asked to end.
    pub fn failure(&self) -> Option<String> {
        match self.cause {
            EndCause::Main if self.is_out_of_memory() => {
                Some("its main command ended: the guest ran out of memory".into())
            }
            EndCause::Main
            | EndCause::Guest
            | EndCause::Stopped
            | EndCause::Killed
            | EndCause::Orphaned => None,
            _ => Some(self.cause.to_string()),
        }
    }

    /// Whether the main command was killed because the guest ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(&self.main, Some(MainEnd::Exited { out_of_memory: true, .. }))
    }

    /// The exit code of the main command as a shell would return it, if the command ended.
    pub fn code(&self) -> Option<u8> {
        match self.main.as_ref()? {
            MainEnd::Exited { status, .. } => Some(status.shell_code()),
            MainEnd::NotStarted { code, .. } => Some(*code),
        }
    }
}

/// The health of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// The verdict of the checks.
    pub status: HealthStatus,
    /// Failed checks in a row.
    pub failures: u32,
    /// The output of the last check, or why the check failed; at most 4 KiB.
    pub last: String,
}

impl Health {
    /// A health without failures.
    pub fn new(status: HealthStatus, last: impl Into<String>) -> Self {
        Self { status, failures: 0, last: last.into() }
    }
}

/// The verdict of a box's health checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HealthStatus {
    /// No check has succeeded yet, and no failure has counted.
    Starting,
    /// The last check succeeded, or too few in a row have failed since.
    Healthy,
    /// As many checks in a row failed as make the box unhealthy.
    Unhealthy,
}

impl Status {
    /// The status of a box whose VM process has not written any.
    pub fn starting() -> Self {
        Self {
            phase: Phase::Starting,
            pid: 0,
            started_ms: now_ms(),
            stages: Vec::new(),
            main_pid: None,
            restarts: 0,
            health: None,
            ports: Vec::new(),
            ended: None,
            disk_synced: false,
        }
    }

    /// Reads the status in a box's folder; `None` if the file does not exist. A file that is damaged, as a crash
    /// of the host may leave it, counts as [`starting`](Self::starting): the box ran, how it ended is unknown.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(STATUS_FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|e| {
                tracing::warn!("{}: {STATUS_FILE} cannot be read: {e}", folder.display());
                Self::starting()
            }))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Replaces the status in a box's folder. The caller holds the box's lock.
    pub fn write(&self, folder: &Path, durability: Durability) -> io::Result<()> {
        durable::replace(&folder.join(STATUS_FILE), &serde_json::to_vec(self)?, durability)
    }

    /// Whether the disks may be in the state that a killed process or a loss of power leaves.
    pub fn was_cut_off(&self) -> bool {
        self.ended.is_none() || !self.disk_synced
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    now.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_box_keeps_its_names_on_disk() {
        let json =
            r#"{"end":{"NotReady":{"timeout_ms":200,"stage":"Kernel"}},"at_ms":1,"main":null}"#;
        let cause = EndCause::NotReady { timeout_ms: 200, stage: Some(BootStage::Kernel) };
        let ended = BoxEnd { cause, at_ms: 1, main: None };
        assert_eq!(serde_json::to_string(&ended).unwrap(), json);
        assert_eq!(serde_json::from_str::<BoxEnd>(json).unwrap(), ended);
    }
}
