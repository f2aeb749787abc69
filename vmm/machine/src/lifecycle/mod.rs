//! The lifecycle of a box: a pure state machine. Timestamped [`Input`]s go in, [`Action`]s come out; it does
//! no I/O and reads no clock, except for the timestamps in its status.
//!
//! ```text
//!   Booting ──ready──▶ Running ──stop, or main exited──▶ Ending ──guest off──▶ Ended
//!      ▲                  └──────── VM failed, restart policy ────────┐
//!      └─────────────────────── after a delay ─────────────── RestartPending
//! ```
//!
//! When the host has no space left for a disk, the box gets an orderly shutdown. The guest has seen an I/O
//! error, so its file system is about to refuse writes anyway; the shutdown saves the data that fits into
//! space that the disk has already allocated.

mod ending;
mod health;
mod interface;
mod restart;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::EventKind;
use boxlite_contract::status::{BoxEnd, EndCause, HealthStatus, MainEnd, Phase, Status, now_ms};
use boxlite_proto::message::ExitStatus;

pub(super) use self::interface::{Action, Input, Plan};

use self::ending::Step;
use self::health::{CheckAction, Checks};
use self::restart::Restarts;
use crate::vm_event::VmStop;

/// Grace of the main command when the process gets SIGTERM, a disk is full or the box is unhealthy.
const OWN_GRACE: Duration = Duration::from_secs(10);
/// Timeout for the report of the main command's exit after it was killed; then the guest is shut down.
const KILLED_LIMIT: Duration = Duration::from_secs(1);
/// Timeout of the guest's shutdown after the grace: kill, sync, unmount.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(8);
/// Grace of all processes in a box whose launcher is gone.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);
/// Timeout of the guest's shutdown after [`ORPHAN_GRACE`].
const ORPHAN_LIMIT: Duration = Duration::from_millis(1500);
/// How long a guest whose agent is lost may take to end by itself, as it usually does.
const LOST_LIMIT: Duration = Duration::from_secs(2);
/// The longest duration that is added to an `Instant`, far from overflow.
const LONGEST: Duration = Duration::from_secs(1000 * 86_400);

/// The time `ms` milliseconds after `start`.
fn deadline_after(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms).min(LONGEST)
}

/// The lifecycle of a box.
#[derive(Debug)]
pub(super) struct Lifecycle {
    plan: Plan,
    started_ms: u64,
    state: State,
    /// When the vCPUs were paused; only while running.
    paused: Option<Instant>,
    stages: Vec<(BootStage, u64)>,
    booted_at: Instant,
    main: Main,
    main_end: Option<MainEnd>,
    fatal: Option<String>,
    disk_full: Option<String>,
    restarts: Restarts,
    checks: Option<Checks>,
    ended: Option<BoxEnd>,
    /// Whether all actions have been carried out.
    settled: bool,
    actions: Vec<Action>,
    changed: bool,
}

#[derive(Debug)]
enum State {
    Booting { deadline: Option<Instant> },
    Running { lost: Option<(Instant, String)> },
    Ending { cause: EndCause, step: Step },
    RestartPending { until: Instant },
    Ended,
}

#[derive(Debug)]
enum Main {
    /// The box has none.
    None,
    /// The command has not been started in this boot. `awaited`: whether it may start as soon as the guest serves.
    NotStarted { awaited: bool },
    /// The command runs, or has been requested. `pid`: its process ID in the guest.
    Running { pid: Option<u32>, since: Instant },
    /// The command exited, and restarts then.
    RestartPending { until: Instant },
    /// The command exited, and does not restart.
    Exited,
}

impl Lifecycle {
    /// A lifecycle whose first action is to boot the VM.
    pub(super) fn new(plan: Plan, now: Instant) -> Self {
        let main = match plan.main {
            None => Main::None,
            Some((wait_for_attach, _)) => Main::NotStarted { awaited: !wait_for_attach },
        };
        let mut life = Self {
            started_ms: now_ms(),
            state: State::Ended,
            paused: None,
            stages: Vec::new(),
            booted_at: now,
            main,
            main_end: None,
            fatal: None,
            disk_full: None,
            restarts: Restarts::new(plan.restart),
            checks: plan.health.clone().map(|spec| Checks::new(spec, now)),
            ended: None,
            settled: false,
            actions: Vec::new(),
            changed: true,
            plan,
        };
        life.boot(now);
        life
    }

    /// Takes the actions that have not been taken yet, in order.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the status has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The status for `status.json`.
    pub(super) fn status(&self) -> Status {
        let phase = match &self.state {
            _ if self.settled => Phase::Ended,
            State::Booting { .. } | State::RestartPending { .. } => Phase::Starting,
            State::Running { .. } if self.paused.is_some() => Phase::Paused,
            State::Running { .. } => Phase::Running,
            State::Ending { .. } | State::Ended => Phase::Stopping,
        };
        Status {
            phase,
            pid: std::process::id(),
            started_ms: self.started_ms,
            stages: self.stages.clone(),
            main_pid: match (&self.main, &self.state) {
                (_, State::Ended) => None,
                (Main::Running { pid, .. }, _) => *pid,
                _ => None,
            },
            restarts: self.restarts.total(),
            health: self.checks.as_ref().map(|checks| checks.health().clone()),
            ports: Vec::new(),
            ended: self.ended.clone().filter(|_| self.settled),
            disk_synced: false,
        }
    }

    /// Whether `pid` and `started_ms` name this process, as its status does.
    pub(super) fn is(&self, pid: u32, started_ms: u64) -> bool {
        (pid, started_ms) == (std::process::id(), self.started_ms)
    }

    /// All actions have been carried out: the status may say how the box ended.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// How the box ended, once it has.
    pub(super) fn ended(&self) -> Option<&BoxEnd> {
        self.ended.as_ref()
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.paused.is_some() {
            return None;
        }
        let state = match &self.state {
            State::Booting { deadline } => *deadline,
            State::Running { lost } => lost.as_ref().map(|(until, _)| *until),
            State::Ending { step, .. } => Some(step.until()),
            State::RestartPending { until } => Some(*until),
            State::Ended => None,
        };
        let main = match self.main {
            Main::RestartPending { until } if self.is_running() => Some(until),
            _ => None,
        };
        let checks = self.checks.as_ref().filter(|_| self.is_running()).and_then(Checks::deadline);
        [state, main, checks].into_iter().flatten().min()
    }

    /// Whether the guest does not serve requests yet.
    pub(super) fn is_booting(&self) -> bool {
        matches!(self.state, State::Booting { .. })
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn emit(&mut self, event: EventKind) {
        self.changed = true;
        self.push(Action::RecordEvent(event));
    }

    /// Applies an input. The error says why a request is refused.
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Result<(), String> {
        match input {
            Input::NotBuilt(cause) => match self.restarts.total() {
                // A caller waits for the first start: report the failure instead of retrying.
                0 => self.finish(cause),
                _ => self.restart_or_finish(cause, now),
            },
            Input::ProcessFailed(why) => match self.state {
                State::Ended => self.push(Action::FinishNow),
                // A broken process cannot boot another VM.
                _ => {
                    self.push(Action::StopVm);
                    self.finish(EndCause::Failed(why));
                }
            },
            Input::Stage(stage, micros) => self.stage(stage, micros, now),
            Input::Fatal(message) => self.fatal = Some(message),
            Input::DiskFull(disk) => {
                self.disk_full = Some(disk.clone());
                if self.is_running() && self.plan.is_box {
                    self.end_in_order(
                        EndCause::DiskFull(disk),
                        Some(OWN_GRACE),
                        SHUTDOWN_LIMIT,
                        now,
                    );
                }
            }
            Input::VmStopped { stop, panic } => self.vm_stopped(stop, panic, now),
            Input::MainAwaited => self.awaited(now),
            Input::MainStarted(started) => {
                if let Main::Running { pid, .. } = &mut self.main {
                    *pid = Some(started);
                    self.changed = true;
                }
            }
            Input::MainEnded(end) => self.main_ended(end, now),
            Input::AgentLost(why) => {
                if let State::Running { lost } = &mut self.state {
                    lost.get_or_insert((now + LOST_LIMIT, why));
                }
            }
            Input::HealthChecked(number, result) => {
                self.update_checks(|checks| checks.on_result(number, result, now), now);
            }
            Input::Stop(grace) => {
                self.end_in_order(EndCause::Stopped, Some(grace.min(LONGEST)), SHUTDOWN_LIMIT, now);
            }
            Input::Terminate => {
                self.end_in_order(EndCause::Stopped, Some(OWN_GRACE), SHUTDOWN_LIMIT, now);
            }
            Input::Signal(signal) => return self.signal(signal),
            Input::Kill => match self.state {
                State::Ended => self.push(Action::FinishNow),
                _ => {
                    self.push(Action::StopVm);
                    self.finish(EndCause::Killed);
                }
            },
            Input::Pause => return self.pause(now),
            Input::Resume => return self.resume(now),
            Input::Outlive => self.plan.detached = true,
            Input::LauncherGone if self.plan.detached => {}
            Input::LauncherGone => self.end_in_order(EndCause::Orphaned, None, ORPHAN_LIMIT, now),
            Input::Tick => self.tick(now),
        }
        Ok(())
    }

    fn boot(&mut self, now: Instant) {
        self.booted_at = now;
        self.stages.clear();
        self.fatal = None;
        let deadline = self.plan.ready_timeout_ms.map(|timeout| deadline_after(now, timeout));
        self.state = State::Booting { deadline };
        self.push(Action::BootVm);
        self.emit(EventKind::Starting);
    }

    fn stage(&mut self, stage: BootStage, micros: u64, now: Instant) {
        if !matches!(self.state, State::Booting { .. }) {
            return;
        }
        self.stages.push((stage, micros));
        if stage != BootStage::Ready {
            return;
        }
        self.state = State::Running { lost: None };
        self.push(Action::ConnectAgent);
        self.emit(EventKind::Running);
        match self.main {
            Main::None => self.update_checks(|checks| checks.start(now), now),
            Main::NotStarted { awaited: true } => self.start_main(now),
            _ => {}
        }
    }

    fn awaited(&mut self, now: Instant) {
        if let Main::NotStarted { awaited } = &mut self.main {
            *awaited = true;
            if self.is_running() && self.paused.is_none() {
                self.start_main(now);
            }
        }
    }

    fn start_main(&mut self, now: Instant) {
        self.main = Main::Running { pid: None, since: now };
        self.main_end = None;
        self.push(Action::StartMain);
        self.update_checks(|checks| checks.start(now), now);
    }

    fn main_ended(&mut self, end: MainEnd, now: Instant) {
        let Main::Running { since, .. } = self.main else { return };
        let failed = !matches!(end, MainEnd::Exited { status: ExitStatus::Code(0), .. });
        // A command that could not be started now would not start later either.
        let ran = matches!(end, MainEnd::Exited { .. });
        if let Some(ended) = &mut self.ended {
            // The command ended before the VM did; only the report came later.
            ended.main.get_or_insert(end.clone());
        }
        self.main_end = Some(end);
        self.main = Main::Exited;
        self.changed = true;
        self.stop_checks();
        match self.state {
            State::Ending { step: Step::MainAsked { until, limit }, .. } => {
                self.ask_guest(until.saturating_duration_since(now), limit, now);
            }
            State::Ending { step: Step::MainKilled { limit, .. }, .. } => {
                self.ask_guest(Duration::ZERO, limit, now);
            }
            State::Running { .. } => {
                let delay = match ran {
                    true => self.restarts.next_delay(failed, now.saturating_duration_since(since)),
                    false => None,
                };
                match delay {
                    Some(delay) => self.main = Main::RestartPending { until: now + delay },
                    None if self.plan.disposable => {
                        self.push(Action::StopVm);
                        self.finish(EndCause::Main);
                    }
                    None => {
                        self.end_in_order(
                            EndCause::Main,
                            Some(Duration::ZERO),
                            SHUTDOWN_LIMIT,
                            now,
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn signal(&mut self, signal: i32) -> Result<(), String> {
        match (&self.state, &self.main) {
            _ if self.paused.is_some() => Err("the box is paused: resume it first".into()),
            (_, Main::None) => Err("the box has no main command to signal; use exec".into()),
            (State::Running { .. } | State::Ending { .. }, Main::Running { pid: Some(_), .. }) => {
                self.push(Action::SignalMain(signal));
                Ok(())
            }
            _ => Err("its main command does not run now".into()),
        }
    }

    fn pause(&mut self, now: Instant) -> Result<(), String> {
        match self.state {
            State::Running { .. } if self.paused.is_none() => {
                self.paused = Some(now);
                self.push(Action::PauseVcpus);
                self.emit(EventKind::Paused);
                Ok(())
            }
            State::Running { .. } => Ok(()),
            State::Booting { .. } | State::RestartPending { .. } => {
                Err("the box is still starting: pause it when it runs".into())
            }
            _ => Err("the box is ending".into()),
        }
    }

    fn resume(&mut self, now: Instant) -> Result<(), String> {
        match self.state {
            State::Ending { .. } | State::Ended => Err("the box is ending".into()),
            _ => {
                self.unpause(now);
                // A client may have attached meanwhile.
                if self.is_running() && matches!(self.main, Main::NotStarted { awaited: true }) {
                    self.start_main(now);
                }
                Ok(())
            }
        }
    }

    fn unpause(&mut self, now: Instant) {
        let Some(since) = self.paused.take() else { return };
        let paused_for = now.saturating_duration_since(since);
        if let State::Running { lost: Some((until, _)) } = &mut self.state {
            *until += paused_for;
        }
        match &mut self.main {
            Main::RestartPending { until } => *until += paused_for,
            Main::Running { since, .. } => *since += paused_for,
            _ => {}
        }
        self.booted_at += paused_for;
        if let Some(checks) = &mut self.checks {
            checks.shift(paused_for);
        }
        self.push(Action::ResumeVcpus);
        self.emit(EventKind::Resumed);
    }

    fn tick(&mut self, now: Instant) {
        if self.paused.is_some() {
            return;
        }
        match &self.state {
            State::Booting { deadline: Some(deadline) } if *deadline <= now => {
                let timeout_ms = self.plan.ready_timeout_ms.unwrap_or_default();
                let stage = self.stages.last().map(|(stage, _)| *stage);
                self.push(Action::StopVm);
                self.finish(EndCause::NotReady { timeout_ms, stage });
            }
            State::Running { lost: Some((until, why)) } if *until <= now => {
                let why = format!("the guest's agent is gone: {why}");
                self.restart_or_finish(EndCause::Failed(why), now);
            }
            State::Running { .. } => self.tick_running(now),
            State::Ending { step, .. } if step.until() <= now => match *step {
                Step::MainAsked { limit, .. } => {
                    self.push(Action::KillMain);
                    let until = now + KILLED_LIMIT;
                    if let State::Ending { step, .. } = &mut self.state {
                        *step = Step::MainKilled { until, limit };
                    }
                }
                Step::MainKilled { limit, .. } => self.ask_guest(Duration::ZERO, limit, now),
                Step::GuestAsked { .. } => {
                    tracing::warn!("the guest did not shut down in time: killing it");
                    // As if the guest had powered off: the cause of the end is in the state.
                    self.vm_stopped(VmStop::Guest, None, now);
                }
            },
            State::RestartPending { until } if *until <= now => {
                let restarts = self.restarts.record();
                self.emit(EventKind::Restarted { restarts });
                self.boot(now);
            }
            _ => {}
        }
    }

    fn tick_running(&mut self, now: Instant) {
        if matches!(self.main, Main::RestartPending { until } if until <= now) {
            let restarts = self.restarts.record();
            self.emit(EventKind::Restarted { restarts });
            self.start_main(now);
        }
        let mut action = None;
        self.update_checks(|checks| action = checks.tick(now), now);
        match action {
            // The box was unhealthy and is ending, which has cancelled the check.
            Some(_) if !self.is_running() => {}
            Some(CheckAction::Begin(number)) => self.push(Action::CheckHealth(number)),
            Some(CheckAction::Cancel) => self.push(Action::CancelHealthCheck),
            None => {}
        }
    }

    fn stop_checks(&mut self) {
        if let Some(checks) = &mut self.checks {
            checks.stop();
            self.push(Action::CancelHealthCheck);
        }
    }

    /// Lets `f` update the health checks, and acts on a change of the health.
    fn update_checks(&mut self, f: impl FnOnce(&mut Checks), now: Instant) {
        let Some(checks) = &mut self.checks else { return };
        let before = checks.health().clone();
        f(checks);
        let (after, stops) = (checks.health().clone(), checks.stop_unhealthy());
        if after == before {
            return;
        }
        self.changed = true;
        if after.status == before.status {
            return;
        }
        self.emit(EventKind::Health { status: after.status });
        if after.status == HealthStatus::Unhealthy && stops {
            let cause = EndCause::Unhealthy(after.last);
            self.end_in_order(cause, Some(OWN_GRACE), SHUTDOWN_LIMIT, now);
        }
    }
}
