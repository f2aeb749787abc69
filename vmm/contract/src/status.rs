//! What a box's process writes down of itself: `status.json` in the box's folder, replaced as a
//! whole at each change, and read by whoever wants to know the box's state. Whether the box runs,
//! its lock says; this file says what it does, and how it ended.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_durable::{self as durable, Durability};
use boxlite_net_policy::PublishedPort;
use boxlite_proto::message::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::boot::BootStage;

/// The name of the file.
pub const STATUS_FILE: &str = "status.json";

/// The state of a box's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub phase: Phase,
    /// Its process ID.
    pub pid: u32,
    /// When it was started: milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The stages of the last boot, each with the microseconds from its start.
    pub stages: Vec<(BootStage, u64)>,
    /// The main command's process in the guest, while it runs.
    pub main_pid: Option<u32>,
    /// How often the restart policy has begun it anew.
    pub restarts: u32,
    /// What the health checks say.
    pub health: Option<Health>,
    /// Ports of the host that lead into it.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// How it ended. With [`Phase::Ended`].
    pub ended: Option<BoxEnd>,
    /// Whether the box's disk was complete on stable storage before this was written. With [`Phase::Ended`].
    #[serde(default)]
    pub disk_synced: bool,
}

/// What a box's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The guest boots.
    Starting,
    /// The guest serves.
    Running,
    /// The vCPUs stand still.
    Paused,
    /// The guest has been asked to end.
    Stopping,
    /// It is over.
    Ended,
}

/// How and when a box ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxEnd {
    /// What ended it.
    #[serde(rename = "end")]
    pub cause: EndCause,
    /// When: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How the main command ended, if it ran and did.
    pub main: Option<MainEnd>,
}

/// How a main command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MainEnd {
    /// It ran, and ended so.
    Exited {
        /// Its code or signal.
        status: ExitStatus,
        /// Whether the guest ran out of memory and killed it.
        out_of_memory: bool,
    },
    /// It could not be run: as a shell has it, 127 for not found and 126 for not executable.
    NotStarted {
        /// The code, else 125.
        code: u8,
        /// Why.
        message: String,
    },
}

/// What ended a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndCause {
    /// Its main command ended.
    Main,
    /// The guest switched itself off or reset itself.
    Guest,
    /// It was asked to stop.
    Stopped,
    /// It was killed.
    Killed,
    /// The process that started it is gone, and it was not to go on without it.
    Orphaned,
    /// The guest's kernel panicked; the last lines of its console.
    Panic(Vec<String>),
    /// The agent gave up, and said why.
    Agent(String),
    /// The guest did not get ready in time.
    NotReady {
        /// The deadline in milliseconds.
        timeout_ms: u64,
        /// The last stage that was reached.
        stage: Option<BootStage>,
    },
    /// The host has no room left for what the guest wrote to this disk.
    DiskFull(String),
    /// A port of the host cannot be had: which and why.
    Port(String),
    /// Its health checks failed; what the last one said.
    Unhealthy(String),
    /// The machine could not be built or could not go on.
    Failed(String),
}

impl fmt::Display for EndCause {
    /// One line for people. What a guest said is in it as it came.
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
    /// Why the box failed; none if it did what it was to do or was asked to.
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

    /// The exit code of the main command, as a shell has it, if it ended.
    pub fn code(&self) -> Option<u8> {
        match self.main.as_ref()? {
            MainEnd::Exited { status, .. } => Some(status.shell_code()),
            MainEnd::NotStarted { code, .. } => Some(*code),
        }
    }
}

/// What the health checks of a box say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// Whether the box is well.
    pub status: HealthStatus,
    /// Failed checks in a row.
    pub failures: u32,
    /// What the last check wrote, or why it failed; up to 4 KiB.
    pub last: String,
}

impl Health {
    /// This status, without a failure.
    pub fn new(status: HealthStatus, last: impl Into<String>) -> Self {
        Self { status, failures: 0, last: last.into() }
    }
}

/// Whether a box is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HealthStatus {
    /// No check has succeeded yet, and none has counted as failed.
    Starting,
    /// The last check that counts succeeded.
    Healthy,
    /// As many checks in a row failed as the box allows.
    Unhealthy,
}

impl Status {
    /// The status of a box whose process has not said anything.
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

    /// Reads the status in a box's folder; none if there is none. One that a host that went down left
    /// half-written says that the box was there, and not how it ended.
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

    /// Replaces the status in a box's folder. Only for who has the box's lock.
    pub fn write(&self, folder: &Path, durability: Durability) -> io::Result<()> {
        durable::replace(&folder.join(STATUS_FILE), &serde_json::to_vec(self)?, durability)
    }

    /// Whether the disk may be as a killed process or a loss of power leaves it.
    pub fn was_cut_off(&self) -> bool {
        self.ended.is_none() || !self.disk_synced
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    now.as_millis().try_into().unwrap_or(u64::MAX)
}
