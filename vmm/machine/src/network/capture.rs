//! Records the packets of a box's network, on a thread of its own: from the first boot to the end of
//! the process, through all machines of the box.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use boxlite_contract::capture::{CaptureEnd, CaptureStream};
use boxlite_contract::spec::MAX_CAPTURE;
use boxlite_net::link::pcap::{Capture, CaptureOptions, End, Summary, capture};

use crate::threads::Threads;

/// Timeout at the end of the process for what the file has not taken yet: its file system may hang,
/// and a reader of a pipe may have stopped reading.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// Where a capture is written.
pub(crate) enum CaptureOutput {
    /// A file.
    File(File),
    /// A stream to a process that writes the file.
    Stream(CaptureStream<File>),
}

impl CaptureOutput {
    /// Tells the reader of a stream how the capture ended, so that it does not take a complete one for one that broke
    /// off.
    fn end(self, summary: &Summary) -> io::Result<()> {
        let full = match summary.end {
            End::Stopped => false,
            End::Full => true,
            // The stream has broken off.
            End::WriteFailed(_) => return Ok(()),
        };
        match self {
            Self::File(_) => Ok(()),
            Self::Stream(stream) => stream.end(CaptureEnd { full, skipped: summary.skipped }),
        }
    }
}

impl Write for CaptureOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stream(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stream(stream) => stream.flush(),
        }
    }
}

/// A running capture.
pub(super) struct Recorder {
    capture: Capture,
    /// Disconnected once the writer has returned.
    written: Receiver<()>,
}

impl Recorder {
    /// Starts the thread that writes to the output, which may block.
    pub(super) fn start(output: CaptureOutput, threads: &Threads) -> Result<Self> {
        let options = CaptureOptions { max_bytes: MAX_CAPTURE, ..CaptureOptions::default() };
        let (capture, writer) = capture(output, options);
        let (running, written) = channel();
        let write = move || {
            let (output, summary) = writer.run();
            if let Err(e) = output.end(&summary) {
                tracing::warn!("network: the end of the capture cannot be written: {e}");
            }
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
