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

/// Whether a command is the main command of a box, one beside others, or a server.
enum CommandRole {
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
    /// Handles a request, and answers it unless an exec, a job or a socket does so later.
    pub(super) fn start(
        &mut self,
        id: u64,
        connection: &mut Connection,
        stream: u32,
        request: Result<Request, FrameError>,
    ) {
        let answer = match request {
            Ok(_) if self.shutdown.is_some() => {
                Some(Response::Failed(other("the guest is shutting down".into())))
            }
            Ok(request) => match unserved(self.role, &request) {
                Some(what) => {
                    let message =
                        format!("an agent in the role {:?} does not serve {what}", self.role);
                    Some(Response::Failed(Failure { kind: FailureKind::Unsupported, message }))
                }
                None => self.carry_out(connection, ReplyTo { connection: id, stream }, request),
            },
            // Malformed, but the frame was whole, so the connection continues.
            Err(_) => Some(Response::Failed(unknown_request())),
        };
        if let Some(answer) = answer {
            connection.session.respond(stream, &answer);
        }
    }

    /// Carries out a request. Returns its answer unless it is answered later.
    fn carry_out(
        &mut self,
        connection: &mut Connection,
        reply_to: ReplyTo,
        request: Request,
    ) -> Option<Response> {
        let answer = match request {
            Request::Ping => Response::Done,
            Request::Exec(exec) => {
                self.start_attached(connection, reply_to, &exec, CommandRole::Beside)
            }
            Request::ExecMain(main) => {
                let role = CommandRole::Main { init: main.init };
                self.start_attached(connection, reply_to, &main.exec, role)
            }
            Request::ExecServer(server) => match socket::listen_on(&server.socket) {
                Ok(listener) => {
                    let role = CommandRole::Server(listener);
                    self.start_attached(connection, reply_to, &server.exec, role)
                }
                Err(failure) => Response::Failed(failure),
            },
            Request::ExecDetached(exec) => {
                match self.start_exec(&exec, CommandRole::Beside, None) {
                    Ok((_, pid)) => Response::Detached { pid },
                    Err(failure) => Response::Failed(failure),
                }
            }
            Request::Clock => Response::Clock { monotonic_ns: clock::monotonic_ns() },
            Request::SetClock(reading) => {
                clock::apply_reading(&reading);
                Response::Done
            }
            Request::ExecCounts => {
                let running = self.execs.values().filter(|exec| exec.is_running()).count() as u64;
                Response::ExecCounts(ExecCounts { running, ..self.exec_counts })
            }
            Request::Sync => match shutdown::sync() {
                Ok(()) => Response::Done,
                Err(e) => Response::Failed(other(format!("cannot write everything to disk: {e}"))),
            },
            Request::Shutdown { grace_ms } => {
                self.begin_shutdown(Duration::from_millis(grace_ms.into()), reply_to);
                return None;
            }
            request => match self.start_service(request, reply_to) {
                Ok(service) => {
                    connection.session.set_tag(reply_to.stream, service);
                    return None;
                }
                Err(failure) => Response::Failed(failure),
            },
        };
        Some(answer)
    }

    fn begin_shutdown(&mut self, grace: Duration, reply_to: ReplyTo) {
        self.shutdown = Some(Shutdown::begin(grace, Some((reply_to.connection, reply_to.stream))));
        if !grace.is_zero() {
            self.execs.values_mut().for_each(|exec| exec.interrupt(libc::SIGTERM));
        }
        self.child_ended = true;
    }

    /// Starts a command on a stream.
    fn start_attached(
        &mut self,
        connection: &mut Connection,
        reply_to: ReplyTo,
        request: &message::Exec,
        role: CommandRole,
    ) -> Response {
        match self.start_exec(request, role, Some(reply_to)) {
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
        role: CommandRole,
        reply_to: Option<ReplyTo>,
    ) -> Result<(u64, u32), Failure> {
        let started = self.try_start_exec(request, role, reply_to);
        let counts = &mut self.exec_counts;
        counts.started += u64::from(started.is_ok());
        counts.refused += u64::from(started.is_err());
        started
    }

    fn try_start_exec(
        &mut self,
        request: &message::Exec,
        role: CommandRole,
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
        let kind = match &role {
            CommandRole::Main { .. } if running.is_some() => {
                return Err(other("a main command is running already".into()));
            }
            CommandRole::Main { init } => exec::Kind::Main { init: *init },
            CommandRole::Beside => exec::Kind::Beside(running),
            CommandRole::Server(listener) => exec::Kind::Server(listener.as_fd()),
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

/// What this request asks for, if an agent in this role does not serve it: a builder has a disk and no root of a box, a
/// box has no layers, and only the nested host has sockets.
fn unserved(role: Role, request: &Request) -> Option<&'static str> {
    let (name, served) = match request {
        Request::Exec(_) | Request::ExecDetached(_) => ("commands", role != Role::Builder),
        Request::ExecMain(_) => ("main commands", role == Role::Box),
        Request::ExecServer(_) | Request::Connect(_) => ("sockets", role == Role::SoftHost),
        Request::UnpackLayer => ("layers", role == Role::Builder),
        Request::CopyIn(_) | Request::CopyOut(_) => ("copies", role != Role::Builder),
        Request::Stat(_) => ("metadata of files", role != Role::Builder),
        _ => return None,
    };
    (!served).then_some(name)
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
