//! How a box ends: by an orderly shutdown whose steps each have a deadline, or with its VM.

use std::time::{Duration, Instant};

use boxlite_contract::events::EventKind;
use boxlite_contract::status::{BoxEnd, EndCause, now_ms};

use super::{Action, Lifecycle, Main, ORPHAN_GRACE, State};
use crate::vm_event::VmStop;

/// A step of an orderly shutdown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The main command got its stop signal. `limit`: the timeout of the guest's shutdown after it.
    MainAsked { until: Instant, limit: Duration },
    /// The main command was killed.
    MainKilled { until: Instant, limit: Duration },
    /// The guest was asked to shut down.
    GuestAsked { until: Instant },
}

impl Lifecycle {
    /// Shuts the box down: with a grace, the main command gets its stop signal first; then the guest is asked to shut
    /// down within `limit`.
    pub(super) fn end_in_order(
        &mut self,
        cause: EndCause,
        grace: Option<Duration>,
        limit: Duration,
        now: Instant,
    ) {
        self.unpause(now);
        match &mut self.state {
            State::Booting { .. } => {
                self.push(Action::StopVm);
                self.finish(cause);
            }
            State::RestartPending { .. } => self.finish(cause),
            State::Ended => self.push(Action::FinishNow),
            State::Ending { cause: current, step } => {
                if is_restartable(current) {
                    *current = cause;
                }
                // Of two requests, the one with the shorter deadline counts.
                let until = now + grace.unwrap_or_default();
                match (grace, step) {
                    (None, Step::MainAsked { .. } | Step::MainKilled { .. }) => {
                        self.ask_guest(ORPHAN_GRACE, limit, now);
                    }
                    (Some(_), Step::MainAsked { until: old, .. }) => *old = until.min(*old),
                    (Some(_), Step::MainKilled { .. }) => {}
                    (_, Step::GuestAsked { until: old }) => *old = (until + limit).min(*old),
                }
            }
            State::Running { .. } => {
                self.stop_checks();
                let signal = self.plan.main.map(|(_, signal)| signal);
                let runs = matches!(self.main, Main::Running { .. });
                let step = match (runs.then_some(signal).flatten(), grace) {
                    (Some(signal), Some(grace)) => {
                        self.push(Action::SignalMain(signal));
                        Some(Step::MainAsked { until: now + grace, limit })
                    }
                    _ => None,
                };
                let until = now + grace.unwrap_or_default();
                self.state =
                    State::Ending { cause, step: step.unwrap_or(Step::GuestAsked { until }) };
                if step.is_none() {
                    self.main = match self.main {
                        Main::None => Main::None,
                        Main::Running { pid, since } => Main::Running { pid, since },
                        _ => Main::Exited,
                    };
                    self.ask_guest(grace.unwrap_or(ORPHAN_GRACE), limit, now);
                }
                self.emit(EventKind::Stopping);
            }
        }
    }

    pub(super) fn ask_guest(&mut self, grace: Duration, limit: Duration, now: Instant) {
        if let State::Ending { step, .. } = &mut self.state {
            *step = Step::GuestAsked { until: now + grace + limit };
            self.push(Action::ShutDownGuest(grace));
        }
    }

    pub(super) fn vm_stopped(&mut self, stop: VmStop, panic: Option<Vec<String>>, now: Instant) {
        let asked = match &self.state {
            State::Ending { cause, .. } => Some(cause.clone()),
            State::Booting { .. } | State::Running { .. } => None,
            State::RestartPending { .. } | State::Ended => return,
        };
        let cause = match (panic, self.fatal.take(), stop) {
            (Some(lines), ..) => EndCause::Panic(lines),
            (_, Some(message), _) => EndCause::Agent(message),
            (_, _, VmStop::Failed(message)) => EndCause::Failed(message),
            (_, _, VmStop::Guest) => asked.clone().unwrap_or(EndCause::Guest),
        };
        match asked.is_some_and(|asked| !is_restartable(&asked)) {
            true => {
                self.push(Action::StopVm);
                self.finish(cause);
            }
            false => self.restart_or_finish(cause, now),
        }
    }

    /// Stops the VM, and builds another after a delay where the restart policy says so.
    pub(super) fn restart_or_finish(&mut self, cause: EndCause, now: Instant) {
        self.paused = None;
        self.stop_checks();
        self.push(Action::StopVm);
        let ran = now.saturating_duration_since(self.booted_at);
        let may = is_restartable(&cause) && self.disk_full.is_none();
        let delay = match may {
            true => self.restarts.next_delay(cause != EndCause::Guest, ran),
            false => None,
        };
        match delay {
            None => self.finish(cause),
            Some(delay) => {
                tracing::warn!("restarting the VM: {cause}");
                if !matches!(self.main, Main::None) {
                    self.main = Main::NotStarted { awaited: true };
                }
                self.main_end = None;
                self.state = State::RestartPending { until: now + delay };
                self.changed = true;
            }
        }
    }

    pub(super) fn finish(&mut self, cause: EndCause) {
        self.paused = None;
        self.stop_checks();
        let cause = match self.disk_full.take() {
            Some(disk) if cause != EndCause::Killed => EndCause::DiskFull(disk),
            _ => cause,
        };
        if !matches!(self.main, Main::None | Main::Running { .. }) {
            self.main = Main::Exited;
        }
        let patience = match cause {
            // Attached clients get all output of a command that exited by itself.
            EndCause::Main => None,
            EndCause::Stopped | EndCause::Killed | EndCause::Orphaned => {
                Some(Duration::from_secs(1))
            }
            _ => Some(Duration::from_secs(10)),
        };
        self.state = State::Ended;
        self.changed = true;
        self.push(Action::Finish(patience));
        self.ended = Some(BoxEnd { cause, at_ms: now_ms(), main: self.main_end.clone() });
    }
}

impl Step {
    pub(super) fn until(self) -> Instant {
        match self {
            Self::MainAsked { until, .. }
            | Self::MainKilled { until, .. }
            | Self::GuestAsked { until } => until,
        }
    }
}

/// Whether a box that ended for this cause may restart.
fn is_restartable(cause: &EndCause) -> bool {
    matches!(
        cause,
        EndCause::Guest
            | EndCause::Panic(_)
            | EndCause::Agent(_)
            | EndCause::Failed(_)
            | EndCause::Unhealthy(_)
    )
}
