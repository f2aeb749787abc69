//! The network's end of a running device: frames out of and into guest memory.
//!
//! ```text
//!   guest ── transmit queue ──▶ receive() ──▶ TxFrame: read it, or use its memory in place
//!         ◀── receive queue ─── send() ◀───── a frame in pieces, copied once
//!         ── control queue ───▶ woken()
//!         ◀──── interrupt ───── flush()
//! ```

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use boxlite_hv::Doorbell;
use tracing::debug;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU};
use virtio_queue::Queue;
use vm_memory::{Permissions, VolatileSlice};
use zerocopy::IntoBytes;

use super::control::{Mac, Settings};
use super::header::{ETHERNET, FrameError, HEADER_SIZE, Header, offload_features};
use super::pieces::Pieces;
use super::{NAME, Shared};
use super::{Offload, OffloadFeatures};
use crate::GuestMemory;
use crate::virtio::chain::{Chain, ChainError, Descriptors};
use crate::virtio::queue::{NeedsReset, Notifier, Virtqueue};
use crate::virtio::{Activation, has_feature};

/// Commands or malformed frames in a turn, before the network's other work.
const BUDGET: usize = 16;

/// Bytes of a VLAN tag.
const VLAN: usize = 4;

/// The network's end of a device, from activation to reset. All calls come from one thread.
///
/// No method allocates memory for a frame. The guest sees what was received and sent after
/// [`flush`](Self::flush) at the latest.
///
/// Wait for its file descriptor ([`AsFd`]) edge-triggered: it is the doorbell, which is rung when
/// there may be frames to receive, or room to send after [`Sent::Full`]. It is not cleared.
pub struct NetPort {
    memory: Arc<GuestMemory>,
    doorbell: Doorbell,
    notifier: Notifier,
    features: u64,
    /// The longest frame to the guest without segmentation offload, in bytes.
    longest: Option<usize>,
    rx: Virtqueue,
    tx: Virtqueue,
    control: Virtqueue,
    settings: Settings,
    shared: Arc<Shared>,
    /// Head of the chain of the frame that was received last.
    received: Option<u16>,
    /// Its memory.
    frame: Pieces,
    /// Chains of the receive queue that a frame goes to.
    buffers: Vec<RxBuffer>,
    /// Their memory.
    room: Pieces,
}

/// A chain of the receive queue.
#[derive(Clone, Copy, Debug)]
struct RxBuffer {
    head: u16,
    /// Size in bytes; 0 if the chain is unusable.
    room: usize,
}

/// The result of claiming buffers.
enum Claim {
    /// The buffers are enough.
    Enough,
    /// The driver may add more.
    Short,
    /// The driver cannot add enough.
    Hopeless,
}

/// The result of sending a frame to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The frame is in the guest's memory.
    Sent,
    /// The frame was dropped and counted: the guest does not want it, or has no buffers large enough.
    Dropped,
    /// There are not enough buffers now. The port's file descriptor becomes readable when there may be.
    Full,
}

/// Why a chain is skipped.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A frame that the guest sent, where it lies in guest memory.
///
/// The guest may change it at any time: bytes that were checked must not be read again. The port's
/// next call returns the memory to the guest.
pub struct TxFrame<'p> {
    memory: &'p GuestMemory,
    pieces: &'p mut Pieces,
    offload: Offload,
}

impl TxFrame<'_> {
    /// Bytes that have not been read; at first the frame's length, Ethernet header included, which
    /// is at most [`MAX_FRAME`](super::MAX_FRAME).
    pub fn remaining(&self) -> usize {
        self.pieces.len()
    }

    /// The offload that the guest requested for the frame.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Copies the next bytes into `buffer`, as many as it takes. Returns how many.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.pieces.read(self.memory, buffer)
    }

    /// The memory of what has not been read, for vectored I/O.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces.slices(self.memory)
    }
}

impl fmt::Debug for TxFrame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxFrame")
            .field("remaining", &self.remaining())
            .field("offload", &self.offload)
            .finish_non_exhaustive()
    }
}

impl NetPort {
    pub(super) fn new(
        activation: Activation,
        [rx, tx, control]: [Queue; 3],
        mtu: u16,
        settings: Settings,
        shared: Arc<Shared>,
    ) -> Self {
        let Activation { memory, doorbell, interrupt, features, .. } = activation;
        let longest =
            has_feature(features, VIRTIO_NET_F_MTU).then(|| usize::from(mtu) + ETHERNET + VLAN);
        Self {
            memory,
            doorbell,
            notifier: Notifier::new(NAME, interrupt, shared.log.clone()),
            features,
            longest,
            rx: Virtqueue::new("receive", rx, features),
            tx: Virtqueue::new("transmit", tx, features),
            control: Virtqueue::new("control", control, features),
            settings,
            shared,
            received: None,
            frame: Pieces::default(),
            buffers: Vec::new(),
            room: Pieces::default(),
        }
    }

    /// Returns the queues and the driver's settings, for a reset.
    pub(super) fn into_parts(mut self) -> (Vec<Queue>, Settings) {
        self.finish_received();
        let queues = [self.rx, self.tx, self.control].map(Virtqueue::into_queue);
        (queues.into(), self.settings)
    }

    /// The offload features that the guest negotiated, which don't change.
    pub fn features(&self) -> OffloadFeatures {
        offload_features(self.features)
    }

    /// Handles a ring of the doorbell: executes the commands in the control queue.
    /// [`receive`](Self::receive) handles frames, and also reports a failure of this call.
    pub fn woken(&mut self) {
        // The port remembers the failure, and the guest was notified.
        let _ = self.guarded(Self::execute_commands);
    }

    /// Takes the next frame that the guest sent. `None` when there is none; the doorbell will be
    /// rung for the next.
    ///
    /// # Errors
    /// The port has failed.
    pub fn receive(&mut self) -> Result<Option<TxFrame<'_>>, NeedsReset> {
        match self.guarded(Self::next_frame)? {
            Some(offload) => {
                Ok(Some(TxFrame { memory: &self.memory, pieces: &mut self.frame, offload }))
            }
            None => Ok(None),
        }
    }

    /// Sends a frame, given in pieces, to the guest: whole, or not at all.
    ///
    /// # Errors
    /// The port has failed.
    pub fn send(&mut self, frame: &[IoSlice<'_>], offload: &Offload) -> Result<Sent, NeedsReset> {
        let len = frame.iter().map(|piece| piece.len()).sum();
        let sent = self.guarded(|port| port.place(frame, len, offload))?;
        match sent {
            Sent::Sent => self.shared.meter.rx().passed(len),
            Sent::Dropped => self.shared.meter.rx().dropped(),
            Sent::Full => {}
        }
        Ok(sent)
    }

    /// Ends a turn: interrupts the guest for what was received and sent, if it wants to know.
    ///
    /// # Errors
    /// The port has failed.
    pub fn flush(&mut self) -> Result<(), NeedsReset> {
        self.finish_received();
        let queues = &mut [&mut self.rx, &mut self.tx, &mut self.control];
        self.notifier.finish(&self.memory, queues)
    }

    /// Does `work`, unless the port has failed. The port fails if the driver has broken a queue.
    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, NeedsReset>,
    ) -> Result<T, NeedsReset> {
        self.notifier.check(&mut [])?;
        let result = work(self)?;
        self.notifier.check(&mut [&mut self.rx, &mut self.tx, &mut self.control])?;
        Ok(result)
    }

    /// Returns the memory of the last frame to the guest.
    fn finish_received(&mut self) {
        if let Some(head) = self.received.take() {
            self.tx.add_used(&self.memory, head, 0);
        }
    }

    /// Takes frames until one is well-formed.
    fn next_frame(&mut self) -> Result<Option<Offload>, NeedsReset> {
        self.finish_received();
        let memory = Arc::clone(&self.memory);
        self.tx.begin_turn(BUDGET);
        while let Some(chain) = self.tx.pop(&memory) {
            let head = chain.head_index();
            match self.parse(&memory, chain) {
                Ok(offload) => {
                    self.received = Some(head);
                    self.shared.meter.tx().passed(self.frame.len());
                    return Ok(Some(offload));
                }
                Err(e) => {
                    self.shared.meter.tx().dropped();
                    self.notifier.warn(format_args!("a frame of the guest is dropped: {e}"));
                    self.tx.add_used(&memory, head, 0);
                }
            }
        }
        self.continue_later(self.tx.is_turn_over())?;
        Ok(None)
    }

    /// Schedules another turn, if there may be more in a queue.
    fn continue_later(&mut self, more: bool) -> Result<(), NeedsReset> {
        match more {
            true => {
                self.doorbell.ring().map_err(|e| self.notifier.fail(format_args!("doorbell: {e}")))
            }
            false => Ok(()),
        }
    }

    /// Parses the frame in a chain, whose memory becomes `self.frame`.
    fn parse(&mut self, memory: &GuestMemory, chain: Descriptors) -> Result<Offload, Malformed> {
        self.frame.clear();
        let limit = self.tx.chain_limit();
        let len = self.frame.add(memory, chain, limit, Permissions::Read, HEADER_SIZE)?;
        // Read once: the guest may change it meanwhile.
        let mut header = [0; HEADER_SIZE];
        if self.frame.read(memory, &mut header) < HEADER_SIZE {
            return Err(FrameError::NoHeader(len).into());
        }
        let header: Header = zerocopy::transmute!(header);
        Ok(header.check(self.features, self.frame.len())?)
    }

    /// Puts a frame of `len` bytes into the receive queue.
    fn place(
        &mut self,
        frame: &[IoSlice<'_>],
        len: usize,
        offload: &Offload,
    ) -> Result<Sent, NeedsReset> {
        let mut header = match self.header(frame, len, offload) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(Sent::Dropped),
            Err(e) => {
                debug!("{NAME}: a frame to the guest is dropped: {e}");
                return Ok(Sent::Dropped);
            }
        };
        let memory = Arc::clone(&self.memory);
        match self.claim(&memory, HEADER_SIZE + len)? {
            Claim::Short => return Ok(Sent::Full),
            Claim::Hopeless => {
                self.notifier.warn(format_args!(
                    "a frame of {len} bytes to the guest is dropped: there are no buffers for it"
                ));
                return Ok(Sent::Dropped);
            }
            Claim::Enough => {}
        }
        let count = self.buffers.iter().filter(|buffer| buffer.room > 0).count();
        // A queue has at most 32,768 chains.
        header.num_buffers = u16::try_from(count).unwrap_or(u16::MAX).into();
        self.room.write(&memory, header.as_bytes());
        for piece in frame {
            self.room.write(&memory, piece);
        }
        self.return_buffers(&memory, HEADER_SIZE + len);
        Ok(Sent::Sent)
    }

    /// The header for a frame of `len` bytes, if the guest wants it.
    fn header(
        &self,
        frame: &[IoSlice<'_>],
        len: usize,
        offload: &Offload,
    ) -> Result<Option<Header>, FrameError> {
        let header = Header::to_guest(offload, self.features(), len)?;
        if offload.segmentation.is_none() && self.longest.is_some_and(|longest| len > longest) {
            return Err(FrameError::Length(len));
        }
        let mut destination = Mac::default();
        let bytes = frame.iter().flat_map(|piece| piece.iter());
        destination.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Ok(self.settings.accepts(destination).then_some(header))
    }

    /// Takes buffers of `need` bytes in total. If there are not enough, they stay in the queue; if
    /// there never will be, they are returned to the driver.
    fn claim(&mut self, memory: &GuestMemory, need: usize) -> Result<Claim, NeedsReset> {
        self.buffers.clear();
        self.room.clear();
        self.rx.begin_turn(usize::from(self.rx.size()) + BUDGET);
        // The queue is armed before buffers are put back, so the driver notifies when it adds to them.
        while let Some(chain) = self.rx.pop(memory) {
            match self.collect(memory, chain, need) {
                Claim::Short => {}
                Claim::Enough => return Ok(Claim::Enough),
                Claim::Hopeless => {
                    // The driver may add larger ones.
                    self.return_buffers(memory, 0);
                    return Ok(Claim::Hopeless);
                }
            }
        }
        self.rx.put_back(self.buffers.len());
        self.continue_later(self.rx.is_turn_over())?;
        Ok(Claim::Short)
    }

    /// Adds a chain to the buffers for a frame.
    fn collect(&mut self, memory: &GuestMemory, chain: Descriptors, need: usize) -> Claim {
        let (head, limit) = (chain.head_index(), self.rx.chain_limit());
        let room = match self.room.add(memory, chain, limit, Permissions::Write, HEADER_SIZE) {
            Ok(room @ HEADER_SIZE..) => room,
            Ok(_) => 0,
            Err(e) => {
                self.notifier.warn(format_args!("a receive buffer is unusable: {e}"));
                0
            }
        };
        self.buffers.push(RxBuffer { head, room });
        let mergeable = has_feature(self.features, VIRTIO_NET_F_MRG_RXBUF);
        match self.room.len() {
            len if len >= need => Claim::Enough,
            _ if self.buffers.len() >= self.rx.size().into() => Claim::Hopeless,
            _ if room > 0 && !mergeable => Claim::Hopeless,
            _ => Claim::Short,
        }
    }

    /// Returns the claimed buffers to the driver, `written` bytes of them written. The driver sees
    /// those of a frame at once, as it expects (section 5.1.6.4); unusable ones come last.
    fn return_buffers(&mut self, memory: &GuestMemory, mut written: usize) {
        let (usable, unusable) = (
            self.buffers.iter().filter(|buffer| buffer.room > 0),
            self.buffers.iter().filter(|buffer| buffer.room == 0),
        );
        let used = usable.chain(unusable).map(|buffer| {
            let len = buffer.room.min(written);
            written -= len;
            // A chain's length fits.
            (buffer.head, u32::try_from(len).unwrap_or(u32::MAX))
        });
        self.rx.add_all_used(memory, used);
    }

    /// Executes the commands in the control queue.
    fn execute_commands(&mut self) -> Result<(), NeedsReset> {
        let memory = Arc::clone(&self.memory);
        self.control.begin_turn(BUDGET);
        while let Some(chain) = self.control.pop(&memory) {
            let head = chain.head_index();
            let written = match Chain::collect(&memory, chain, self.control.chain_limit()) {
                Ok(Chain { readable, writable }) if writable.len() > 0 => {
                    writable.fill_from(&[self.settings.command(readable)])
                }
                Ok(_) => 0,
                Err(e) => {
                    self.notifier.warn(format_args!("a command is skipped: {e}"));
                    0
                }
            };
            self.shared.set_mac(self.settings.mac);
            // One byte, if any.
            self.control.add_used(&memory, head, u32::from(written > 0));
        }
        self.continue_later(self.control.is_turn_over())
    }
}

impl AsFd for NetPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

impl fmt::Debug for NetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetPort").field("features", &self.features()).finish_non_exhaustive()
    }
}
