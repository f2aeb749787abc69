//! This process standing in for a command in a guest: its standard streams, its signals and its
//! terminal are the command's.

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

/// Signals that are the command's to handle, by their Linux numbers: HUP, INT, QUIT, USR1, USR2,
/// ALRM, TERM. The same everywhere but for USR1 and USR2, which are translated.
const FORWARDED: [i32; 7] = [1, 2, 3, 10, 12, 14, 15];
const WINCH: i32 = 28;

/// How long keys that may begin the detach keys are held back.
const HOLD: Duration = Duration::from_millis(500);

/// This process, about to stand in for a command.
#[derive(Debug)]
pub struct Attachment {
    terminal: bool,
    onlooker: bool,
    detach_keys: Option<DetachKeys>,
    signals: mpsc::UnboundedReceiver<i32>,
    _listeners: JoinSet<()>,
}

/// The command's ends of its standard streams. What is none is not connected.
#[derive(Debug, Default)]
pub struct Streams {
    /// Gets what this process reads from its standard input.
    pub stdin: Option<ExecStdin>,
    /// Goes to this process's standard output.
    pub stdout: Option<ExecOutput>,
    /// Goes to this process's standard error.
    pub stderr: Option<ExecOutput>,
}

/// How standing in for a command ended.
#[derive(Debug)]
pub enum Ended {
    /// The command ended.
    Exited(ExitStatus),
    /// The person at the terminal left it.
    Left,
    /// Not all of its output could be written here.
    Unwritten(Unwritten),
}

/// A standard stream of this process could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {stream}")]
pub struct Unwritten {
    stream: &'static str,
    source: io::Error,
}

impl Unwritten {
    /// Whether that is because nobody reads the stream any more, as with `| head`.
    pub fn is_closed_pipe(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }
}

impl Attachment {
    /// Takes over the signals of this process (those that it does not ignore). With `terminal`, the
    /// command gets a terminal that is this process's own; see
    /// [`all_terminals`](Self::all_terminals).
    ///
    /// # Errors
    /// When the runtime cannot handle signals.
    pub fn new(terminal: bool) -> io::Result<Self> {
        let (sender, signals) = mpsc::unbounded_channel();
        let mut listeners = JoinSet::new();
        let ignored = ignored_signals();
        let wanted = FORWARDED.into_iter().chain(terminal.then_some(WINCH));
        for number in wanted.filter(|number| ignored & (1 << (number - 1)) == 0) {
            let mut signal = signal(SignalKind::from_raw(native(number)))?;
            let sender = sender.clone();
            listeners.spawn(async move {
                while signal.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        let (detach_keys, onlooker) = (None, false);
        Ok(Self { terminal, onlooker, detach_keys, signals, _listeners: listeners })
    }

    /// The command is not this process's own: it is left when its output cannot be written here, and the end
    /// of standard input is not the end of its input, for others may have more.
    pub fn onlooker(mut self, yes: bool) -> Self {
        self.onlooker = yes;
        self
    }

    /// Lets a person who types these keys leave the command. Has no effect where standard input is
    /// no terminal.
    pub fn detach_keys(mut self, keys: DetachKeys) -> Self {
        self.detach_keys = Some(keys).filter(|_| self.terminal && io::stdin().is_terminal());
        self
    }

    /// Whether standard input, output and error are all terminals, so that a command can have them
    /// as one without mixing what is to be kept apart.
    pub fn all_terminals() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal()
    }

    /// The size of the terminal that the command is to have; none: pipes.
    pub fn terminal_size(&self) -> Option<TerminalSize> {
        self.terminal.then(|| terminal::size(io::stdout().as_fd()))
    }

    /// Waits for a signal before the command runs; its Linux number. Cancel safe.
    pub async fn interrupted(&mut self) -> i32 {
        loop {
            match self.signals.recv().await {
                Some(WINCH) => {}
                Some(number) => return number,
                None => std::future::pending().await,
            }
        }
    }

    /// Connects `streams`, and passes signals and terminal sizes to `control`, until the command
    /// has `exited` and all of its output is written, or until it is left by its
    /// [detach keys](Self::detach_keys). A terminal whose keys are the command's is in raw mode meanwhile; without
    /// [`Streams::stdin`] it stays as it is, so that its keys make signals.
    ///
    /// A command that is left keeps its output: others may read it. Output that cannot be written here is
    /// closed, which the command sees as a broken pipe.
    ///
    /// Standard input is read by a thread that outlives this call: it may take input that comes
    /// after the command's end.
    ///
    /// # Errors
    /// That of `exited`.
    pub async fn run<E>(
        mut self,
        streams: Streams,
        control: impl Fn(Control),
        exited: impl Future<Output = Result<ExitStatus, E>>,
    ) -> Result<Ended, E> {
        let _raw =
            (self.terminal && streams.stdin.is_some()).then(|| RawMode::enter(io::stdin().as_fd()));
        if let Some(size) = self.terminal_size() {
            control(Control::Resize(size));
        }
        let input =
            Input { scanner: self.detach_keys.take().map(Scanner::new), ends: !self.onlooker };
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
        let (mut sending, mut unwritten) = (true, None);
        loop {
            tokio::select! {
                biased;
                Some(failure) = failures.recv() => match self.onlooker {
                    true => return Ok(Ended::Unwritten(failure)),
                    // The command has seen a broken pipe, and ends as it likes.
                    false if failure.is_closed_pipe() => {}
                    false => drop(unwritten.get_or_insert(failure)),
                },
                status = &mut end => {
                    let status = status?;
                    // What failed last did so in the same moment.
                    let late = std::iter::from_fn(|| failures.try_recv().ok());
                    let mut lost = unwritten.into_iter().chain(late);
                    let lost = lost.find(|failure| !failure.is_closed_pipe());
                    return Ok(lost.map_or(Ended::Exited(status), Ended::Unwritten));
                }
                left = &mut stdin, if sending => match left {
                    true => return Ok(Ended::Left),
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

/// A descriptor of our own for a standard stream; none if the stream cannot be had.
fn own(fd: impl AsFd) -> Option<OwnedFd> {
    fd.as_fd().try_clone_to_owned().ok()
}

/// What standard input is to a command.
struct Input {
    /// Finds the keys that leave the command.
    scanner: Option<Scanner>,
    /// Whether its end is the end of the command's input.
    ends: bool,
}

/// Sends what can be read to the command, and its end. True when the keys that leave it were typed:
/// then neither its input nor its output ends.
async fn send(from: Option<OwnedFd>, to: Option<ExecStdin>, mut input: Input) -> bool {
    let (Some(from), Some(mut to)) = (from, to) else { return false };
    let left = pass_on(from, &mut to, &mut input.scanner).await;
    match left {
        true => to.leave_all(),
        false if !input.ends => to.leave(),
        false => {}
    }
    left
}

/// Sends what can be read. True when the keys that leave the command were typed.
async fn pass_on(from: OwnedFd, to: &mut ExecStdin, scanner: &mut Option<Scanner>) -> bool {
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

/// Writes what the command writes, until its end. If it cannot be written, `failed` and the command
/// hear of it.
async fn receive(
    from: Option<ExecOutput>,
    to: Option<OwnedFd>,
    stream: &'static str,
    failed: &mpsc::UnboundedSender<Unwritten>,
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
        // Its receiver lives as long as this future.
        let _ = failed.send(Unwritten { stream, source });
    }
}

/// Which signals this process was started to ignore, as with `nohup`: one bit each.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The number that this system has for the signal with this Linux number.
fn native(linux: i32) -> i32 {
    match linux {
        10 => libc::SIGUSR1,
        12 => libc::SIGUSR2,
        same => same,
    }
}
