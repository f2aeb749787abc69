//! How a box ends: in order, by steps that are bounded in time, or with its machine.

use std::time::{Duration, Instant};

use boxlite_contract::events::EventKind;
use boxlite_contract::status::{BoxEnd, EndCause, now_ms};

use super::{Action, Lifecycle, Main, ORPHAN_GRACE, State};
use crate::vm_event::VmStop;

/// How far an orderly end is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The main command has been asked. The guest may take that long afterwards.
    Main { until: Instant, limit: Duration },
    /// The main command has been killed.
    Killed { until: Instant, limit: Duration },
    /// The guest has been asked.
    Guest { until: Instant },
}

impl Lifecycle {
    /// Ends the box: its main command is asked first where there is a grace for it, then the guest,
    /// which may take `limit` to follow.
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
                self.act(Action::StopMachine);
                self.finish(cause);
            }
            State::Down { .. } => self.finish(cause),
            State::Over => self.act(Action::Hurry),
            State::Ending { cause: current, step } => {
                if may_begin_anew(current) {
                    *current = cause;
                }
                // Whoever is in more of a hurry wins.
                let until = now + grace.unwrap_or_default();
                match (grace, step) {
                    (None, Step::Main { .. } | Step::Killed { .. }) => {
                        self.ask_guest(ORPHAN_GRACE, limit, now);
                    }
                    (Some(_), Step::Main { until: old, .. }) => *old = until.min(*old),
                    (Some(_), Step::Killed { .. }) => {}
                    (_, Step::Guest { until: old }) => *old = (until + limit).min(*old),
                }
            }
            State::Up { .. } => {
                self.end_checks();
                let signal = self.plan.main.map(|(_, signal)| signal);
                let runs = matches!(self.main, Main::Runs { .. });
                let step = match (runs.then_some(signal).flatten(), grace) {
                    (Some(signal), Some(grace)) => {
                        self.act(Action::SignalMain(signal));
                        Some(Step::Main { until: now + grace, limit })
                    }
                    _ => None,
                };
                let until = now + grace.unwrap_or_default();
                self.state = State::Ending { cause, step: step.unwrap_or(Step::Guest { until }) };
                if step.is_none() {
                    self.main = match self.main {
                        Main::None => Main::None,
                        Main::Runs { pid, since } => Main::Runs { pid, since },
                        _ => Main::Over,
                    };
                    self.ask_guest(grace.unwrap_or(ORPHAN_GRACE), limit, now);
                }
                self.tell(EventKind::Stopping);
            }
        }
    }

    pub(super) fn ask_guest(&mut self, grace: Duration, limit: Duration, now: Instant) {
        if let State::Ending { step, .. } = &mut self.state {
            *step = Step::Guest { until: now + grace + limit };
            self.act(Action::ShutDown(grace));
        }
    }

    pub(super) fn vm_stopped(&mut self, stop: VmStop, panic: Option<Vec<String>>, now: Instant) {
        let asked = match &self.state {
            State::Ending { cause, .. } => Some(cause.clone()),
            State::Booting { .. } | State::Up { .. } => None,
            State::Down { .. } | State::Over => return,
        };
        let cause = match (panic, self.fatal.take(), stop) {
            (Some(lines), ..) => EndCause::Panic(lines),
            (_, Some(message), _) => EndCause::Agent(message),
            (_, _, VmStop::Failed(message)) => EndCause::Failed(message),
            (_, _, VmStop::Guest) => asked.clone().unwrap_or(EndCause::Guest),
        };
        match asked.is_some_and(|asked| !may_begin_anew(&asked)) {
            true => {
                self.act(Action::StopMachine);
                self.finish(cause);
            }
            false => self.restart_or_finish(cause, now),
        }
    }

    /// Stops the VM, and builds another after a delay where the restart policy says so.
    pub(super) fn restart_or_finish(&mut self, cause: EndCause, now: Instant) {
        self.paused = None;
        self.end_checks();
        self.act(Action::StopMachine);
        let ran = now.saturating_duration_since(self.booted_at);
        let may = may_begin_anew(&cause) && self.disk_full.is_none();
        let delay = match may {
            true => self.restarts.again(cause != EndCause::Guest, ran),
            false => None,
        };
        match delay {
            None => self.finish(cause),
            Some(delay) => {
                tracing::warn!("the machine begins anew: {cause}");
                if !matches!(self.main, Main::None) {
                    self.main = Main::Before { awaited: true };
                }
                self.main_end = None;
                self.state = State::Down { until: now + delay };
                self.changed = true;
            }
        }
    }

    pub(super) fn finish(&mut self, cause: EndCause) {
        self.paused = None;
        self.end_checks();
        let cause = match self.disk_full.take() {
            Some(disk) if cause != EndCause::Killed => EndCause::DiskFull(disk),
            _ => cause,
        };
        if !matches!(self.main, Main::None | Main::Runs { .. }) {
            self.main = Main::Over;
        }
        let patience = match cause {
            // Whoever ran the command for its output gets all of it.
            EndCause::Main => None,
            EndCause::Stopped | EndCause::Killed | EndCause::Orphaned => {
                Some(Duration::from_secs(1))
            }
            _ => Some(Duration::from_secs(10)),
        };
        self.state = State::Over;
        self.changed = true;
        self.act(Action::Finish(patience));
        self.ended = Some(BoxEnd { cause, at_ms: now_ms(), main: self.main_end.clone() });
    }
}

impl Step {
    pub(super) fn until(self) -> Instant {
        match self {
            Self::Main { until, .. } | Self::Killed { until, .. } | Self::Guest { until } => until,
        }
    }
}

/// Whether a machine that ended so begins anew, if the restart policy says so.
fn may_begin_anew(cause: &EndCause) -> bool {
    matches!(
        cause,
        EndCause::Guest
            | EndCause::Panic(_)
            | EndCause::Agent(_)
            | EndCause::Failed(_)
            | EndCause::Unhealthy(_)
    )
}
