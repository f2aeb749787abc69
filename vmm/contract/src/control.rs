//! What launcher and machine say to each other, over one Unix socket: length-prefixed JSON, with
//! file descriptors beside a message where it has some.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::boot::BootStage;
use crate::metrics::MachineMetrics;
use crate::spec::LaunchSpec;
use crate::status::BoxEnd;

/// How long a machine may take to be taken down: what the guest has written goes to its disks.
pub const TEARDOWN_LIMIT: Duration = Duration::from_secs(60);

/// How long a box that is asked to stop may take to be gone after the grace of its main command: its guest's own end
/// (9 s), the machine's ([`TEARDOWN_LIMIT`]), those who are attached (1 s), its capture (5 s), its disks (5 s), its status
/// or its folder's removal (10 s) and its events (3 s), and some room.
pub const STOP_LIMIT: Duration = TEARDOWN_LIMIT.saturating_add(Duration::from_secs(40));

/// The largest message, in bytes: a LaunchSpec with a main command and a health check that have as large an environment
/// as Linux allows (2 MiB each, as base64).
pub const MAX_MESSAGE: usize = 8 << 20;
/// The most descriptors beside a message.
const MAX_FILES: usize = 32;

/// To a machine, from its launcher or from whoever connects to the box's control socket. Each is
/// answered, in order, by [`FromMachine::Done`], `Refused` or what it asks for.
///
/// The end of the launcher's connection means: the launcher is gone, and the machine ends, unless it
/// is a detached box. The end of another connection means nothing.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMachine {
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
pub enum FromMachine {
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
    Ended(BoxEnd),
}

/// Sends a message and the descriptors that belong to it.
pub fn send<T: Serialize>(
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
pub fn receive<T: DeserializeOwned>(
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
