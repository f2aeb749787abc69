//! What launcher and machine say to each other, over one Unix socket: length-prefixed JSON, with
//! file descriptors beside a message where it has some.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::LaunchSpec;

/// The largest message, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// The most descriptors beside a message.
const MAX_FILES: usize = 32;

/// Launcher to machine. The end of the connection means: the launcher is gone, end at once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToMachine {
    /// Build and run this; its files come beside it. First and once.
    Launch(LaunchSpec),
    /// The descriptor beside it is a client of the box's vsock: it will say `CONNECT <port>`.
    Client,
    /// End now, without asking the guest.
    Stop,
}

/// Machine to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromMachine {
    /// The boot reached a stage, so many microseconds after the LaunchSpec arrived.
    Stage {
        /// The stage.
        stage: BootStage,
        /// Microseconds.
        micros: u64,
    },
    /// The machine ended. Last message.
    Ended(End),
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

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    /// The guest switched itself off or reset itself.
    Guest,
    /// The launcher asked for it.
    Stopped,
    /// The guest's kernel panicked; the last lines of its console.
    Panic(Vec<String>),
    /// The agent gave up, and said why.
    Agent(String),
    /// The machine could not be built or could not go on.
    Failed(String),
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
        send(&a, &ToMachine::Stop, &[]).unwrap();
        let (message, received) = receive::<ToMachine>(&b).unwrap().unwrap();
        assert!(matches!(message, ToMachine::Client));
        for (n, file) in received.into_iter().enumerate() {
            let mut text = String::new();
            File::from(file).read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("{n}\n"));
        }
        let (message, received) = receive::<ToMachine>(&b).unwrap().unwrap();
        assert!(matches!(message, ToMachine::Stop) && received.is_empty());
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
