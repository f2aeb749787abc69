//! Captures a guest's frames in a pcap file: a [`Link`] that wraps a link.
//!
//! ```text
//!   network's thread                                     a thread of the caller's
//!   CaptureLink::{receive, send} ── record ──▶ pending ──▶ Writer::run ──▶ file
//! ```
//!
//! The network's thread never waits for the file: it copies records into memory, at most
//! `MAX_PENDING` bytes, and takes a lock that is otherwise held only to swap two buffers. If the file is
//! slower than the frames, frames are missing from the capture, never from the link.
//!
//! The file has nanosecond timestamps and link type Ethernet, which tcpdump and Wireshark read. Frames
//! are stored as they cross the link, which differs from what crosses a wire in two ways: a frame may be
//! larger than the MTU (segmentation is left to the receiver, or was left to the network), and the TCP
//! or UDP checksum may be partial, which the programs above report as incorrect.
//!
//! A capture outlives its links: a box's link is attached anew at each boot, and the file goes on.

use std::io::{self, IoSlice, Write};
use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Link, MAX_FRAME, Offload, OffloadFeatures, Received, Sent};

/// The most bytes of records that wait for the file; a batch being written has as many again.
const MAX_PENDING: usize = 16 << 20;

/// The magic number of files with nanosecond timestamps.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const LINKTYPE_ETHERNET: u32 = 1;
/// Bytes of the header of the file, and of each record.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// The bounds of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// The most bytes of each frame that are stored. The default stores whole frames; 128 are enough
    /// for all headers.
    pub snap_len: usize,
    /// The most bytes of the file. The capture stops before the frame that would exceed them. The
    /// default is 1 GiB.
    pub max_bytes: u64,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { snap_len: MAX_FRAME, max_bytes: 1 << 30 }
    }
}

/// Starts a capture. Wrap links with [`CaptureLink::new`], and call [`Writer::run`], which alone writes to `file`, on a
/// thread of its own.
pub fn capture<W: Write>(file: W, options: CaptureOptions) -> (Capture, Writer<W>) {
    let snap_len = options.snap_len.clamp(1, MAX_FRAME);
    let state = State {
        pending: Vec::new(),
        room: options.max_bytes.saturating_sub(FILE_HEADER as u64),
        skipped: 0,
        phase: Phase::Capturing,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    let capture = Capture(Arc::new(Source { shared: Arc::clone(&shared), snap_len }));
    let writer = Writer { records: Records(shared), file, snap_len, max_bytes: options.max_bytes };
    (capture, writer)
}

/// A capture that links can take part in. It ends with [`Capture::stop`], or when the last clone is
/// dropped.
#[derive(Clone)]
pub struct Capture(Arc<Source>);

impl Capture {
    /// Ends the capture: later frames are not stored. [`Writer::run`] returns once the earlier ones are
    /// in the file.
    pub fn stop(&self) {
        self.0.end();
    }
}

struct Source {
    shared: Arc<Shared>,
    snap_len: usize,
}

struct Shared {
    state: Mutex<State>,
    /// There are records for the writer, or the phase has changed.
    changed: Condvar,
}

struct State {
    /// Records that wait for the writer.
    pending: Vec<u8>,
    /// Bytes that the file may still take.
    room: u64,
    /// Frames that were not stored because `pending` was full.
    skipped: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Capturing,
    /// The file has reached its limit.
    Full,
    /// The capture was stopped, there are no links left, or there is no writer.
    Ended,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the capture. Records that are pending are still written.
    fn stop(&self, mut state: MutexGuard<'_, State>, phase: Phase) {
        if state.phase == Phase::Capturing {
            state.phase = phase;
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.end();
    }
}

impl Source {
    fn end(&self) {
        self.shared.stop(self.shared.lock(), Phase::Ended);
    }

    /// Stores a frame, given in pieces.
    fn record(&self, frame: &[IoSlice<'_>]) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len: usize = frame.iter().map(|piece| piece.len()).sum();
        let kept = len.min(self.snap_len);
        let size = RECORD_HEADER + kept;
        let mut state = self.shared.lock();
        if state.phase != Phase::Capturing {
            return;
        }
        if size as u64 > state.room {
            return self.shared.stop(state, Phase::Full);
        }
        if state.pending.len() + size > MAX_PENDING {
            state.skipped += 1;
            return;
        }
        let was_empty = state.pending.is_empty();
        state.room -= size as u64;
        // Unsigned until 2106.
        for field in [time.as_secs() as u32, time.subsec_nanos(), kept as u32, len as u32] {
            state.pending.extend(field.to_ne_bytes());
        }
        let mut rest = kept;
        for piece in frame {
            let piece = piece.get(..rest).unwrap_or(piece);
            state.pending.extend_from_slice(piece);
            rest -= piece.len();
        }
        drop(state);
        if was_empty {
            self.shared.changed.notify_one();
        }
    }
}

/// The byte order is this machine's: readers know it by the magic number.
fn file_header(snap_len: usize) -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..4].copy_from_slice(&MAGIC_NANOSECONDS.to_ne_bytes());
    header[4..6].copy_from_slice(&VERSION[0].to_ne_bytes());
    header[6..8].copy_from_slice(&VERSION[1].to_ne_bytes());
    // Eight bytes that are reserved.
    header[16..20].copy_from_slice(&(snap_len as u32).to_ne_bytes());
    header[20..].copy_from_slice(&LINKTYPE_ETHERNET.to_ne_bytes());
    header
}

/// The end of a capture that writes the file.
pub struct Writer<W> {
    records: Records,
    file: W,
    snap_len: usize,
    max_bytes: u64,
}

/// How a capture went.
#[derive(Debug)]
pub struct Summary {
    /// Why the writer stopped.
    pub end: End,
    /// Frames that are missing before the end, because the file was slower than the frames.
    pub skipped: u64,
}

/// Why a writer stopped.
#[derive(Debug)]
pub enum End {
    /// The capture was stopped, or no link takes part in it any more.
    Stopped,
    /// The file has reached its limit.
    Full,
    /// The file cannot be written.
    WriteFailed(io::Error),
}

/// The writer's hold on the records. Without a writer, the capture stops.
struct Records(Arc<Shared>);

impl Drop for Records {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.pending = Vec::new();
        self.0.stop(state, Phase::Ended);
    }
}

impl<W: Write> Writer<W> {
    /// Writes frames until the capture ends, the file has reached its limit, or it cannot be written,
    /// and logs which. Returns the file as well. Blocks this thread.
    pub fn run(mut self) -> (W, Summary) {
        let end = match self.write() {
            Ok(Phase::Full) => End::Full,
            Ok(Phase::Capturing | Phase::Ended) => End::Stopped,
            Err(e) => End::WriteFailed(e),
        };
        match &end {
            End::Stopped => {}
            End::Full => {
                let limit = self.max_bytes;
                tracing::warn!("network: the capture has reached its limit of {limit} bytes");
            }
            End::WriteFailed(e) => tracing::warn!("network: the capture cannot be written: {e}"),
        }
        let skipped = self.records.0.lock().skipped;
        if skipped > 0 {
            tracing::warn!("network: {skipped} frames are missing from the capture");
        }
        (self.file, Summary { end, skipped })
    }

    fn write(&mut self) -> io::Result<Phase> {
        self.file.write_all(&file_header(self.snap_len))?;
        let mut batch = Vec::new();
        let mut late = false;
        loop {
            let (phase, skipped) = self.next(&mut batch);
            if skipped && !late {
                late = true;
                tracing::warn!("network: the capture misses frames: its file is too slow");
            }
            if batch.is_empty() {
                self.file.flush()?;
                return Ok(phase);
            }
            self.file.write_all(&batch)?;
            batch.clear();
        }
    }

    /// Waits for records and takes them; none if there will be no more. True if frames were skipped.
    fn next(&self, batch: &mut Vec<u8>) -> (Phase, bool) {
        let shared = &self.records.0;
        let mut state = shared.lock();
        while state.pending.is_empty() && state.phase == Phase::Capturing {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut state.pending, batch);
        (state.phase, state.skipped > 0)
    }
}

/// A link whose frames are captured, if there is a capture: the type of a caller's links is the same
/// with one and without.
pub struct CaptureLink<L> {
    link: L,
    capture: Option<Capture>,
}

impl<L: Link> CaptureLink<L> {
    /// Captures the frames of `link` from now on, or passes them on only.
    pub fn new(link: L, capture: Option<Capture>) -> Self {
        Self { link, capture }
    }

    /// The link, which is not captured any more.
    pub fn into_inner(self) -> L {
        self.link
    }

    fn record(&self, frame: &[IoSlice<'_>]) {
        if let Some(Capture(source)) = &self.capture {
            source.record(frame);
        }
    }
}

impl<L: Link> Link for CaptureLink<L> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.fd()
    }

    fn features(&self) -> OffloadFeatures {
        self.link.features()
    }

    fn woken(&mut self) {
        self.link.woken();
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let received = self.link.receive(buffer)?;
        if let Some(Received { len, .. }) = received {
            let frame = buffer.get(..len).unwrap_or_default();
            self.record(&[IoSlice::new(frame)]);
        }
        Ok(received)
    }

    fn send(&mut self, frame: &[IoSlice<'_>], offload: Offload) -> io::Result<Sent> {
        let sent = self.link.send(frame, offload)?;
        if sent == Sent::Sent {
            self.record(frame);
        }
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.link.flush()
    }
}

#[cfg(test)]
mod tests;
