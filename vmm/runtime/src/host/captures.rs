//! Starting a box, and recording its packets in a file of this machine, also where the box's process
//! cannot write it.
//!
//! ```text
//!   on this machine       box's process ──▶ file
//!   in the nested host    box's process ──socket──▶ serve ──channel──▶ a task here ──▶ file
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boxlite_contract::spec::MAX_CAPTURE;
use boxlite_rootfs_builder::Silent;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use super::{Host, Serving};
use crate::call::{BoxCall, Call, Capture, Start};
use crate::capture::CaptureFile;
use crate::client::wire::lock;
use crate::config::BoxConfig;
use crate::options::{NetworkMode, StartOptions};
use crate::{Error, Result, blocking, blocking_io};

/// Bytes that are read from a channel and written to a file at a time.
const CHUNK: usize = 64 << 10;

/// Timeout at the end of a box for packets that the file has not taken yet. The box's process waits 5 s.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// The tasks that write files, by the boxes' IDs. A receiver is closed once its task has ended.
#[derive(Debug, Default)]
pub(super) struct Captures(Mutex<HashMap<String, watch::Receiver<()>>>);

impl Host {
    /// Boots a box, if it does not run.
    pub(crate) async fn start(&self, config: &BoxConfig, options: StartOptions) -> Result<()> {
        let StartOptions { wait_for_attach, terminal_size: size, detach, capture } = options;
        let start = async |capture| {
            let start = Start { wait_for_attach, size, detach, capture };
            let call = Call::Box { id: config.id.clone(), call: BoxCall::Start(start) };
            self.call(call, Arc::new(Silent)).await?.done()
        };
        let Some(path) = capture else { return start(None).await };
        let path = std::path::absolute(&path).map_err(Error::capture(&path))?;
        if config.options.network.mode == NetworkMode::None {
            return Err(Error::capture_refused(&path, "the box has no network"));
        }
        let remote = match &self.serving {
            Serving::Local(_) => return start(Some(Capture::File(path))).await,
            Serving::Remote(remote) => remote,
        };
        if detach {
            return Err(Error::capture_refused(&path, NOT_DETACHED));
        }
        let file = blocking(move || CaptureFile::open(path)).await?;
        start(Some(Capture::Channel)).await?;
        let packets = remote.open_packets(&config.id).await?;
        self.captures.begin(&config.id, file, packets).await
    }

    /// Waits until the file that records the packets of a box that has ended is complete, but not for a file that
    /// takes no more bytes. Cancel safe.
    pub(crate) async fn captured(&self, id: &str) {
        if tokio::time::timeout(FINISH_LIMIT, self.captures.ended(id)).await.is_err() {
            tracing::warn!(
                "the file that records the box's packets is too slow: its last packets are missing"
            );
        }
    }
}

const NOT_DETACHED: &str = "boxes run in the software host, which cannot write files of this machine: \
                            the process that starts the box writes it, and has to stay, so the box \
                            cannot be detached";

impl Captures {
    /// Writes packets to a file, on a task, until there are no more.
    async fn begin(
        &self,
        id: &str,
        file: CaptureFile,
        packets: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<()> {
        let file = blocking(move || file.truncate().map(|()| file)).await?;
        let (writing, ended) = watch::channel(());
        let mut captures = lock(&self.0);
        captures.retain(|_, other| other.has_changed().is_ok());
        captures.insert(id.to_owned(), ended);
        drop(captures);
        tokio::spawn(async move {
            let path = file.path().to_owned();
            if let Err(e) = write(file, packets, MAX_CAPTURE).await {
                tracing::warn!("packets are missing in {}: {e}", path.display());
            }
            drop(writing);
        });
        Ok(())
    }

    async fn ended(&self, id: &str) {
        let Some(mut writing) = lock(&self.0).get(id).cloned() else { return };
        // Nothing is ever sent: this is the task's end.
        let _ = writing.changed().await;
    }
}

/// Writes packets to a file of at most `limit` bytes, which the box's process keeps to as well.
async fn write(
    mut file: CaptureFile,
    mut packets: impl AsyncRead + Unpin,
    limit: u64,
) -> io::Result<()> {
    let mut packets = (&mut packets).take(limit);
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        if packets.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        file = blocking_io(move || file.write_all(&bytes).map(|()| file)).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_file_is_complete_when_its_end_was_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        std::fs::write(&path, "of before, and longer than what is new").unwrap();
        let captures = Captures::default();
        let (mut box_end, packets) = tokio::io::duplex(16);
        let file = CaptureFile::open(path.clone()).unwrap();
        captures.begin("a", file, packets).await.unwrap();
        captures.ended("b").await;
        box_end.write_all(b"all the box's packets").await.unwrap();
        drop(box_end);
        captures.ended("a").await;
        assert_eq!(std::fs::read(&path).unwrap(), b"all the box's packets");
        // Nobody has it any more.
        CaptureFile::open(path).unwrap();
    }

    #[tokio::test]
    async fn a_box_that_knows_no_end_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let file = CaptureFile::open(path.clone()).unwrap();
        write(file, tokio::io::repeat(7), 200_000).await.unwrap();
        assert_eq!(path.metadata().unwrap().len(), 200_000);
    }
}
