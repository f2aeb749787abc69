//! Handles requests: answers them at once, or starts an exec, a job or a socket on their stream.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use boxlite_proto::boot::Role;
use boxlite_proto::frame::FrameError;
use boxlite_proto::guest::ExecCounts;
use boxlite_proto::message::{self, Failure, FailureKind, Request, Response};

use super::shutdown::{self, Shutdown};
use super::{Server, clock};
use crate::exec::{self, Exec};
use crate::host::connection::{Connection, ReplyTo, Service};
use crate::job::{Job, work};
use crate::socket;

/// Limit on running execs.
const MAX_EXECS: usize = 4096;

/// Limit on jobs: each has a thread, and two windows of memory.
const MAX_JOBS: usize = 32;

/// The part of a command in its guest.
enum Part {
    /// The main command of a box.
    Main {
        /// Whether an init is the first process in its place.
        init: bool,
    },
    /// A command beside others.
    Beside,
    /// A command that inherits this listening socket.
    Server(OwnedFd),
}

impl Server {
    /// Handles a request. An exec, a job or a socket is answered later.
    pub(super) fn start(
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
                Response::Failed(other("the guest is shutting down".into()))
            }
            Ok(Request::Ping) => Response::Done,
            Ok(Request::Exec(_) | Request::ExecDetached(_)) if self.role == Role::Builder => {
                unsupported("exec")
            }
            Ok(Request::ExecMain(_)) if self.role != Role::Box => unsupported("a main command"),
            Ok(Request::ExecServer(_)) if self.role != Role::SoftHost => {
                unsupported("a command with a socket")
            }
            Ok(Request::Exec(request)) => {
                self.start_attached(connection, reply_to, &request, Part::Beside)
            }
            Ok(Request::ExecMain(main)) => {
                let part = Part::Main { init: main.init };
                self.start_attached(connection, reply_to, &main.exec, part)
            }
            Ok(Request::ExecServer(server)) => self.start_server(connection, reply_to, &server),
            Ok(Request::ExecDetached(request)) => {
                match self.start_exec(&request, Part::Beside, None) {
                    Ok((_, pid)) => Response::Detached { pid },
                    Err(failure) => Response::Failed(failure),
                }
            }
            Ok(Request::Clock) => Response::Clock { monotonic_ns: clock::monotonic_ns() },
            Ok(Request::SetClock(reading)) => {
                clock::apply_reading(&reading);
                Response::Done
            }
            Ok(Request::ExecCounts) => Response::ExecCounts(self.counts()),
            Ok(Request::Sync) => match shutdown::sync() {
                Ok(()) => Response::Done,
                Err(e) => Response::Failed(other(format!("cannot write everything to disk: {e}"))),
            },
            Ok(Request::Shutdown { grace_ms }) => {
                self.begin_shutdown(Duration::from_millis(grace_ms.into()), reply_to);
                return;
            }
            Ok(request) if !work::is_served_by(self.role, &request) => unsupported("this request"),
            Ok(request) => match self.start_service(request, reply_to) {
                Ok(service) => {
                    connection.session.set_tag(stream, service);
                    return;
                }
                Err(failure) => Response::Failed(failure),
            },
            // Malformed, but the frame was whole, so the connection continues.
            Err(_) => Response::Failed(unknown_request()),
        };
        connection.session.respond(stream, &answer);
    }

    /// The counts of commands since the boot.
    fn counts(&self) -> ExecCounts {
        let running = self.execs.values().filter(|exec| exec.is_running()).count() as u64;
        ExecCounts { running, ..self.exec_counts }
    }

    /// Begins to shut the guest down, which is answered later.
    fn begin_shutdown(&mut self, grace: Duration, reply_to: ReplyTo) {
        self.shutdown = Some(Shutdown::begin(grace, Some((reply_to.connection, reply_to.stream))));
        if !grace.is_zero() {
            self.execs.values_mut().for_each(|exec| exec.interrupt(libc::SIGTERM));
        }
        self.child_ended = true;
    }

    /// Starts a command on a stream, with the listening socket that it asks for.
    fn start_server(
        &mut self,
        connection: &mut Connection,
        reply_to: ReplyTo,
        server: &message::ServerExec,
    ) -> Response {
        match socket::listen_on(&server.socket) {
            Ok(listener) => {
                let part = Part::Server(listener);
                self.start_attached(connection, reply_to, &server.exec, part)
            }
            Err(failure) => Response::Failed(failure),
        }
    }

    /// Starts a command on a stream.
    fn start_attached(
        &mut self,
        connection: &mut Connection,
        reply_to: ReplyTo,
        request: &message::Exec,
        part: Part,
    ) -> Response {
        match self.start_exec(request, part, Some(reply_to)) {
            Ok((exec, pid)) => {
                connection.session.set_tag(reply_to.stream, Service::Exec(exec));
                Response::Started { pid }
            }
            Err(failure) => Response::Failed(failure),
        }
    }

    /// Starts and counts a command. Returns its exec's ID, and its process ID in its namespace.
    fn start_exec(
        &mut self,
        request: &message::Exec,
        part: Part,
        reply_to: Option<ReplyTo>,
    ) -> Result<(u64, u32), Failure> {
        let started = self.try_start_exec(request, part, reply_to);
        let counts = &mut self.exec_counts;
        counts.started += u64::from(started.is_ok());
        counts.refused += u64::from(started.is_err());
        started
    }

    fn try_start_exec(
        &mut self,
        request: &message::Exec,
        part: Part,
        reply_to: Option<ReplyTo>,
    ) -> Result<(u64, u32), Failure> {
        if self.execs.len() >= MAX_EXECS {
            return Err(other(format!("{MAX_EXECS} commands are running already")));
        }
        if self.role == Role::SoftHost {
            crate::boot::mounts::drop_host_file_caches();
        }
        let id = self.new_id();
        let running = self.execs.values().find_map(Exec::namespace);
        let kind = match &part {
            Part::Main { .. } if running.is_some() => {
                return Err(other("a main command is running already".into()));
            }
            Part::Main { init } => exec::Kind::Main { init: *init },
            Part::Beside => exec::Kind::Beside(running),
            Part::Server(listener) => exec::Kind::Server(listener.as_fd()),
        };
        let exec = Exec::start(request, kind, id, reply_to, &mut self.cgroups, &self.poller)?;
        let pid = exec.inner_pid.as_raw_nonzero().get().cast_unsigned();
        self.execs.insert(id, exec);
        Ok((id, pid))
    }

    /// Starts a job or connects a socket.
    fn start_service(&mut self, request: Request, reply_to: ReplyTo) -> Result<Service, Failure> {
        match request {
            Request::Connect(request) => self.open_socket(&request, reply_to).map(Service::Socket),
            request => self.start_job(request, reply_to).map(Service::Job),
        }
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
                "{MAX_JOBS} copies or queries are running already; try again when one is done"
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
}

/// The failure of a request that a newer host sent, or that is malformed.
fn unknown_request() -> Failure {
    Failure {
        kind: FailureKind::Unsupported,
        message: "this agent does not know the request: it is older than the host".into(),
    }
}

pub(super) fn other(message: String) -> Failure {
    Failure { kind: FailureKind::Other, message }
}
