//! Runs commands for the host: an exec lasts from the start of a process until the host has its output and
//! its exit status.
//!
//! ```text
//!  request ──▶ user ─▶ spawn ─▶ process, in its cgroup and the main command's namespace
//!  data ◀────▶ pump ◀─ stdio ─▶   │
//!  response ◀───────── reaper ◀───┘
//! ```
//!
//! A command has exited when its process has, even if background processes that it left hold its pipes open.
//! Data that is in the pipes at that moment is always sent. Data that other processes write later is sent
//! for another [`GRACE`]; after that, only data that is already buffered is sent.
//!
//! May use `sys`, and of `host` the session of the stream.

mod cgroup;
mod disposition;
pub(crate) mod init;
mod namespace;
pub(crate) mod pump;
pub(crate) mod reaper;
mod spawn;
mod stdio;
mod terminal_keys;
mod user;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use boxlite_proto::frame::Channel;
use boxlite_proto::message::{self, Control, ExitStatus, Failure, Response};
use bytes::Bytes;
use rustix::io;
use rustix::process::Pid;

use self::cgroup::Cgroup;
pub(crate) use self::cgroup::Cgroups;
use self::namespace::{Namespace, NamespaceEnd};
use self::pump::{ChannelState, Input, Output, Sink};
use self::spawn::Started;
use crate::host::connection::{CHUNK, ReplyTo, Session};
use crate::sys::poller::{Poller, Ready, Token};
use crate::sys::signal::{signal_group, signal_process};

/// How long to wait for the output of other processes after the command has exited.
const GRACE: Duration = Duration::from_millis(100);

/// The slots of an exec's tokens.
const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;

/// The role of a command in its box.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind<'a> {
    /// The main command, in a namespace of its own.
    Main {
        /// Whether an init is the namespace's first process in place of the command.
        init: bool,
    },
    /// A command beside the main command: in the namespace of this process, if a main command runs.
    Beside(Option<BorrowedFd<'a>>),
    /// A command in the agent's own namespace that inherits this listening socket as descriptor
    /// [`LISTENER`](message::LISTENER).
    Server(BorrowedFd<'a>),
}

/// A command that runs, or has exited with output left to send.
pub(crate) struct Exec {
    /// Its stream; none for a detached command.
    pub(crate) reply_to: Option<ReplyTo>,
    pid: Pid,
    /// Its process ID in its own namespace.
    pub(crate) inner_pid: Pid,
    /// Set for a main command.
    namespace: Option<Namespace>,
    cgroup: Option<Cgroup>,
    terminal: bool,
    input: Option<Input>,
    outputs: [Option<Output>; 2],
    exited: Option<Exited>,
}

#[derive(Clone, Copy)]
struct Exited {
    status: ExitStatus,
    out_of_memory: bool,
    /// When the grace period ends; none after that.
    grace_ends: Option<Instant>,
}

impl Exec {
    /// Starts a command as the exec with this ID; a detached one has no `reply_to`.
    pub(crate) fn start(
        request: &message::Exec,
        kind: Kind<'_>,
        id: u64,
        reply_to: Option<ReplyTo>,
        cgroups: &mut Cgroups,
        poller: &Poller,
    ) -> Result<Self, Failure> {
        let cgroup = cgroups.create(id).map_err(|e| Failure {
            kind: message::FailureKind::Other,
            message: format!("cannot make the command's control group: {e}"),
        })?;
        let started = spawn::start(request, kind, reply_to.is_none(), cgroup.as_ref());
        let Started { process, namespace, stdio } = match started {
            Ok(started) => started,
            Err(failure) => {
                if let Some(cgroup) = cgroup {
                    cgroups.release(cgroup);
                }
                return Err(failure);
            }
        };
        let terminal = request.terminal.is_some();
        let [output, error] = stdio.outputs;
        let exec = Self {
            reply_to,
            pid: process.pid,
            inner_pid: process.inner_pid,
            namespace,
            cgroup,
            terminal,
            input: stdio.input.filter(|_| reply_to.is_some()).map(|fd| Input::new(fd, terminal)),
            outputs: [
                output.map(|fd| Output::new(fd, Channel::Stdout, terminal)),
                error.map(|fd| Output::new(fd, Channel::Stderr, terminal)),
            ],
            exited: None,
        };
        if let Err(e) = exec.watch(id, poller) {
            exec.kill();
            exec.release(cgroups);
            let message = format!("cannot watch the command's stdio: {e}");
            return Err(Failure { kind: message::FailureKind::Other, message });
        }
        Ok(exec)
    }

    fn watch(&self, id: u64, poller: &Poller) -> io::Result<()> {
        if let Some(input) = &self.input {
            poller.watch(input.fd(), Token { id, slot: INPUT })?;
        }
        for (output, slot) in self.outputs.iter().zip([OUTPUT, ERROR]) {
            if let Some(output) = output {
                poller.watch(output.fd(), Token { id, slot })?;
            }
        }
        Ok(())
    }

    /// Whether it runs as this process. False once its process has been reaped.
    pub(crate) fn runs_as(&self, pid: Pid) -> bool {
        self.pid == pid && self.exited.is_none()
    }

    /// Records the readiness of one of its descriptors.
    pub(crate) fn notify(&mut self, slot: u8, event: Ready) {
        if slot == INPUT {
            if let Some(input) = &mut self.input {
                input.notify(event);
            }
        } else if let Some(Some(output)) = self.outputs.get_mut(usize::from(slot - OUTPUT)) {
            output.notify(event);
        }
    }

    /// Takes data for its standard input. Data after the close of the input is dropped: the host has been
    /// informed of the close, or ended the input itself.
    pub(crate) fn receive(&mut self, data: Bytes) {
        if let Some(signal) = self.typed_signal(&data)
            && let Some(namespace) = &mut self.namespace
        {
            namespace.interrupt(signal);
        }
        if let Some(input) = &mut self.input {
            input.receive(data);
        }
    }

    /// Ends its standard input after the data that has arrived.
    pub(crate) fn end_input(&mut self) {
        if let Some(input) = &mut self.input {
            input.end();
        }
    }

    /// Closes an output that the host no longer reads.
    pub(crate) fn close_output(&mut self, channel: Channel) {
        let output = channel.output_index().and_then(|index| self.outputs.get_mut(index));
        if let Some(output) = output {
            *output = None;
        }
    }

    /// The signal that a main command's terminal generates for typed data, if it goes to the command itself.
    fn typed_signal(&self, data: &[u8]) -> Option<i32> {
        self.namespace.as_ref().filter(|_| self.exited.is_none())?;
        let signal = terminal_keys::signal(self.master()?, data)?;
        (self.foreground() == self.pid).then_some(signal)
    }

    /// Handles a control message. Ignored once the command has exited: its process ID may have been reused.
    pub(crate) fn control(&mut self, control: Control) {
        if self.exited.is_some() {
            return;
        }
        match control {
            Control::SignalProcess(signal) if (1..=64).contains(&signal) => {
                match &mut self.namespace {
                    Some(namespace) => namespace.signal(self.pid, signal),
                    // Fails only if the process has just exited.
                    None => drop(signal_process(self.pid.as_raw_nonzero().get(), signal)),
                }
            }
            Control::Signal(signal) if (1..=64).contains(&signal) => {
                // Fails only if the group has just ended.
                let _ = signal_group(self.foreground().as_raw_nonzero().get(), signal);
            }
            Control::Resize(size) => {
                if let Some(master) = self.master() {
                    let _ = stdio::resize(master, size);
                }
            }
            Control::Kill => self.kill(),
            _ => {}
        }
    }

    /// The process group that a signal goes to: the terminal's foreground group, as for Ctrl-C, or the group
    /// that the command started in.
    fn foreground(&self) -> Pid {
        self.master().and_then(|master| rustix::termios::tcgetpgrp(master).ok()).unwrap_or(self.pid)
    }

    fn master(&self) -> Option<&std::os::fd::OwnedFd> {
        let output = self.outputs[0].as_ref().map(Output::fd);
        output.or_else(|| self.input.as_ref().map(Input::fd)).filter(|_| self.terminal)
    }

    /// Kills the command and all its descendants.
    pub(crate) fn kill(&self) {
        let group_killed = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.kill().is_ok());
        if !group_killed && self.exited.is_none() {
            let _ = signal_group(self.pid.as_raw_nonzero().get(), libc::SIGKILL);
        }
        if let Some(namespace) = &self.namespace {
            namespace.kill();
        }
    }

    /// The pidfd by which other commands join its namespace; none unless it is a running main command.
    pub(crate) fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.namespace.as_ref().filter(|_| self.exited.is_none()).map(Namespace::handle)
    }

    /// Ends a main command that the kernel protected from a signal that was sent to all processes.
    pub(crate) fn interrupt(&mut self, signal: i32) {
        if let Some(namespace) = self.namespace.as_mut().filter(|_| self.exited.is_none()) {
            namespace.interrupt(signal);
        }
    }

    /// Whether this reaped process was the first of its namespace, and ended by a `reboot(2)` in it.
    pub(crate) fn is_rebooted(&self, reaped: Pid, status: ExitStatus) -> bool {
        let namespace = self.namespace.as_ref().filter(|namespace| namespace.is_first(reaped));
        namespace.is_some_and(|namespace| namespace.end(status) == NamespaceEnd::Reboot)
    }

    /// Records the status of its reaped process. Returns whether the kernel killed for lack of memory.
    pub(crate) fn exited(&mut self, status: ExitStatus, now: Instant) -> bool {
        self.input = None;
        let out_of_memory = self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory);
        let mut status = status;
        if let Some(namespace) = &self.namespace {
            // With an init, other processes may be left.
            namespace.kill();
            if namespace.is_first(self.pid)
                && let NamespaceEnd::Process(intended) = namespace.end(status)
            {
                status = intended;
            }
        }
        self.exited = Some(Exited { status, out_of_memory, grace_ends: Some(now + GRACE) });
        for output in self.outputs.iter_mut().flatten() {
            output.notify(Ready { read: true, ..Ready::default() });
        }
        out_of_memory
    }

    /// Whether its process has not been reaped.
    pub(crate) fn is_running(&self) -> bool {
        self.exited.is_none()
    }

    /// When the grace period of an exited command ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.exited.and_then(|exited| exited.grace_ends)
    }

    /// Whether [`pump`](Self::pump) has work now.
    pub(crate) fn can_pump(&self, session: Option<&Session>) -> bool {
        let stream = self.reply_to.map_or(0, |reply_to| reply_to.stream);
        let room = |channel| session.map_or(CHUNK, |session| session.output_room(stream, channel));
        self.input.as_ref().is_some_and(Input::can_pump)
            || self.outputs.iter().flatten().any(|output| output.can_pump(room))
            || self.is_finished()
    }

    fn is_finished(&self) -> bool {
        self.exited.is_some() && self.outputs.iter().all(Option::is_none)
    }

    /// Moves data: one read for each output. Output of a detached command is discarded. Returns the last
    /// response of the stream once the process has exited and all output is sent.
    pub(crate) fn pump(
        &mut self,
        session: Option<&mut Session>,
        scratch: &mut [u8],
        now: Instant,
    ) -> Option<Response> {
        let mut to = match (session, self.reply_to) {
            (Some(session), Some(reply_to)) => {
                let stream = reply_to.stream;
                self.input.take_if(|input| {
                    input.can_pump() && input.pump(stream, session) == ChannelState::Closed
                });
                Sink::Host(session, stream)
            }
            _ => Sink::Discard,
        };
        let grace_is_over = self
            .exited
            .as_mut()
            .and_then(|exited| exited.grace_ends.take_if(|at| *at <= now))
            .is_some();
        for slot in &mut self.outputs {
            slot.take_if(|output| {
                if grace_is_over {
                    output.limit_to_buffered();
                }
                output.can_pump(|channel| to.room(channel))
                    && output.pump(&mut to, scratch) == ChannelState::Closed
            });
        }
        let exited = self.exited.filter(|_| self.is_finished())?;
        Some(match exited.out_of_memory {
            true => Response::ExitedOutOfMemory(exited.status),
            false => Response::Exited(exited.status),
        })
    }

    /// Releases its control group.
    pub(crate) fn release(self, cgroups: &mut Cgroups) {
        if let Some(cgroup) = self.cgroup {
            cgroups.release(cgroup);
        }
    }
}
