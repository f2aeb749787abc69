//! The agent's loop: one thread that serves every connection, exec and job.
//!
//! Nothing here blocks; what may is a job. Each turn notes what has become ready, reaps, lets every
//! connection and every exec do one piece of work, and sends. So streams take turns, and one whose reader
//! has stopped (no credit, or a full socket) only stops itself.

mod clock;
pub(crate) mod shutdown;
mod streams;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_proto::boot::Role;
use boxlite_proto::frame::FrameError;
use boxlite_proto::guest::ExecCounts;
use boxlite_proto::message::{self, Event, ExitStatus, Failure, FailureKind, Request, Response};
use boxlite_proto::session::{ServerEvent, Violation};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;
use rustix::process::Pid;

use self::shutdown::Shutdown;
use self::streams::{to_exec, to_job};
use crate::exec::reaper::{Reaped, reap};
use crate::exec::{Cgroups, Exec};
use crate::host::connection::{Broken, CHUNK, Connection, ReplyTo, Service, Session};
use crate::host::listener::Listener;
use crate::job::{Job, work};
use crate::sys::poller::{Poller, Token};
use crate::{exec, sys};

/// More connections than this at a time are told so and closed: one for each command line that runs
/// a command, and each program on the host that uses the box. The host's device has a few more.
const MAX_CONNECTIONS: usize = 1000;

/// More running execs than this are refused.
const MAX_EXECS: usize = 4096;

/// More jobs than this at a time are refused: each has a thread, and two windows of memory.
const MAX_JOBS: usize = 32;

/// How long jobs that have been told to stop may hold up the end of the machine.
const JOBS_END: Duration = Duration::from_secs(1);

/// Identifies the server's own descriptors; connections and execs have other IDs.
const SERVER: u64 = 0;
const LISTENER: u8 = 0;
const CHILDREN: u8 = 1;
const JOBS: u8 = 2;

/// Serves the host. To be made once in a process: it reaps every child.
pub struct Server {
    role: Role,
    poller: Poller,
    children: OwnedFd,
    child_ended: bool,
    /// Rung by the threads of jobs.
    job_bell: Arc<OwnedFd>,
    jobs: BTreeMap<u64, Job>,
    /// The job that unpacks a layer; there is one at a time, for they come one upon the other.
    layer: Option<u64>,
    listener: Option<Listener>,
    connections: BTreeMap<u64, Connection>,
    execs: BTreeMap<u64, Exec>,
    exec_counts: ExecCounts,
    cgroups: Cgroups,
    next_id: u64,
    scratch: Vec<u8>,
    /// Told to a host that attaches to a serial port only after boot.
    greeting: Vec<Event>,
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
            // What ended before.
            child_ended: true,
            job_bell: Arc::new(job_bell),
            jobs: BTreeMap::new(),
            layer: None,
            listener: None,
            connections: BTreeMap::new(),
            execs: BTreeMap::new(),
            exec_counts: ExecCounts::default(),
            cgroups: Cgroups::new(),
            next_id: 1,
            scratch: vec![0; CHUNK],
            greeting: Vec::new(),
            shutdown: None,
        })
    }

    /// Accepts the host's connections from this vsock listener, which must be non-blocking.
    pub fn listen(&mut self, listener: OwnedFd) -> io::Result<()> {
        self.poller.watch(&listener, Token { id: SERVER, slot: LISTENER })?;
        self.listener = Some(Listener::new(listener));
        self.accept();
        Ok(())
    }

    /// Serves a connection, which must be non-blocking. One too many is told why and closed.
    pub fn connect(&mut self, fd: OwnedFd) -> io::Result<()> {
        if self.connections.len() < MAX_CONNECTIONS {
            return self.add(fd, false);
        }
        let message = format!(
            "{MAX_CONNECTIONS} connections to the agent are open already; \
             try again when a command has ended"
        );
        crate::log::warn(format_args!("refused a connection: {message}"));
        // A new connection has room for it. Whoever has hung up does not want to know.
        let _ = rustix::io::write(fd, &Event::Fatal { message }.frame(0).to_bytes());
        Ok(())
    }

    /// Serves the host on a virtio-serial port, for as long as the machine lives: when the host
    /// detaches, the machine shuts down. `events` are what it has missed.
    pub fn connect_serial(&mut self, port: OwnedFd, events: Vec<Event>) -> io::Result<()> {
        self.greeting = events;
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

    /// Serves until the machine is to be reset; then everything is on disk and has been answered.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let timeout = if self.has_work() { Some(Duration::ZERO) } else { self.patience() };
            self.wait(timeout)?;
            if std::mem::take(&mut self.child_ended) {
                self.reap_all();
            }
            let ids: Vec<_> = self.connections.keys().copied().collect();
            for id in ids {
                self.serve(id);
            }
            self.pump_all();
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
                // Jobs are looked after in every turn.
                Token { id: SERVER, .. } => {}
                Token { id, slot } => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.notify(ready);
                    } else if let Some(exec) = self.execs.get_mut(&id) {
                        exec.notify(slot, ready);
                    }
                }
            }
        }
        if accept {
            self.accept();
        }
        Ok(())
    }

    /// Whether something can be done without waiting for an event.
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
    }

    fn session(&self, reply_to: ReplyTo) -> Option<&Session> {
        self.connections.get(&reply_to.connection).map(|connection| &connection.session)
    }

    /// How long to wait for events.
    fn patience(&self) -> Option<Duration> {
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
        // Emptied before reaping, so that a child that ends meanwhile rings again.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 8]);
        let now = Instant::now();
        loop {
            match reap() {
                Reaped::Child(pid, status) => self.reaped(pid, status, now),
                Reaped::NothingNew => break,
                Reaped::NoChildren => {
                    if let Some(shutdown) = &mut self.shutdown {
                        shutdown.everyone_is_gone();
                    }
                    break;
                }
            }
        }
        self.cgroups.sweep();
    }

    fn reaped(&mut self, pid: Pid, status: ExitStatus, now: Instant) {
        if self.execs.values().any(|exec| exec.is_rebooted(pid, status)) {
            // It was meant for the machine: the namespace is all of it that a box sees. The host is to see the
            // machine end, and not the command.
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

    /// Reads from a connection and does what the host asks.
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

    fn receive(&mut self, id: u64, connection: &mut Connection) -> Result<(), Broken> {
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
                clock::not_before(hello.unix_time_ns);
                if connection.is_serial() {
                    self.greeting.drain(..).for_each(|event| connection.session.event(&event));
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
                None => {}
            },
        }
    }

    fn start(
        &mut self,
        id: u64,
        connection: &mut Connection,
        stream: u32,
        request: Result<Request, FrameError>,
    ) {
        let reply_to = ReplyTo { connection: id, stream };
        let unsupported = |what: &str| {
            let message = format!("{what}: not in this role ({:?}) of the agent", self.role);
            Response::Failed(Failure { kind: FailureKind::Unsupported, message })
        };
        let answer = match request {
            Ok(_) if self.shutdown.is_some() => {
                Response::Failed(other("the machine is shutting down".into()))
            }
            Ok(Request::Ping) => Response::Done,
            Ok(Request::Exec(_) | Request::ExecDetached(_)) if self.role == Role::Builder => {
                unsupported("exec")
            }
            Ok(Request::ExecMain(_)) if self.role != Role::Box => unsupported("a main command"),
            Ok(Request::Exec(request)) => self.start_on(connection, reply_to, &request, None),
            Ok(Request::ExecMain(main)) => {
                self.start_on(connection, reply_to, &main.exec, Some(main.init))
            }
            Ok(Request::ExecDetached(request)) => match self.start_exec(&request, None, None) {
                Ok((_, pid)) => Response::Detached { pid },
                Err(failure) => Response::Failed(failure),
            },
            Ok(Request::Clock) => Response::Clock { monotonic_ns: clock::reading() },
            Ok(Request::SetClock(reading)) => {
                clock::follow(&reading);
                Response::Done
            }
            Ok(Request::ExecCounts) => {
                let running = self.execs.values().filter(|exec| exec.is_running()).count() as u64;
                Response::ExecCounts(ExecCounts { running, ..self.exec_counts })
            }
            Ok(Request::Sync) => match shutdown::sync() {
                Ok(()) => Response::Done,
                Err(e) => Response::Failed(other(format!("cannot write everything to disk: {e}"))),
            },
            Ok(Request::Shutdown { grace_ms }) => {
                let grace = Duration::from_millis(grace_ms.into());
                self.shutdown = Some(Shutdown::begin(grace, Some((id, stream))));
                if !grace.is_zero() {
                    self.execs.values_mut().for_each(|exec| exec.interrupt(libc::SIGTERM));
                }
                self.child_ended = true;
                return;
            }
            Ok(request) if !work::is_for(self.role, &request) => unsupported("this request"),
            Ok(request) => match self.start_job(request, reply_to) {
                Ok(job) => {
                    connection.session.set_tag(stream, Service::Job(job));
                    return;
                }
                Err(failure) => Response::Failed(failure),
            },
            // Malformed: its length was right, so the connection goes on.
            Err(_) => Response::Failed(unknown_request()),
        };
        connection.session.respond(stream, &answer);
    }

    /// Starts a command that the host hears of; `main` is of a main command, and whether it has an init.
    fn start_on(
        &mut self,
        connection: &mut Connection,
        reply_to: ReplyTo,
        request: &message::Exec,
        main: Option<bool>,
    ) -> Response {
        match self.start_exec(request, main, Some(reply_to)) {
            Ok((exec, pid)) => {
                connection.session.set_tag(reply_to.stream, Service::Exec(exec));
                Response::Started { pid }
            }
            Err(failure) => Response::Failed(failure),
        }
    }

    /// Starts a command; its exec's ID and its process ID in its namespace.
    fn start_exec(
        &mut self,
        request: &message::Exec,
        main: Option<bool>,
        reply_to: Option<ReplyTo>,
    ) -> Result<(u64, u32), Failure> {
        let started = self.try_start_exec(request, main, reply_to);
        let counts = &mut self.exec_counts;
        counts.started += u64::from(started.is_ok());
        counts.refused += u64::from(started.is_err());
        started
    }

    fn try_start_exec(
        &mut self,
        request: &message::Exec,
        main: Option<bool>,
        reply_to: Option<ReplyTo>,
    ) -> Result<(u64, u32), Failure> {
        if self.execs.len() >= MAX_EXECS {
            return Err(other(format!("{MAX_EXECS} commands are running already")));
        }
        if self.role == Role::SoftHost {
            crate::boot::mounts::see_host_changes();
        }
        let id = self.new_id();
        let running = self.execs.values().find_map(Exec::namespace);
        let kind = match main {
            Some(_) if running.is_some() => {
                return Err(other("a main command is running already".into()));
            }
            Some(init) => exec::Kind::Main { init },
            None => exec::Kind::Beside(running),
        };
        let exec = Exec::start(request, kind, id, reply_to, &mut self.cgroups, &self.poller)?;
        let pid = exec.inside.as_raw_nonzero().get().cast_unsigned();
        self.execs.insert(id, exec);
        Ok((id, pid))
    }

    fn start_job(&mut self, request: Request, reply_to: ReplyTo) -> Result<u64, Failure> {
        let is_layer = request == Request::UnpackLayer;
        if is_layer && self.layer.is_some() {
            return Err(other(
                "another layer is being unpacked; layers come one after another".into(),
            ));
        }
        if self.jobs.len() >= MAX_JOBS {
            return Err(other(format!(
                "{MAX_JOBS} copies or questions are under way already; try again when one is done"
            )));
        }
        let in_namespace = self.execs.values().any(|exec| exec.namespace().is_some());
        let work = work::of(request, in_namespace).ok_or_else(unknown_request)?;
        let job = Job::start(reply_to, Arc::clone(&self.job_bell), work)
            .map_err(|e| other(format!("cannot start a thread: {e}")))?;
        let id = self.new_id();
        self.jobs.insert(id, job);
        if is_layer {
            self.layer = Some(id);
        }
        Ok(id)
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
        let mut over = Vec::new();
        for (id, exec) in &mut self.execs {
            let Some(reply_to) = exec.reply_to else {
                if exec.pump(None, &mut self.scratch, now).is_some() {
                    over.push(*id);
                }
                continue;
            };
            let Some(connection) = self.connections.get_mut(&reply_to.connection) else { continue };
            let session = &mut connection.session;
            if let Some(last) = exec.pump(Some(session), &mut self.scratch, now) {
                session.respond(reply_to.stream, &last);
                over.push(*id);
            }
        }
        for id in over {
            if let Some(exec) = self.execs.remove(&id) {
                exec.release(&mut self.cgroups);
            }
        }
    }

    fn flush_all(&mut self) {
        let mut broken = Vec::new();
        for (id, connection) in &mut self.connections {
            if let Err(reason) = connection.flush() {
                broken.push((*id, reason));
            }
        }
        for (id, reason) in broken {
            if let Some(connection) = self.connections.remove(&id) {
                self.close(connection, &reason);
            }
        }
    }

    /// Ends a connection with everything that it started.
    fn close(&mut self, mut connection: Connection, reason: &Broken) {
        if matches!(reason, Broken::Protocol(Violation::Version { .. })) {
            // The host learns which version it would have to speak.
            let _ = connection.flush();
        }
        if !matches!(reason, Broken::Closed | Broken::Io(_)) {
            crate::log::warn(format_args!("closed a connection: {reason}"));
        }
        for service in connection.session.tags() {
            match service {
                Service::Exec(id) => {
                    if let Some(exec) = self.execs.remove(id) {
                        // Nobody will see it end.
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
            }
        }
        if connection.is_serial() && self.shutdown.is_none() {
            self.shutdown = Some(Shutdown::begin(Duration::ZERO, None));
        }
    }

    fn finish_shutdown(&mut self) {
        let Some(shutdown) = self.shutdown.take() else { return };
        self.end_jobs();
        shutdown::end_everything();
        let Some((id, stream)) = shutdown.requested_by else { return };
        if let Some(mut connection) = self.connections.remove(&id) {
            connection.session.respond(stream, &Response::Done);
            shutdown::send_last(connection);
        }
    }

    /// Stops the jobs, so that nothing writes to the disk any more.
    fn end_jobs(&mut self) {
        self.jobs.values_mut().for_each(Job::cancel);
        let deadline = Instant::now() + JOBS_END;
        while !self.jobs.values().all(Job::is_over) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A newer host's, or a malformed one.
fn unknown_request() -> Failure {
    Failure {
        kind: FailureKind::Unsupported,
        message: "this agent does not know the request: it is older than the host".into(),
    }
}

fn other(message: String) -> Failure {
    Failure { kind: FailureKind::Other, message }
}
