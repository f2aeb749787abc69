//! The agent's loop: one thread that serves every connection, exec, job and socket.
//!
//! Nothing here blocks: work that may block is a job. Each turn of the loop collects readiness, reaps
//! children, serves every connection, exec, job and socket once, and sends. So streams take turns, and a stream
//! whose reader has stopped (no credit, or a full socket) stops only itself.
//!
//! The server owns the connections, execs, jobs and sockets, and moves data between them; it may use all of `host`,
//! `exec`, `job`, `socket` and `sys`.

mod clock;
mod requests;
pub(crate) mod shutdown;
mod sockets;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_proto::boot::Role;
use boxlite_proto::guest::ExecCounts;
use boxlite_proto::message::{Event, ExitStatus, Response};
use boxlite_proto::session::{ServerEvent, Violation};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;
use rustix::process::Pid;

use self::shutdown::Shutdown;
use self::streams::{to_exec, to_job, to_socket};
use crate::exec::reaper::{Reaped, reap};
use crate::exec::{Cgroups, Exec};
use crate::host::connection::{CHUNK, Connection, ConnectionError, ReplyTo, Service, Session};
use crate::host::listener::Listener;
use crate::job::Job;
use crate::socket::Socket;
use crate::sys;
use crate::sys::poller::{Poller, Token};

/// Limit on connections. Each command line that runs a command has one, and each program on the host that
/// uses the box. The host's vsock device allows a few more, so that the agent can refuse them with a reason.
const MAX_CONNECTIONS: usize = 1000;

/// Timeout for cancelled jobs to stop, at the shutdown.
const JOBS_TIMEOUT: Duration = Duration::from_secs(1);

/// Token ID of the server's own descriptors; connections, execs and sockets have other IDs.
const SERVER: u64 = 0;
const LISTENER: u8 = 0;
const CHILDREN: u8 = 1;
const JOBS: u8 = 2;

/// Serves the host. A process must have only one, because it reaps every child.
pub struct Server {
    role: Role,
    poller: Poller,
    /// An eventfd that SIGCHLD signals.
    children: OwnedFd,
    child_ended: bool,
    /// An eventfd that the threads of jobs signal.
    job_bell: Arc<OwnedFd>,
    jobs: BTreeMap<u64, Job>,
    /// The job that unpacks a layer. There is one at a time: each layer goes onto the one before.
    layer: Option<u64>,
    listener: Option<Listener>,
    connections: BTreeMap<u64, Connection>,
    execs: BTreeMap<u64, Exec>,
    sockets: BTreeMap<u64, Socket>,
    exec_counts: ExecCounts,
    cgroups: Cgroups,
    next_id: u64,
    scratch: Vec<u8>,
    /// Boot events for a host that attaches to the serial port after the boot.
    missed_events: Vec<Event>,
    shutdown: Option<Shutdown>,
}

impl Server {
    /// A server without connections.
    pub fn new(role: Role) -> io::Result<Self> {
        let poller = Poller::new()?;
        let children = sys::signal::on_child_ended()?;
        poller.watch(&children, Token { id: SERVER, slot: CHILDREN })?;
        let job_bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        poller.watch(&job_bell, Token { id: SERVER, slot: JOBS })?;
        Ok(Self {
            role,
            poller,
            children,
            // A child may have exited before the handler was installed.
            child_ended: true,
            job_bell: Arc::new(job_bell),
            jobs: BTreeMap::new(),
            layer: None,
            listener: None,
            connections: BTreeMap::new(),
            execs: BTreeMap::new(),
            sockets: BTreeMap::new(),
            exec_counts: ExecCounts::default(),
            cgroups: Cgroups::new(),
            next_id: 1,
            scratch: vec![0; CHUNK],
            missed_events: Vec::new(),
            shutdown: None,
        })
    }

    /// Accepts the host's connections from this listener, which must be non-blocking.
    pub fn listen(&mut self, listener: OwnedFd) -> io::Result<()> {
        self.poller.watch(&listener, Token { id: SERVER, slot: LISTENER })?;
        self.listener = Some(Listener::new(listener));
        self.accept();
        Ok(())
    }

    /// Serves a connection, which must be non-blocking. Above `MAX_CONNECTIONS`, it gets an error and is
    /// closed.
    pub fn connect(&mut self, fd: OwnedFd) -> io::Result<()> {
        if self.connections.len() < MAX_CONNECTIONS {
            return self.add(fd, false);
        }
        let message = format!(
            "{MAX_CONNECTIONS} connections to the agent are open already; \
             try again when a command has ended"
        );
        crate::log::warn(format_args!("refused a connection: {message}"));
        // A new connection has room in its buffer. A peer that has hung up needs no answer.
        let _ = rustix::io::write(fd, &Event::Fatal { message }.frame(0).to_bytes());
        Ok(())
    }

    /// Serves the host on a virtio-serial port. The guest shuts down when the host detaches. `events` are the
    /// boot events that the host has missed.
    pub fn connect_serial(&mut self, port: OwnedFd, events: Vec<Event>) -> io::Result<()> {
        self.missed_events = events;
        self.add(port, true)
    }

    fn add(&mut self, fd: OwnedFd, serial: bool) -> io::Result<()> {
        let id = self.new_id();
        self.poller.watch(&fd, Token { id, slot: 0 })?;
        self.connections.insert(id, Connection::new(fd, serial));
        Ok(())
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Serves the host until the shutdown is done: all data is on disk, and its request is answered.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let timeout = if self.has_work() { Some(Duration::ZERO) } else { self.timeout() };
            self.wait(timeout)?;
            if std::mem::take(&mut self.child_ended) {
                self.reap_all();
            }
            let ids: Vec<_> = self.connections.keys().copied().collect();
            for id in ids {
                self.serve(id);
            }
            self.pump_all();
            self.pump_sockets();
            self.advance_jobs();
            self.flush_all();
            if self.shutdown.as_ref().is_some_and(|s| s.is_due(Instant::now())) {
                self.finish_shutdown();
                return Ok(());
            }
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let mut accept = false;
        for (token, ready) in self.poller.wait(timeout)? {
            match token {
                Token { id: SERVER, slot: LISTENER } => accept = true,
                Token { id: SERVER, slot: CHILDREN } => self.child_ended = true,
                // Jobs are advanced in every turn.
                Token { id: SERVER, .. } => {}
                Token { id, slot } => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.notify(ready);
                    } else if let Some(exec) = self.execs.get_mut(&id) {
                        exec.notify(slot, ready);
                    } else if let Some(socket) = self.sockets.get_mut(&id) {
                        socket.notify(ready);
                    }
                }
            }
        }
        if accept {
            self.accept();
        }
        Ok(())
    }

    /// Whether there is work that needs no event.
    fn has_work(&self) -> bool {
        self.child_ended
            || self.connections.values().any(Connection::can_receive)
            || self.execs.values().any(|exec| match exec.reply_to {
                None => exec.can_pump(None),
                Some(reply_to) => self.session(reply_to).is_some_and(|to| exec.can_pump(Some(to))),
            })
            || self
                .jobs
                .values()
                .any(|job| self.session(job.reply_to).is_some_and(|to| job.can_advance(to)))
            || self
                .sockets
                .values()
                .any(|socket| self.session(socket.reply_to).is_some_and(|to| socket.can_pump(to)))
    }

    fn session(&self, reply_to: ReplyTo) -> Option<&Session> {
        self.connections.get(&reply_to.connection).map(|connection| &connection.session)
    }

    /// How long to wait for events.
    fn timeout(&self) -> Option<Duration> {
        let execs = self.execs.values().filter_map(Exec::deadline);
        let shutdown = self.shutdown.as_ref().map(Shutdown::deadline);
        let next = execs.chain(shutdown).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn accept(&mut self) {
        let accepted = self.listener.as_mut().map(Listener::accept).unwrap_or_default();
        for fd in accepted {
            if let Err(e) = self.connect(fd) {
                crate::log::warn(format_args!("cannot watch a connection: {e}"));
            }
        }
    }

    fn reap_all(&mut self) {
        // Reset before reaping, so that a child that exits meanwhile signals again.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 8]);
        let now = Instant::now();
        loop {
            match reap() {
                Reaped::Child(pid, status) => self.reaped(pid, status, now),
                Reaped::NoneExited => break,
                Reaped::NoChildren => {
                    if let Some(shutdown) = &mut self.shutdown {
                        shutdown.no_processes_left();
                    }
                    break;
                }
            }
        }
        self.cgroups.sweep();
    }

    fn reaped(&mut self, pid: Pid, status: ExitStatus, now: Instant) {
        if self.execs.values().any(|exec| exec.is_rebooted(pid, status)) {
            // `reboot(2)` in the box's namespace means the VM. The host must see the VM end, and not the exit
            // of the command.
            self.shutdown.get_or_insert_with(|| Shutdown::begin(Duration::ZERO, None));
            return;
        }
        if let Some(exec) = self.execs.values_mut().find(|exec| exec.runs_as(pid)) {
            let out_of_memory = exec.exited(status, now);
            let counts = &mut self.exec_counts;
            counts.failed += u64::from(status != ExitStatus::Code(0));
            counts.out_of_memory += u64::from(out_of_memory);
        }
    }

    /// Reads from a connection and handles its events.
    fn serve(&mut self, id: u64) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        let result = self.receive(id, &mut connection);
        match result {
            Ok(()) => {
                self.connections.insert(id, connection);
            }
            Err(reason) => self.close(connection, &reason),
        }
    }

    fn receive(&mut self, id: u64, connection: &mut Connection) -> Result<(), ConnectionError> {
        if connection.can_receive() {
            connection.receive(&mut self.scratch)?;
            while let Some(event) = connection.next_event()? {
                self.handle(id, connection, event);
            }
        }
        Ok(())
    }

    fn handle(&mut self, id: u64, connection: &mut Connection, event: ServerEvent) {
        match event {
            ServerEvent::Hello(hello) => {
                clock::apply_lower_bound(hello.unix_time_ns);
                if connection.is_serial() {
                    self.missed_events.drain(..).for_each(|event| connection.session.event(&event));
                }
            }
            ServerEvent::Request { stream, request } => {
                self.start(id, connection, stream, request);
            }
            event => match event.stream().and_then(|stream| connection.session.tag(stream)) {
                Some(Service::Exec(exec)) => {
                    if let Some(exec) = self.execs.get_mut(exec) {
                        to_exec(exec, event);
                    }
                }
                Some(Service::Job(job)) => {
                    if let Some(job) = self.jobs.get_mut(job) {
                        to_job(job, event);
                    }
                }
                Some(Service::Socket(socket)) => {
                    if let Some(socket) = self.sockets.get_mut(socket) {
                        to_socket(socket, event);
                    }
                }
                None => {}
            },
        }
    }

    fn advance_jobs(&mut self) {
        self.jobs.retain(|id, job| {
            let connection = self.connections.get_mut(&job.reply_to.connection);
            let mut session = connection.map(|connection| &mut connection.session);
            let Some(response) = job.advance(session.as_deref_mut()) else { return true };
            if let Some(session) = session {
                session.respond(job.reply_to.stream, &response);
            }
            self.layer.take_if(|layer| layer == id);
            false
        });
    }

    fn pump_all(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (id, exec) in &mut self.execs {
            let Some(reply_to) = exec.reply_to else {
                if exec.pump(None, &mut self.scratch, now).is_some() {
                    ended.push(*id);
                }
                continue;
            };
            let Some(connection) = self.connections.get_mut(&reply_to.connection) else { continue };
            let session = &mut connection.session;
            if let Some(last) = exec.pump(Some(session), &mut self.scratch, now) {
                session.respond(reply_to.stream, &last);
                ended.push(*id);
            }
        }
        for id in ended {
            if let Some(exec) = self.execs.remove(&id) {
                exec.release(&mut self.cgroups);
            }
        }
    }

    fn flush_all(&mut self) {
        let mut failed = Vec::new();
        for (id, connection) in &mut self.connections {
            if let Err(reason) = connection.flush() {
                failed.push((*id, reason));
            }
        }
        for (id, reason) in failed {
            if let Some(connection) = self.connections.remove(&id) {
                self.close(connection, &reason);
            }
        }
    }

    /// Closes a connection and ends everything that it started.
    fn close(&mut self, mut connection: Connection, reason: &ConnectionError) {
        if matches!(reason, ConnectionError::Protocol(Violation::Version { .. })) {
            // The outbox has the hello with the agent's version.
            let _ = connection.flush();
        }
        if !matches!(reason, ConnectionError::Closed | ConnectionError::Io(_)) {
            crate::log::warn(format_args!("closed a connection: {reason}"));
        }
        for service in connection.session.tags() {
            match service {
                Service::Exec(id) => {
                    if let Some(exec) = self.execs.remove(id) {
                        // Its exit will not be seen, so count it here.
                        self.exec_counts.failed += u64::from(exec.is_running());
                        exec.kill();
                        exec.release(&mut self.cgroups);
                    }
                }
                Service::Job(id) => {
                    if let Some(job) = self.jobs.get_mut(id) {
                        job.cancel();
                    }
                }
                Service::Socket(id) => drop(self.sockets.remove(id)),
            }
        }
        if connection.is_serial() && self.shutdown.is_none() {
            self.shutdown = Some(Shutdown::begin(Duration::ZERO, None));
        }
    }

    fn finish_shutdown(&mut self) {
        let Some(shutdown) = self.shutdown.take() else { return };
        self.cancel_jobs();
        shutdown::kill_and_unmount();
        let Some((id, stream)) = shutdown.requested_by else { return };
        if let Some(mut connection) = self.connections.remove(&id) {
            connection.session.respond(stream, &Response::Done);
            shutdown::send_last(connection);
        }
    }

    /// Stops the jobs, so that nothing writes to the disk any more.
    fn cancel_jobs(&mut self) {
        self.jobs.values_mut().for_each(Job::cancel);
        let deadline = Instant::now() + JOBS_TIMEOUT;
        while !self.jobs.values().all(Job::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
