//! Running commands in a guest, in the manner of `tokio::process`.

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

/// A running command. Dropping it kills the command and all processes that it started.
#[derive(Debug)]
pub struct ExecHandle {
    /// The standard input, if [`Exec::stdin`](boxlite_proto::message::Exec::stdin) requested one.
    pub stdin: Option<ExecStdin>,
    /// The standard output, or the output of the terminal.
    pub stdout: Option<ExecOutput>,
    /// The standard error; none with a terminal.
    pub stderr: Option<ExecOutput>,
    pid: u32,
    running: Running,
}

/// Kills the command when dropped before its end, unless it was released.
#[derive(Debug)]
pub(super) struct Running {
    open: OpenStream,
    released: bool,
}

/// A stream with its connection.
#[derive(Clone, Debug)]
struct OpenStream {
    client: AgentClient,
    stream: Arc<Stream>,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code or the signal.
    pub status: ExitStatus,
    /// Whether the guest ran out of memory and its kernel killed the command or a process that it had started.
    pub out_of_memory: bool,
}

/// The output of a command, and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit code or the signal.
    pub status: ExitStatus,
    /// Whether the guest ran out of memory and its kernel killed the command or a process that it had started.
    pub out_of_memory: bool,
    /// The standard output that had not been read before.
    pub stdout: Vec<u8>,
    /// The standard error that had not been read before.
    pub stderr: Vec<u8>,
}

impl Running {
    pub(super) fn new(client: AgentClient, stream: Arc<Stream>) -> Self {
        Self { open: OpenStream { client, stream }, released: false }
    }

    /// Waits until the agent has started the command.
    pub(super) async fn started(
        self,
        with_stdin: bool,
        with_terminal: bool,
    ) -> Result<ExecHandle, Error> {
        let pid = self.open.stream.started().await?;
        let output = |channel| ExecOutput { stream: self.open.clone(), channel };
        Ok(ExecHandle {
            stdin: with_stdin.then(|| ExecStdin::new(self.open.clone())),
            stdout: Some(output(Channel::Stdout)),
            stderr: (!with_terminal).then(|| output(Channel::Stderr)),
            pid,
            running: self,
        })
    }

    /// The sending half of a stream without a command.
    pub(super) fn sender(&self) -> ExecStdin {
        ExecStdin::new(self.open.clone())
    }

    /// The receiving half of a stream without a command, once data has arrived.
    pub(super) async fn receiver(&self) -> Result<ExecOutput, Error> {
        self.open.stream.readable().await;
        match self.open.stream.try_over() {
            Some(Err(error)) if !self.open.stream.has_output() => Err(error),
            _ => Ok(self.output()),
        }
    }

    /// The receiving half of a stream without a command, at once.
    pub(super) fn output(&self) -> ExecOutput {
        ExecOutput { stream: self.open.clone(), channel: Channel::Stdout }
    }

    /// The standard error of a command, at once.
    pub(super) fn error_output(&self) -> ExecOutput {
        ExecOutput { stream: self.open.clone(), channel: Channel::Stderr }
    }

    pub(super) fn kill(&self) {
        self.open.control(Control::Kill);
    }

    /// Leaves the stream to end by itself.
    pub(super) fn release(&mut self) {
        self.released = true;
    }

    /// Waits for the end of the stream.
    pub(super) async fn over(&self) -> Result<Response, Error> {
        self.open.stream.over().await
    }

    /// How the stream ended, if it has.
    pub(super) fn try_over(&self) -> Option<Result<Response, Error>> {
        self.open.stream.try_over()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.released {
            self.kill();
        }
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

    /// Sends a signal (Linux number) to the command's process group. Has no effect once the command has exited.
    pub fn signal(&self, signal: i32) {
        self.running.open.control(Control::Signal(signal));
    }

    /// Changes the size of the command's terminal. Has no effect without a terminal.
    pub fn resize(&self, size: TerminalSize) {
        self.running.open.control(Control::Resize(size));
    }

    /// Starts to kill the command and all processes that it started. [`wait`](Self::wait) returns once they are dead.
    pub fn kill(&self) {
        self.running.kill();
    }

    /// Closes standard input, then waits for the command to exit. All of its output can be read without waiting then.
    ///
    /// As with any child process, a command that writes more than its pipes hold (a
    /// [window](boxlite_proto::credit::WINDOW) each) exits only if its outputs are read or dropped. Cancel safe.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.stdin = None;
        self.exited().await
    }

    /// Like [`wait`](Self::wait), without closing standard input.
    pub async fn exited(&self) -> Result<ExitStatus, Error> {
        Ok(self.wait_exit().await?.status)
    }

    /// Like [`exited`](Self::exited); also says whether the guest ran out of memory.
    pub async fn wait_exit(&self) -> Result<Exit, Error> {
        exit(self.running.over().await)
    }

    /// The status, if the command has exited.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Error> {
        Ok(self.running.open.stream.try_over().map(exit).transpose()?.map(|exit| exit.status))
    }

    /// Closes standard input, reads all output, and waits for the command to exit.
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        self.stdin = None;
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = tokio::join!(read_all(stdout), read_all(stderr));
        let Exit { status, out_of_memory } = self.wait_exit().await?;
        // Reading fails only if waiting fails, too.
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

/// The standard input of a command. Shutting it down or dropping it ends the input. A write waits while the command
/// does not read, and fails with [`io::ErrorKind::BrokenPipe`] once the command cannot read any more.
#[derive(Debug)]
pub struct ExecStdin {
    stream: OpenStream,
    ends: bool,
}

impl ExecStdin {
    fn new(stream: OpenStream) -> Self {
        Self { stream, ends: true }
    }

    /// Drops it without ending the input, which other attached callers may continue.
    pub fn detach(mut self) {
        self.ends = false;
    }

    /// Like [`detach`](Self::detach); also keeps the command's outputs open when they are dropped.
    pub(super) fn detach_all(self) {
        self.stream.stream.keep_outputs();
        self.detach();
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

/// The standard output or standard error of a command. Dropping it closes the command's end.
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
