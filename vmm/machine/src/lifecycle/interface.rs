//! The lifecycle's interface: its plan, inputs and actions.

use std::time::Duration;

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::EventKind;
use boxlite_contract::spec::{BoxSpec, HealthSpec, LaunchSpec, RestartPolicy};
use boxlite_contract::status::{EndCause, MainEnd};

use crate::vm_event::VmStop;

/// The part of a LaunchSpec that the lifecycle depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The main command: whether it waits for a client to attach, and its stop signal.
    pub(super) main: Option<(bool, i32)>,
    pub(super) restart: RestartPolicy,
    pub(super) health: Option<HealthSpec>,
    pub(super) ready_timeout_ms: Option<u64>,
    pub(super) detached: bool,
    /// Whether the box is removed when it ends, so that the guest's data need not be saved.
    pub(super) disposable: bool,
    /// Whether this is a box, with a hub that can ask the guest to shut down.
    pub(super) is_box: bool,
}

impl Plan {
    pub(crate) fn of(spec: &LaunchSpec) -> Self {
        let Some(BoxSpec { main, restart, health, ready_timeout_ms, detached, remove, .. }) =
            &spec.sandbox
        else {
            return Self::default();
        };
        Self {
            main: main.as_ref().map(|main| (main.wait_for_attach, main.stop_signal)),
            restart: *restart,
            health: health.clone(),
            ready_timeout_ms: Some(*ready_timeout_ms),
            detached: *detached,
            disposable: *remove,
            is_box: true,
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The VM could not be built.
    NotBuilt(EndCause),
    /// The process cannot continue, and why: one of its threads panicked or hangs.
    ProcessFailed(String),
    /// The boot reached a stage, this many microseconds after it began.
    Stage(BootStage, u64),
    /// The agent gave up, and why.
    Fatal(String),
    /// The host has no space left for the guest's writes to this disk.
    DiskFull(String),
    /// The VM stopped by itself. `panic`: the last lines of the guest's console, if its kernel panicked.
    VmStopped { stop: VmStop, panic: Option<Vec<String>> },
    /// A client has attached and waits for the main command.
    MainAwaited,
    /// The main command runs, with this process ID in the guest.
    MainStarted(u32),
    /// The main command ended.
    MainEnded(MainEnd),
    /// The connection to the agent is lost, and why.
    AgentLost(String),
    /// The health check with this number ended: its output, or why it failed.
    HealthChecked(u64, Result<String, String>),
    /// Request: stop the box, with this grace for the main command.
    Stop(Duration),
    /// The process received SIGTERM or SIGINT.
    Terminate,
    /// Request: send the main command a signal.
    Signal(i32),
    /// Request: end the box at once.
    Kill,
    /// Request: pause the vCPUs.
    Pause,
    /// Request: resume the vCPUs.
    Resume,
    /// Request: keep running when the launcher exits.
    Outlive,
    /// The launcher exited.
    LauncherGone,
    /// The [`deadline`](super::Lifecycle::deadline) has come.
    Tick,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Build a VM and start it.
    BootVm,
    /// Connect the hub to the agent.
    ConnectAgent,
    /// Pause the vCPUs.
    PauseVcpus,
    /// Resume the vCPUs, and set the guest's clock.
    ResumeVcpus,
    /// Start the main command.
    StartMain,
    /// Send the main command a signal.
    SignalMain(i32),
    /// Kill the main command with all its processes.
    KillMain,
    /// Ask the guest to shut down, with this grace for its processes.
    ShutDownGuest(Duration),
    /// Start the health check with this number.
    CheckHealth(u64),
    /// Kill the running health check.
    CancelHealthCheck,
    /// Take the VM down, whatever the guest does.
    StopVm,
    /// Append an event to the event log.
    RecordEvent(EventKind),
    /// End the process once attached clients have taken the remaining output, for this long at most.
    Finish(Option<Duration>),
    /// Wait only briefly for attached clients.
    FinishNow,
}
