//! Connects this process to a command in a guest: standard streams, signals and terminal.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use boxlite_proto::message::{Control, ExitStatus, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::detach_keys::{DetachKeys, Scanner};
use super::exec::{ExecOutput, ExecStdin};
use super::stdio::{CHUNK, read_in_background, write_in_background};
use super::terminal::{self, RawMode};
use crate::sys::{is_ignored, native};

/// Signals that are forwarded to the command, by Linux number: HUP, INT, QUIT, USR1, USR2, ALRM, TERM. Only USR1 and
/// USR2 have other numbers on other systems.
const FORWARDED: [i32; 7] = [1, 2, 3, 10, 12, 14, 15];
const WINCH: i32 = 28;

/// Time for which keys that may start the detach sequence are held back.
const HOLD: Duration = Duration::from_millis(500);

/// This process before and while it is connected to a command.
#[derive(Debug)]
pub struct Attachment {
    terminal: bool,
    shared: bool,
    detach_keys: Option<DetachKeys>,
    signals: mpsc::UnboundedReceiver<i32>,
    _listeners: JoinSet<()>,
}

/// The standard streams of the command. `None` is not connected.
#[derive(Debug, Default)]
pub struct Streams {
    /// Receives this process's standard input.
    pub stdin: Option<ExecStdin>,
    /// Is copied to this process's standard output.
    pub stdout: Option<ExecOutput>,
    /// Is copied to this process's standard error.
    pub stderr: Option<ExecOutput>,
}

/// How [`Attachment::run`] ended.
#[derive(Debug)]
pub enum AttachmentEnd {
    /// The command exited.
    Exited(ExitStatus),
    /// The user typed the detach keys.
    Detached,
    /// A part of the command's output could not be written.
    WriteFailed(WriteError),
}

/// A failed write to a standard stream of this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {stream}")]
pub struct WriteError {
    stream: &'static str,
    source: io::Error,
}

impl WriteError {
    /// Whether the reader of the stream closed it, as `head` does.
    pub fn is_closed_pipe(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }
}

impl Attachment {
    /// Takes over the signals of this process, except those that it ignores. With `terminal`, the command's terminal is
    /// connected to this process's; see [`all_terminals`](Self::all_terminals).
    ///
    /// # Errors
    /// The async runtime cannot handle signals.
    pub fn new(terminal: bool) -> io::Result<Self> {
        let (sender, signals) = mpsc::unbounded_channel();
        let mut listeners = JoinSet::new();
        let wanted = FORWARDED.into_iter().chain(terminal.then_some(WINCH));
        for number in wanted.filter(|number| !is_ignored(*number)) {
            let mut signal = signal(SignalKind::from_raw(native(number)))?;
            let sender = sender.clone();
            listeners.spawn(async move {
                while signal.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        let (detach_keys, shared) = (None, false);
        Ok(Self { terminal, shared, detach_keys, signals, _listeners: listeners })
    }

    /// Sets whether another process started the command. Then a failed write detaches, and the end of standard input
    /// does not end the command's input, which other attached processes may continue.
    pub fn shared(mut self, yes: bool) -> Self {
        self.shared = yes;
        self
    }

    /// Sets the keys that detach. Has no effect if standard input is not a terminal.
    pub fn detach_keys(mut self, keys: DetachKeys) -> Self {
        self.detach_keys = Some(keys).filter(|_| self.terminal && io::stdin().is_terminal());
        self
    }

    /// Whether standard input, output and error are all terminals, so that a command's terminal can replace them
    /// without mixing streams that the user separated.
    pub fn all_terminals() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal()
    }

    /// The size of the command's terminal; none if the command has pipes.
    pub fn terminal_size(&self) -> Option<TerminalSize> {
        self.terminal.then(|| terminal::size(io::stdout().as_fd()))
    }

    /// Waits for a signal, before the command runs. Returns its Linux number. Cancel safe.
    pub async fn interrupted(&mut self) -> i32 {
        loop {
            match self.signals.recv().await {
                Some(WINCH) => {}
                Some(number) => return number,
                None => std::future::pending().await,
            }
        }
    }

    /// Connects `streams`, and passes signals and terminal sizes to `control`, until the command has `exited` and all
    /// of its output is written, or until the user types the [detach keys](Self::detach_keys). The terminal is in raw
    /// mode meanwhile; without [`Streams::stdin`] its mode is not changed, so that its keys cause signals.
    ///
    /// Detaching does not close the command's outputs, which other processes may read. An output that cannot be written
    /// is closed, which the command sees as a broken pipe.
    ///
    /// A thread that outlives this call reads standard input. It may consume input that arrives after the command has
    /// exited.
    ///
    /// # Errors
    /// That of `exited`.
    pub async fn run<E>(
        mut self,
        streams: Streams,
        control: impl Fn(Control),
        exited: impl Future<Output = Result<ExitStatus, E>>,
    ) -> Result<AttachmentEnd, E> {
        let _raw =
            (self.terminal && streams.stdin.is_some()).then(|| RawMode::enter(io::stdin().as_fd()));
        if let Some(size) = self.terminal_size() {
            control(Control::Resize(size));
        }
        let input =
            Input { scanner: self.detach_keys.take().map(Scanner::new), ends: !self.shared };
        let stdin = send(own(io::stdin().as_fd()), streams.stdin, input);
        let (failed, mut failures) = mpsc::unbounded_channel();
        let output = async {
            tokio::join!(
                receive(streams.stdout, own(io::stdout().as_fd()), "standard output", &failed),
                receive(streams.stderr, own(io::stderr().as_fd()), "standard error", &failed),
            );
        };
        let end = async {
            let (status, ()) = tokio::join!(exited, output);
            status
        };
        tokio::pin!(stdin, end);
        let (mut sending, mut failed_write) = (true, None);
        loop {
            tokio::select! {
                biased;
                Some(failure) = failures.recv() => match self.shared {
                    true => return Ok(AttachmentEnd::WriteFailed(failure)),
                    // The command sees a broken pipe and decides itself what to do.
                    false if failure.is_closed_pipe() => {}
                    false => drop(failed_write.get_or_insert(failure)),
                },
                status = &mut end => {
                    let status = status?;
                    // A write may have failed at the same moment.
                    let late = std::iter::from_fn(|| failures.try_recv().ok());
                    let mut lost = failed_write.into_iter().chain(late);
                    let lost = lost.find(|failure| !failure.is_closed_pipe());
                    return Ok(lost.map_or(AttachmentEnd::Exited(status), AttachmentEnd::WriteFailed));
                }
                left = &mut stdin, if sending => match left {
                    true => return Ok(AttachmentEnd::Detached),
                    false => sending = false,
                },
                Some(number) = self.signals.recv() => match number {
                    WINCH => control(Control::Resize(terminal::size(io::stdout().as_fd()))),
                    number => control(Control::Signal(number)),
                },
            }
        }
    }
}

/// Duplicates a standard stream; none if that fails, as for a closed stream.
fn own(fd: impl AsFd) -> Option<OwnedFd> {
    fd.as_fd().try_clone_to_owned().ok()
}

/// How standard input is forwarded.
struct Input {
    /// Finds the detach keys.
    scanner: Option<Scanner>,
    /// Whether the end of standard input ends the command's input.
    ends: bool,
}

/// Forwards standard input to the command, and its end. True once the detach keys were typed, which leave the command's
/// input and outputs open.
async fn send(from: Option<OwnedFd>, to: Option<ExecStdin>, mut input: Input) -> bool {
    let (Some(from), Some(mut to)) = (from, to) else { return false };
    let left = forward(from, &mut to, &mut input.scanner).await;
    match left {
        true => to.detach_all(),
        false if !input.ends => to.detach(),
        false => {}
    }
    left
}

/// Forwards standard input to its end. True once the detach keys were typed.
async fn forward(from: OwnedFd, to: &mut ExecStdin, scanner: &mut Option<Scanner>) -> bool {
    let mut chunks = read_in_background(from);
    loop {
        let mut bytes = Vec::new();
        let mut left = false;
        match scanner {
            None => match chunks.recv().await {
                Some(chunk) => bytes = chunk,
                None => return false,
            },
            Some(scanner) => {
                let hold = if scanner.holds() { HOLD } else { Duration::MAX };
                match timeout(hold, chunks.recv()).await {
                    Ok(Some(chunk)) => left = scanner.scan(&chunk, &mut bytes),
                    Ok(None) | Err(_) if !scanner.holds() => return false,
                    Ok(None) | Err(_) => scanner.release(&mut bytes),
                }
            }
        }
        if to.write_all(&bytes).await.is_err() {
            return false;
        }
        if left {
            return true;
        }
    }
}

/// Copies an output of the command to its end. A failed write goes to `failed`, and closes the command's output.
async fn receive(
    from: Option<ExecOutput>,
    to: Option<OwnedFd>,
    stream: &'static str,
    failed: &mpsc::UnboundedSender<WriteError>,
) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let writer = write_in_background(to);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match from.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(_) if !writer.write(chunk).await => break,
            Ok(_) => {}
        }
    }
    if let Err(source) = writer.finish().await {
        // The receiver outlives this future.
        let _ = failed.send(WriteError { stream, source });
    }
}
