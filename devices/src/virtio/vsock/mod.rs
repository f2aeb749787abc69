//! virtio-vsock (virtio 1.3, section 5.10): stream connections between guest and host.
//!
//! The host's end of every connection is a Unix stream. Both sides can open one:
//!
//! - A client on the host, from a listening socket or handed over by
//!   [`VsockHandle::attach`], sends `CONNECT <port>\n` and receives `OK <port>\n` once the guest has
//!   accepted.
//! - The guest connects to a port of CID 2, and [`HostPorts`] returns a stream to the server of that
//!   port.
//!
//! ```text
//!             clients ──▶ Connection ◀──┐
//!                            │         Mux ◀──▶ queues (rx, tx) ◀──▶ guest
//!   client, host port ◀─▶ HostStream ◀──┘
//! ```
//!
//! - `worker`: the device on the event loop
//! - `mux`: the connection table, between queues and streams
//! - `connection`, `credit`: the protocol of one connection, without I/O
//! - `stream`, `clients`, `ports`: the host side
//! - `packet`, `rx`: the guest's side
//!
//! Bytes move between guest memory and sockets without an intermediate copy. Only data that does not
//! fit into a Unix stream's buffer is copied, at most as much as the guest's credit.

mod clients;
mod connection;
mod credit;
mod deadlines;
mod handle;
mod mux;
mod packet;
mod ports;
mod rx;
mod stream;
mod sys;
mod worker;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

pub use handle::VsockHandle;
pub use ports::{HostPorts, SocketPorts};

use super::queue::Notifier;
use super::{ActivateError, Activation, VirtioDevice, read_bytes};
use crate::{LogBudget, LoopHandle, Registration};
use handle::Shared;
use mux::Mux;
use worker::{Parts, Worker};

/// The most connections at the same time. Further ones are refused.
pub const MAX_CONNECTIONS: usize = 1024;

/// The guest's CID. It is the same for all guests, as each has a vsock device of its own.
pub const GUEST_CID: u32 = 3;

/// `VIRTIO_VSOCK_F_STREAM`.
const F_STREAM: u64 = 1 << 0;

/// rx, tx and event queue.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Identifies a watched file descriptor on the event loop.
type Token = u32;

const DOORBELL: Token = 0;
const ALARM: Token = 1;
const INBOX: Token = 2;
const LISTENER: Token = 3;
/// The lowest token of clients and connections.
const FIRST_TOKEN: Token = 16;

/// Timeouts for peers that do not answer.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    /// For a client to send its CONNECT line.
    line: Duration,
    /// For the guest to answer a request.
    connect: Duration,
    /// For the guest to confirm that a connection is closed. Linux waits as long for its peer.
    close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [line, connect, close] = [10, 20, 8].map(Duration::from_secs);
        Self { line, connect, close }
    }
}

/// A virtio-vsock device.
pub struct Vsock {
    guest_cid: u64,
    event_loop: LoopHandle,
    ports: Arc<dyn HostPorts>,
    listener: Option<Arc<UnixListener>>,
    shared: Arc<Shared>,
    timeouts: Timeouts,
    log: LogBudget,
    running: Option<Registration<Worker>>,
}

impl Vsock {
    /// A device for the guest with this CID. It runs on `event_loop`, and its guest can connect to
    /// `ports` on the host.
    ///
    /// Fails if `guest_cid` is reserved (0, 1, 2, 2³² - 1), or if the process has no file descriptor
    /// left.
    pub fn new(guest_cid: u32, event_loop: LoopHandle, ports: impl HostPorts) -> io::Result<Self> {
        if !(3..u32::MAX).contains(&guest_cid) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("vsock CID {guest_cid} is reserved; use one from 3 to 2^32 - 2"),
            ));
        }
        Ok(Self {
            guest_cid: guest_cid.into(),
            event_loop,
            ports: Arc::new(ports),
            listener: None,
            shared: Arc::new(Shared::new()?),
            timeouts: Timeouts::default(),
            log: LogBudget::default(),
            running: None,
        })
    }

    /// Also serves the clients of a listening socket while the device runs; until then they wait in
    /// the socket's backlog.
    pub fn with_listener(mut self, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        self.listener = Some(Arc::new(listener));
        Ok(self)
    }

    /// The handle, for clients and resets at run time.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle(Arc::clone(&self.shared))
    }

    fn start(&self, activation: Activation) -> io::Result<Registration<Worker>> {
        let Activation { memory, queues, doorbell, interrupt, features } = activation;
        let queues = queues.try_into().map_err(|queues: Vec<_>| {
            io::Error::other(format!("it needs 3 queues, not {}", queues.len()))
        })?;
        let worker = Worker::new(Parts {
            memory,
            queues,
            doorbell,
            notifier: Notifier::new("virtio-vsock", interrupt, self.log.clone()),
            features,
            mux: Mux::new(self.guest_cid, Arc::clone(&self.ports), self.timeouts, self.log.clone()),
            line_timeout: self.timeouts.line,
            shared: Arc::clone(&self.shared),
            listener: self.listener.clone(),
        });
        self.event_loop.add(worker)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_vsock_config`: the guest's CID.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let running = self
            .start(activation)
            .map_err(|e| ActivateError { device: "virtio-vsock", reason: e.to_string() })?;
        self.running = Some(running);
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        let Some(running) = self.running.take() else { return Vec::new() };
        match running.remove() {
            Ok(worker) => worker.into_queues(),
            Err(e) => {
                tracing::debug!("vsock: the device stopped before its reset: {e}");
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests;
