//! The state of a box, derived from the status that its process recorded and from whether that process is alive.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::{Event, EventKind};
use boxlite_contract::status::{BoxEnd, EndCause, Health, MainEnd, Phase, Status};
use boxlite_net_policy::PublishedPort;
use boxlite_proto::message::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::remedy::Remedy;

/// The state of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BoxState {
    /// The box was created and never started.
    Configured,
    /// The guest is booting, or the box is about to be restarted.
    Starting,
    /// The box accepts commands.
    Running,
    /// The vCPUs are paused.
    Paused,
    /// The box is shutting down.
    Stopping,
    /// The box has stopped without a failure: its main command exited, its guest powered off, or it was stopped or
    /// killed on request. After a kill, its disk is in the state that a power failure leaves.
    Stopped,
    /// The box has failed. Its disk may be in the state that a power failure leaves.
    Failed(FailureReason),
}

impl BoxState {
    /// Whether the box is starting, running, paused or stopping: it has a process.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused | Self::Stopping)
    }

    /// The state as one word.
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

/// Why a box failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "detail", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureReason {
    /// The box's process was killed or crashed.
    ProcessDied,
    /// The guest's kernel panicked; has the last lines of its console.
    Panic(Vec<String>),
    /// The guest ran out of memory, and its kernel killed the main command.
    OutOfMemory,
    /// The host's disk has no space for the guest's writes; has the name of the box's disk.
    DiskFull(String),
    /// The health checks failed; has the output of the last one.
    Unhealthy(String),
    /// The agent could not set the box up; has its message.
    Agent(String),
    /// The guest was not ready in time.
    NotReady {
        /// The timeout in milliseconds.
        timeout_ms: u64,
        /// The last stage that the boot reached.
        stage: Option<BootStage>,
    },
    /// A port of the host cannot be used; says which, why, and what to do.
    Port(String),
    /// The VM could not be built, or could not continue; says why.
    Machine(String),
}

impl FailureReason {
    /// A description of the failure.
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

    /// What to do about it, if the runtime knows.
    pub fn remedy(&self) -> Option<Remedy> {
        match self {
            Self::ProcessDied => Some(Remedy::StartAgain),
            Self::OutOfMemory => Some(Remedy::AddMemory),
            Self::DiskFull(_) => Some(Remedy::FreeDiskSpaceAndStart),
            Self::NotReady { .. } => Some(Remedy::ReadConsole),
            // Its message has the remedy.
            Self::Port(_) => None,
            Self::Panic(_) | Self::Unhealthy(_) | Self::Agent(_) | Self::Machine(_) => None,
        }
    }
}

/// The message, and the remedy in the library's words.
impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match self.remedy() {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// A box and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BoxInfo {
    /// The ID: 32 hexadecimal digits.
    pub id: String,
    /// The name.
    pub name: String,
    /// The image, as given in the options.
    pub image: String,
    /// The words of the main command, if there is one.
    pub command: Option<Vec<String>>,
    /// The state.
    #[serde(flatten)]
    pub state: BoxState,
    /// The exit code of the main command, as a shell reports it, once the command has exited.
    pub exit_code: Option<u8>,
    /// Time of creation.
    #[serde(with = "millis")]
    pub created: SystemTime,
    /// Time of the last start.
    #[serde(with = "maybe_millis")]
    pub started: Option<SystemTime>,
    /// Time when the box last stopped, unless it is live.
    #[serde(with = "maybe_millis")]
    pub finished: Option<SystemTime>,
    /// The ID of the box's process on the host that runs it, which may be the software host, while the box is live.
    pub pid: Option<u32>,
    /// The ID of the main command's process in the guest, while the command runs.
    pub main_pid: Option<u32>,
    /// Number of restarts by the restart policy.
    pub restarts: u32,
    /// The result of the health checks.
    pub health: Option<Health>,
    /// Published ports, while the box is live.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The stages of the last boot, each with its time in microseconds since the boot began.
    pub boot: Vec<(BootStage, u64)>,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Whether the box is removed when it stops.
    pub auto_remove: bool,
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

impl BoxInfo {
    /// Duration of the last boot, until the box accepted commands.
    pub fn boot_time(&self) -> Option<Duration> {
        let ready = self.boot.iter().find(|(stage, _)| *stage == BootStage::Ready);
        ready.map(|(_, micros)| Duration::from_micros(*micros))
    }
}

impl BoxInfo {
    /// The same box after the end that its process recorded.
    pub(super) fn ended(self, ended: &BoxEnd) -> Self {
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

    /// The same box after the end that an event reports.
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

    /// The same box after its process died without recording an end.
    pub(super) fn died(self) -> Self {
        let state = BoxState::Failed(FailureReason::ProcessDied);
        Self { state, pid: None, main_pid: None, health: None, ..self }
    }
}

/// The state of a box whose process is alive or not, and recorded `status` last.
pub(super) fn judge(is_alive: bool, status: Option<&Status>) -> BoxState {
    match (is_alive, status) {
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

/// The state of a box after an end.
pub(super) fn end_state(ended: &BoxEnd) -> BoxState {
    let reason = match ended.cause.clone() {
        EndCause::Main if ended.is_out_of_memory() => FailureReason::OutOfMemory,
        EndCause::Main
        | EndCause::Guest
        | EndCause::Stopped
        | EndCause::Killed
        | EndCause::Orphaned => {
            return BoxState::Stopped;
        }
        EndCause::Panic(lines) if lines.iter().any(|line| line.contains("Out of memory")) => {
            FailureReason::OutOfMemory
        }
        EndCause::Panic(lines) => FailureReason::Panic(lines),
        EndCause::Agent(message) => FailureReason::Agent(message),
        EndCause::NotReady { timeout_ms, stage } => FailureReason::NotReady { timeout_ms, stage },
        EndCause::DiskFull(what) => FailureReason::DiskFull(what),
        EndCause::Port(message) => FailureReason::Port(message),
        EndCause::Unhealthy(last) => FailureReason::Unhealthy(last),
        EndCause::Failed(message) => FailureReason::Machine(message),
    };
    BoxState::Failed(reason)
}

/// The exit code of a main command, as a shell reports it.
pub(super) fn main_code(end: &MainEnd) -> u8 {
    match end {
        MainEnd::Exited { status, .. } => status.shell_code(),
        MainEnd::NotStarted { code, .. } => *code,
    }
}

/// The exit code of a box that stopped: that of its main command, or 137 if the command was killed with the box. None if
/// the box failed before its main command ran.
pub(super) fn end_code(ended: &BoxEnd, has_main: bool) -> Option<u8> {
    let never_ran = matches!(ended.cause, EndCause::Port(_) | EndCause::NotReady { .. });
    end_code_of(ended.main.as_ref(), has_main && !never_ran)
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

    fn status(phase: Phase, end: Option<EndCause>) -> Status {
        let ended = end.map(|end| BoxEnd { cause: end, at_ms: 1, main: None });
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
    fn a_process_that_died_without_recording_an_end_is_a_failure() {
        let running = status(Phase::Running, None);
        assert_eq!(judge(true, Some(&running)), BoxState::Running);
        let failed = BoxState::Failed(FailureReason::ProcessDied);
        assert_eq!(judge(false, Some(&running)), failed);
        assert_eq!(judge(false, None), BoxState::Configured);
        assert_eq!(judge(true, None), BoxState::Starting);
    }

    #[test]
    fn each_end_has_its_state() {
        let end = |end| judge(false, Some(&status(Phase::Ended, Some(end))));
        assert_eq!(end(EndCause::Stopped), BoxState::Stopped);
        let lines = vec!["Kernel panic - not syncing: Out of memory: …".to_owned()];
        assert_eq!(end(EndCause::Panic(lines)), BoxState::Failed(FailureReason::OutOfMemory));
        let full = FailureReason::DiskFull("vda".into());
        assert_eq!(end(EndCause::DiskFull("vda".into())), BoxState::Failed(full));
        let killed = BoxEnd {
            cause: EndCause::Main,
            at_ms: 0,
            main: Some(MainEnd::Exited { status: ExitStatus::Signal(9), out_of_memory: true }),
        };
        assert_eq!(end_state(&killed), BoxState::Failed(FailureReason::OutOfMemory));
        assert_eq!(end_code(&killed, true), Some(137));
        let end = |cause| BoxEnd { cause, at_ms: 0, main: None };
        assert_eq!(end_code(&end(EndCause::Killed), true), Some(137));
        assert_eq!(end_code(&end(EndCause::Killed), false), None);
        assert_eq!(end_code(&end(EndCause::Port("8000 is in use".into())), true), None);
    }
}
