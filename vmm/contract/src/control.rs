//! The messages between a launcher and a VM process, over one Unix socket: length-prefixed JSON, with the
//! file descriptors of a message as ancillary data (`SCM_RIGHTS`).

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::boot::BootStage;
use crate::metrics::MachineMetrics;
use crate::spec::LaunchSpec;
use crate::status::BoxEnd;
use crate::sys;

/// Timeout for taking a VM down, in which the guest's writes go to its disks.
pub const TEARDOWN_LIMIT: Duration = Duration::from_secs(60);

/// Timeout for the VM process of a stopping box to exit, counted from the end of its main command's grace: guest
/// shutdown (9 s), VM teardown ([`TEARDOWN_LIMIT`]), output to attached clients (1 s), packet capture (5 s), disk sync
/// (5 s), status or removal of the folder (10 s), events (3 s), and some room.
pub const STOP_LIMIT: Duration = TEARDOWN_LIMIT.saturating_add(Duration::from_secs(40));

/// The largest message, in bytes. Fits a LaunchSpec whose main command and health check each have the largest
/// environment that Linux allows (2 MiB, as base64).
pub const MAX_MESSAGE: usize = 8 << 20;
/// The most file descriptors with one message.
pub(crate) const MAX_FILES: usize = 32;

/// A request to a VM process, from its launcher or from a client of the box's control socket. Requests are
/// answered in order, by [`FromMachine::Done`], [`FromMachine::Refused`] or the value that they ask for.
///
/// When the launcher's connection ends, the launcher is gone, and the VM process ends unless its box is
/// detached. The end of any other connection means nothing.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMachine {
    /// Build and run this VM; its files come with the message. The launcher's first message, and only the
    /// launcher's. Answered by [`FromMachine::Stage`]s.
    Launch(Box<LaunchSpec>),
    /// Serve the descriptor with this message as a client of the box's vsock, which will send `CONNECT <port>`.
    /// Has no answer.
    Client,
    /// Attach the descriptor with this message to the main command, as a connection in the agent's protocol.
    /// `Request::Exec` on it is answered as if it started the command. Frames on it reach the command, also the
    /// `End` of standard input and `Control::Kill`: a client that only detaches closes the socket without them.
    /// Has no answer.
    Attach,
    /// Keep running when the launcher exits.
    Outlive,
    /// Stop the box: send the main command its stop signal, then end all processes and the guest. Answered
    /// when the stop has begun.
    Stop {
        /// How long the main command may take before it is killed, in milliseconds.
        grace_ms: u64,
    },
    /// Send a signal to the main command. Refused if the command does not run, or if `pid` and `started_ms` are not
    /// those in this VM process's status: the box may have been started again meanwhile.
    Signal {
        /// The signal (Linux number).
        signal: i32,
        /// The process ID of the box's VM process.
        pid: u32,
        /// When that process started: milliseconds since the Unix epoch.
        started_ms: u64,
    },
    /// End now, without asking the guest to shut down.
    Kill,
    /// Pause the vCPUs.
    Pause,
    /// Resume the vCPUs.
    Resume,
    /// Read the process's counters. Answered by [`FromMachine::Metrics`].
    Metrics,
}

/// A message from a VM process.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromMachine {
    /// The boot reached a stage.
    Stage {
        /// The stage.
        stage: BootStage,
        /// Microseconds since the boot began.
        micros: u64,
    },
    /// The request is done.
    Done,
    /// The request cannot be done, and why.
    Refused(String),
    /// The process's counters.
    Metrics(MachineMetrics),
    /// How the box ended. The last message.
    Ended(BoxEnd),
}

/// Sends a message with its file descriptors.
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
    let sent = sys::send(to, &bytes, files)?;
    to.write_all(&bytes[sent..])
}

/// Receives a message with its file descriptors; `None` at the end of the connection.
pub fn receive<T: DeserializeOwned>(
    mut from: &UnixStream,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0; 4];
    let (received, files) = sys::receive(from, &mut length)?;
    if received == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[received..])?;
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
    fn a_length_is_checked_before_anything_is_allocated() {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive::<ToMachine>(&b).is_err());
    }
}
