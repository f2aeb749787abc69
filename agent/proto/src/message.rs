//! Messages: the postcard bodies of control frames. Enums grow only at their end.

use serde::{Deserialize, Serialize};

use crate::frame::{Frame, Kind};
use crate::guest::{self, CopyIn, CopyOut, ExecCounts, FileStat, GuestMetrics, Process, Stat};

/// Opens a connection, in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION) of the sender.
    pub version: u16,
    /// Which life of the guest this is: 0 at boot, one more for each restore of a snapshot. The
    /// agent answers with its own; a host that asks for another has the wrong machine.
    pub generation: u64,
    /// Host to agent: nanoseconds since the Unix epoch when it was sent, before which it can't be any
    /// more when it arrives; agent to host: 0.
    pub unix_time_ns: u64,
}

/// What the host asks for on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Are you there? Answered by [`Response::Done`].
    Ping,
    /// Runs a command. Answered by `Started` (or `Failed`), then `Exited`.
    Exec(Exec),
    /// Software image build (role builder): the tar of the next layer follows on stdin. Answered by
    /// [`Response::Unpacked`].
    UnpackLayer,
    /// Writes everything to the disk. Answered by [`Response::Done`] once it is there.
    Sync,
    /// Ends all processes (SIGTERM, after `grace_ms` SIGKILL), unmounts, answers
    /// [`Response::Done`], and resets the machine.
    Shutdown {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u32,
    },
    /// Runs a command that nobody waits for: it outlives the connection. Its standard streams are
    /// `/dev/null`, or with [`Exec::terminal`] a terminal that nobody reads. Answered by
    /// [`Response::Detached`].
    ExecDetached(Exec),
    /// How the machine is doing. Answered by [`Response::Metrics`].
    Metrics,
    /// What runs. Answered by [`Response::Processes`].
    Processes,
    /// What is at a path. Answered by [`Response::Stat`].
    Stat(Stat),
    /// Unpacks the tar that follows on stdin. Answered by [`Response::Unpacked`].
    CopyIn(CopyIn),
    /// Packs a file or a tree into a tar, which comes on stdout. Answered by [`Response::Done`] after
    /// its last byte; a tar that is followed by [`Response::Failed`] is not whole.
    CopyOut(CopyOut),
    /// What became of the commands that were asked for. Answered by [`Response::ExecCounts`].
    ExecCounts,
    /// Runs the main command of a box. Answered as [`Exec`](Self::Exec) is. There is one at a time, and
    /// commands that are asked for while it runs see the same processes as it does.
    ExecMain(MainExec),
    /// Asks for the reading of a clock that nobody sets. Answered by [`Response::Clock`].
    Clock,
    /// Tells the time. Answered by [`Response::Done`].
    SetClock(ClockReading),
}

/// The main command of a box: the first process of a PID namespace of its own, with which everything in
/// that namespace ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MainExec {
    /// The command.
    pub exec: Exec,
    /// Whether an init of the agent's is the first process in its place, and reaps orphans.
    pub init: bool,
}

/// What time it was when the guest's clock stood somewhere: true whenever it is heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// [`Response::Clock`]'s nanoseconds.
    pub monotonic_ns: u64,
    /// Nanoseconds since the Unix epoch at that moment.
    pub unix_time_ns: u64,
    /// How far off that may be, in nanoseconds.
    pub error_ns: u64,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments. Without a slash, the program is looked up in `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment, `NAME=value` each. The agent adds `HOME` (from the user's passwd
    /// entry) and `PATH` where they are missing.
    pub env: Vec<Vec<u8>>,
    /// The working directory; `/` where empty. Created if missing, as container engines do.
    pub working_dir: Vec<u8>,
    /// `name`, `uid`, `name:group`, `uid:gid`; root where empty.
    pub user: String,
    /// A terminal of this size as all three stdio channels; none: pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether stdin will be sent; otherwise it is `/dev/null`.
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

/// What the host says on the stream of a running exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Control {
    /// Sends a signal (Linux number) to the command's process group.
    Signal(i32),
    /// The terminal changed its size.
    Resize(TerminalSize),
    /// Ends the command with everything that it started and is still in its session: nobody is
    /// interested any more.
    Kill,
    /// Sends a signal (Linux number) to the command's own process alone. One that the kernel keeps from
    /// it, because it is the first process of its namespace and does not say what it makes of that signal,
    /// does what it does to every other process.
    SignalProcess(i32),
}

/// What the agent answers on the stream of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Response {
    /// The command runs.
    Started {
        /// Its process ID in the guest.
        pid: u32,
    },
    /// The command ended; all its output has been sent. Last frame of the stream.
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
    /// Done. Last frame of the stream.
    Done,
    /// The command runs on its own. Last frame of the stream.
    Detached {
        /// Its process ID in the guest.
        pid: u32,
    },
    /// As [`Exited`](Self::Exited), after the guest ran out of memory and its kernel killed the
    /// command or something that it had started. Last frame of the stream.
    ExitedOutOfMemory(ExitStatus),
    /// How the machine is doing. Last frame of the stream.
    Metrics(GuestMetrics),
    /// What runs, by process ID; of more than [`MAX_PROCESSES`](crate::guest::MAX_PROCESSES), the
    /// first ones. Last frame of the stream.
    Processes(#[serde(deserialize_with = "guest::bounded_processes")] Vec<Process>),
    /// What is there. Last frame of the stream.
    Stat(FileStat),
    /// What became of the commands. Last frame of the stream.
    ExecCounts(ExecCounts),
    /// The reading of the clock. Last frame of the stream.
    Clock {
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        monotonic_ns: u64,
    },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// A signal (Linux number) ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The exit code by which a shell reports this: the code, or 128 and the number of the signal.
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
    /// What kind of failure, for programs.
    pub kind: FailureKind,
    /// What happened, on which thing, for people.
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
    /// The request makes no sense to this agent or in this role.
    Unsupported,
    /// Something else; the message says what.
    Other,
    /// The tar to be unpacked is malformed or hostile, or does not fit to what is there.
    BadArchive,
    /// There is nothing at the path.
    NoSuchPath,
    /// What is at the path is not a directory.
    NotADirectory,
}

/// What the agent tells the host unasked, on stream 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// The boot reached this stage.
    Stage(Stage),
    /// The agent cannot go on; it resets the machine after this.
    Fatal {
        /// What happened, on which thing.
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
