//! In which state a box is, from what its process wrote down and whether that process lives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::{Event, EventKind};
use boxlite_contract::status::{End, Ended, Health, MainEnd, Phase, Status};
use boxlite_net_policy::PublishedPort;
use boxlite_proto::message::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::remedy::Remedy;

/// The state of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BoxState {
    /// It was made and never started.
    Configured,
    /// Its guest boots.
    Starting,
    /// It serves commands.
    Running,
    /// It stands still.
    Paused,
    /// It is about to end.
    Stopping,
    /// It ended in good order; its disk is as it was left.
    Stopped,
    /// It ended otherwise; its disk is as after a loss of power.
    Failed(FailureReason),
}

impl BoxState {
    /// Whether it has a process.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }

    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for BoxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a box failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureReason {
    /// Its process was killed or crashed.
    ProcessDied,
    /// Its kernel panicked; the last lines of its console.
    Panic(Vec<String>),
    /// It ran out of memory, and its main command was killed.
    OutOfMemory,
    /// The host has no room left for what it wrote.
    DiskFull(String),
    /// Its health checks failed; what the last one said.
    Unhealthy(String),
    /// Its agent gave up, and said why.
    Agent(String),
    /// It did not get ready in time.
    NotReady {
        /// The deadline in milliseconds.
        timeout_ms: u64,
        /// The last stage that was reached.
        stage: Option<BootStage>,
    },
    /// A port of the host cannot be had: which, why, and what to do.
    Port(String),
    /// Its machine could not be built or could not go on.
    Machine(String),
}

impl FailureReason {
    /// What happened.
    pub fn message(&self) -> String {
        match self {
            Self::ProcessDied => {
                "its process ended unexpectedly (killed, or the host went down)".to_owned()
            }
            Self::Panic(lines) => {
                format!("the guest's kernel panicked; its last lines:\n{}", lines.join("\n"))
            }
            Self::OutOfMemory => "the guest ran out of memory".to_owned(),
            Self::DiskFull(what) => format!("the host's disk is full ({what})"),
            Self::Unhealthy(last) => format!("its health checks failed; the last said: {last}"),
            Self::Agent(message) => format!("the guest could not set the box up: {message}"),
            Self::NotReady { timeout_ms, stage } => {
                let doing = stage.map_or("the machine was being built", BootStage::doing);
                let timeout = Duration::from_millis(*timeout_ms);
                format!("the box was not ready after {timeout:?}: {doing}")
            }
            Self::Port(message) | Self::Machine(message) => message.clone(),
        }
    }

    /// What to do about it, if that is known.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::ProcessDied => Some(Remedy::StartAgain),
            Self::OutOfMemory => Some(Remedy::MoreMemory),
            Self::DiskFull(_) => Some(Remedy::FreeRoomAndStart),
            Self::NotReady { .. } => Some(Remedy::LookAtConsole),
            // Its message has the remedy.
            Self::Port(_) => None,
            Self::Panic(_) | Self::Unhealthy(_) | Self::Agent(_) | Self::Machine(_) => None,
        }
    }
}

/// The message and the remedy, that in the library's words.
impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// What is known of a box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxInfo {
    /// Its ID: 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was asked for.
    pub image: String,
    /// Its main command, as it is run; none: it has none.
    pub command: Option<Vec<String>>,
    /// Its state.
    #[serde(flatten)]
    pub state: BoxState,
    /// The exit code of its main command, as a shell has it, if that has ended.
    pub exit_code: Option<u8>,
    /// When it was made.
    #[serde(with = "millis")]
    pub created: SystemTime,
    /// When it was last started.
    #[serde(with = "maybe_millis")]
    pub started: Option<SystemTime>,
    /// When it last ended, if it does not run.
    #[serde(with = "maybe_millis")]
    pub finished: Option<SystemTime>,
    /// Its process on the host (in the software host, there), while it runs.
    pub pid: Option<u32>,
    /// Its main command's process in the guest, while it runs.
    pub main_pid: Option<u32>,
    /// How often its restart policy has begun it anew.
    pub restarts: u32,
    /// What its health checks say.
    pub health: Option<Health>,
    /// Ports of the host that lead into it, while it lives.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The stages of its last boot: microseconds after its beginning.
    pub boot: Vec<(BootStage, u64)>,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl BoxInfo {
    /// How long the last boot took until the box served commands.
    pub fn boot_time(&self) -> Option<Duration> {
        let ready = self.boot.iter().find(|(stage, _)| *stage == BootStage::Ready);
        ready.map(|(_, micros)| Duration::from_micros(*micros))
    }
}

impl BoxInfo {
    /// The same box after it ended so.
    pub(super) fn ended(self, ended: &Ended) -> Self {
        Self {
            state: end_state(ended),
            exit_code: end_code(ended, self.command.is_some()),
            finished: Some(time(ended.at_ms)),
            pid: None,
            main_pid: None,
            health: None,
            ..self
        }
    }

    /// The same box after it ended as an event says.
    pub(super) fn ended_by(self, event: &Event) -> Self {
        let killed = end_code_of(None, self.command.is_some());
        let (state, exit_code) = match &event.kind {
            EventKind::Stopped { code } => (BoxState::Stopped, code.or(killed)),
            EventKind::Failed { reason } => {
                (BoxState::Failed(FailureReason::Machine(reason.clone())), killed)
            }
            _ => return self.died(),
        };
        let finished = Some(time(event.at_ms));
        Self { state, exit_code, finished, pid: None, main_pid: None, health: None, ..self }
    }

    /// The same box after its process ended without a word.
    pub(super) fn died(self) -> Self {
        let state = BoxState::Failed(FailureReason::ProcessDied);
        Self { state, pid: None, main_pid: None, health: None, ..self }
    }
}

/// The state that a box is in, if its process `lives` or not, and said `status` last.
pub(super) fn judge(lives: bool, status: Option<&Status>) -> BoxState {
    match (lives, status) {
        (false, None) => BoxState::Configured,
        (false, Some(status)) => match &status.ended {
            Some(ended) => end_state(ended),
            None => BoxState::Failed(FailureReason::ProcessDied),
        },
        (true, None) => BoxState::Starting,
        (true, Some(status)) => match status.phase {
            Phase::Starting => BoxState::Starting,
            Phase::Running => BoxState::Running,
            Phase::Paused => BoxState::Paused,
            Phase::Stopping | Phase::Ended => BoxState::Stopping,
        },
    }
}

/// The state that an end leaves a box in.
pub(super) fn end_state(ended: &Ended) -> BoxState {
    let reason = match ended.end.clone() {
        End::Main if ended.is_out_of_memory() => FailureReason::OutOfMemory,
        End::Main | End::Guest | End::Stopped | End::Killed | End::Orphaned => {
            return BoxState::Stopped;
        }
        End::Panic(lines) if lines.iter().any(|line| line.contains("Out of memory")) => {
            FailureReason::OutOfMemory
        }
        End::Panic(lines) => FailureReason::Panic(lines),
        End::Agent(message) => FailureReason::Agent(message),
        End::NotReady { timeout_ms, stage } => FailureReason::NotReady { timeout_ms, stage },
        End::DiskFull(what) => FailureReason::DiskFull(what),
        End::Port(message) => FailureReason::Port(message),
        End::Unhealthy(last) => FailureReason::Unhealthy(last),
        End::Failed(message) => FailureReason::Machine(message),
    };
    BoxState::Failed(reason)
}

/// The exit code of a main command, as a shell has it.
pub(super) fn main_code(end: &MainEnd) -> u8 {
    match end {
        MainEnd::Exited { status, .. } => status.shell_code(),
        MainEnd::NotStarted { code, .. } => *code,
    }
}

/// The exit code of a box that ended: its main command's, or 137 where that was killed with it.
pub(super) fn end_code(ended: &Ended, has_main: bool) -> Option<u8> {
    end_code_of(ended.main.as_ref(), has_main)
}

fn end_code_of(end: Option<&MainEnd>, has_main: bool) -> Option<u8> {
    const SIGKILL: ExitStatus = ExitStatus::Signal(9);
    match end {
        Some(end) => Some(main_code(end)),
        None => has_main.then(|| SIGKILL.shell_code()),
    }
}

pub(super) fn time(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

pub(super) mod millis {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.serialize_u64(since.as_millis().try_into().unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        u64::deserialize(from).map(time)
    }
}

mod maybe_millis {
    use super::*;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<SystemTime>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(time) => millis::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Option::<u64>::deserialize(from).map(|ms| ms.map(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(phase: Phase, end: Option<End>) -> Status {
        let ended = end.map(|end| Ended { end, at_ms: 1, main: None });
        Status {
            phase,
            pid: 1,
            started_ms: 0,
            stages: vec![],
            main_pid: None,
            restarts: 0,
            health: None,
            ports: vec![],
            ended,
            disk_synced: false,
        }
    }

    #[test]
    fn a_dead_process_that_said_nothing_has_failed() {
        let running = status(Phase::Running, None);
        assert_eq!(judge(true, Some(&running)), BoxState::Running);
        let failed = BoxState::Failed(FailureReason::ProcessDied);
        assert_eq!(judge(false, Some(&running)), failed);
        assert_eq!(judge(false, None), BoxState::Configured);
        assert_eq!(judge(true, None), BoxState::Starting);
    }

    #[test]
    fn ends_are_told_apart() {
        let end = |end| judge(false, Some(&status(Phase::Ended, Some(end))));
        assert_eq!(end(End::Stopped), BoxState::Stopped);
        let lines = vec!["Kernel panic - not syncing: Out of memory: …".to_owned()];
        assert_eq!(end(End::Panic(lines)), BoxState::Failed(FailureReason::OutOfMemory));
        let full = FailureReason::DiskFull("vda".into());
        assert_eq!(end(End::DiskFull("vda".into())), BoxState::Failed(full));
        let killed = Ended {
            end: End::Main,
            at_ms: 0,
            main: Some(MainEnd::Exited { status: ExitStatus::Signal(9), out_of_memory: true }),
        };
        assert_eq!(end_state(&killed), BoxState::Failed(FailureReason::OutOfMemory));
        assert_eq!(end_code(&killed, true), Some(137));
    }
}
