//! Serves channels: byte streams to and from parts of a home.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use boxlite_contract::control::ToMachine;
use boxlite_contract::logbook;
use boxlite_proto::AGENT_PORT;
use boxlite_rootfs_builder::Silent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::images::{load, save};
use super::{Local, events, logs};
use crate::call::Channel;
use crate::local::home::VSOCK_SOCKET;
use crate::stream::Duplex;
use crate::{Error, Remedy, Result, blocking};

/// The longest answer to `CONNECT`: "OK" and a port.
const MAX_ANSWER: usize = 32;

impl Local {
    /// Opens a stream.
    pub(crate) async fn open_stream(self: &Arc<Self>, channel: Channel) -> Result<Box<dyn Duplex>> {
        Ok(match channel {
            Channel::Agent { id } => Box::new(self.agent(&id).await?),
            Channel::Main { id } => Box::new(self.main(&id).await?),
            Channel::Logs { id, query } => {
                let local = self.clone();
                let folder = blocking(move || local.folder(&id)).await?;
                let log = self.watcher.follow(folder.file(logbook::FILE));
                let (local, path) = (self.clone(), folder.path().to_owned());
                // A box that has removed its folder has ended.
                let ended = async move { local.process_ended(&folder, 0).await };
                Box::new(logs::stream(path, query, log, ended))
            }
            Channel::Packets { id } => Box::new(self.take_packets(&id)?),
            Channel::SavedImages { images } => {
                let local = self.clone();
                Box::new(save::stream(move |output| {
                    let names: Vec<&str> = images.iter().map(String::as_str).collect();
                    local.images.save(&names, output, &Silent).map_err(Error::image)
                }))
            }
            Channel::LoadedImages => {
                let local = self.clone();
                Box::new(load::receive(move |archive, progress| {
                    let images = local.images.load_from(archive, progress).map_err(Error::image)?;
                    local.loaded(&images)
                }))
            }
            Channel::Events { query } => {
                let log = self.watcher.follow(self.home.events());
                Box::new(events::stream(self.home.events(), query, log))
            }
        })
    }

    fn take_packets(&self, id: &str) -> Result<UnixStream> {
        let packets = self.packets().remove(id);
        let packets = packets.ok_or_else(|| Error::internal("no packets are recorded"))?;
        let stream = packets.set_nonblocking(true).and_then(|()| UnixStream::from_std(packets));
        stream.map_err(Error::internal)
    }

    async fn agent(self: &Arc<Self>, id: &str) -> Result<UnixStream> {
        let (local, id) = (self.clone(), id.to_owned());
        let (socket, path) = blocking(move || {
            local.expect_serving(&id)?;
            let folder = local.folder(&id)?;
            Ok((folder.connect(VSOCK_SOCKET)?, folder.file(VSOCK_SOCKET)))
        })
        .await?;
        let connect = async {
            socket.set_nonblocking(true)?;
            connect_agent(UnixStream::from_std(socket)?).await
        };
        connect.await.map_err(Error::home("the box's agent cannot be reached", path))
    }

    async fn main(self: &Arc<Self>, id: &str) -> Result<UnixStream> {
        let (local, query) = (self.clone(), id.to_owned());
        blocking(move || {
            let entry = local.entry(&query)?;
            if !local.config(&entry)?.options.main_command {
                let reason = "it has no main command to attach to; use exec";
                return Err(Error::refused(&entry.name, reason));
            }
            local.expect_serving(&query)
        })
        .await?;
        let pair = UnixStream::pair().and_then(|(ours, theirs)| Ok((ours, theirs.into_std()?)));
        let (ours, theirs) = pair.map_err(Error::internal)?;
        self.hand_over(id, ToMachine::Attach, OwnedFd::from(theirs)).await?;
        Ok(ours)
    }

    /// Fails unless the box accepts commands.
    pub(super) fn expect_serving(&self, id: &str) -> Result<()> {
        use crate::BoxState::{Paused, Running, Starting};
        let info = self.info(&self.entry(id)?)?;
        let name = || info.name.clone();
        let remedy = match info.state {
            // A box that restarts: the caller waits for its guest.
            Running | Starting => return Ok(()),
            Paused => Remedy::ResumeBox { name: name() },
            _ => Remedy::StartBox { name: name() },
        };
        Err(Error::wrong_state(&info.name, &info.state, remedy))
    }
}

/// Connects through a vsock socket to the agent.
pub(super) async fn connect_agent(mut client: UnixStream) -> io::Result<UnixStream> {
    client.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    // One byte at a time: the bytes after the line belong to the agent protocol.
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
        match client.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
    }
    if !answer.starts_with(b"OK ") {
        let message = "the guest does not accept a connection: it shuts down, or has too many";
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, message));
    }
    Ok(client)
}
