//! The network's end of a running device: frames out of and into guest memory.
//!
//! ```text
//!   guest ── transmit queue ──▶ receive() ──▶ TxFrame: read it, or use its memory in place
//!         ◀── receive queue ─── send() ◀───── a frame in pieces, copied once
//!         ── control queue ───▶ woken()
//!         ◀──── interrupt ───── flush()
//! ```

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use boxlite_hv::Doorbell;
use tracing::debug;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU};
use virtio_queue::{Error as QueueError, Queue};
use vm_memory::{Permissions, VolatileSlice};
use zerocopy::IntoBytes;

use super::control::{Mac, Settings};
use super::header::{ETHERNET, FrameError, HEADER_SIZE, Header, Offload, PortFeatures};
use super::pieces::Pieces;
use super::ring::{LOOKS, Ring};
use super::{NAME, Shared};
use crate::GuestMemory;
use crate::virtio::chain::{Chain, ChainError, Descriptors};
use crate::virtio::{Activation, QueueInterrupt, has_feature};

/// Commands carried out, and malformed frames skipped, before the network's other work has a turn.
const TURN: usize = 16;

/// Bytes of a VLAN tag.
const VLAN: usize = 4;

/// The network's end of a device, from activation to reset. All calls come from one thread.
///
/// Nothing in here allocates for a frame. What was received and sent becomes visible to the guest
/// with [`flush`](Self::flush) at the latest.
///
/// Wait for its file descriptor ([`AsFd`]) edge-triggered: it is the doorbell, which is rung when
/// there may be frames to receive, or room to send after [`Sent::Full`]. It is not cleared.
pub struct NetPort {
    memory: Arc<GuestMemory>,
    doorbell: Doorbell,
    interrupt: QueueInterrupt,
    features: u64,
    /// The longest frame to the guest that is not to be cut, in bytes.
    longest: Option<usize>,
    rx: Ring,
    tx: Ring,
    control: Ring,
    settings: Settings,
    shared: Arc<Shared>,
    /// The chain of the frame that was received last.
    received: Option<u16>,
    /// Its memory.
    frame: Pieces,
    /// Chains of the receive queue that a frame goes to.
    buffers: Vec<RxBuffer>,
    /// Their memory.
    room: Pieces,
    /// The queues cannot be worked on any more.
    failed: bool,
}

/// A chain of the receive queue.
#[derive(Clone, Copy, Debug)]
struct RxBuffer {
    head: u16,
    /// In bytes; 0 if it is of no use.
    room: usize,
}

/// What came of looking for buffers.
enum Claim {
    /// There are enough.
    Enough,
    /// There will be, perhaps.
    Short,
    /// The driver has given what it can, and it is not enough.
    Hopeless,
}

/// What came of a frame to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the guest's memory.
    Sent,
    /// The guest does not want it, or gives no buffers that are large enough; it is counted.
    Dropped,
    /// There is no room for it now. The port's file descriptor becomes readable when there may be.
    Full,
}

/// Why a port does not work any more. The guest has been told (DEVICE_NEEDS_RESET); a reset of the
/// device brings a new port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The driver broke a queue.
    #[error("virtio-net: the driver broke a virtqueue: {0}")]
    Queue(#[from] QueueError),
    /// The doorbell or the interrupt line is broken.
    #[error("virtio-net: doorbell or interrupt: {0}")]
    Io(#[from] io::Error),
    /// It failed before.
    #[error("virtio-net: the device waits for a reset by its driver")]
    Failed,
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
/// The guest may change it at any time: what was checked must not be read twice. The memory goes
/// back to the guest with the port's next call.
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

    /// What is left to do for whoever takes the frame.
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
            interrupt,
            features,
            longest,
            rx: Ring::new(rx, features),
            tx: Ring::new(tx, features),
            control: Ring::new(control, features),
            settings,
            shared,
            received: None,
            frame: Pieces::default(),
            buffers: Vec::new(),
            room: Pieces::default(),
            failed: false,
        }
    }

    /// The queues as the driver gets them back, and what it has set.
    pub(super) fn into_parts(mut self) -> (Vec<Queue>, Settings) {
        if !self.failed {
            // What breaks now is the next driver's to find.
            let _ = self.finish_received();
        }
        let queues = [self.rx, self.tx, self.control].map(Ring::into_queue);
        (queues.into(), self.settings)
    }

    /// What the guest takes from the network. It does not change.
    pub fn features(&self) -> PortFeatures {
        PortFeatures::of(self.features)
    }

    /// The doorbell rang: obeys the control queue. Frames are for [`receive`](Self::receive), which
    /// reports what goes wrong in here, too.
    pub fn woken(&mut self) {
        // It is remembered, and the guest knows.
        let _ = self.guarded(Self::obey);
    }

    /// Takes the next frame that the guest sent. `None` when there is none; the doorbell will be
    /// rung for the next.
    ///
    /// # Errors
    /// The port does not work any more.
    pub fn receive(&mut self) -> Result<Option<TxFrame<'_>>, PortError> {
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
    /// The port does not work any more.
    pub fn send(&mut self, frame: &[IoSlice<'_>], offload: &Offload) -> Result<Sent, PortError> {
        let len = frame.iter().map(|piece| piece.len()).sum();
        let sent = self.guarded(|port| port.place(frame, len, offload))?;
        match sent {
            Sent::Sent => self.shared.meter.rx().passed(len),
            Sent::Dropped => self.shared.meter.rx().dropped(),
            Sent::Full => {}
        }
        Ok(sent)
    }

    /// Ends a turn: tells the guest of what was received and sent, if it wants to know.
    ///
    /// # Errors
    /// The port does not work any more.
    pub fn flush(&mut self) -> Result<(), PortError> {
        self.guarded(|port| {
            port.finish_received()?;
            let mut due = false;
            for ring in [&mut port.rx, &mut port.tx, &mut port.control] {
                due |= ring.take_interrupt(&port.memory)?;
            }
            if due {
                port.interrupt.used_buffer()?;
            }
            Ok(())
        })
    }

    /// Does `work`, unless the port has failed; it has, if `work` does.
    fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, PortError>,
    ) -> Result<T, PortError> {
        if self.failed {
            return Err(PortError::Failed);
        }
        let result = work(self);
        if let Err(e) = &result {
            self.shared.log.warn(format_args!("{e}; it stops until the driver resets the device"));
            self.failed = true;
            // Nobody else is there to be told.
            let _ = self.interrupt.device_failed();
        }
        result
    }

    /// Gives the memory of the last frame back to the guest.
    fn finish_received(&mut self) -> Result<(), PortError> {
        match self.received.take() {
            Some(head) => Ok(self.tx.give_back(&self.memory, head, 0)?),
            None => Ok(()),
        }
    }

    /// Takes frames until one is good.
    fn next_frame(&mut self) -> Result<Option<Offload>, PortError> {
        self.finish_received()?;
        let memory = Arc::clone(&self.memory);
        for _ in 0..TURN {
            let Some(chain) = self.tx.next(&memory)? else { return Ok(None) };
            let head = chain.head_index();
            match self.parse(&memory, chain) {
                Ok(offload) => {
                    self.received = Some(head);
                    self.shared.meter.tx().passed(self.frame.len());
                    return Ok(Some(offload));
                }
                Err(e) => {
                    self.shared.meter.tx().dropped();
                    self.skipped(format_args!("a frame of the guest is dropped: {e}"));
                    self.tx.give_back(&memory, head, 0)?;
                }
            }
        }
        // The others have their turn; then this goes on.
        self.doorbell.ring()?;
        Ok(None)
    }

    /// Looks at the frame in a chain, whose memory becomes `self.frame`.
    fn parse(&mut self, memory: &GuestMemory, chain: Descriptors) -> Result<Offload, Malformed> {
        self.frame.clear();
        let limit = self.tx.chain_limit();
        let len = self.frame.add(memory, chain, limit, Permissions::Read, HEADER_SIZE)?;
        // Read once: the guest may change it while we look at it.
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
    ) -> Result<Sent, PortError> {
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
                self.skipped(format_args!(
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
        self.give_buffers_back(&memory, HEADER_SIZE + len)?;
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

    /// Takes buffers of `need` bytes altogether. If there are not enough, they are left for later;
    /// if there never will be, they go back to the driver.
    fn claim(&mut self, memory: &GuestMemory, need: usize) -> Result<Claim, PortError> {
        self.buffers.clear();
        self.room.clear();
        for _ in 0..LOOKS {
            if let Some(claim) = self.collect(memory, need)? {
                match claim {
                    Claim::Enough => self.rx.disarm(memory)?,
                    // The driver may have better ones.
                    Claim::Hopeless => self.give_buffers_back(memory, 0)?,
                    Claim::Short => {}
                }
                return Ok(claim);
            }
            // The driver rings when it adds to what has been looked at, so it is armed before the
            // buffers are put back.
            if !self.rx.arm(memory)? {
                break;
            }
        }
        self.rx.put_back(self.buffers.len());
        Ok(Claim::Short)
    }

    /// Takes buffers that are there now. `None` if there are not enough.
    fn collect(&mut self, memory: &GuestMemory, need: usize) -> Result<Option<Claim>, PortError> {
        let mergeable = has_feature(self.features, VIRTIO_NET_F_MRG_RXBUF);
        let (limit, size) = (self.rx.chain_limit(), usize::from(self.rx.size()));
        let table = self.rx.table();
        let Some(available) = self.rx.available(memory)? else { return Ok(None) };
        for chain in available {
            let head = chain.head_index();
            let chain = table.chain(head);
            let room = match self.room.add(memory, chain, limit, Permissions::Write, HEADER_SIZE) {
                Ok(room @ HEADER_SIZE..) => room,
                Ok(_) => 0,
                Err(e) => {
                    let log = &self.shared.log;
                    log.warn(format_args!("{NAME}: a receive buffer is of no use: {e}"));
                    0
                }
            };
            self.buffers.push(RxBuffer { head, room });
            if self.room.len() >= need {
                return Ok(Some(Claim::Enough));
            }
            if self.buffers.len() >= size || room > 0 && !mergeable {
                return Ok(Some(Claim::Hopeless));
            }
        }
        Ok(None)
    }

    /// Gives the claimed buffers back to the driver, `written` bytes of them written. Those of no
    /// use come last, so that the others follow each other.
    fn give_buffers_back(
        &mut self,
        memory: &GuestMemory,
        mut written: usize,
    ) -> Result<(), PortError> {
        let (useful, useless) = (
            self.buffers.iter().filter(|buffer| buffer.room > 0),
            self.buffers.iter().filter(|buffer| buffer.room == 0),
        );
        for buffer in useful.chain(useless) {
            let now = buffer.room.min(written);
            self.rx.give_back(memory, buffer.head, now)?;
            written -= now;
        }
        Ok(())
    }

    /// Carries out what is in the control queue.
    fn obey(&mut self) -> Result<(), PortError> {
        let memory = Arc::clone(&self.memory);
        for _ in 0..TURN {
            let Some(chain) = self.control.next(&memory)? else { return Ok(()) };
            let head = chain.head_index();
            let written = match Chain::collect(&memory, chain, self.control.chain_limit()) {
                Ok(Chain { readable, writable }) if writable.len() > 0 => {
                    writable.fill_from(&[self.settings.command(readable)])
                }
                Ok(_) => 0,
                Err(e) => {
                    self.skipped(format_args!("a command is skipped: {e}"));
                    0
                }
            };
            self.shared.set_mac(self.settings.mac);
            self.control.give_back(&memory, head, written)?;
        }
        // The others have their turn; then this goes on.
        Ok(self.doorbell.ring()?)
    }

    /// Logs what the driver did wrong.
    fn skipped(&self, what: fmt::Arguments<'_>) {
        self.shared.log.warn(format_args!("{NAME}: {what}"));
    }
}

impl AsFd for NetPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

impl fmt::Debug for NetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetPort")
            .field("features", &self.features())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
