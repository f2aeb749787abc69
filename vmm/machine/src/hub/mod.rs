//! The hub: a thread that owns the box's connection to the agent, and shares the main command among its log and
//! all attached peers.
//!
//! ```text
//!   peer ◀──frames──▶ ┐                       ┌ main command
//!   peer ◀──frames──▶ ├ hub ◀──one vsock──▶ agent ┤ health check
//!   main.log ◀──────── ┘  ▲ commands, events      └ shutdown
//!                    the box's main thread
//! ```
//!
//! Only writes to the log block. The agent's connection is a client session of the protocol, each peer's a server
//! session; output of the command is shared between log and peers without a copy. Credit bounds memory: the
//! command may write a window of each channel ahead of the slowest peer, and a peer may send a window of input
//! ahead of the command.

mod agent;
mod link;
mod peer;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use boxlite_contract::logbook::{LogStream, Writer};
use boxlite_contract::status::MainEnd;
use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Control, Event, Exec, MainExec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::agent::{Agent, AgentEvent};
use self::peer::{Ending, Peer, PeerRequest};
use super::threads::Threads;

/// The most peers at a time; another one gets an error, and its connection is closed.
const MAX_PEERS: usize = 256;
/// Unsent bytes to the agent above which peers are not read.
const AGENT_HIGH: usize = 512 << 10;
/// The most reads of what a VM that has stopped left in the socket.
const LAST_READS: usize = 32;
/// After the end of the command, a client other than the owner that makes no progress for this long is disconnected; the log
/// has the rest.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Timeout for [`Hub::disconnect`].
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A command to the hub.
#[derive(Debug)]
pub(super) enum HubCommand {
    /// Serve this socket as a peer.
    Attach(UnixStream),
    /// Connect to the agent over this socket of a vsock client.
    Connect(UnixStream),
    /// Drop the connection to the agent.
    Disconnect(SyncSender<()>),
    /// Start the main command.
    StartMain,
    /// Forward a control message to the main command.
    ControlMain(Control),
    /// Keep the command's output open when no attached peer reads it: the box is detached now.
    KeepOutput,
    /// Start the health check with this number.
    Check(u64),
    /// Kill the running health check.
    CancelCheck,
    /// Set the guest's clock.
    SetClock,
    /// Ask the guest to shut down, with this grace for its processes.
    ShutDown(Duration),
    /// Finish: send [`HubEvent::Drained`] once the peers have taken all their output, or after this time.
    Close(Option<Duration>),
}

/// An event from the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HubEvent {
    /// A peer has attached and waits for the main command.
    MainAwaited,
    /// The main command runs, with this process ID in the guest.
    MainStarted(u32),
    /// The main command ended.
    MainEnded(MainEnd),
    /// The connection to the agent is lost, and why.
    AgentLost(String),
    /// The agent gives up, and why.
    Fatal(String),
    /// The health check with this number ended: its output, or why it failed.
    HealthChecked(u64, Result<String, String>),
    /// The hub has finished. The last event.
    Drained,
}

/// The commands that the hub runs in the guest.
#[derive(Clone, Debug, Default)]
pub(super) struct Programs {
    /// The main command.
    pub(super) main: Option<MainExec>,
    /// Whether output is closed when the last attached peer stops reading it, as a pipe would be; otherwise the log
    /// keeps reading it.
    pub(super) ends_with_readers: bool,
    /// The health check.
    pub(super) check: Option<Exec>,
}

/// A handle to the hub. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    commands: Sender<HubCommand>,
    waker: Arc<UnixStream>,
    /// Can be upgraded as long as the thread runs.
    alive: Weak<()>,
}

impl Hub {
    /// Starts the hub's thread; the log is in `folder`. `emit` gets its events.
    pub(super) fn start(
        threads: &Threads,
        programs: Programs,
        folder: &Path,
        emit: impl Fn(HubEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let (waker, wakeups) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakeups.set_nonblocking(true)?;
        let (sender, inbox) = channel();
        let (folder, watch, running) = (folder.to_owned(), threads.clone(), Arc::new(()));
        let alive = Arc::downgrade(&running);
        let work = move || {
            let _running = running;
            let mut state = State {
                programs,
                log: Writer::open(&folder),
                inbox,
                wakeups,
                emit: Box::new(emit),
                agent: None,
                peers: Vec::new(),
                closing: None,
            };
            state.run()
        };
        threads.spawn("hub", move || {
            if let Err(e) = work() {
                watch.failed(format!("the hub of the main command cannot wait: {e}"));
            }
        })?;
        Ok(Self { commands: sender, waker: Arc::new(waker), alive })
    }

    /// Sends a command.
    pub(super) fn send(&self, command: HubCommand) {
        // The end of the hub is reported elsewhere, and a full waker wakes the hub anyway.
        let _ = self.commands.send(command);
        let _ = io::Write::write(&mut &*self.waker, &[1]);
    }

    /// Whether the thread has ended: no further [`HubEvent`] comes.
    pub(super) fn has_ended(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// Drops the connection to the agent. Events of what the agent sent before are out when this returns.
    pub(super) fn disconnect(&self) {
        let (done, wait) = sync_channel(1);
        self.send(HubCommand::Disconnect(done));
        let _ = wait.recv_timeout(DISCONNECT_LIMIT);
    }
}

struct State {
    programs: Programs,
    log: Writer,
    inbox: Receiver<HubCommand>,
    wakeups: UnixStream,
    emit: Box<dyn Fn(HubEvent) + Send>,
    agent: Option<Agent>,
    peers: Vec<Peer>,
    closing: Option<Closing>,
}

struct Closing {
    since: Instant,
    deadline: Option<Instant>,
}

/// Tells a client that too many peers are attached.
fn refuse(mut socket: UnixStream) {
    let message = format!("{MAX_PEERS} are attached to the main command already");
    tracing::warn!("{message}: one more is refused");
    let event = Event::Fatal { message }.frame(0);
    // A new socket has room for the message; one without is not waited for.
    let _ = socket.set_nonblocking(true).and_then(|()| socket.write_all(&event.to_bytes()));
}

impl State {
    fn run(&mut self) -> io::Result<()> {
        loop {
            #[cfg(test)]
            super::threads::fault::check();
            if !self.take_commands() {
                return Ok(());
            }
            loop {
                self.pump();
                self.flush();
                if !self.has_pending() {
                    break;
                }
            }
            self.disconnect_stalled();
            self.peers.retain(|peer| !peer.is_finished());
            if let Some(closing) = &self.closing {
                let late = closing.deadline.is_some_and(|deadline| deadline <= Instant::now());
                if late || self.peers.is_empty() {
                    (self.emit)(HubEvent::Drained);
                    return Ok(());
                }
            }
            self.wait()?;
        }
    }

    /// When the next stalled peer is disconnected, or the hub finishes.
    fn deadline(&self) -> Option<Instant> {
        let closing = self.closing.as_ref()?;
        let stalls = self.peers.iter().filter_map(|peer| closing.stall_deadline(peer));
        stalls.chain(closing.deadline).min()
    }

    /// Disconnects clients other than the owner that make no progress, so that a suspended one does not delay the end of
    /// the box.
    fn disconnect_stalled(&mut self) {
        let Some(closing) = &self.closing else { return };
        let now = Instant::now();
        for peer in &mut self.peers {
            if closing.stall_deadline(peer).is_some_and(|until| until <= now) {
                tracing::warn!("an attached client takes no output: disconnecting it");
                peer.disconnected = true;
            }
        }
    }

    /// Waits for a socket to be ready or a deadline, and reads the sockets that are readable.
    fn wait(&mut self) -> io::Result<()> {
        let listen = self.agent.as_ref().is_none_or(|agent| agent.session.waiting() < AGENT_HIGH);
        let mut fds = vec![PollFd::new(&self.wakeups, PollFlags::IN)];
        let agent = self.agent.iter().map(|agent| (&agent.link, true, agent.session.waiting()));
        let peers = self.peers.iter().filter(|peer| !peer.disconnected);
        let peers = peers.map(|peer| (&peer.link, listen, peer.session.waiting()));
        fds.extend(agent.chain(peers).map(|(link, read, waiting)| {
            PollFd::from_borrowed_fd(link.fd(), link.interest(read, waiting))
        }));
        let timeout = self.deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left + Duration::from_millis(1)).unwrap_or_default()
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let readable: Vec<bool> =
            fds.iter().map(|fd| !(fd.revents() - PollFlags::OUT).is_empty()).collect();
        drop(fds);
        let mut readable = readable.into_iter();
        if readable.next() == Some(true) {
            // One pass handles all commands, however many wakeups there were.
            let _ = io::Read::read(&mut &self.wakeups, &mut [0; 256]);
        }
        if self.agent.is_some() && readable.next() == Some(true) {
            self.receive_from_agent();
        }
        let ready: Vec<usize> = (0..self.peers.len())
            .filter(|n| !self.peers[*n].disconnected)
            .filter(|_| readable.next() == Some(true))
            .collect();
        for n in ready {
            self.receive_from_peer(n);
        }
        Ok(())
    }

    /// Carries out the commands that wait. Returns `false` if no further one can come.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.on_command(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn on_command(&mut self, command: HubCommand) {
        match command {
            HubCommand::Attach(socket) if self.peers.len() >= MAX_PEERS => refuse(socket),
            HubCommand::Attach(socket) => match Peer::new(socket) {
                Ok(peer) => self.peers.push(peer),
                Err(e) => tracing::warn!("cannot serve a client that attached: {e}"),
            },
            HubCommand::Connect(socket) => match Agent::connect(socket) {
                Ok(agent) => self.agent = Some(agent),
                Err(e) => (self.emit)(HubEvent::AgentLost(e.to_string())),
            },
            HubCommand::Disconnect(done) => {
                // The VM has stopped; what the agent sent before is still in the socket.
                for _ in 0..LAST_READS {
                    self.receive_from_agent();
                }
                self.lose_agent();
                let _ = done.send(());
            }
            HubCommand::StartMain => {
                if let (Some(agent), Some(main)) = (&mut self.agent, &self.programs.main) {
                    agent.start_main(main);
                }
            }
            HubCommand::ControlMain(control) => {
                if let Some(agent) = &mut self.agent {
                    agent.control_main(control);
                }
            }
            HubCommand::KeepOutput => {
                self.programs.ends_with_readers = false;
                self.peers.iter_mut().for_each(|peer| peer.owner = false);
            }
            HubCommand::Check(number) => {
                let (Some(agent), Some(exec)) = (&mut self.agent, &self.programs.check) else {
                    return;
                };
                if let Err(why) = agent.check(number, exec) {
                    (self.emit)(HubEvent::HealthChecked(number, Err(why)));
                }
            }
            HubCommand::CancelCheck => {
                if let Some(agent) = &mut self.agent {
                    agent.cancel_check();
                }
            }
            HubCommand::SetClock => {
                if let Some(agent) = &mut self.agent {
                    agent.ask_clock();
                }
            }
            HubCommand::ShutDown(grace) => {
                if let Some(agent) = &mut self.agent {
                    agent.shut_down(grace);
                }
            }
            HubCommand::Close(patience) => self.close(patience),
        }
    }

    fn close(&mut self, patience: Option<Duration>) {
        let deadline = patience.map(|patience| Instant::now() + patience);
        match &mut self.closing {
            Some(closing) => closing.deadline = closing.deadline.into_iter().chain(deadline).min(),
            None => {
                self.lose_agent();
                self.closing = Some(Closing { since: Instant::now(), deadline });
            }
        }
        self.peers.iter_mut().for_each(Peer::finish);
    }

    /// Drops the agent, and with it the main command, if it ran.
    fn lose_agent(&mut self) {
        self.agent = None;
        for peer in &mut self.peers {
            if peer.attached.as_ref().is_some_and(|attached| attached.started) {
                peer.end(Ending::HangUp);
            }
        }
    }

    fn receive_from_agent(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let mut events = Vec::new();
        let received = agent.receive(&mut events);
        events.into_iter().for_each(|event| self.on_agent_event(event));
        if let Err(e) = received {
            self.lose_agent();
            (self.emit)(HubEvent::AgentLost(e.to_string()));
        }
    }

    fn on_agent_event(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::MainStarted(pid) => {
                self.peers.iter_mut().for_each(|peer| peer.start(pid));
                (self.emit)(HubEvent::MainStarted(pid));
            }
            AgentEvent::Output(channel, bytes) => {
                let stream = match channel {
                    Channel::Stderr => LogStream::Stderr,
                    _ => LogStream::Stdout,
                };
                self.log.append(stream, &bytes);
                self.peers.iter_mut().for_each(|peer| peer.output(channel, &bytes));
            }
            AgentEvent::OutputEnded(channel) => {
                self.peers.iter_mut().for_each(|peer| peer.output_ended(channel));
            }
            AgentEvent::MainEnded(response, end) => {
                for peer in &mut self.peers {
                    peer.end(Ending::Response(response.clone()));
                }
                (self.emit)(HubEvent::MainEnded(end));
            }
            AgentEvent::HealthChecked(number, result) => {
                (self.emit)(HubEvent::HealthChecked(number, result))
            }
            AgentEvent::Fatal(message) => (self.emit)(HubEvent::Fatal(message)),
        }
    }

    fn receive_from_peer(&mut self, n: usize) {
        let Some(peer) = self.peers.get_mut(n) else { return };
        let mut requests = Vec::new();
        if let Err(e) = peer.receive(&mut requests) {
            tracing::debug!("an attached client disconnected: {e}");
            peer.disconnected = true;
        }
        for request in requests {
            self.on_request(n, request);
        }
    }

    fn on_request(&mut self, n: usize, request: PeerRequest) {
        let Some(peer) = self.peers.get_mut(n) else { return };
        let main = self.agent.as_mut().and_then(|agent| agent.main.as_ref());
        match request {
            PeerRequest::Attach(stream) if self.programs.main.is_none() => {
                peer.refuse(stream, "the box has no main command to attach to");
            }
            PeerRequest::Attach(stream) if self.closing.is_some() => {
                peer.refuse(stream, "the box's main command has ended");
            }
            PeerRequest::Attach(stream) => {
                peer.attach(stream);
                match main.and_then(|main| main.pid) {
                    Some(pid) => peer.start(pid),
                    None => {
                        // The client that runs a box in the foreground attaches before the command starts.
                        peer.owner = self.programs.ends_with_readers;
                        (self.emit)(HubEvent::MainAwaited);
                    }
                }
            }
            PeerRequest::CloseOutput(channel) => {
                let mut others = self.peers.iter().filter_map(|peer| peer.attached.as_ref());
                let read = others.any(|attached| attached.reads(channel));
                if let Some(agent) = &mut self.agent
                    && self.programs.ends_with_readers
                    && !read
                {
                    agent.close_output(channel);
                }
            }
            PeerRequest::Control(control) => {
                let started = peer.attached.as_ref().is_some_and(|attached| attached.started);
                if let Some(agent) = self.agent.as_mut().filter(|_| started) {
                    agent.control_main(control);
                }
            }
        }
    }

    /// Moves output, input and credit as far as windows and sockets allow.
    fn pump(&mut self) {
        self.peers.iter_mut().for_each(Peer::pump);
        let Some(agent) = &mut self.agent else { return };
        for channel in Channel::OUTPUTS {
            let held = self.peers.iter_mut().map(|peer| peer.held(channel)).max();
            agent.release(channel, held.unwrap_or(0));
        }
        if agent.main.as_ref().is_none_or(|main| main.pid.is_none()) {
            return;
        }
        for peer in &mut self.peers {
            if agent.takes_input() { pump_input(peer, agent) } else { peer.refuse_input() }
        }
    }

    /// Whether [`pump`](Self::pump) could move more now.
    fn has_pending(&self) -> bool {
        let input = self.agent.as_ref().is_some_and(|agent| {
            let pending = |peer: &Peer| peer.attached.as_ref().is_some_and(|a| a.has_input());
            agent.input_room() > 0
                && agent.session.waiting() < AGENT_HIGH
                && self.peers.iter().any(pending)
        });
        input || self.peers.iter().any(Peer::can_pump)
    }

    fn flush(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.link.flush(agent.session.outbox());
        }
        self.peers.iter_mut().for_each(Peer::flush);
    }
}

impl Closing {
    /// When the peer is disconnected for lack of progress; never, for the box's owner.
    fn stall_deadline(&self, peer: &Peer) -> Option<Instant> {
        (!peer.owner).then(|| peer.link.last_progress().max(self.since) + STALL)
    }
}

/// Moves input from a peer to the main command, as far as the command's window allows.
fn pump_input(peer: &mut Peer, agent: &mut Agent) {
    if agent.session.waiting() < AGENT_HIGH {
        peer.pump_input(|queue| agent.send_input(queue));
    }
    if peer.input_ended() {
        agent.end_input();
    }
}
