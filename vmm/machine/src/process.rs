//! `boxlite-vmm machine`: the process of one box. Standard input is the socket to its launcher.
//!
//! The main thread owns the machine and does what the [lifecycle](super::lifecycle) says; all other
//! threads tell it what has happened.

mod launcher;
mod teardown;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use boxlite_contract::boot::BootStage;
use boxlite_contract::control::{self, FromMachine, ToMachine};
use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::{DiskMetrics, ExitCounts, MachineMetrics};
use boxlite_contract::spec::{BoxSpec, LaunchSpec, MainSpec};
use boxlite_contract::status::{EndCause, Status};
use boxlite_proto::message::Control;

use self::launcher::{Launcher, Orphan, hear_launcher};
use super::boot_report::Report;
use super::build::Machine;
use super::disks;
use super::hub::{Commands, Hub, HubCommand, Note};
use super::journal::Journal;
use super::lifecycle::{Action, Input, Lifecycle, Plan};
use super::message::{Message, Reply, Unsent};
use super::network::{BoxNetwork, PortError};
use super::record::Record;
use super::server::{Server, Vsock, hear_signals};
use super::sys;
use super::threads::{self, Threads};
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::backend;

/// How long a guest that ended while it booted may have been heard too late to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a hub may take longer than those who are attached: its log's file system may hang.
const HUB_LIMIT: Duration = Duration::from_secs(3);
/// How long answers may take to leave when the process ends.
const ANSWERS_LIMIT: Duration = Duration::from_millis(500);

/// Runs the machine that the launcher at standard input asks for, until it ends.
pub fn main() -> Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let launcher = UnixStream::from(stdin);
    launcher.peer_addr().context(
        "`boxlite-vmm machine` is started by the box runtime, with its socket as standard input",
    )?;
    let Some((ToMachine::Launch(spec), files)) = control::receive(&launcher)? else {
        bail!("the launcher sent no LaunchSpec");
    };
    // All of them, to the end of the process: the lock of the box's folder is among them.
    let files = files.into_iter().map(File::from).collect();
    let process = Process::new(launcher, *spec, files)?;
    // A machine that is no box ends by signals as any process does.
    if process.spec.sandbox.is_some() {
        hear_signals(&process.threads, process.sender.clone())?;
    }
    process.run();
    Ok(())
}

/// The process, as its main thread sees it.
struct Process {
    spec: LaunchSpec,
    files: Vec<File>,
    launcher: Launcher,
    sender: Sender<Message>,
    inbox: Receiver<Message>,
    threads: Threads,
    life: Lifecycle,
    vsock: Vsock,
    hub: Option<Hub>,
    journal: Option<Journal>,
    record: Option<Record>,
    unsent: Unsent,
    /// Somebody wants an end at once.
    killed: Arc<AtomicBool>,
    machine: Option<Machine<backend::Machine>>,
    /// The box's network, from its first boot on.
    network: Option<BoxNetwork>,
    /// The number of the boot, and when it began.
    boot: (u64, Instant),
    /// When this process began.
    since: Instant,
    /// What machines before this one counted.
    past: (ExitCounts, Vec<DiskMetrics>),
    /// Messages that came while something else was waited for, in their order.
    late: VecDeque<Message>,
    /// Of the request that is being carried out, if it has not been answered.
    reply: Option<Reply>,
    /// When the hub is not waited for any more.
    hub_deadline: Option<Instant>,
    /// Nothing is left to be done.
    drained: bool,
    /// A machine could not be taken down: a disk of it may be written to still.
    hangs: bool,
}

impl Process {
    fn new(launcher: UnixStream, spec: LaunchSpec, files: Vec<File>) -> Result<Self> {
        let now = Instant::now();
        let (sender, inbox) = channel();
        let vsock = Vsock::default();
        let report = sender.clone();
        let threads = Threads::new(move |why| {
            // The receiver is gone only when the process is ending.
            let _ = report.send(Message::Broken(why));
        });
        let mut process = Self {
            life: Lifecycle::new(Plan::of(&spec), now),
            launcher: Launcher::new(launcher.try_clone()?),
            sender: sender.clone(),
            inbox,
            threads: threads.clone(),
            vsock: vsock.clone(),
            hub: None,
            journal: None,
            record: None,
            unsent: Unsent::default(),
            killed: Arc::default(),
            machine: None,
            network: None,
            boot: (0, now),
            since: now,
            past: Default::default(),
            late: VecDeque::new(),
            reply: None,
            hub_deadline: None,
            drained: false,
            hangs: false,
            spec,
            files,
        };
        if let Some(sandbox) = &process.spec.sandbox {
            let log = process.file(sandbox.events)?;
            process.journal = Some(Journal::start(&threads, &sandbox.id, log)?);
        }
        // The guest boots while the rest is made.
        process.act(now);
        let (unsent, killed) = (process.unsent.clone(), process.killed.clone());
        let outlives = Arc::default();
        let server = Server { inbox: sender, vsock, hub: None, unsent, outlives, threads, killed };
        match process.spec.sandbox.clone() {
            None => hear_launcher(launcher, server, None)?,
            Some(sandbox) => {
                if let Err(e) = process.become_box(&sandbox, launcher, server) {
                    process.tell(Input::NotBuilt(EndCause::Failed(format!("{e:#}"))));
                }
            }
        }
        Ok(process)
    }

    /// Makes what a box has over a bare machine.
    fn become_box(
        &mut self,
        spec: &BoxSpec,
        launcher: UnixStream,
        mut server: Server,
    ) -> Result<()> {
        let file = |n: usize| self.file(n);
        let journal = self.journal.clone().context("a box without an event log")?;
        let record = Record::new(spec, journal, &self.threads)?;
        record.event(EventKind::Starting);
        let programs = Commands {
            main: spec.main.as_ref().map(MainSpec::request),
            ends_with_readers: !spec.detached
                && spec.main.as_ref().is_some_and(|main| main.wait_for_attach),
            check: spec.health.as_ref().map(|health| health.exec.clone()),
        };
        let sender = self.sender.clone();
        let hub = Hub::start(&self.threads, programs, record.folder(), move |note| {
            // The receiver is gone only when the process is ending.
            let _ = sender.send(Message::Hub(note));
        })?;
        server.hub = Some(hub.clone());
        server.outlives.store(spec.detached, Ordering::SeqCst);
        server.listen_for_control(OwnedFd::from(file(spec.control)?).into())?;
        server.listen_for_vsock(OwnedFd::from(file(spec.vsock)?).into())?;
        let orphan = Orphan { record: record.clone(), remove: spec.remove };
        hear_launcher(launcher, server, Some(orphan))?;
        self.hub = Some(hub);
        self.record = Some(record);
        self.act(Instant::now());
        Ok(())
    }

    /// Lives to the end of the box, and leaves word of it.
    fn run(mut self) {
        if let Err(panic) = threads::contain(|| self.live()) {
            let why = format!("the box's process panicked: {panic}");
            // It ends with all its threads: nothing is left to be done in order.
            let _ = self.life.on(Input::ProcessFailed(why), Instant::now());
        }
        self.life.settle();
        if let Some(network) = &mut self.network {
            network.finish_capture();
        }
        if let Some(ended) = self.life.ended() {
            if let Some(record) = &self.record {
                let mut status = self.status();
                status.disk_synced =
                    !self.hangs && disks::sync(ended, &self.spec.disks, &self.files, &self.threads);
                record.end(&status, ended);
            }
            self.launcher.ended(ended);
        }
        self.unsent.wait(ANSWERS_LIMIT);
    }

    fn live(&mut self) {
        while !self.drained {
            #[cfg(test)]
            threads::seam::check();
            let now = Instant::now();
            let deadline = self.life.deadline().into_iter().chain(self.hub_deadline).min();
            let message = match (self.late.pop_front(), deadline) {
                (Some(message), _) => Ok(message),
                (None, Some(deadline)) => {
                    self.inbox.recv_timeout(deadline.saturating_duration_since(now))
                }
                (None, None) => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Machine(boot, VmEvent::Stop(stop))) if boot == self.boot.0 => {
                    self.hear_last_words();
                    self.vm_stopped(stop);
                }
                Ok(message) => self.handle(message),
                Err(_) if self.hub_deadline.is_some_and(|until| until <= Instant::now()) => {
                    tracing::warn!("what is left for those who are attached is not waited for");
                    self.drained = true;
                }
                Err(_) => self.tell(Input::Tick),
            }
        }
    }

    /// Takes what happened, and does what is to be done then.
    fn tell(&mut self, input: Input) {
        // Only what somebody asks for can be refused, and that goes through `answer`.
        let now = Instant::now();
        let _ = self.life.on(input, now);
        self.act(now);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Machine(boot, said) if boot == self.boot.0 => match said {
                VmEvent::Report(Report::Stage(stage)) => self.stage(stage),
                VmEvent::Report(Report::Fatal(message)) => self.tell(Input::Fatal(message)),
                VmEvent::DiskFull(disk) => self.tell(Input::DiskFull(disk)),
                VmEvent::Stop(stop) => self.vm_stopped(stop),
            },
            // A machine that has been taken down.
            Message::Machine(..) => {}
            Message::Hub(note) => match note {
                Note::Awaited => self.tell(Input::MainAwaited),
                Note::MainStarted(pid) => {
                    self.tell(Input::MainStarted(pid));
                    sys::release_startup_code();
                }
                Note::MainEnded(end) => self.tell(Input::MainEnded(end)),
                Note::AgentLost(why) => self.tell(Input::AgentLost(why)),
                Note::Fatal(message) => self.tell(Input::Fatal(message)),
                Note::Checked(number, result) => self.tell(Input::HealthChecked(number, result)),
                Note::Drained => self.drained = true,
            },
            Message::Asked(message, reply) => {
                self.reply = Some(reply);
                let answer = self.answer(message);
                // It has been answered already if it takes long.
                if let Some(reply) = self.reply.take() {
                    reply.send(answer);
                }
            }
            Message::Answered(message) => {
                let _ = self.answer(message);
            }
            Message::Broken(why) => {
                self.tell(Input::ProcessFailed(why));
                self.drained |= self.has_no_hub();
            }
            Message::LauncherGone => self.tell(Input::LauncherGone),
            Message::Terminate => self.tell(Input::Terminate),
        }
    }

    fn answer(&mut self, message: ToMachine) -> FromMachine {
        let input = match message {
            ToMachine::Metrics => return FromMachine::Metrics(self.metrics()),
            ToMachine::Kill => Input::Kill,
            ToMachine::Pause => Input::Pause,
            ToMachine::Resume => Input::Resume,
            ToMachine::Outlive => Input::Outlive,
            ToMachine::Signal { pid, started_ms, .. } if !self.life.is(pid, started_ms) => {
                return FromMachine::Refused("it was started anew meanwhile".into());
            }
            ToMachine::Signal { signal, .. } => Input::Signal(signal),
            ToMachine::Stop { grace_ms } if self.hub.is_some() => {
                Input::Stop(Duration::from_millis(grace_ms))
            }
            _ => return FromMachine::Refused("the machine cannot do that".into()),
        };
        let now = Instant::now();
        let result = self.life.on(input, now);
        self.act(now);
        match result {
            Ok(()) => FromMachine::Done,
            Err(why) => FromMachine::Refused(why),
        }
    }

    /// Whether nobody is there who would say that all who are attached have what is theirs.
    fn has_no_hub(&self) -> bool {
        self.hub.as_ref().is_none_or(Hub::has_ended)
    }

    fn stage(&mut self, stage: BootStage) {
        let micros = self.boot.1.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        self.launcher.say(&FromMachine::Stage { stage, micros });
        self.tell(Input::Stage(stage, micros));
        if stage == BootStage::Ready {
            sys::release_startup_code();
        }
    }

    /// A guest that gives up says why on another thread than the one that ends it.
    fn hear_last_words(&mut self) {
        if !self.life.is_booting() {
            return;
        }
        let until = Instant::now() + LAST_WORDS;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Message::Machine(_, VmEvent::Report(report))) => match report {
                    Report::Stage(_) => {}
                    Report::Fatal(message) => return self.tell(Input::Fatal(message)),
                },
                Ok(message) => self.late.push_back(message),
                Err(_) => return,
            }
        }
    }

    fn vm_stopped(&mut self, stop: VmStop) {
        let panic = self.machine.as_ref().and_then(|machine| machine.console().panic());
        self.tell(Input::VmStopped { stop, panic });
    }

    /// Does what is to be done, and writes down what it came to.
    fn act(&mut self, now: Instant) {
        loop {
            let actions = self.life.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.do_one(action, now);
            }
        }
        if let Some(record) = &self.record
            && self.life.take_changed()
        {
            record.status(&self.status());
        }
    }

    fn do_one(&mut self, action: Action, now: Instant) {
        let command = match action {
            Action::BootVm => return self.boot(now),
            Action::PauseVcpus => {
                if self.machine.as_ref().is_some_and(|machine| !machine.pause()) {
                    tracing::warn!("not all vCPUs stand still");
                }
                return;
            }
            Action::ResumeVcpus => {
                self.machine.iter().for_each(Machine::resume);
                HubCommand::SetClock
            }
            Action::StopVm => return self.stop_machine(),
            Action::RecordEvent(kind) => {
                if let Some(record) = &self.record {
                    record.event(kind);
                }
                return;
            }
            Action::Finish(patience) => {
                self.drained = self.has_no_hub();
                self.close(patience)
            }
            Action::FinishNow => self.close(Some(Duration::from_secs(1))),
            Action::ConnectAgent => match self.connect() {
                Ok(Some(socket)) => HubCommand::Connect(socket),
                Ok(None) => return,
                Err(e) => {
                    // It is refused only in states that cannot be refused anything.
                    let _ = self.life.on(Input::AgentLost(e.to_string()), now);
                    return;
                }
            },
            Action::StartMain => HubCommand::StartMain,
            Action::SignalMain(signal) => HubCommand::ControlMain(Control::Signal(signal)),
            Action::KillMain => HubCommand::ControlMain(Control::Kill),
            Action::ShutDownGuest(grace) => HubCommand::ShutDown(grace),
            Action::CheckHealth(number) => HubCommand::Check(number),
            Action::CancelHealthCheck => HubCommand::CancelCheck,
        };
        if let Some(hub) = &self.hub {
            hub.send(command);
        }
    }

    /// The end of the hub, for which those who are attached may take so long.
    fn close(&mut self, patience: Option<Duration>) -> HubCommand {
        let deadline = patience.map(|patience| Instant::now() + patience + HUB_LIMIT);
        self.hub_deadline = self.hub_deadline.into_iter().chain(deadline).min();
        HubCommand::Close(patience)
    }

    fn boot(&mut self, now: Instant) {
        let boot = self.boot.0 + 1;
        self.boot = (boot, now);
        let sender = self.sender.clone();
        let stopped = AtomicBool::new(false);
        let tell: EventSink = Arc::new(move |said| {
            // A guest may ask for its reset as often as it likes before it is stopped.
            if matches!(said, VmEvent::Stop(_)) && stopped.swap(true, Ordering::SeqCst) {
                return;
            }
            // The receiver is gone only when the process is ending.
            let _ = sender.send(Message::Machine(boot, said));
        });
        let built = threads::contain(|| self.build(tell));
        let built = built.unwrap_or_else(|panic| bail!("building the machine panicked: {panic}"));
        match built {
            Ok(machine) => {
                self.vsock.set(Some(machine.vsock().clone()));
                self.machine = Some(machine);
                let micros = self.boot.1.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                let stage = BootStage::Kernel;
                self.launcher.say(&FromMachine::Stage { stage, micros });
                let _ = self.life.on(Input::Stage(stage, micros), Instant::now());
            }
            Err(e) => {
                let cause = match e.downcast_ref::<PortError>() {
                    Some(port) => EndCause::Port(port.to_string()),
                    None => EndCause::Failed(format!("{e:#}")),
                };
                let _ = self.life.on(Input::NotBuilt(cause), Instant::now());
            }
        }
    }

    fn build(&mut self, tell: EventSink) -> Result<Machine<backend::Machine>> {
        if let (None, Some(spec)) = (&self.network, &self.spec.network) {
            // Before anything boots: a port may be taken.
            let journal = self.journal.clone();
            let denied = move |what: &str, why: &str| {
                tracing::warn!("network: denied {what}: {why}");
                if let Some(journal) = &journal {
                    journal.event(EventKind::Denied { what: what.into(), why: why.into() });
                }
            };
            let capture = spec.capture.map(|n| self.file(n)).transpose()?;
            let network = BoxNetwork::start(spec, self.spec.host, capture, &self.threads, denied)?;
            self.network = Some(network);
        }
        let vm = backend::open(self.spec.vcpus, self.spec.nested)?;
        let network = self.network.as_ref();
        Machine::start(vm, &self.spec, &self.files, network, &self.threads, tell)
    }

    fn file(&self, n: usize) -> Result<File> {
        let file = self.files.get(n);
        Ok(file.with_context(|| format!("the launcher did not send file {n}"))?.try_clone()?)
    }

    /// What is to be known of the box.
    fn status(&self) -> Status {
        let mut status = self.life.status();
        if status.ended.is_none()
            && let Some(network) = &self.network
        {
            status.ports = network.ports().to_vec();
        }
        status
    }

    /// A client's socket to the agent, if there is somebody for it.
    fn connect(&self) -> io::Result<Option<UnixStream>> {
        if self.hub.is_none() {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.vsock.attach(theirs)?;
        Ok(Some(ours))
    }

    fn counted(&self, machine: &Machine<backend::Machine>) -> (ExitCounts, Vec<DiskMetrics>) {
        let (exits, disks) = &self.past;
        let now = machine.disks();
        let past = disks.iter().copied().chain(std::iter::repeat(DiskMetrics::default()));
        (
            *exits + machine.exits(),
            now.into_iter().zip(past).map(|(now, past)| now + past).collect(),
        )
    }

    fn metrics(&self) -> MachineMetrics {
        let (exits, disks) = match &self.machine {
            Some(machine) => self.counted(machine),
            None => self.past.clone(),
        };
        let mut metrics = MachineMetrics::default();
        metrics.cpu_micros = sys::cpu_time().as_micros().try_into().unwrap_or(u64::MAX);
        metrics.up_micros = self.since.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        metrics.rss = sys::resident();
        (metrics.exits, metrics.disks) = (exits, disks);
        metrics.network = self.network.as_ref().map(BoxNetwork::metrics);
        metrics
    }
}

#[cfg(test)]
mod tests;
