//! `boxlite-vmm machine`: the VM process of one box. Standard input is the socket to its launcher.
//!
//! The main thread owns the VM and carries out the actions of the [lifecycle](super::lifecycle); all other threads
//! send it messages.

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
use boxlite_contract::capture::CaptureStream;
use boxlite_contract::control::{self, FromMachine, ToMachine};
use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::{DiskMetrics, MachineMetrics, VmExitCounts};
use boxlite_contract::spec::{BoxSpec, CaptureSpec, LaunchSpec, MainSpec};
use boxlite_contract::status::{EndCause, Status};
use boxlite_proto::message::Control;

use self::launcher::{Launcher, Orphan, serve_launcher};
use super::boot_report::Report;
use super::build::{self, RunningVm};
use super::disks;
use super::hub::{Hub, HubCommand, HubEvent, Programs};
use super::journal::Journal;
use super::lifecycle::{Action, Input, Lifecycle, Plan};
use super::message::{Message, PendingReplies, Reply};
use super::network::{BoxNetwork, CaptureOutput, PortError};
use super::record::{self, Record};
use super::server::{Server, Vsock, handle_signals};
use super::sys;
use super::threads::{self, Threads};
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::backend;

/// How long the main thread waits for the agent's report when a guest stops during its boot.
const BOOT_REPORT_LIMIT: Duration = Duration::from_millis(100);
/// How long the hub may take beyond the patience for attached clients: its log's file system may hang.
const HUB_LIMIT: Duration = Duration::from_secs(3);
/// Timeout for writing the last replies when the process exits.
const ANSWERS_LIMIT: Duration = Duration::from_millis(500);

/// Runs the VM that the launcher at standard input requests, until it ends.
pub fn main() -> Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let launcher = UnixStream::from(stdin);
    launcher.peer_addr().context(
        "`boxlite-vmm machine` is started by the box runtime, with its socket as standard input",
    )?;
    let Some((ToMachine::Launch(spec), files)) = control::receive(&launcher)? else {
        bail!("the launcher sent no LaunchSpec");
    };
    // Kept open until the process exits: the lock of the box's folder is among them.
    let files = files.into_iter().map(File::from).collect();
    let process = Process::new(launcher, *spec, files)?;
    // A VM without a box has the default signal handlers.
    if process.spec.sandbox.is_some() {
        handle_signals(&process.threads, process.sender.clone())?;
    }
    process.run();
    Ok(())
}

/// The state of the main thread.
struct Process {
    spec: LaunchSpec,
    files: Vec<File>,
    launcher: Launcher,
    sender: Sender<Message>,
    inbox: Receiver<Message>,
    threads: Threads,
    lifecycle: Lifecycle,
    vsock: Vsock,
    hub: Option<Hub>,
    journal: Option<Journal>,
    record: Option<Record>,
    pending_replies: PendingReplies,
    /// Set when a client requests an end at once.
    killed: Arc<AtomicBool>,
    vm: Option<RunningVm<backend::HostVm>>,
    /// The box's network, from its first boot on.
    network: Option<BoxNetwork>,
    /// The number of the current boot, and when it began.
    boot: (u64, Instant),
    /// When this process started.
    started: Instant,
    /// Counters of the VMs of earlier boots.
    past_counters: (VmExitCounts, Vec<DiskMetrics>),
    /// Messages that arrived while the main thread waited for something else, in order.
    deferred: VecDeque<Message>,
    /// The reply to the request that is being carried out, if it has not been sent.
    reply: Option<Reply>,
    /// When the process stops waiting for the hub.
    hub_deadline: Option<Instant>,
    /// All output has been delivered, or is not waited for: the process may exit.
    drained: bool,
    /// A VM could not be taken down: its disks may still be written to.
    teardown_failed: bool,
}

impl Process {
    fn new(launcher: UnixStream, spec: LaunchSpec, files: Vec<File>) -> Result<Self> {
        let now = Instant::now();
        let (sender, inbox) = channel();
        let vsock = Vsock::default();
        let report = sender.clone();
        let threads = Threads::new(move |why| {
            // The receiver is gone only when the process is ending.
            let _ = report.send(Message::ProcessFailed(why));
        });
        let mut process = Self {
            lifecycle: Lifecycle::new(Plan::of(&spec), now),
            launcher: Launcher::new(launcher.try_clone()?),
            sender: sender.clone(),
            inbox,
            threads: threads.clone(),
            vsock: vsock.clone(),
            hub: None,
            journal: None,
            record: None,
            pending_replies: PendingReplies::default(),
            killed: Arc::default(),
            vm: None,
            network: None,
            boot: (0, now),
            started: now,
            past_counters: Default::default(),
            deferred: VecDeque::new(),
            reply: None,
            hub_deadline: None,
            drained: false,
            teardown_failed: false,
            spec,
            files,
        };
        if let Some(sandbox) = &process.spec.sandbox {
            let log = process.file(sandbox.events)?;
            process.journal = Some(Journal::start(&threads, &sandbox.id, log)?);
        }
        // The guest boots while the rest is set up.
        process.run_actions(now);
        let (pending_replies, killed) = (process.pending_replies.clone(), process.killed.clone());
        let outlives = Arc::default();
        let server =
            Server { inbox: sender, vsock, hub: None, pending_replies, outlives, threads, killed };
        match process.spec.sandbox.clone() {
            None => serve_launcher(launcher, server, None)?,
            Some(sandbox) => {
                if let Err(e) = process.start_box(&sandbox, launcher, server) {
                    process.apply(Input::NotBuilt(EndCause::Failed(format!("{e:#}"))));
                }
            }
        }
        Ok(process)
    }

    /// Sets up what a box has beyond its VM: hub, status, sockets.
    fn start_box(
        &mut self,
        spec: &BoxSpec,
        launcher: UnixStream,
        mut server: Server,
    ) -> Result<()> {
        let file = |n: usize| self.file(n);
        let journal = self.journal.clone().context("a box without an event log")?;
        let record = Record::new(spec, journal, &self.threads)?;
        record.event(EventKind::Starting);
        let programs = Programs {
            main: spec.main.as_ref().map(MainSpec::request),
            ends_with_readers: !spec.detached
                && spec.main.as_ref().is_some_and(|main| main.wait_for_attach),
            check: spec.health.as_ref().map(|health| health.exec.clone()),
        };
        let sender = self.sender.clone();
        let hub = Hub::start(&self.threads, programs, record.folder(), move |event| {
            // The receiver is gone only when the process is ending.
            let _ = sender.send(Message::Hub(event));
        })?;
        server.hub = Some(hub.clone());
        server.outlives.store(spec.detached, Ordering::SeqCst);
        server.listen_for_control(OwnedFd::from(file(spec.control)?).into())?;
        server.listen_for_vsock(OwnedFd::from(file(spec.vsock)?).into())?;
        let orphan = Orphan { record: record.clone(), remove: spec.remove };
        serve_launcher(launcher, server, Some(orphan))?;
        self.hub = Some(hub);
        self.record = Some(record);
        self.run_actions(Instant::now());
        Ok(())
    }

    /// Runs until the box has ended, and reports how.
    fn run(mut self) {
        if let Err(panic) = threads::contain(|| self.run_until_drained()) {
            let why = format!("the box's process panicked: {panic}");
            // The process exits with all its threads: there is no orderly shutdown.
            let _ = self.lifecycle.on(Input::ProcessFailed(why), Instant::now());
        }
        self.lifecycle.settle();
        if let Some(network) = &mut self.network {
            network.finish_capture();
        }
        if let Some(ended) = self.lifecycle.ended() {
            if let Some(record) = &self.record {
                let mut status = self.status();
                status.disk_synced = !self.teardown_failed
                    && disks::sync(ended, &self.spec.disks, &self.files, &self.threads);
                record.end(&status, ended);
            }
            self.launcher.ended(ended);
        }
        self.pending_replies.wait(ANSWERS_LIMIT);
    }

    fn run_until_drained(&mut self) {
        while !self.drained {
            #[cfg(test)]
            threads::fault::check();
            let now = Instant::now();
            let deadline = self.lifecycle.deadline().into_iter().chain(self.hub_deadline).min();
            let message = match (self.deferred.pop_front(), deadline) {
                (Some(message), _) => Ok(message),
                (None, Some(deadline)) => {
                    self.inbox.recv_timeout(deadline.saturating_duration_since(now))
                }
                (None, None) => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Vm(boot, VmEvent::Stop(stop))) if boot == self.boot.0 => {
                    self.await_boot_report();
                    self.vm_stopped(stop);
                }
                Ok(message) => self.handle(message),
                Err(_) if self.hub_deadline.is_some_and(|until| until <= Instant::now()) => {
                    tracing::warn!(
                        "attached clients have not taken all output in time: dropping the rest"
                    );
                    self.drained = true;
                }
                Err(_) => self.apply(Input::Tick),
            }
        }
    }

    /// Passes an input to the lifecycle, and runs its actions.
    fn apply(&mut self, input: Input) {
        // Only requests can be refused, and they go through `answer`.
        let now = Instant::now();
        let _ = self.lifecycle.on(input, now);
        self.run_actions(now);
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Vm(boot, event) if boot == self.boot.0 => match event {
                VmEvent::Report(Report::Stage(stage)) => self.stage(stage),
                VmEvent::Report(Report::Fatal(message)) => self.apply(Input::Fatal(message)),
                VmEvent::DiskFull(disk) => self.apply(Input::DiskFull(disk)),
                VmEvent::Stop(stop) => self.vm_stopped(stop),
            },
            // A VM of an earlier boot.
            Message::Vm(..) => {}
            Message::Hub(event) => match event {
                HubEvent::MainAwaited => self.apply(Input::MainAwaited),
                HubEvent::MainStarted(pid) => {
                    self.apply(Input::MainStarted(pid));
                    sys::release_startup_code();
                }
                HubEvent::MainEnded(end) => self.apply(Input::MainEnded(end)),
                HubEvent::AgentLost(why) => self.apply(Input::AgentLost(why)),
                HubEvent::Fatal(message) => self.apply(Input::Fatal(message)),
                HubEvent::HealthChecked(number, result) => {
                    self.apply(Input::HealthChecked(number, result))
                }
                HubEvent::Drained => self.drained = true,
            },
            Message::Request(message, reply) => {
                self.reply = Some(reply);
                let answer = self.answer(message);
                // A request that takes long has been answered already.
                if let Some(reply) = self.reply.take() {
                    reply.send(answer);
                }
            }
            Message::Acknowledged(message) => {
                let _ = self.answer(message);
            }
            Message::ProcessFailed(why) => {
                self.apply(Input::ProcessFailed(why));
                self.drained |= self.is_without_hub();
            }
            Message::LauncherGone => self.apply(Input::LauncherGone),
            Message::Terminate => self.apply(Input::Terminate),
        }
    }

    fn answer(&mut self, message: ToMachine) -> FromMachine {
        let input = match message {
            ToMachine::Metrics => return FromMachine::Metrics(self.metrics()),
            ToMachine::Kill => Input::Kill,
            ToMachine::Pause => Input::Pause,
            ToMachine::Resume => Input::Resume,
            ToMachine::Outlive => Input::Outlive,
            ToMachine::Signal { pid, started_ms, .. } if !self.lifecycle.is(pid, started_ms) => {
                return FromMachine::Refused("the box was started again meanwhile".into());
            }
            ToMachine::Signal { signal, .. } => Input::Signal(signal),
            ToMachine::Stop { grace_ms } if self.hub.is_some() => {
                Input::Stop(Duration::from_millis(grace_ms))
            }
            _ => {
                return FromMachine::Refused("this VM process does not support the request".into());
            }
        };
        let now = Instant::now();
        let result = self.lifecycle.on(input, now);
        self.run_actions(now);
        match result {
            Ok(()) => FromMachine::Done,
            Err(why) => FromMachine::Refused(why),
        }
    }

    /// Whether no hub runs that would report [`HubEvent::Drained`].
    fn is_without_hub(&self) -> bool {
        self.hub.as_ref().is_none_or(Hub::has_ended)
    }

    fn stage(&mut self, stage: BootStage) {
        let micros = self.boot.1.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        self.launcher.send(&FromMachine::Stage { stage, micros });
        self.apply(Input::Stage(stage, micros));
        if stage == BootStage::Ready {
            sys::release_startup_code();
        }
    }

    /// Waits briefly for the agent's report: it arrives on another thread than the guest's stop.
    fn await_boot_report(&mut self) {
        if !self.lifecycle.is_booting() {
            return;
        }
        let until = Instant::now() + BOOT_REPORT_LIMIT;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Message::Vm(_, VmEvent::Report(report))) => match report {
                    Report::Stage(_) => {}
                    Report::Fatal(message) => return self.apply(Input::Fatal(message)),
                },
                Ok(message) => self.deferred.push_back(message),
                Err(_) => return,
            }
        }
    }

    fn vm_stopped(&mut self, stop: VmStop) {
        let panic = self.vm.as_ref().and_then(|vm| vm.console().panic());
        self.apply(Input::VmStopped { stop, panic });
    }

    /// Runs the lifecycle's actions, and writes the status if it changed.
    fn run_actions(&mut self, now: Instant) {
        loop {
            let actions = self.lifecycle.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.run_action(action, now);
            }
        }
        if let Some(record) = &self.record
            && self.lifecycle.take_changed()
        {
            record.status(&self.status());
        }
    }

    fn run_action(&mut self, action: Action, now: Instant) {
        let command = match action {
            Action::BootVm => return self.boot(now),
            Action::PauseVcpus => {
                if self.vm.as_ref().is_some_and(|vm| !vm.pause()) {
                    tracing::warn!("not all vCPUs have paused");
                }
                return;
            }
            Action::ResumeVcpus => {
                self.vm.iter().for_each(RunningVm::resume);
                HubCommand::SetClock
            }
            Action::StopVm => return self.stop_vm(),
            Action::RecordEvent(kind) => {
                if let Some(record) = &self.record {
                    record.event(kind);
                }
                return;
            }
            Action::Finish(patience) => {
                self.drained = self.is_without_hub();
                self.close(patience)
            }
            Action::FinishNow => self.close(Some(Duration::from_secs(1))),
            Action::ConnectAgent => match self.connect() {
                Ok(Some(socket)) => HubCommand::Connect(socket),
                Ok(None) => return,
                Err(e) => {
                    // This input is never refused.
                    let _ = self.lifecycle.on(Input::AgentLost(e.to_string()), now);
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

    /// The command that finishes the hub, with `patience` for attached clients. Also sets the deadline of the hub.
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
        let events: EventSink = Arc::new(move |event| {
            // A guest may request its reset any number of times before it is stopped.
            if matches!(event, VmEvent::Stop(_)) && stopped.swap(true, Ordering::SeqCst) {
                return;
            }
            // The receiver is gone only when the process is ending.
            let _ = sender.send(Message::Vm(boot, event));
        });
        let built = threads::contain(|| self.build(events));
        let built = built.unwrap_or_else(|panic| bail!("building the machine panicked: {panic}"));
        match built {
            Ok(vm) => {
                self.vsock.set(Some(vm.vsock().clone()));
                self.vm = Some(vm);
                let micros = self.boot.1.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
                let stage = BootStage::Kernel;
                self.launcher.send(&FromMachine::Stage { stage, micros });
                let _ = self.lifecycle.on(Input::Stage(stage, micros), Instant::now());
            }
            Err(e) => {
                let cause = match e.downcast_ref::<PortError>() {
                    Some(port) => EndCause::Port(port.to_string()),
                    None => EndCause::Failed(format!("{e:#}")),
                };
                let _ = self.lifecycle.on(Input::NotBuilt(cause), Instant::now());
            }
        }
    }

    fn build(&mut self, events: EventSink) -> Result<RunningVm<backend::HostVm>> {
        if let (None, Some(spec)) = (&self.network, &self.spec.network) {
            // Before the guest boots: a port may be in use.
            let journal = self.journal.clone();
            let denied = move |what: &str, why: &str| {
                tracing::warn!("network: denied {what}: {why}");
                if let Some(journal) = &journal {
                    journal.event(EventKind::Denied { what: what.into(), why: why.into() });
                }
            };
            let capture = spec.capture.map(|capture| self.capture(capture)).transpose()?;
            let network = BoxNetwork::start(spec, self.spec.host, capture, &self.threads, denied)?;
            self.network = Some(network);
        }
        let vm = backend::HostVm::new(&build::config(&self.spec)?)?;
        // Not before: whether a VM can be created in the sandbox is unknown.
        self.confine().context("cannot confine the VM process")?;
        let network = self.network.as_ref();
        RunningVm::start(vm, &self.spec, &self.files, network, &self.threads, events)
    }

    /// Gives up what this process does not need any more, where the system can take it away.
    fn confine(&self) -> io::Result<()> {
        let folder = self.spec.sandbox.as_ref().map(|spec| spec.folder.as_path());
        let removed = self.spec.sandbox.as_ref().map(record::removed_folder);
        sys::confine(&sys::Paths {
            folder,
            removed: removed.as_deref(),
            boot: [&self.spec.kernel, &self.spec.initramfs],
        })
    }

    fn capture(&self, spec: CaptureSpec) -> Result<CaptureOutput> {
        Ok(match spec {
            CaptureSpec::File(n) => CaptureOutput::File(self.file(n)?),
            CaptureSpec::Stream(n) => CaptureOutput::Stream(CaptureStream::new(self.file(n)?)),
        })
    }

    fn file(&self, n: usize) -> Result<File> {
        let file = self.files.get(n);
        Ok(file.with_context(|| format!("the launcher did not send file {n}"))?.try_clone()?)
    }

    /// The status for `status.json`, with the published ports.
    fn status(&self) -> Status {
        let mut status = self.lifecycle.status();
        if status.ended.is_none()
            && let Some(network) = &self.network
        {
            status.ports = network.ports().to_vec();
        }
        status
    }

    /// A vsock client's socket to the agent, if there is a hub to use it.
    fn connect(&self) -> io::Result<Option<UnixStream>> {
        if self.hub.is_none() {
            return Ok(None);
        }
        let (ours, theirs) = UnixStream::pair()?;
        self.vsock.attach(theirs)?;
        Ok(Some(ours))
    }

    /// The counters of all boots, with `vm` as the current one.
    fn counters(&self, vm: &RunningVm<backend::HostVm>) -> (VmExitCounts, Vec<DiskMetrics>) {
        let (exits, disks) = &self.past_counters;
        let now = vm.disks();
        let past = disks.iter().copied().chain(std::iter::repeat(DiskMetrics::default()));
        (*exits + vm.exits(), now.into_iter().zip(past).map(|(now, past)| now + past).collect())
    }

    fn metrics(&self) -> MachineMetrics {
        let (exits, disks) = match &self.vm {
            Some(vm) => self.counters(vm),
            None => self.past_counters.clone(),
        };
        let mut metrics = MachineMetrics::default();
        metrics.cpu_micros = sys::cpu_time().as_micros().try_into().unwrap_or(u64::MAX);
        metrics.up_micros = self.started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        metrics.rss = sys::resident();
        (metrics.exits, metrics.disks) = (exits, disks);
        metrics.network = self.network.as_ref().map(BoxNetwork::metrics);
        metrics
    }
}

#[cfg(test)]
mod tests;
