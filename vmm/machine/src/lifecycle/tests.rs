//! Lifecycles of boxes under a clock that the test advances.

use boxlite_contract::spec::{HealthSpec, RestartPolicy};
use boxlite_contract::status::Health;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SIGTERM: i32 = 15;

fn code(code: u8) -> MainEnd {
    MainEnd::Exited { status: ExitStatus::Code(code), out_of_memory: false }
}

struct Life {
    life: Lifecycle,
    now: Instant,
    events: Vec<EventKind>,
}

impl Life {
    fn new(plan: Plan) -> Self {
        let now = Instant::now();
        let mut life = Self { life: Lifecycle::new(plan, now), now, events: Vec::new() };
        assert_eq!(life.actions(), [Action::BootVm]);
        life
    }

    /// A box whose guest serves.
    fn up(plan: Plan) -> Self {
        let mut life = Self::new(plan);
        life.ready();
        life
    }

    fn ready(&mut self) -> Vec<Action> {
        self.on(Input::Stage(BootStage::Agent, 5));
        let actions = self.on(Input::Stage(BootStage::Ready, 10));
        assert_eq!(actions.first(), Some(&Action::ConnectAgent));
        actions
    }

    /// Takes the actions without events, which are collected in `events`.
    fn actions(&mut self) -> Vec<Action> {
        let mut actions = self.life.take_actions();
        actions.retain(|action| match action {
            Action::RecordEvent(event) => {
                self.events.push(event.clone());
                false
            }
            Action::CancelHealthCheck => false,
            _ => true,
        });
        actions
    }

    fn on(&mut self, input: Input) -> Vec<Action> {
        self.life.on(input, self.now).unwrap();
        self.actions()
    }

    /// Advances the clock, with a tick at each deadline.
    fn advance(&mut self, time: Duration) -> Vec<Action> {
        let until = self.now + time;
        let mut actions = Vec::new();
        for _ in 0..10_000 {
            match self.life.deadline() {
                Some(due) if due <= until => {
                    self.now = self.now.max(due);
                    actions.extend(self.on(Input::Tick));
                }
                _ => {
                    self.now = until;
                    return actions;
                }
            }
        }
        panic!("ticks without end");
    }

    fn guest_off(&mut self) -> Vec<Action> {
        self.on(Input::VmStopped { stop: VmStop::Guest, panic: None })
    }

    fn phase(&self) -> Phase {
        self.life.status().phase
    }

    fn end(&mut self) -> EndCause {
        let ended = self.life.ended().expect("it ended").clone();
        assert_eq!(self.phase(), Phase::Stopping);
        self.life.settle();
        assert_eq!(self.life.status().ended, Some(ended.clone()));
        assert_eq!(self.phase(), Phase::Ended);
        assert_eq!(self.life.deadline(), None);
        ended.cause
    }

    fn main_end(&self) -> Option<MainEnd> {
        self.life.ended().and_then(|ended| ended.main.clone())
    }
}

fn with_main() -> Plan {
    let main = Some((false, SIGTERM));
    Plan { main, ready_timeout_ms: Some(10_000), is_box: true, ..Plan::default() }
}

fn without_main() -> Plan {
    Plan { main: None, ..with_main() }
}

fn restarting(restart: RestartPolicy) -> Plan {
    Plan { restart, ..with_main() }
}

const SHUT_DOWN: Action = Action::ShutDownGuest(Duration::ZERO);

#[test]
fn a_signal_is_for_a_main_command_that_runs_and_starts_none() {
    let refused = |life: &mut Life, why: &str| {
        let now = life.now;
        let error = life.life.on(Input::Signal(SIGTERM), now).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(life.actions(), []);
    };
    let main = Some((true, SIGTERM));
    let mut life = Life::new(Plan { main, restart: RestartPolicy::Always, ..with_main() });
    refused(&mut life, "does not run");
    assert_eq!(life.ready(), [Action::ConnectAgent]);
    refused(&mut life, "does not run");
    assert_eq!(life.on(Input::MainAwaited), [Action::StartMain]);
    refused(&mut life, "does not run");
    life.on(Input::MainStarted(1));
    assert_eq!(life.on(Input::Signal(2)), [Action::SignalMain(2)]);
    life.on(Input::Pause);
    refused(&mut life, "resume");
    life.on(Input::Resume);
    // A signal is not kept for the next run.
    life.on(Input::MainEnded(code(1)));
    refused(&mut life, "does not run");
    let mut life = Life::up(without_main());
    refused(&mut life, "no main command");
}

#[test]
fn a_box_ends_with_its_main_command() {
    let mut life = Life::new(with_main());
    assert_eq!(life.phase(), Phase::Starting);
    assert_eq!(life.ready(), [Action::ConnectAgent, Action::StartMain]);
    assert_eq!(life.phase(), Phase::Running);
    life.on(Input::MainStarted(7));
    assert_eq!(life.life.status().main_pid, Some(7));
    assert_eq!(life.on(Input::MainEnded(code(3))), [SHUT_DOWN]);
    assert_eq!((life.phase(), life.life.status().main_pid), (Phase::Stopping, None));
    assert_eq!(life.guest_off(), [Action::StopVm, Action::Finish(None)]);
    assert_eq!(life.main_end(), Some(code(3)));
    assert_eq!(life.end(), EndCause::Main);
    assert_eq!(life.life.ended().and_then(BoxEnd::code), Some(3));
    assert_eq!(life.events, [EventKind::Starting, EventKind::Running, EventKind::Stopping]);
}

#[test]
fn a_late_report_of_the_main_commands_end_is_kept() {
    let mut life = Life::up(with_main());
    life.on(Input::MainStarted(7));
    life.guest_off();
    assert_eq!(life.life.status().main_pid, None);
    assert_eq!(life.on(Input::MainEnded(code(4))), []);
    assert_eq!((life.main_end(), life.end()), (Some(code(4)), EndCause::Guest));
}

#[test]
fn a_guest_that_does_not_shut_down_is_killed() {
    let mut life = Life::up(with_main());
    life.on(Input::MainEnded(code(0)));
    assert_eq!(life.advance(SHUTDOWN_LIMIT - MS), []);
    assert_eq!(life.advance(MS), [Action::StopVm, Action::Finish(None)]);
    assert_eq!(life.end(), EndCause::Main);
}

#[test]
fn the_main_command_may_wait_for_a_client() {
    let mut life = Life::new(Plan { main: Some((true, SIGTERM)), ..with_main() });
    assert_eq!(life.ready(), [Action::ConnectAgent]);
    assert_eq!(life.on(Input::MainAwaited), [Action::StartMain]);
    assert_eq!(life.on(Input::MainAwaited), []);
    let mut life = Life::new(Plan { main: Some((true, SIGTERM)), ..with_main() });
    assert_eq!(life.on(Input::MainAwaited), []);
    assert_eq!(life.ready(), [Action::ConnectAgent, Action::StartMain]);
}

#[test]
fn a_disposable_guest_is_not_asked_to_shut_down() {
    let mut life = Life::up(Plan { disposable: true, ..with_main() });
    life.on(Input::MainStarted(7));
    assert_eq!(life.on(Input::MainEnded(code(3))), [Action::StopVm, Action::Finish(None)]);
    assert_eq!(life.end(), EndCause::Main);
}

#[test]
fn a_stop_signals_then_kills_then_shuts_down() {
    let mut life = Life::up(with_main());
    life.on(Input::MainStarted(7));
    assert_eq!(life.on(Input::Stop(3000 * MS)), [Action::SignalMain(SIGTERM)]);
    assert_eq!(life.advance(2999 * MS), []);
    assert_eq!(life.advance(MS), [Action::KillMain]);
    assert_eq!(life.advance(KILLED_LIMIT), [SHUT_DOWN]);
    let finish = [Action::StopVm, Action::Finish(Some(Duration::from_secs(1)))];
    assert_eq!(life.advance(SHUTDOWN_LIMIT), finish);
    assert_eq!(life.end(), EndCause::Stopped);
}

#[test]
fn the_rest_of_the_grace_is_for_the_other_processes() {
    let mut life = Life::up(restarting(RestartPolicy::Always));
    life.on(Input::Stop(3000 * MS));
    life.advance(1000 * MS);
    let end = MainEnd::Exited { status: ExitStatus::Signal(SIGTERM), out_of_memory: false };
    assert_eq!(life.on(Input::MainEnded(end.clone())), [Action::ShutDownGuest(2000 * MS)]);
    life.guest_off();
    assert_eq!(life.main_end(), Some(end));
    assert_eq!(life.end(), EndCause::Stopped);
}

#[test]
fn the_shorter_of_two_graces_counts_and_every_grace_ends() {
    let mut life = Life::up(with_main());
    life.on(Input::Stop(Duration::MAX));
    assert_eq!(life.advance(60_000 * MS), []);
    life.on(Input::Stop(100 * MS));
    life.on(Input::Stop(5000 * MS));
    assert_eq!(life.advance(100 * MS), [Action::KillMain]);
    let mut bare = Life::up(without_main());
    let Action::ShutDownGuest(grace) = bare.on(Input::Stop(1000 * MS))[0] else { panic!() };
    assert_eq!(grace, 1000 * MS);
    bare.on(Input::LauncherGone);
    assert_eq!(bare.advance(ORPHAN_LIMIT)[0], Action::StopVm);
}

#[test]
fn a_box_without_a_guest_ends_at_once() {
    let mut life = Life::new(with_main());
    assert_eq!(life.on(Input::Stop(9000 * MS))[0], Action::StopVm);
    assert_eq!(life.end(), EndCause::Stopped);
    let mut life = Life::up(with_main());
    assert_eq!(life.on(Input::Kill)[0], Action::StopVm);
    assert_eq!(life.end(), EndCause::Killed);
    assert_eq!(life.on(Input::Kill), [Action::FinishNow]);
    assert_eq!(life.on(Input::Stop(MS)), [Action::FinishNow]);
}

#[test]
fn a_guest_must_be_ready_in_time() {
    let mut life = Life::new(restarting(RestartPolicy::Always));
    life.on(Input::Stage(BootStage::Kernel, 1));
    assert_eq!(life.advance(9999 * MS), []);
    assert_eq!(life.advance(MS)[0], Action::StopVm);
    let stage = Some(BootStage::Kernel);
    assert_eq!(life.end(), EndCause::NotReady { timeout_ms: 10_000, stage });
}

#[test]
fn a_box_ends_with_its_launcher_unless_it_is_detached() {
    let mut life = Life::up(with_main());
    assert_eq!(life.on(Input::LauncherGone), [Action::ShutDownGuest(ORPHAN_GRACE)]);
    assert!(life.advance(2000 * MS).contains(&Action::StopVm), "two seconds at most");
    assert_eq!(life.end(), EndCause::Orphaned);
    let mut outlives = Life::up(with_main());
    outlives.on(Input::Outlive);
    assert_eq!(outlives.on(Input::LauncherGone), []);
    let mut detached = Life::up(Plan { detached: true, ..with_main() });
    assert_eq!(detached.on(Input::LauncherGone), []);
    assert_eq!(detached.phase(), Phase::Running);
}

#[test]
fn main_commands_restart_by_policy() {
    let mut life = Life::up(restarting(RestartPolicy::OnFailure(2)));
    for (restarts, delay) in [(1, 100), (2, 200)] {
        assert_eq!(life.on(Input::MainEnded(code(1))), []);
        assert_eq!(life.advance((delay - 1) * MS), []);
        assert_eq!(life.advance(MS), [Action::StartMain]);
        assert_eq!(life.life.status().restarts, restarts);
        assert_eq!(life.events.last(), Some(&EventKind::Restarted { restarts }));
    }
    assert_eq!(life.on(Input::MainEnded(code(1))), [SHUT_DOWN]);
    life.guest_off();
    assert_eq!(life.end(), EndCause::Main);

    let mut life = Life::up(restarting(RestartPolicy::OnFailure(0)));
    assert_eq!(life.on(Input::MainEnded(code(0))), [SHUT_DOWN]);

    let mut life = Life::up(restarting(RestartPolicy::Always));
    life.on(Input::MainEnded(code(0)));
    assert_eq!(life.on(Input::Stop(1000 * MS)), [Action::ShutDownGuest(1000 * MS)]);
    assert_eq!(life.main_end(), None);
    life.guest_off();
    assert_eq!((life.main_end(), life.end()), (Some(code(0)), EndCause::Stopped));

    let mut life = Life::up(restarting(RestartPolicy::Always));
    let missing = MainEnd::NotStarted { code: 127, message: "no such file".into() };
    assert_eq!(life.on(Input::MainEnded(missing)), [SHUT_DOWN]);
}

#[test]
fn vms_restart_by_policy() {
    let mut life = Life::up(restarting(RestartPolicy::OnFailure(1)));
    let panic = || Some(vec!["Kernel panic".to_owned()]);
    let actions = life.on(Input::VmStopped { stop: VmStop::Guest, panic: panic() });
    assert_eq!(actions, [Action::StopVm]);
    assert_eq!(life.phase(), Phase::Starting);
    assert_eq!(life.advance(100 * MS), [Action::BootVm]);
    assert_eq!(life.ready(), [Action::ConnectAgent, Action::StartMain]);
    life.on(Input::Fatal("the disk is gone".into()));
    assert_eq!(life.guest_off()[0], Action::StopVm);
    assert_eq!(life.end(), EndCause::Agent("the disk is gone".into()));

    let mut life = Life::up(with_main());
    life.on(Input::VmStopped { stop: VmStop::Guest, panic: panic() });
    assert_eq!(life.end(), EndCause::Panic(panic().unwrap()));

    let mut life = Life::up(restarting(RestartPolicy::OnFailure(0)));
    life.guest_off();
    assert_eq!(life.end(), EndCause::Guest);

    let mut life = Life::up(restarting(RestartPolicy::Always));
    life.guest_off();
    assert_eq!(life.on(Input::Stop(MS)).len(), 1);
    assert_eq!(life.end(), EndCause::Stopped);

    let mut life = Life::new(restarting(RestartPolicy::Always));
    life.on(Input::NotBuilt(EndCause::Failed("no /dev/kvm".into())));
    assert_eq!(life.end(), EndCause::Failed("no /dev/kvm".into()));
}

#[test]
fn a_lost_agent_is_a_failure() {
    let mut life = Life::up(with_main());
    life.on(Input::AgentLost("it was closed".into()));
    // The guest has time to end by itself.
    assert_eq!(life.advance(LOST_LIMIT - MS), []);
    assert_eq!(life.advance(MS)[0], Action::StopVm);
    assert!(matches!(life.end(), EndCause::Failed(why) if why.contains("it was closed")));
    let mut life = Life::up(without_main());
    life.on(Input::AgentLost("it was closed".into()));
    life.guest_off();
    assert_eq!(life.end(), EndCause::Guest);
}

#[test]
fn a_full_disk_shuts_the_box_down_and_is_the_cause() {
    let mut life = Life::up(restarting(RestartPolicy::Always));
    assert_eq!(life.on(Input::DiskFull("vda".into())), [Action::SignalMain(SIGTERM)]);
    life.on(Input::MainEnded(code(1)));
    life.guest_off();
    assert_eq!(life.end(), EndCause::DiskFull("vda".into()));
    let mut life = Life::up(with_main());
    life.on(Input::Stop(MS));
    life.on(Input::DiskFull("vda".into()));
    life.guest_off();
    assert_eq!(life.end(), EndCause::DiskFull("vda".into()));
    // A VM without a box goes on: its caller sees the guest's failure.
    let mut bare = Life::up(Plan::default());
    assert_eq!(bare.on(Input::DiskFull("vda".into())), []);
    bare.guest_off();
    assert_eq!(bare.end(), EndCause::DiskFull("vda".into()));
}

#[test]
fn deadlines_wait_while_a_box_is_paused() {
    let mut life = Life::new(restarting(RestartPolicy::Always));
    assert!(life.life.on(Input::Pause, life.now).is_err());
    life.ready();
    life.on(Input::MainEnded(code(0)));
    assert_eq!(life.on(Input::Pause), [Action::PauseVcpus]);
    assert_eq!(life.on(Input::Pause), []);
    assert_eq!((life.phase(), life.life.deadline()), (Phase::Paused, None));
    assert_eq!(life.advance(60_000 * MS), []);
    assert_eq!(life.on(Input::Resume), [Action::ResumeVcpus]);
    assert_eq!(life.on(Input::Resume), []);
    assert_eq!(life.advance(99 * MS), []);
    assert_eq!(life.advance(MS), [Action::StartMain]);
    life.on(Input::Pause);
    assert_eq!(life.on(Input::Stop(MS)), [Action::ResumeVcpus, Action::SignalMain(SIGTERM)]);
    assert!(life.life.on(Input::Pause, life.now).is_err());
    assert!(life.life.on(Input::Resume, life.now).is_err());
}

fn checked(stop: bool) -> Plan {
    let health = HealthSpec {
        exec: Default::default(),
        interval_ms: 1000,
        timeout_ms: 500,
        retries: 2,
        start_period_ms: 0,
        stop,
    };
    Plan { health: Some(health), ..restarting(RestartPolicy::OnFailure(0)) }
}

#[test]
fn health_is_checked_and_reported() {
    let mut life = Life::up(checked(false));
    assert_eq!(life.advance(1000 * MS), [Action::CheckHealth(1)]);
    life.on(Input::HealthChecked(1, Ok("fine".into())));
    let healthy = |life: &Life| life.life.status().health.map(|Health { status, .. }| status);
    assert_eq!(healthy(&life), Some(HealthStatus::Healthy));
    for _ in 0..2 {
        life.advance(1500 * MS);
    }
    assert_eq!(healthy(&life), Some(HealthStatus::Unhealthy));
    let reported: Vec<_> =
        life.events.iter().filter(|event| matches!(event, EventKind::Health { .. })).collect();
    assert_eq!(reported.len(), 2);
    assert_eq!(life.phase(), Phase::Running);
    // No checks between two runs of the main command.
    life.on(Input::MainEnded(code(1)));
    assert_eq!(life.advance(99 * MS), []);
    assert_eq!(life.advance(MS), [Action::StartMain]);
    assert_eq!(healthy(&life), Some(HealthStatus::Starting));
}

#[test]
fn an_unhealthy_box_may_be_restarted() {
    let mut life = Life::up(checked(true));
    let actions = life.advance(3000 * MS);
    assert_eq!(
        actions,
        [Action::CheckHealth(1), Action::CheckHealth(2), Action::SignalMain(SIGTERM)],
        "{:?}",
        life.life
    );
    life.on(Input::MainEnded(code(143)));
    assert_eq!(life.guest_off(), [Action::StopVm]);
    assert_eq!(life.advance(100 * MS), [Action::BootVm]);
    let mut life = Life::up(Plan { restart: RestartPolicy::No, ..checked(true) });
    life.advance(3000 * MS);
    life.guest_off();
    assert!(matches!(life.end(), EndCause::Unhealthy(why) if why.contains("500 ms")));
}

mod any_order {
    use proptest::prelude::*;

    use super::*;

    fn input() -> impl Strategy<Value = Input> {
        let end = prop_oneof![
            Just(code(0)),
            Just(code(1)),
            Just(MainEnd::NotStarted { code: 127, message: String::new() })
        ];
        let stop = prop_oneof![Just(VmStop::Guest), Just(VmStop::Failed(String::new()))];
        let lines = proptest::option::of(Just(vec![String::new()]));
        prop_oneof![
            Just(Input::Stage(BootStage::Ready, 1)),
            Just(Input::Fatal(String::new())),
            Just(Input::DiskFull("vda".into())),
            (stop, lines).prop_map(|(stop, panic)| Input::VmStopped { stop, panic }),
            Just(Input::MainAwaited),
            Just(Input::MainStarted(1)),
            end.prop_map(Input::MainEnded),
            Just(Input::AgentLost(String::new())),
            (0_u64..4).prop_map(|n| Input::HealthChecked(n, Ok(String::new()))),
            (0_u32..3000).prop_map(|ms| Input::Stop(ms * MS)),
            Just(Input::Terminate),
            Just(Input::Pause),
            Just(Input::Resume),
            Just(Input::Outlive),
            Just(Input::LauncherGone),
        ]
    }

    proptest! {
        /// For any inputs in any order: at most one VM runs, nothing is asked of a guest that does not run, the box
        /// ends once, and a stop ends it in bounded time.
        #[test]
        fn invariants_hold(
            inputs in proptest::collection::vec((input(), 0_u32..4000), 0..40),
            restart in prop_oneof![
                Just(RestartPolicy::No), Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure(1))
            ],
            wait: bool,
        ) {
            let mut life = Life::up(Plan { restart, main: Some((wait, SIGTERM)), ..checked(true) });
            let (mut runs, mut finished, mut paused) = (true, 0, false);
            let mut all = Vec::new();
            for (input, ms) in inputs {
                let _ = life.life.on(input, life.now);
                all.extend(life.actions());
                all.extend(life.advance(ms * MS));
            }
            all.extend(life.on(Input::Stop(1000 * MS)));
            all.extend(life.advance(12_000 * MS));
            for action in all {
                match action {
                    Action::BootVm => {
                        prop_assert!(!runs && finished == 0);
                        runs = true;
                    }
                    Action::StopVm => (runs, paused) = (false, false),
                    Action::PauseVcpus => {
                        prop_assert!(runs && !paused);
                        paused = true;
                    }
                    Action::ResumeVcpus => {
                        prop_assert!(runs && paused);
                        paused = false;
                    }
                    Action::Finish(_) => finished += 1,
                    Action::FinishNow => prop_assert_eq!(finished, 1),
                    Action::CancelHealthCheck | Action::RecordEvent(_) => {}
                    _ => prop_assert!(runs && !paused && finished == 0),
                }
            }
            prop_assert!(!runs);
            prop_assert_eq!(finished, 1);
            prop_assert!(life.life.ended().is_some());
        }
    }
}
