//! Connects streams of the host to Unix sockets of this machine: bytes both ways, each direction until its end.
//!
//! In the nested host, the runtime of a home listens on such a socket, and each of its calls and channels is one
//! connection. The socket's name is abstract, so connecting does not wait for a file system, nor for the listener.
//!
//! May use `host`, the pumps of `exec`, and `sys`.

use std::os::fd::OwnedFd;

use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Connect, Failure, FailureKind, LISTENER, Response};
use bytes::Bytes;
use rustix::io::{self, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen,
    shutdown, socket_with,
};

use crate::exec::pump::{ChannelState, Input, Output, Sink};
use crate::host::connection::{ReplyTo, Session};
use crate::sys::poller::{Poller, Ready, Token};

/// Connections that may wait for a command to accept them. The kernel's own limit applies, too.
const BACKLOG: i32 = 4096;

/// A connection to a socket, with its stream.
pub(crate) struct Socket {
    pub(crate) reply_to: ReplyTo,
    fd: OwnedFd,
    /// None once no more data is sent to the socket.
    input: Option<Input>,
    /// None once no more data comes from the socket.
    output: Option<Output>,
    /// Whether the peer has closed the socket and reads no more.
    closed: bool,
}

/// Listens on the socket with this name. Its descriptor has another number than [`LISTENER`].
pub(crate) fn listen_on(name: &[u8]) -> Result<OwnedFd, Failure> {
    let open = || {
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
        listen(&fd, BACKLOG)?;
        fcntl_dupfd_cloexec(&fd, LISTENER + 1)
    };
    open().map_err(|e| Failure {
        kind: FailureKind::Other,
        message: format!("cannot listen on the socket @{}: {e}", name.escape_ascii()),
    })
}

impl Socket {
    /// Connects the stream at `reply_to`, as the socket with this ID.
    pub(crate) fn connect(
        request: &Connect,
        id: u64,
        reply_to: ReplyTo,
        poller: &Poller,
    ) -> Result<Self, Failure> {
        Self::open(request, id, reply_to, poller).map_err(|e| Failure {
            kind: FailureKind::Other,
            message: format!("cannot connect to the socket @{}: {e}", request.name.escape_ascii()),
        })
    }

    fn open(request: &Connect, id: u64, reply_to: ReplyTo, poller: &Poller) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&fd, &SocketAddrUnix::new_abstract_name(&request.name)?)?;
        poller.watch(&fd, Token { id, slot: 0 })?;
        let input = Input::new(fcntl_dupfd_cloexec(&fd, 3)?, false);
        let output = Output::new(fcntl_dupfd_cloexec(&fd, 3)?, Channel::Stdout, false);
        Ok(Self { reply_to, fd, input: Some(input), output: Some(output), closed: false })
    }

    /// Records readiness of the socket.
    pub(crate) fn notify(&mut self, event: Ready) {
        self.closed |= event.closed;
        if let Some(input) = &mut self.input {
            input.notify(event);
        }
        if let Some(output) = &mut self.output {
            output.notify(event);
        }
    }

    /// Queues data for the socket. Data after the end of that direction is dropped: the host knows of the end.
    pub(crate) fn receive(&mut self, data: Bytes) {
        if let Some(input) = &mut self.input {
            input.receive(data);
        }
    }

    /// Ends the direction to the socket, after the queued data.
    pub(crate) fn end_input(&mut self) {
        if let Some(input) = &mut self.input {
            input.end();
        }
    }

    /// Ends the direction from the socket: the host reads no more. The peer learns of it once it has been sent all
    /// input: a peer that cannot write may give up before it has read.
    pub(crate) fn close_output(&mut self) {
        self.output = None;
    }

    /// Closes both directions and drops data that was not written.
    pub(crate) fn close(&mut self) {
        (self.input, self.output) = (None, None);
    }

    /// Whether [`pump`](Self::pump) can make progress.
    pub(crate) fn can_pump(&self, session: &Session) -> bool {
        let room = |channel| session.output_room(self.reply_to.stream, channel);
        self.input.as_ref().is_some_and(Input::can_pump)
            || self.output.as_ref().is_some_and(|output| output.can_pump(room))
            || self.is_over()
    }

    fn is_over(&self) -> bool {
        self.output.is_none() && (self.input.is_none() || self.closed)
    }

    /// Moves data, with at most one read. Returns the stream's last response once both directions have ended.
    pub(crate) fn pump(&mut self, session: &mut Session, scratch: &mut [u8]) -> Option<Response> {
        let stream = self.reply_to.stream;
        let input = self.input.take_if(|input| {
            input.can_pump() && input.pump(stream, session) == ChannelState::Closed
        });
        if input.is_some() {
            let _ = shutdown(&self.fd, Shutdown::Write);
        }
        let mut to = Sink::Host(session, stream);
        self.output.take_if(|output| {
            output.can_pump(|channel| to.room(channel))
                && output.pump(&mut to, scratch) == ChannelState::Closed
        });
        self.is_over().then_some(Response::Done)
    }
}
