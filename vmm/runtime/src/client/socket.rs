//! Sockets of the nested host: commands that serve one, and connections, each of which is a stream of the protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use boxlite_proto::message::{Connect, Exec, Request, ServerExec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exec::{ExecOutput, ExecStdin, Running};
use super::{AgentClient, Error, Result};

/// A connection to a Unix socket of the nested host: bytes both ways, under the protocol's flow control. `shutdown`
/// ends the direction to the socket. Dropping the stream closes the socket: after all data was written to it if that
/// direction has ended and the connection to the agent lasts, otherwise at once.
#[derive(Debug)]
pub(crate) struct SocketStream {
    // Dropped first, so that a cancelled transfer does not look like a complete one.
    running: Running,
    output: ExecOutput,
    input: ExecStdin,
    /// The direction to the socket has ended, so a drop cancels nothing.
    input_ended: bool,
}

/// A command of the nested host that serves a Unix socket. Dropping it kills the command.
#[derive(Debug)]
pub(crate) struct SocketServer {
    running: Running,
    client: AgentClient,
    socket: Vec<u8>,
    /// Its standard input, which stays open.
    _stdin: ExecStdin,
}

impl SocketServer {
    /// Connects to the command's socket. Does not wait, not even for the command's start: a connection that fails is an
    /// error of the first read, and of later writes.
    pub(crate) fn connect(&self) -> Result<SocketStream> {
        self.client.connect_socket(&self.socket)
    }

    /// The command's standard error.
    pub(crate) fn stderr(&self) -> ExecOutput {
        self.running.error_output()
    }

    /// Whether the command has ended, or the connection to its agent.
    pub(crate) fn is_over(&self) -> bool {
        self.running.try_over().is_some()
    }

    /// Why the command could not be started, or why the connection to its agent ended.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.running.try_over()?.err()
    }
}

impl AgentClient {
    /// Starts a command that serves the socket with this name in the abstract namespace. Does not wait for the start.
    pub(crate) fn exec_server(&self, exec: Exec, socket: Vec<u8>) -> Result<SocketServer> {
        let request = ServerExec { exec, socket: socket.clone() };
        let running = self.open(&Request::ExecServer(request))?;
        let stdin = running.sender();
        Ok(SocketServer { running, client: self.clone(), socket, _stdin: stdin })
    }

    /// Connects to the socket with this name in the abstract namespace. Does not wait: a connection that fails is an
    /// error of the first read, and of later writes.
    pub(crate) fn connect_socket(&self, name: &[u8]) -> Result<SocketStream> {
        let running = self.open(&Request::Connect(Connect { name: name.to_owned() }))?;
        let (input, output) = (running.sender(), running.output());
        Ok(SocketStream { running, output, input, input_ended: false })
    }
}

impl SocketStream {
    /// Replaces the error of a write by the reason why the stream ended, if it is known.
    fn explain(&self, error: io::Error) -> io::Error {
        match self.running.try_over() {
            Some(Err(reason)) => reason.into(),
            _ => error,
        }
    }
}

impl AsyncRead for SocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, into)
    }
}

impl AsyncWrite for SocketStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.input).poll_write(cx, data));
        Poll::Ready(written.map_err(|error| self.explain(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.input).poll_shutdown(cx))?;
        self.input_ended = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for SocketStream {
    fn drop(&mut self) {
        if self.input_ended {
            self.running.release();
        }
    }
}
