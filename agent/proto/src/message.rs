//! Messages: the postcard bodies of control frames. Enums grow only at their end.

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Kind};
use crate::guest::{self, CopyIn, CopyOut, ExecCounts, FileStat, GuestMetrics, Process, Stat};

/// Opens a connection, in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the sender.
    pub version: u16,
    /// Generation of the guest, which is always 0 in this version of the protocol. The agent answers with its own,
    /// and a host that expects another closes the connection.
    pub generation: u64,
    /// Host to agent: the time at which it was sent, in nanoseconds since the Unix epoch; a lower bound of the
    /// time at which it arrives. Agent to host: 0.
    pub unix_time_ns: u64,
}

/// A request of the host, on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Checks that the agent answers. Answered by [`Response::Done`].
    Ping,
    /// Runs a command. Answered by `Started` (or `Failed`), then `Exited`.
    Exec(Exec),
    /// Unpacks the next layer of an image, whose tar follows on stdin (role builder only). Answered by
    /// [`Response::Unpacked`].
    UnpackLayer,
    /// Writes all cached data to the disk. Answered by [`Response::Done`] when all data is there.
    Sync,
    /// Ends all processes (SIGTERM, after `grace_ms` SIGKILL), unmounts, answers [`Response::Done`], and resets
    /// the VM.
    Shutdown {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u32,
    },
    /// Runs a detached command, which outlives the connection. Its stdio is `/dev/null`, or with
    /// [`Exec::terminal`] a terminal whose output is discarded. Answered by [`Response::Detached`].
    ExecDetached(Exec),
    /// Reads the metrics of the guest. Answered by [`Response::Metrics`].
    Metrics,
    /// Lists the processes. Answered by [`Response::Processes`].
    Processes,
    /// Reads the metadata of a file. Answered by [`Response::Stat`].
    Stat(Stat),
    /// Unpacks the tar that follows on stdin. Answered by [`Response::Unpacked`].
    CopyIn(CopyIn),
    /// Packs a file or a tree into a tar, which follows on stdout. Answered by [`Response::Done`] after the last
    /// byte; a tar that is followed by [`Response::Failed`] is incomplete.
    CopyOut(CopyOut),
    /// Reads the counters of commands. Answered by [`Response::ExecCounts`].
    ExecCounts,
    /// Runs the main command of a box. Answered as [`Exec`](Self::Exec) is. There is one at a time, and commands
    /// that start while it runs see the same processes as it does.
    ExecMain(MainExec),
    /// Reads the guest's monotonic clock. Answered by [`Response::Clock`].
    Clock,
    /// Sets the guest's clock. Answered by [`Response::Done`].
    SetClock(ClockReading),
    /// Connects the stream to a Unix socket (role nested host). Standard input goes to the socket, the socket's data
    /// follows on standard output, both from the start, and each direction ends by itself. Answered by
    /// [`Response::Done`] when both have ended, or after [`Control::Kill`], which closes the socket.
    Connect(Connect),
    /// Runs a command that serves a Unix socket (role nested host). The agent listens on the socket before it starts the
    /// command, so a [`Connect`](Self::Connect) may follow at once. Answered as [`Exec`](Self::Exec) is.
    ExecServer(ServerExec),
}

/// A command that serves a Unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerExec {
    /// The command. It inherits the listening socket as descriptor [`LISTENER`].
    pub exec: Exec,
    /// The socket's name in the abstract namespace, without the leading zero byte.
    pub socket: Vec<u8>,
}

/// The descriptor of an inherited listening socket, as in `sd_listen_fds(3)`.
pub const LISTENER: i32 = 3;

/// The Unix socket that a stream connects to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Its name in the abstract namespace, without the leading zero byte. A path could block the agent: its file
    /// system may be on the other side of a link.
    pub name: Vec<u8>,
}

/// The main command of a box: the first process of its own PID namespace. When it exits, all processes in the
/// namespace end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainExec {
    /// The command.
    pub exec: Exec,
    /// Whether the agent's init is the first process in place of the command, and reaps orphans.
    pub init: bool,
}

/// The time at a reading of the guest's monotonic clock. Stays true however late it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// The reading of [`Response::Clock`], in nanoseconds.
    pub monotonic_ns: u64,
    /// Nanoseconds since the Unix epoch at that moment.
    pub unix_time_ns: u64,
    /// Maximum error of that time, in nanoseconds.
    pub error_ns: u64,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments. Without a slash, the program is looked up in `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, each variable as `NAME=value`. The agent adds `HOME` (from the user's passwd
    /// entry) and `PATH` if they are missing.
    pub env: Vec<Vec<u8>>,
    /// The working directory; `/` if empty. Created if missing, as container engines do.
    pub working_dir: Vec<u8>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root if empty.
    pub user: String,
    /// Size of a terminal for all three stdio channels; none for pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether the host sends stdin; otherwise stdin is `/dev/null`.
    pub stdin: bool,
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A control message of the host, on the stream of a running exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Control {
    /// Sends a signal (Linux number) to the command's process group.
    Signal(i32),
    /// Sets the size of the terminal.
    Resize(TerminalSize),
    /// Kills the command and all its descendants; cancels a request that is no command.
    Kill,
    /// Sends a signal (Linux number) to the command's process alone. The kernel drops a signal that has no handler
    /// in the first process of a namespace; the agent then does what the signal does to any other process.
    SignalProcess(i32),
}

/// A response of the agent, on the stream of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Response {
    /// The command has started.
    Started {
        /// Its process ID in the guest.
        pid: u32,
    },
    /// The command has exited, and all its output has been sent. Last frame of the stream.
    Exited(ExitStatus),
    /// The request failed. Last frame of the stream.
    Failed(Failure),
    /// A layer has been unpacked. Last frame of the stream.
    Unpacked {
        /// Entries of the tar.
        entries: u64,
        /// Bytes of file content written.
        bytes: u64,
    },
    /// The request has been carried out. Last frame of the stream.
    Done,
    /// The detached command has started. Last frame of the stream.
    Detached {
        /// Its process ID in the guest.
        pid: u32,
    },
    /// As [`Exited`](Self::Exited), after the guest ran out of memory and its kernel killed the command or one of
    /// its descendants. Last frame of the stream.
    ExitedOutOfMemory(ExitStatus),
    /// The metrics of the guest. Last frame of the stream.
    Metrics(GuestMetrics),
    /// The processes, by ID: at most the first [`MAX_PROCESSES`](crate::guest::MAX_PROCESSES). Last frame of the
    /// stream.
    Processes(#[serde(deserialize_with = "guest::bounded_processes")] Vec<Process>),
    /// The metadata of the file. Last frame of the stream.
    Stat(FileStat),
    /// The counters of commands. Last frame of the stream.
    ExecCounts(ExecCounts),
    /// The reading of the guest's monotonic clock. Last frame of the stream.
    Clock {
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        monotonic_ns: u64,
    },
}

/// The exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// A signal (Linux number) ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The exit code that a shell reports for it: the code, or 128 plus the number of the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(signal & 0x7f).map_or(u8::MAX, |n| 128 | n),
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind of the failure, for programs.
    pub kind: FailureKind,
    /// What failed, on which thing and why, for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FailureKind {
    /// The program does not exist (127 for a shell).
    NotFound,
    /// The program exists and cannot be executed (126 for a shell).
    NotExecutable,
    /// No such user or group in the box.
    UnknownUser,
    /// The working directory cannot be entered.
    WorkingDir,
    /// The tar of a layer is malformed or hostile.
    BadLayer,
    /// The disk is full.
    DiskFull,
    /// The agent does not know the request, or does not serve it in this role.
    Unsupported,
    /// Another failure; the message describes it.
    Other,
    /// The tar of a copy is malformed or hostile, or conflicts with existing files.
    BadArchive,
    /// The path does not exist.
    NoSuchPath,
    /// The path is not a directory.
    NotADirectory,
}

/// An unsolicited event of the agent, on stream 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The boot reached this stage.
    Stage(Stage),
    /// The agent cannot continue, and resets the VM next.
    Fatal {
        /// What failed, on which thing and why.
        message: String,
    },
}

/// Stages of a boot, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stage {
    /// The kernel runs and has started the agent.
    Agent,
    /// The root file system is mounted.
    Root,
    /// The agent serves requests.
    Ready,
}

macro_rules! frame_constructors {
    ($($message:ty => $kind:ident;)*) => {$(
        impl $message {
            #[doc = concat!("This message as a [`", stringify!($kind), "`](Kind::", stringify!($kind), ") frame.")]
            pub fn frame(&self, stream: u32) -> Frame {
                Frame::encoded(stream, Kind::$kind, self)
            }
        }
    )*};
}

frame_constructors! {
    Hello => Hello;
    Request => Request;
    Response => Response;
    Control => Control;
    Event => Event;
}
