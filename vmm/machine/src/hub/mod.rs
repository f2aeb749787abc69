//! The hub: a thread that holds the box's one connection to the agent and shares the main command
//! among the log and all who attach.
//!
//! ```text
//!   peer ◀──frames──▶ ┐                       ┌ main command
//!   peer ◀──frames──▶ ├ hub ◀──one vsock──▶ agent ┤ health check
//!   main.log ◀──────── ┘  ▲ commands, notes       └ shutdown
//!                    the box's lifecycle
//! ```
//!
//! Nothing blocks but the log's writes. The agent's connection is a client session of the protocol, each peer's
//! a server session, and what the command writes is shared between the log and the peers as it arrived. Memory is
//! bounded by credit: the command may write a window of each channel ahead of the slowest peer, and a peer a
//! window of input ahead of the command.

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

/// More peers than this at a time are told so and hung up on.
const MAX_PEERS: usize = 256;
/// While more waits for the agent, no peer is heard.
const AGENT_HIGH: usize = 512 << 10;
/// Reads that empty the socket of a machine that is gone.
const LAST_READS: usize = 32;
/// An onlooker that takes nothing for so long is hung up on when the command is over; the log has the rest.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long [`Hub::disconnect`] waits for the thread.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What the hub is to do.
#[derive(Debug)]
pub(super) enum HubCommand {
    /// A peer's socket.
    Attach(UnixStream),
    /// A vsock client's socket: the machine's agent is behind it.
    Connect(UnixStream),
    /// Forget the agent.
    Disconnect(SyncSender<()>),
    /// Run the main command.
    StartMain,
    /// Tell it something.
    ControlMain(Control),
    /// Its output goes on when nobody attached reads it: the box is detached now.
    KeepOutput,
    /// Begin the health check of this number.
    Check(u64),
    /// Kill the one that runs.
    CancelCheck,
    /// Set the guest's clock.
    SetClock,
    /// Ask the guest to end.
    ShutDown(Duration),
    /// Finish: [`Note::Drained`] when the peers have all that is theirs, or after so long.
    Close(Option<Duration>),
}

/// What the hub tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// A peer waits for the main command.
    Awaited,
    /// The main command runs.
    MainStarted(u32),
    /// It ended.
    MainEnded(MainEnd),
    /// The connection to the agent is lost.
    AgentLost(String),
    /// The agent gives up.
    Fatal(String),
    /// A health check ended.
    Checked(u64, Result<String, String>),
    /// The last note.
    Drained,
}

/// What the hub runs in the guest.
#[derive(Clone, Debug, Default)]
pub(super) struct Commands {
    /// The main command.
    pub(super) main: Option<MainExec>,
    /// Whether output that nobody attached reads any more is closed, as a broken pipe is; otherwise
    /// the log alone reads it.
    pub(super) ends_with_readers: bool,
    /// The health check.
    pub(super) check: Option<Exec>,
}

/// The way to the hub. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    commands: Sender<HubCommand>,
    bell: Arc<UnixStream>,
    /// There as long as the thread is.
    life: Weak<()>,
}

impl Hub {
    /// Starts the thread; the log is in `folder`.
    pub(super) fn start(
        threads: &Threads,
        commands: Commands,
        folder: &Path,
        tell: impl Fn(Note) + Send + 'static,
    ) -> io::Result<Self> {
        let (bell, rung) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        rung.set_nonblocking(true)?;
        let (sender, inbox) = channel();
        let (folder, watch, lives) = (folder.to_owned(), threads.clone(), Arc::new(()));
        let life = Arc::downgrade(&lives);
        let work = move || {
            let _lives = lives;
            let mut state = State {
                programs: commands,
                log: Writer::open(&folder),
                inbox,
                rung,
                tell: Box::new(tell),
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
        Ok(Self { commands: sender, bell: Arc::new(bell), life })
    }

    /// Gives it something to do.
    pub(super) fn send(&self, command: HubCommand) {
        // A hub that is gone has said so, and a full bell is rung already.
        let _ = self.commands.send(command);
        let _ = io::Write::write(&mut &*self.bell, &[1]);
    }

    /// Whether its thread has ended: there will be no [`Note`] any more.
    pub(super) fn has_ended(&self) -> bool {
        self.life.strong_count() == 0
    }

    /// Forgets the agent. What it said before has been told when this returns.
    pub(super) fn disconnect(&self) {
        let (done, wait) = sync_channel(1);
        self.send(HubCommand::Disconnect(done));
        let _ = wait.recv_timeout(DISCONNECT_LIMIT);
    }
}

struct State {
    programs: Commands,
    log: Writer,
    inbox: Receiver<HubCommand>,
    rung: UnixStream,
    tell: Box<dyn Fn(Note) + Send>,
    agent: Option<Agent>,
    peers: Vec<Peer>,
    closing: Option<Closing>,
}

struct Closing {
    since: Instant,
    deadline: Option<Instant>,
}

/// Tells somebody that too many are attached.
fn refuse(mut socket: UnixStream) {
    let message = format!("{MAX_PEERS} are attached to the main command already");
    tracing::warn!("{message}: one more is refused");
    let event = Event::Fatal { message }.frame(0);
    // A new socket has room for it, and is not waited for if it has none.
    let _ = socket.set_nonblocking(true).and_then(|()| socket.write_all(&event.to_bytes()));
}

impl State {
    fn run(&mut self) -> io::Result<()> {
        loop {
            #[cfg(test)]
            super::threads::seam::check();
            if !self.take_commands() {
                return Ok(());
            }
            loop {
                self.pump();
                self.flush();
                if !self.can_move() {
                    break;
                }
            }
            self.hang_up_on_idlers();
            self.peers.retain(|peer| !peer.is_over());
            if let Some(closing) = &self.closing {
                let late = closing.deadline.is_some_and(|deadline| deadline <= Instant::now());
                if late || self.peers.is_empty() {
                    (self.tell)(Note::Drained);
                    return Ok(());
                }
            }
            self.wait()?;
        }
    }

    /// When the hub closes for one peer, or for all.
    fn deadline(&self) -> Option<Instant> {
        let closing = self.closing.as_ref()?;
        let stalls = self.peers.iter().filter_map(|peer| closing.patience_with(peer));
        stalls.chain(closing.deadline).min()
    }

    /// A person who has suspended an onlooker is not to hold a box up that is over.
    fn hang_up_on_idlers(&mut self) {
        let Some(closing) = &self.closing else { return };
        let now = Instant::now();
        for peer in &mut self.peers {
            if closing.patience_with(peer).is_some_and(|until| until <= now) {
                tracing::warn!("somebody who was attached takes nothing: it is hung up on");
                peer.gone = true;
            }
        }
    }

    /// Waits for something to happen, and takes what has come.
    fn wait(&mut self) -> io::Result<()> {
        let listen = self.agent.as_ref().is_none_or(|agent| agent.session.waiting() < AGENT_HIGH);
        let mut fds = vec![PollFd::new(&self.rung, PollFlags::IN)];
        let agent = self.agent.iter().map(|agent| (&agent.link, true, agent.session.waiting()));
        let peers = self.peers.iter().filter(|peer| !peer.gone);
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
            // How often it was rung does not matter.
            let _ = io::Read::read(&mut &self.rung, &mut [0; 256]);
        }
        if self.agent.is_some() && readable.next() == Some(true) {
            self.receive_from_agent();
        }
        let ready: Vec<usize> = (0..self.peers.len())
            .filter(|n| !self.peers[*n].gone)
            .filter(|_| readable.next() == Some(true))
            .collect();
        for n in ready {
            self.receive_from_peer(n);
        }
        Ok(())
    }

    /// False when nobody can give commands any more.
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
                Err(e) => tracing::warn!("cannot serve who attached: {e}"),
            },
            HubCommand::Connect(socket) => match Agent::connect(socket) {
                Ok(agent) => self.agent = Some(agent),
                Err(e) => (self.tell)(Note::AgentLost(e.to_string())),
            },
            HubCommand::Disconnect(done) => {
                // Its machine is gone; what it had said is in the socket.
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
                    (self.tell)(Note::Checked(number, Err(why)));
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
        self.peers.iter_mut().for_each(Peer::leave);
    }

    /// The agent is gone, and with it the main command, if it ran.
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
            (self.tell)(Note::AgentLost(e.to_string()));
        }
    }

    fn on_agent_event(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::MainStarted(pid) => {
                self.peers.iter_mut().for_each(|peer| peer.start(pid));
                (self.tell)(Note::MainStarted(pid));
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
                (self.tell)(Note::MainEnded(end));
            }
            AgentEvent::Checked(number, result) => (self.tell)(Note::Checked(number, result)),
            AgentEvent::Fatal(message) => (self.tell)(Note::Fatal(message)),
        }
    }

    fn receive_from_peer(&mut self, n: usize) {
        let Some(peer) = self.peers.get_mut(n) else { return };
        let mut requests = Vec::new();
        if let Err(e) = peer.receive(&mut requests) {
            tracing::debug!("somebody who was attached is gone: {e}");
            peer.gone = true;
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
                        // Whoever runs a box in the foreground is there before its command.
                        peer.owner = self.programs.ends_with_readers;
                        (self.tell)(Note::Awaited);
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

    /// Moves what can be moved.
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

    /// Whether there is something left that could be moved now.
    fn can_move(&self) -> bool {
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
    /// Until when a peer may take what is left for it; none: as long as it likes.
    fn patience_with(&self, peer: &Peer) -> Option<Instant> {
        (!peer.owner).then(|| peer.link.moved().max(self.since) + STALL)
    }
}

/// From a peer to the main command, as far as its window goes.
fn pump_input(peer: &mut Peer, agent: &mut Agent) {
    if agent.session.waiting() < AGENT_HIGH {
        peer.pump_input(|queue| agent.send_input(queue));
    }
    if peer.input_ended() {
        agent.end_input();
    }
}
