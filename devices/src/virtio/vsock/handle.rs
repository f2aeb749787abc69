//! The VMM's handle to a vsock device.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use boxlite_hv::Doorbell;

use super::clients::MAX_CLIENTS;

/// Controls a vsock device at run time. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct VsockHandle(pub(super) Arc<Shared>);

impl VsockHandle {
    /// Hands over the stream of a client, as if it had connected to the listening socket: the client
    /// sends `CONNECT <port>\n`, and gets `OK <port>\n` and the connection, or is disconnected.
    ///
    /// While the guest has not started the device, up to 1024 clients wait for it; a further one is
    /// refused with [`WouldBlock`](io::ErrorKind::WouldBlock).
    pub fn attach(&self, client: UnixStream) -> io::Result<()> {
        let mut inbox = self.0.inbox();
        if inbox.clients.len() >= MAX_CLIENTS {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "too many vsock clients wait for the guest; try again when it has booted",
            ));
        }
        inbox.clients.push_back(client);
        drop(inbox);
        self.0.bell.ring()
    }

    /// Closes all connections, and sends the guest a transport reset event (virtio 1.3, section
    /// 5.10.6.7): its driver closes its end of them and reads its CID again.
    pub fn reset_transport(&self) -> io::Result<()> {
        self.0.inbox().reset_transport = true;
        self.0.bell.ring()
    }
}

/// What the handle and the device share.
#[derive(Debug)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    bell: Doorbell,
}

#[derive(Debug, Default)]
struct Inbox {
    clients: VecDeque<UnixStream>,
    reset_transport: bool,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { inbox: Mutex::default(), bell: Doorbell::new()? })
    }

    /// Rung when there is something in the inbox.
    pub(super) fn bell(&self) -> impl AsFd {
        &self.bell
    }

    pub(super) fn clear_bell(&self) {
        // If this fails, the event loop calls the device again, which does no harm.
        let _ = self.bell.clear();
    }

    /// The next client.
    pub(super) fn pop(&self) -> Option<UnixStream> {
        self.inbox().clients.pop_front()
    }

    /// Whether a transport reset was requested since the last call.
    pub(super) fn take_transport_reset(&self) -> bool {
        std::mem::take(&mut self.inbox().reset_transport)
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // No holder of the lock leaves the inbox inconsistent when it panics.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
