//! A command that runs in a guest, in the manner of `tokio::process`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Control, ExitStatus, Response, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::AgentClient;
use super::connection::Session;
use super::error::Error;
use super::stream::{Attempt, Stream};

/// A running command. Dropping it kills the command with everything that it started.
#[derive(Debug)]
pub struct ExecHandle {
    /// Its standard input, if [`Exec::stdin`](boxlite_proto::message::Exec::stdin) asked for one.
    pub stdin: Option<ExecStdin>,
    /// Its standard output, or what its terminal shows.
    pub stdout: Option<ExecOutput>,
    /// Its standard error; none with a terminal.
    pub stderr: Option<ExecOutput>,
    pid: u32,
    running: Running,
}

/// Kills the command when dropped before its end.
#[derive(Debug)]
pub(super) struct Running(OpenStream);

/// A stream with its connection.
#[derive(Clone, Debug)]
struct OpenStream {
    client: AgentClient,
    stream: Arc<Stream>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The code or the signal.
    pub status: ExitStatus,
    /// The guest ran out of memory, and its kernel killed the command or something that it had
    /// started.
    pub out_of_memory: bool,
}

/// What a command wrote, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The guest ran out of memory, and its kernel killed the command or something that it had
    /// started.
    pub out_of_memory: bool,
    /// All of its standard output that had not been read before.
    pub stdout: Vec<u8>,
    /// All of its standard error that had not been read before.
    pub stderr: Vec<u8>,
}

impl Running {
    pub(super) fn new(client: AgentClient, stream: Arc<Stream>) -> Self {
        Self(OpenStream { client, stream })
    }

    /// Waits until the agent has started the command.
    pub(super) async fn started(
        self,
        with_stdin: bool,
        with_terminal: bool,
    ) -> Result<ExecHandle, Error> {
        let pid = self.0.stream.started().await?;
        let output = |channel| ExecOutput { stream: self.0.clone(), channel };
        Ok(ExecHandle {
            stdin: with_stdin.then(|| ExecStdin::new(self.0.clone())),
            stdout: Some(output(Channel::Stdout)),
            stderr: (!with_terminal).then(|| output(Channel::Stderr)),
            pid,
            running: self,
        })
    }

    /// The sending half of a stream that is no command's.
    pub(super) fn sender(&self) -> ExecStdin {
        ExecStdin::new(self.0.clone())
    }

    /// The receiving half of a stream that is no command's, once something has come.
    pub(super) async fn receiver(&self) -> Result<ExecOutput, Error> {
        self.0.stream.readable().await;
        match self.0.stream.try_over() {
            Some(Err(error)) if !self.0.stream.has_output() => Err(error),
            _ => Ok(ExecOutput { stream: self.0.clone(), channel: Channel::Stdout }),
        }
    }

    pub(super) fn kill(&self) {
        self.0.control(Control::Kill);
    }

    /// Waits for the end of the stream.
    pub(super) async fn over(&self) -> Result<Response, Error> {
        self.0.stream.over().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl OpenStream {
    /// Calls `act` with the session and the stream's ID.
    fn with_session<R>(&self, act: impl FnOnce(&mut Session, u32) -> R) -> R {
        let id = self.stream.id();
        self.client.connection().with_session(|session| act(session, id))
    }

    fn end_input(&self) {
        self.with_session(|session, id| session.end_input(id));
    }

    fn control(&self, control: Control) {
        self.with_session(|session, id| session.control(id, control));
    }

    /// Sends as much of `data` as there is credit for.
    fn poll_send(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, data, |data| {
            let sent = self.with_session(|session, id| {
                session.is_input_open(id).then(|| session.send_input(id, data))
            });
            match sent {
                Some(sent) => Attempt::Sent(sent),
                None if self.client.is_lost() => Attempt::Lost,
                None => Attempt::Closed,
            }
        })
    }

    /// Reads output that arrived, and grants the guest new credit for it.
    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        channel: Channel,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let taken = ready!(self.stream.poll_receive(cx, channel, into))?;
        if taken > 0 {
            self.with_session(|session, id| session.output_taken(id, channel, taken));
        }
        Poll::Ready(Ok(()))
    }

    /// Closes an output that nobody reads any more.
    fn abandon(&self, channel: Channel) {
        if self.stream.abandon(channel) {
            self.with_session(|session, id| session.close_output(id, channel));
        }
    }
}

impl ExecHandle {
    /// The command's process ID in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal (Linux number) to the command's process group. Without effect once it ended.
    pub fn signal(&self, signal: i32) {
        self.running.0.control(Control::Signal(signal));
    }

    /// Changes the size of the command's terminal. Without effect if it has none.
    pub fn resize(&self, size: TerminalSize) {
        self.running.0.control(Control::Resize(size));
    }

    /// Begins to kill the command with everything that it started. [`wait`](Self::wait) tells when
    /// that is done.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Closes standard input, then waits for the command to end. All of its output can be read then
    /// without waiting.
    ///
    /// As with any child process, a command that writes more than its pipes hold (a
    /// [window](boxlite_proto::credit::WINDOW) each) ends only if somebody reads its output or has
    /// dropped it. Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.stdin = None;
        self.exited().await
    }

    /// As [`wait`](Self::wait), and leaves standard input alone.
    pub async fn exited(&self) -> Result<ExitStatus, Error> {
        Ok(self.exit().await?.status)
    }

    /// As [`exited`](Self::exited), and tells a lack of memory apart from every other end.
    pub async fn exit(&self) -> Result<Exit, Error> {
        exit(self.running.over().await)
    }

    /// The status, if the command has ended.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Error> {
        Ok(self.running.0.stream.try_over().map(exit).transpose()?.map(|exit| exit.status))
    }

    /// Closes standard input, reads all output, and waits for the end.
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        self.stdin = None;
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = tokio::join!(read_all(stdout), read_all(stderr));
        let Exit { status, out_of_memory } = self.exit().await?;
        // Reading fails only as waiting does.
        Ok(Output {
            status,
            out_of_memory,
            stdout: stdout.unwrap_or_default(),
            stderr: stderr.unwrap_or_default(),
        })
    }
}

async fn read_all(output: Option<ExecOutput>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        output.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn exit(outcome: Result<Response, Error>) -> Result<Exit, Error> {
    match outcome? {
        Response::Exited(status) => Ok(Exit { status, out_of_memory: false }),
        Response::ExitedOutOfMemory(status) => Ok(Exit { status, out_of_memory: true }),
        other => unreachable!("a command's stream accepts no {other:?}"),
    }
}

/// Standard input of a command. Shutting it down, or dropping it, is the end of the input. Writing
/// waits while the command does not read, and fails with [`io::ErrorKind::BrokenPipe`] once it
/// cannot any more.
#[derive(Debug)]
pub struct ExecStdin {
    stream: OpenStream,
    ends: bool,
}

impl ExecStdin {
    fn new(stream: OpenStream) -> Self {
        Self { stream, ends: true }
    }

    /// Drops it without the end of the input: others may have more for the command.
    pub fn leave(mut self) {
        self.ends = false;
    }

    /// As [`leave`](Self::leave), and its command's outputs do not end either when they are dropped.
    pub(super) fn leave_all(self) {
        self.stream.stream.keep_outputs();
        self.leave();
    }
}

impl AsyncWrite for ExecStdin {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_send(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.end_input();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ExecStdin {
    fn drop(&mut self) {
        if self.ends {
            self.stream.end_input();
        }
    }
}

/// Standard output or standard error of a command. Dropping it closes the command's end.
pub struct ExecOutput {
    stream: OpenStream,
    channel: Channel,
}

impl AsyncRead for ExecOutput {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.poll_receive(cx, self.channel, into)
    }
}

impl Drop for ExecOutput {
    fn drop(&mut self) {
        self.stream.abandon(self.channel);
    }
}

impl fmt::Debug for ExecOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExecOutput").field(&self.channel).finish()
    }
}
