//! Records the packets of a box's network, on a thread of its own: from the first boot to the end of
//! the process, through all machines of the box.

use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use boxlite_contract::spec::MAX_CAPTURE;
use boxlite_net::link::pcap::{Capture, CaptureOptions, capture};

use crate::threads::Threads;

/// Timeout at the end of the process for what the file has not taken yet: its file system may hang,
/// and a reader of a pipe may have stopped reading.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// A running capture.
pub(super) struct Recorder {
    capture: Capture,
    /// Disconnected once the writer has returned.
    written: Receiver<()>,
}

impl Recorder {
    /// Starts the thread that writes to the file, which may block.
    pub(super) fn start(file: File, threads: &Threads) -> Result<Self> {
        let options = CaptureOptions { max_bytes: MAX_CAPTURE, ..CaptureOptions::default() };
        let (capture, writer) = capture(file, options);
        let (running, written) = channel();
        let write = move || {
            writer.run();
            drop(running);
        };
        threads.spawn("capture", write).context("cannot start the capture's thread")?;
        Ok(Self { capture, written })
    }

    /// For a link whose packets are recorded.
    pub(super) fn capture(&self) -> Capture {
        self.capture.clone()
    }

    /// Ends the capture. Packets that the file does not take within [`FINISH_LIMIT`] are missing.
    pub(super) fn finish(self) {
        self.capture.stop();
        if let Err(RecvTimeoutError::Timeout) = self.written.recv_timeout(FINISH_LIMIT) {
            tracing::warn!("network: the capture's file is too slow: its last packets are missing");
        }
    }
}

#[cfg(test)]
mod tests;
