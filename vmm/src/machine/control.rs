//! What launcher and machine say to each other, over one Unix socket: length-prefixed JSON, with
//! file descriptors beside a message where it has some.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use boxlite_devices::virtio::block::BlockCounts;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::spec::LaunchSpec;
use super::status::Ended;

/// The largest message, in bytes: a LaunchSpec with a main command and a health check that have as large an environment
/// as Linux allows (2 MiB each, as base64).
const MAX_MESSAGE: usize = 8 << 20;
/// The most descriptors beside a message.
const MAX_FILES: usize = 32;

/// To a machine, from its launcher or from whoever connects to the box's control socket. Each is
/// answered, in order, by [`FromMachine::Done`], `Refused` or what it asks for.
///
/// The end of the launcher's connection means: the launcher is gone, and the machine ends, unless it
/// is a detached box. The end of another connection means nothing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToMachine {
    /// Build and run this; its files come beside it. First and once, and the launcher's only; the answers are stages.
    Launch(Box<LaunchSpec>),
    /// The descriptor beside it is a client of the box's vsock: it will say `CONNECT <port>`.
    /// Without an answer.
    Client,
    /// The descriptor beside it becomes a connection in the agent's protocol to the main command:
    /// `Request::Exec` there is answered as if it started the command; closing it ends nothing. Without an answer.
    /// What is said there is for the command, `End` of standard input and `Control::Kill` too: whoever
    /// only wants to leave closes the socket without them.
    Attach,
    /// Do not end with the launcher from now on.
    Outlive,
    /// Ask the main command to end (its stop signal), then all processes, and end in good order, after so many
    /// milliseconds in any case. Answered when it is begun.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Send the main command's process a signal, if it runs and this is still the process of the box that is meant,
    /// as its status has it.
    Signal {
        /// The signal (Linux number).
        signal: i32,
        /// The process ID of the box's process.
        pid: u32,
        /// When that began: milliseconds since the Unix epoch.
        started_ms: u64,
    },
    /// End now, without asking the guest.
    Kill,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// What the process counts. Answered by [`FromMachine::Metrics`].
    Metrics,
}

/// From a machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromMachine {
    /// The boot reached a stage, so many microseconds after it began.
    Stage {
        /// The stage.
        stage: BootStage,
        /// Microseconds.
        micros: u64,
    },
    /// It is done.
    Done,
    /// It cannot be done, and why.
    Refused(String),
    /// What the process counts.
    Metrics(MachineMetrics),
    /// The machine ended. Last message.
    Ended(Ended),
}

/// What a box's process counts, from its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineMetrics {
    /// Processor time of the process, in microseconds.
    pub cpu_micros: u64,
    /// How long the process has been there, in microseconds.
    #[serde(default)]
    pub up_micros: u64,
    /// Resident memory of the process, guest memory that was touched included, in bytes.
    pub rss: u64,
    /// Exits of the vCPUs to the machine, by their kind.
    pub exits: ExitCounts,
    /// Disks, in the order of their devices.
    pub disks: Vec<DiskMetrics>,
    /// The network, if the box has one.
    #[serde(default)]
    pub network: Option<NetworkMetrics>,
}

/// Exits of the vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExitCounts {
    /// Reads and writes of device registers in memory.
    pub mmio: u64,
    /// Reads and writes of ports.
    pub pio: u64,
    /// Everything else.
    pub other: u64,
}

/// What a disk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiskMetrics {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// What a box's network did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NetworkMetrics {
    /// Bytes that the guest sent, in Ethernet frames.
    pub bytes_sent: u64,
    /// Those frames; with segmentation offload, one may hold what takes many elsewhere.
    pub packets_sent: u64,
    /// Bytes that the guest received.
    pub bytes_received: u64,
    /// The frames that they came in.
    pub packets_received: u64,
    /// Frames and datagrams that were dropped: malformed, or something was full.
    pub dropped: u64,
    /// TCP segments sent to the guest again.
    pub retransmits: u64,
    /// TCP segments of the guest that came out of order.
    pub out_of_order: u64,
    /// TCP connections so far.
    pub tcp_flows: u64,
    /// TCP connections now.
    pub tcp_open: u64,
    /// UDP flows so far.
    pub udp_flows: u64,
    /// UDP flows now.
    pub udp_open: u64,
    /// Flows and names that the policy denied.
    pub denied: u64,
    /// DNS questions of the guest.
    pub dns_queries: u64,
    /// DNS questions that no name server answered.
    pub dns_failures: u64,
}

impl std::ops::Add for ExitCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            mmio: self.mmio + other.mmio,
            pio: self.pio + other.pio,
            other: self.other + other.other,
        }
    }
}

impl std::iter::Sum for ExitCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), std::ops::Add::add)
    }
}

impl From<BlockCounts> for DiskMetrics {
    fn from(counts: BlockCounts) -> Self {
        let BlockCounts { reads, bytes_read, writes, bytes_written, flushes, errors } = counts;
        Self { reads, bytes_read, writes, bytes_written, flushes, errors }
    }
}

impl std::ops::Add for DiskMetrics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            bytes_read: self.bytes_read + other.bytes_read,
            writes: self.writes + other.writes,
            bytes_written: self.bytes_written + other.bytes_written,
            flushes: self.flushes + other.flushes,
            errors: self.errors + other.errors,
        }
    }
}

/// Stages of a boot, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BootStage {
    /// The machine is built and its first vCPU starts the kernel.
    Kernel,
    /// The kernel has started the agent.
    Agent,
    /// The agent has mounted the root file system.
    Root,
    /// The agent serves requests.
    Ready,
}

impl BootStage {
    /// What a boot that reached this stage and no further was doing.
    pub fn doing(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel was starting",
            Self::Agent => "the agent was mounting the root file system",
            Self::Root => "the agent was preparing the box",
            Self::Ready => "the box was ready",
        }
    }
}

/// Sends a message and the descriptors that belong to it.
pub(crate) fn send<T: Serialize>(
    mut to: &UnixStream,
    message: &T,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(&body);
    if body.len() > MAX_MESSAGE || files.len() > MAX_FILES {
        return Err(io::Error::other("message too large"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    to.write_all(&bytes[sent..])
}

/// Receives a message and its descriptors; `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(
    mut from: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut length)];
        recvmsg(from, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let files = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    from.read_exact(&mut length[received.bytes..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, files)))
}

/// Receives a message that comes without descriptors; `None` at the end of the connection. Not cancel
/// safe.
pub(crate) async fn receive_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let length = match from.read_u32_le().await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length? as usize,
    };
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Seek;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_carry_their_files_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        for (n, file) in files.iter_mut().enumerate() {
            writeln!(file, "{n}").unwrap();
            file.rewind().unwrap();
        }
        let fds: Vec<_> = files.iter().map(File::as_fd).collect();
        send(&a, &ToMachine::Client, &fds).unwrap();
        send(&a, &ToMachine::Kill, &[]).unwrap();
        let (message, received) = receive::<ToMachine>(&b).unwrap().unwrap();
        assert!(matches!(message, ToMachine::Client));
        for (n, file) in received.into_iter().enumerate() {
            let mut text = String::new();
            File::from(file).read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{n}\n"));
        }
        let (message, received) = receive::<ToMachine>(&b).unwrap().unwrap();
        assert!(matches!(message, ToMachine::Kill) && received.is_empty());
        drop(a);
        assert!(receive::<ToMachine>(&b).unwrap().is_none());
    }

    #[test]
    fn a_length_is_checked_before_it_is_believed() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive::<ToMachine>(&b).is_err());
    }
}
