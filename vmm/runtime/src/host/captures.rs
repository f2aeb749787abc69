//! Starting a box, and recording its packets in a file of this machine, also where the box's process
//! cannot write it.
//!
//! ```text
//!   on this machine       box's process ──▶ file
//!   in the nested host    box's process ──socket──▶ serve ──channel──▶ a task here ──▶ file
//! ```
//!
//! The stream to the task has an end of its own ([`CaptureEnd`]). A stream that ends without it broke off, and
//! [`Host::capture_error`] then says that the file is incomplete.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boxlite_contract::capture::{CHUNK, CaptureEnd, MAX_END};
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
use crate::state::BoxInfo;
use crate::{Error, ErrorKind, Remedy, Result, blocking, blocking_io};

/// Timeout at the end of a box for packets that the file has not taken yet. The box's process waits 5 s.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// Number of captures above which those that have ended are dropped.
const MAX_CAPTURES: usize = 256;

/// The captures of boxes, by the boxes' IDs.
#[derive(Debug, Default)]
pub(super) struct Captures(Mutex<HashMap<String, Recording>>);

/// A capture, shared with the task that writes the file.
#[derive(Clone, Debug)]
struct Recording {
    path: PathBuf,
    /// None while the task writes the file, then whether the file is complete.
    written: watch::Sender<Option<Result<()>>>,
}

/// Why a file is incomplete.
#[derive(Debug, thiserror::Error)]
enum Loss {
    /// The stream ended without a [`CaptureEnd`].
    #[error("it broke off, because the box's process or the software host was killed or has stopped{}", cause(.0))]
    BrokeOff(io::Error),
    #[error("the box's process sent a malformed stream")]
    Malformed,
    #[error("it has reached its limit of {} MiB", MAX_CAPTURE >> 20)]
    Full,
    /// So many packets are missing.
    #[error("{0} packets are missing, because they came faster than they could be written")]
    Skipped(u64),
    #[error("the file cannot be written: {0}")]
    WriteFailed(io::Error),
    /// The file has not taken all packets in time.
    #[error("the file is too slow, and its last packets are missing")]
    Slow,
}

/// The cause of a broken stream, if it says more than that the stream ended. The lines of a console that may follow it
/// are in the errors of all other requests.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => String::new(),
        _ => format!(" ({})", error.to_string().lines().next().unwrap_or_default()),
    }
}

impl Loss {
    fn about(self, path: &Path) -> Error {
        let remedy = match self {
            Self::Malformed => Remedy::ReportBug,
            Self::Full | Self::Skipped(_) => Remedy::RecordLess,
            Self::BrokeOff(_) | Self::WriteFailed(_) | Self::Slow => Remedy::RecordElsewhere,
        };
        Error::capture_incomplete(path, self, remedy)
    }
}

impl Host {
    /// Boots a box, if it does not run.
    pub(crate) async fn start(&self, config: &BoxConfig, options: StartOptions) -> Result<()> {
        self.captures.forget(&config.id);
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

    /// Whether the box has ended, as the answer of a call that waited for it says.
    pub(crate) fn has_ended(&self, waited: &Result<BoxInfo>) -> bool {
        match waited {
            Ok(_) => true,
            Err(e) => e.kind() == ErrorKind::NotFound || self.serving.is_lost(),
        }
    }

    /// Waits until the file that records the packets of a box that has ended is complete, but not for a file that
    /// takes no more bytes. Cancel safe.
    pub(crate) async fn captured(&self, id: &str) {
        if tokio::time::timeout(FINISH_LIMIT, self.captures.ended(id)).await.is_err() {
            self.captures.give_up(id);
        }
    }

    /// Why the file that records a box's packets is incomplete, if the capture has ended.
    pub(crate) fn capture_error(&self, id: &str) -> Option<Error> {
        lock(&self.captures.0).get(id)?.written.borrow().clone()?.err()
    }
}

const NOT_DETACHED: &str = "boxes run in the software host, which cannot write files of this machine: \
                            the process that starts the box writes it, and has to stay, so the box \
                            cannot be detached";

impl Recording {
    fn is_running(&self) -> bool {
        self.written.borrow().is_none()
    }
}

impl Captures {
    /// Writes packets to a file, on a task, until there are no more.
    async fn begin(
        &self,
        id: &str,
        file: CaptureFile,
        packets: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<()> {
        let file = blocking(move || file.truncate().map(|()| file)).await?;
        let recording =
            Recording { path: file.path().to_owned(), written: watch::Sender::new(None) };
        self.add(id, recording.clone());
        tokio::spawn(async move {
            let written = write(file, packets, MAX_CAPTURE).await;
            let written = written.map_err(|loss| loss.about(&recording.path));
            if let Err(e) = &written {
                tracing::debug!("{e}");
            }
            recording.written.send_replace(Some(written));
        });
        Ok(())
    }

    fn add(&self, id: &str, recording: Recording) {
        let mut captures = lock(&self.0);
        captures.retain(|_, other| !matches!(*other.written.borrow(), Some(Ok(()))));
        if captures.len() >= MAX_CAPTURES {
            captures.retain(|_, other| other.is_running());
        }
        captures.insert(id.to_owned(), recording);
    }

    /// Drops the capture of a box if it has ended.
    fn forget(&self, id: &str) {
        lock(&self.0).retain(|other, recording| other != id || recording.is_running());
    }

    async fn ended(&self, id: &str) {
        let Some(recording) = lock(&self.0).get(id).cloned() else { return };
        // Not an error: `recording` has the sender.
        let _ = recording.written.subscribe().wait_for(Option::is_some).await;
    }

    /// Stops waiting for the file of a box that has ended.
    fn give_up(&self, id: &str) {
        if let Some(recording) = lock(&self.0).get(id) {
            let loss = || Err(Loss::Slow.about(&recording.path));
            recording.written.send_modify(|written| {
                written.get_or_insert_with(loss);
            });
        }
    }
}

/// Writes the content of a stream to a file of at most `limit` bytes, which the box's process keeps to as well.
async fn write(
    mut file: CaptureFile,
    mut stream: impl AsyncRead + Unpin,
    limit: u64,
) -> Result<(), Loss> {
    let mut left = limit;
    loop {
        let length = stream.read_u32_le().await.map_err(Loss::BrokeOff)?;
        if length == 0 {
            return read_end(stream).await;
        }
        if length as usize > CHUNK || u64::from(length) > left {
            return Err(Loss::Malformed);
        }
        left -= u64::from(length);
        let mut chunk = (&mut stream).take(length.into());
        // Also the part of a chunk that arrives before the stream breaks off.
        while chunk.limit() > 0 {
            let mut bytes = Vec::with_capacity(CHUNK);
            if chunk.read_buf(&mut bytes).await.map_err(Loss::BrokeOff)? == 0 {
                return Err(Loss::BrokeOff(io::ErrorKind::UnexpectedEof.into()));
            }
            let written = blocking_io(move || file.write_all(&bytes).map(|()| file));
            file = written.await.map_err(Loss::WriteFailed)?;
        }
    }
}

/// Reads the end of a stream, after its mark.
async fn read_end(mut stream: impl AsyncRead + Unpin) -> Result<(), Loss> {
    let length = stream.read_u32_le().await.map_err(Loss::BrokeOff)? as usize;
    if length > MAX_END {
        return Err(Loss::Malformed);
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json).await.map_err(Loss::BrokeOff)?;
    match serde_json::from_slice(&json) {
        Ok(CaptureEnd { full: true, .. }) => Err(Loss::Full),
        Ok(CaptureEnd { skipped: 0, .. }) => Ok(()),
        Ok(CaptureEnd { skipped, .. }) => Err(Loss::Skipped(skipped)),
        Err(_) => Err(Loss::Malformed),
    }
}

#[cfg(test)]
mod tests;
