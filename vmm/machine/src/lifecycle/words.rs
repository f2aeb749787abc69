//! What goes into the life of a box and what comes out of it.

use std::time::Duration;

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::EventKind;
use boxlite_contract::spec::{BoxSpec, HealthSpec, LaunchSpec, RestartPolicy};
use boxlite_contract::status::{EndCause, MainEnd};

use crate::vm_event::VmStop;

/// What the life of a box depends on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The main command: whether it waits for somebody to attach, and its stop signal.
    pub(super) main: Option<(bool, i32)>,
    pub(super) restart: RestartPolicy,
    pub(super) health: Option<HealthSpec>,
    pub(super) ready_timeout_ms: Option<u64>,
    pub(super) detached: bool,
    /// Whether nothing of the guest is needed after its end.
    pub(super) disposable: bool,
    /// Whether the guest can be asked to end, by a hub that speaks to its agent.
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

/// What has happened.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The machine cannot be built.
    NotBuilt(EndCause),
    /// A thread of the process is gone that it cannot do without, and why.
    Broken(String),
    /// The boot reached a stage, so many microseconds after its start.
    Stage(BootStage, u64),
    /// The agent gave up.
    Fatal(String),
    /// The host has no room for what the guest writes to this disk.
    DiskFull(String),
    /// The VM stopped by itself. `panic`: the last lines of the guest's console, if its kernel panicked.
    VmStopped { stop: VmStop, panic: Option<Vec<String>> },
    /// Somebody attaches, and waits for the main command.
    Awaited,
    /// The main command runs.
    MainStarted(u32),
    /// The main command ended.
    MainEnded(MainEnd),
    /// The connection to the agent is lost.
    AgentLost(String),
    /// The health check of this number ended: what it wrote, or why it failed.
    Checked(u64, Result<String, String>),
    /// Somebody asks for an orderly end.
    Stop(Duration),
    /// The process has been asked to end, by a signal.
    Terminate,
    /// Somebody has a signal for the main command.
    Signal(i32),
    /// Somebody asks for an end at once.
    Kill,
    /// The vCPUs are to stand still.
    Pause,
    /// The vCPUs are to go on.
    Resume,
    /// The launcher may go.
    Outlive,
    /// The launcher is gone.
    LauncherGone,
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Build the machine and start it.
    Boot,
    /// Connect to the agent.
    Connect,
    /// Let the vCPUs stand still.
    Pause,
    /// Let the vCPUs go on, and tell the guest the time.
    Resume,
    /// Run the main command.
    StartMain,
    /// Send it a signal.
    SignalMain(i32),
    /// Kill it with all that it started.
    KillMain,
    /// Ask the guest to end everything and itself.
    ShutDown(Duration),
    /// Begin the health check of this number.
    Check(u64),
    /// End the health check that runs.
    CancelCheck,
    /// Take the machine down, whatever it does.
    StopMachine,
    /// Write an event down.
    Event(EventKind),
    /// The process ends: so long may those who are attached take to get what is left for them.
    Finish(Option<Duration>),
    /// They may not any longer.
    Hurry,
}
