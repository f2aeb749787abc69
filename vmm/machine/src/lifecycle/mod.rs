//! The life of a box's process, without its hands: what has happened goes in with the time that it
//! happened at, what is to be done comes out.
//!
//! ```text
//!   Booting ──ready──▶ Up ──asked, or main ended──▶ Ending ──guest off──▶ Over
//!      ▲                └─────────machine failed, restart policy──┐
//!      └──────────────────── after a delay ───────────────────── Down
//! ```
//!
//! A box whose disk's host is full is ended in good order: the guest has been told of an I/O error, so
//! its file system is about to refuse writes anyway, and what fits into space that it has already
//! is saved by an orderly end.

mod ending;
mod health;
mod restart;
#[cfg(test)]
mod tests;
mod words;

use std::time::{Duration, Instant};

use boxlite_contract::boot::BootStage;
use boxlite_contract::events::EventKind;
use boxlite_contract::status::{BoxEnd, EndCause, HealthStatus, MainEnd, Phase, Status, now_ms};
use boxlite_proto::message::ExitStatus;

pub(super) use self::words::{Action, Input, Plan};

use self::ending::Step;
use self::health::{Checks, Todo};
use self::restart::Restarts;
use crate::vm_event::VmStop;

/// What a process that gets SIGTERM, or whose disk is full, gives its main command.
const OWN_GRACE: Duration = Duration::from_secs(10);
/// Between killing the main command and telling the guest to end: it is to report how that ended.
const KILLED_LIMIT: Duration = Duration::from_secs(1);
/// How long a guest may take to end after the grace: kill, sync, unmount.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(8);
/// As both, for a box whose launcher is gone.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);
const ORPHAN_LIMIT: Duration = Duration::from_millis(1500);
/// A guest that lost its agent usually ends: how long that is waited for.
const LOST_LIMIT: Duration = Duration::from_secs(2);
/// Sums of moments and durations stay far from overflow below.
const LONGEST: Duration = Duration::from_secs(1000 * 86_400);

/// So many milliseconds after `moment`.
fn later(moment: Instant, ms: u64) -> Instant {
    moment + Duration::from_millis(ms).min(LONGEST)
}

/// The life of a box.
#[derive(Debug)]
pub(super) struct Lifecycle {
    plan: Plan,
    started_ms: u64,
    state: State,
    /// Since when the vCPUs stand still; only while up.
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
    /// Whether nothing of it is left to be done.
    settled: bool,
    actions: Vec<Action>,
    changed: bool,
}

#[derive(Debug)]
enum State {
    Booting { deadline: Option<Instant> },
    Up { lost: Option<(Instant, String)> },
    Ending { cause: EndCause, step: Step },
    Down { until: Instant },
    Over,
}

#[derive(Debug)]
enum Main {
    /// There is none.
    None,
    /// It has not been started in this boot; whether anything else has to happen before.
    Before { awaited: bool },
    /// It runs, or is about to.
    Runs { pid: Option<u32>, since: Instant },
    /// It begins anew then.
    Delayed { until: Instant },
    /// It ended for good.
    Over,
}

impl Lifecycle {
    /// A process that is to boot its machine.
    pub(super) fn new(plan: Plan, now: Instant) -> Self {
        let main = match plan.main {
            None => Main::None,
            Some((wait_for_attach, _)) => Main::Before { awaited: !wait_for_attach },
        };
        let mut life = Self {
            started_ms: now_ms(),
            state: State::Over,
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

    /// What is to be done, once.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the status is another one than at the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The process's state, for those who read it in its folder.
    pub(super) fn status(&self) -> Status {
        let phase = match &self.state {
            _ if self.settled => Phase::Ended,
            State::Booting { .. } | State::Down { .. } => Phase::Starting,
            State::Up { .. } if self.paused.is_some() => Phase::Paused,
            State::Up { .. } => Phase::Running,
            State::Ending { .. } | State::Over => Phase::Stopping,
        };
        Status {
            phase,
            pid: std::process::id(),
            started_ms: self.started_ms,
            stages: self.stages.clone(),
            main_pid: match (&self.main, &self.state) {
                (_, State::Over) => None,
                (Main::Runs { pid, .. }, _) => *pid,
                _ => None,
            },
            restarts: self.restarts.total(),
            health: self.checks.as_ref().map(|checks| checks.health().clone()),
            ports: Vec::new(),
            ended: self.ended.clone().filter(|_| self.settled),
            disk_synced: false,
        }
    }

    /// Whether this is the process that a status names so.
    pub(super) fn is(&self, pid: u32, started_ms: u64) -> bool {
        (pid, started_ms) == (std::process::id(), self.started_ms)
    }

    /// Everything has been done: the status may say how it ended.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// How it ended.
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
            State::Up { lost } => lost.as_ref().map(|(until, _)| *until),
            State::Ending { step, .. } => Some(step.until()),
            State::Down { until } => Some(*until),
            State::Over => None,
        };
        let main = match self.main {
            Main::Delayed { until } if self.is_up() => Some(until),
            _ => None,
        };
        let checks = self.checks.as_ref().filter(|_| self.is_up()).and_then(Checks::deadline);
        [state, main, checks].into_iter().flatten().min()
    }

    /// Whether the guest does not serve yet.
    pub(super) fn is_booting(&self) -> bool {
        matches!(self.state, State::Booting { .. })
    }

    fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn tell(&mut self, event: EventKind) {
        self.changed = true;
        self.act(Action::Event(event));
    }

    /// Takes what has happened. The error says why it cannot be done.
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Result<(), String> {
        match input {
            Input::NotBuilt(cause) => match self.restarts.total() {
                // Somebody waits for the first start and would rather know.
                0 => self.finish(cause),
                _ => self.restart_or_finish(cause, now),
            },
            Input::Broken(why) => match self.state {
                State::Over => self.act(Action::Hurry),
                // What is left of the process cannot begin anew.
                _ => {
                    self.act(Action::StopMachine);
                    self.finish(EndCause::Failed(why));
                }
            },
            Input::Stage(stage, micros) => self.stage(stage, micros, now),
            Input::Fatal(message) => self.fatal = Some(message),
            Input::DiskFull(disk) => {
                self.disk_full = Some(disk.clone());
                if self.is_up() && self.plan.is_box {
                    self.end_in_order(
                        EndCause::DiskFull(disk),
                        Some(OWN_GRACE),
                        SHUTDOWN_LIMIT,
                        now,
                    );
                }
            }
            Input::VmStopped { stop, panic } => self.vm_stopped(stop, panic, now),
            Input::Awaited => self.awaited(now),
            Input::MainStarted(started) => {
                if let Main::Runs { pid, .. } = &mut self.main {
                    *pid = Some(started);
                    self.changed = true;
                }
            }
            Input::MainEnded(end) => self.main_ended(end, now),
            Input::AgentLost(why) => {
                if let State::Up { lost } = &mut self.state {
                    lost.get_or_insert((now + LOST_LIMIT, why));
                }
            }
            Input::Checked(number, result) => {
                self.with_checks(|checks| checks.done(number, result, now), now);
            }
            Input::Stop(grace) => {
                self.end_in_order(EndCause::Stopped, Some(grace.min(LONGEST)), SHUTDOWN_LIMIT, now);
            }
            Input::Terminate => {
                self.end_in_order(EndCause::Stopped, Some(OWN_GRACE), SHUTDOWN_LIMIT, now);
            }
            Input::Signal(signal) => return self.signal(signal),
            Input::Kill => match self.state {
                State::Over => self.act(Action::Hurry),
                _ => {
                    self.act(Action::StopMachine);
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
        let deadline = self.plan.ready_timeout_ms.map(|timeout| later(now, timeout));
        self.state = State::Booting { deadline };
        self.act(Action::Boot);
        self.tell(EventKind::Starting);
    }

    fn stage(&mut self, stage: BootStage, micros: u64, now: Instant) {
        if !matches!(self.state, State::Booting { .. }) {
            return;
        }
        self.stages.push((stage, micros));
        if stage != BootStage::Ready {
            return;
        }
        self.state = State::Up { lost: None };
        self.act(Action::Connect);
        self.tell(EventKind::Running);
        match self.main {
            Main::None => self.with_checks(|checks| checks.begin(now), now),
            Main::Before { awaited: true } => self.start_main(now),
            _ => {}
        }
    }

    fn awaited(&mut self, now: Instant) {
        if let Main::Before { awaited } = &mut self.main {
            *awaited = true;
            if self.is_up() && self.paused.is_none() {
                self.start_main(now);
            }
        }
    }

    fn start_main(&mut self, now: Instant) {
        self.main = Main::Runs { pid: None, since: now };
        self.main_end = None;
        self.act(Action::StartMain);
        self.with_checks(|checks| checks.begin(now), now);
    }

    fn main_ended(&mut self, end: MainEnd, now: Instant) {
        let Main::Runs { since, .. } = self.main else { return };
        let failed = !matches!(end, MainEnd::Exited { status: ExitStatus::Code(0), .. });
        // What cannot be started now cannot be started later either.
        let ran = matches!(end, MainEnd::Exited { .. });
        if let Some(ended) = &mut self.ended {
            // It was said before the machine ended, and heard later.
            ended.main.get_or_insert(end.clone());
        }
        self.main_end = Some(end);
        self.main = Main::Over;
        self.changed = true;
        self.end_checks();
        match self.state {
            State::Ending { step: Step::Main { until, limit }, .. } => {
                self.ask_guest(until.saturating_duration_since(now), limit, now);
            }
            State::Ending { step: Step::Killed { limit, .. }, .. } => {
                self.ask_guest(Duration::ZERO, limit, now);
            }
            State::Up { .. } => {
                let delay = match ran {
                    true => self.restarts.again(failed, now.saturating_duration_since(since)),
                    false => None,
                };
                match delay {
                    Some(delay) => self.main = Main::Delayed { until: now + delay },
                    None if self.plan.disposable => {
                        self.act(Action::StopMachine);
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
            (State::Up { .. } | State::Ending { .. }, Main::Runs { pid: Some(_), .. }) => {
                self.act(Action::SignalMain(signal));
                Ok(())
            }
            _ => Err("its main command does not run now".into()),
        }
    }

    fn pause(&mut self, now: Instant) -> Result<(), String> {
        match self.state {
            State::Up { .. } if self.paused.is_none() => {
                self.paused = Some(now);
                self.act(Action::Pause);
                self.tell(EventKind::Paused);
                Ok(())
            }
            State::Up { .. } => Ok(()),
            State::Booting { .. } | State::Down { .. } => {
                Err("the box is still starting: pause it when it runs".into())
            }
            _ => Err("the box is ending".into()),
        }
    }

    fn resume(&mut self, now: Instant) -> Result<(), String> {
        match self.state {
            State::Ending { .. } | State::Over => Err("the box is ending".into()),
            _ => {
                self.unpause(now);
                // Somebody may have come meanwhile.
                if self.is_up() && matches!(self.main, Main::Before { awaited: true }) {
                    self.start_main(now);
                }
                Ok(())
            }
        }
    }

    fn unpause(&mut self, now: Instant) {
        let Some(since) = self.paused.take() else { return };
        let stood = now.saturating_duration_since(since);
        if let State::Up { lost: Some((until, _)) } = &mut self.state {
            *until += stood;
        }
        match &mut self.main {
            Main::Delayed { until } => *until += stood,
            Main::Runs { since, .. } => *since += stood,
            _ => {}
        }
        self.booted_at += stood;
        if let Some(checks) = &mut self.checks {
            checks.shift(stood);
        }
        self.act(Action::Resume);
        self.tell(EventKind::Resumed);
    }

    fn tick(&mut self, now: Instant) {
        if self.paused.is_some() {
            return;
        }
        match &self.state {
            State::Booting { deadline: Some(deadline) } if *deadline <= now => {
                let timeout_ms = self.plan.ready_timeout_ms.unwrap_or_default();
                let stage = self.stages.last().map(|(stage, _)| *stage);
                self.act(Action::StopMachine);
                self.finish(EndCause::NotReady { timeout_ms, stage });
            }
            State::Up { lost: Some((until, why)) } if *until <= now => {
                let why = format!("the guest's agent is gone: {why}");
                self.restart_or_finish(EndCause::Failed(why), now);
            }
            State::Up { .. } => self.tick_up(now),
            State::Ending { step, .. } if step.until() <= now => match *step {
                Step::Main { limit, .. } => {
                    self.act(Action::KillMain);
                    let until = now + KILLED_LIMIT;
                    if let State::Ending { step, .. } = &mut self.state {
                        *step = Step::Killed { until, limit };
                    }
                }
                Step::Killed { limit, .. } => self.ask_guest(Duration::ZERO, limit, now),
                Step::Guest { .. } => {
                    tracing::warn!("the guest does not end: it is killed");
                    // As if the guest had done it: what ends the box is known.
                    self.vm_stopped(VmStop::Guest, None, now);
                }
            },
            State::Down { until } if *until <= now => {
                let restarts = self.restarts.count();
                self.tell(EventKind::Restarted { restarts });
                self.boot(now);
            }
            _ => {}
        }
    }

    fn tick_up(&mut self, now: Instant) {
        if matches!(self.main, Main::Delayed { until } if until <= now) {
            let restarts = self.restarts.count();
            self.tell(EventKind::Restarted { restarts });
            self.start_main(now);
        }
        let mut todo = None;
        self.with_checks(|checks| todo = checks.tick(now), now);
        match todo {
            // An unhealthy box that ends has cancelled it.
            Some(_) if !self.is_up() => {}
            Some(Todo::Begin(number)) => self.act(Action::Check(number)),
            Some(Todo::Cancel) => self.act(Action::CancelCheck),
            None => {}
        }
    }

    fn end_checks(&mut self) {
        if let Some(checks) = &mut self.checks {
            checks.end();
            self.act(Action::CancelCheck);
        }
    }

    /// Lets `f` change what is known of the box's health, and draws the conclusions.
    fn with_checks(&mut self, f: impl FnOnce(&mut Checks), now: Instant) {
        let Some(checks) = &mut self.checks else { return };
        let before = checks.health().clone();
        f(checks);
        let (after, stops) = (checks.health().clone(), checks.stops());
        if after == before {
            return;
        }
        self.changed = true;
        if after.status == before.status {
            return;
        }
        self.tell(EventKind::Health { status: after.status });
        if after.status == HealthStatus::Unhealthy && stops {
            let cause = EndCause::Unhealthy(after.last);
            self.end_in_order(cause, Some(OWN_GRACE), SHUTDOWN_LIMIT, now);
        }
    }
}
