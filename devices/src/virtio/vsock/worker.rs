//! The device on the event loop: receives packets from the tx queue, sends packets through the rx
//! queue, admits clients, and enforces timeouts.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_hv::Doorbell;
use virtio_queue::Queue;

use super::clients::{Clients, Outcome};
use super::deadlines::Deadlines;
use super::handle::Shared;
use super::mux::{Mux, Sent};
use super::packet::TxPacket;
use super::rx::RxQueue;
use super::{ALARM, DOORBELL, INBOX, LISTENER, Token};
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Notifier, Virtqueue};
use crate::{Event, GuestMemory, Handler, Interest, Watch};

/// Chains of each queue in a turn, before the other devices on the event loop.
const BUDGET: usize = 256;

/// Pause after a failed `accept`, for instance because the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, as a `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// The device between activation and reset.
pub(super) struct Worker {
    memory: Arc<GuestMemory>,
    rx: RxQueue,
    tx: Virtqueue,
    events: Virtqueue,
    doorbell: Doorbell,
    notifier: Notifier,
    mux: Mux,
    shared: Arc<Shared>,
    listener: Option<Arc<UnixListener>>,
    listening: Interest,
    clients: Clients,
    deadlines: Deadlines,
    line_timeout: Duration,
    /// When the alarm rings.
    alarm: Option<Instant>,
    /// A transport reset event is due.
    reset_due: bool,
}

/// The parts of a [`Worker`].
pub(super) struct Parts {
    pub(super) memory: Arc<GuestMemory>,
    /// rx, tx and event queue.
    pub(super) queues: [Queue; 3],
    pub(super) doorbell: Doorbell,
    pub(super) notifier: Notifier,
    /// The negotiated features.
    pub(super) features: u64,
    pub(super) mux: Mux,
    /// Timeout for a client's CONNECT line.
    pub(super) line_timeout: Duration,
    pub(super) shared: Arc<Shared>,
    pub(super) listener: Option<Arc<UnixListener>>,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let [rx, tx, events] = parts.queues;
        Self {
            memory: parts.memory,
            rx: RxQueue(Virtqueue::new("rx", rx, parts.features)),
            tx: Virtqueue::new("tx", tx, parts.features),
            events: Virtqueue::new("event", events, parts.features),
            doorbell: parts.doorbell,
            notifier: parts.notifier,
            mux: parts.mux,
            shared: parts.shared,
            listener: parts.listener,
            listening: Interest::Pause,
            clients: Clients::default(),
            deadlines: Deadlines::default(),
            line_timeout: parts.line_timeout,
            alarm: None,
            reset_due: false,
        }
    }

    /// Closes all streams, and returns the queues.
    pub(super) fn into_queues(self) -> Vec<Queue> {
        [self.rx.0, self.tx, self.events].map(Virtqueue::into_queue).into()
    }

    /// Serves all queues, within the budget of a turn.
    fn serve(&mut self) {
        let memory = Arc::clone(&self.memory);
        for queue in [&mut self.rx.0, &mut self.tx, &mut self.events] {
            queue.begin_turn(BUDGET);
        }
        let more_to_receive = self.receive_packets(&memory);
        let more_to_send = self.send_packets(&memory);
        self.send_event(&memory);
        // If the driver broke a queue, this has sent the interrupt that asks for a reset.
        let queues = &mut [&mut self.rx.0, &mut self.tx, &mut self.events];
        let _ = self.notifier.finish(&memory, queues);
        // Resets that were just sent may have made room for packets.
        if more_to_send
            || self.events.is_turn_over()
            || (more_to_receive && self.mux.takes_packets())
        {
            // If this fails, so does the guest's next notification.
            let _ = self.doorbell.ring();
        }
    }

    /// Receives packets from the guest. True if some are left.
    fn receive_packets(&mut self, memory: &GuestMemory) -> bool {
        while self.mux.takes_packets() {
            let Some(chain) = self.tx.pop(memory) else { return self.tx.is_turn_over() };
            let head = chain.head_index();
            match TxPacket::parse(memory, chain) {
                Ok(packet) => self.mux.on_packet(&packet),
                Err(malformed) => self.mux.on_malformed(&malformed),
            }
            self.tx.add_used(memory, head, 0);
        }
        true
    }

    /// Sends packets to the guest. True if some are left that there are buffers for.
    fn send_packets(&mut self, memory: &GuestMemory) -> bool {
        self.rx.0.disarm(memory);
        for _ in 0..BUDGET {
            match self.mux.send_next(&mut self.rx, memory) {
                Sent::Some => {}
                Sent::Nothing => return false,
                Sent::Starved => return self.rx.0.is_turn_over(),
            }
        }
        true
    }

    /// Sends the transport reset event, if it is due and there is a buffer for it.
    fn send_event(&mut self, memory: &GuestMemory) {
        while self.reset_due {
            let Some(chain) = self.events.pop(memory) else { return };
            let head = chain.head_index();
            // A chain that the event does not fit into is returned empty.
            let written = Chain::collect(memory, chain, 1)
                .ok()
                .filter(|chain| chain.writable.len() >= TRANSPORT_RESET.len())
                .map_or(0, |chain| chain.writable.fill_from(&TRANSPORT_RESET));
            self.reset_due = written == 0;
            self.events.add_used(memory, head, u32::try_from(written).unwrap_or_default());
        }
    }

    /// Admits clients while there is room for them.
    fn admit(&mut self, watch: &mut Watch<'_>) {
        while self.clients.has_room() {
            let Some(stream) = self.shared.pop().or_else(|| self.accept()) else { break };
            let token = self.mux.new_token();
            match watch.add(&stream, token, Interest::Read) {
                Ok(()) => {
                    self.clients.insert(token, stream);
                    self.deadlines.set(token, Instant::now() + self.line_timeout);
                }
                Err(e) => {
                    self.mux.warn(format_args!("cannot watch a client, disconnecting it: {e}"));
                }
            }
        }
        self.listen(watch);
    }

    /// Polls the listening socket while there is room for clients.
    fn listen(&mut self, watch: &mut Watch<'_>) {
        let Some(listener) = &self.listener else { return };
        let accepting = self.clients.has_room() && !self.deadlines.is_set(LISTENER);
        let interest = if accepting { Interest::Read } else { Interest::Pause };
        if interest != self.listening {
            match watch.modify(listener, LISTENER, interest) {
                Ok(()) => self.listening = interest,
                Err(e) => self.mux.warn(format_args!("cannot watch the listening socket: {e}")),
            }
        }
    }

    fn accept(&mut self) -> Option<UnixStream> {
        if self.deadlines.is_set(LISTENER) {
            return None;
        }
        loop {
            match self.listener.as_ref()?.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(e) => {
                    self.mux.warn(format_args!("cannot accept a client, trying again later: {e}"));
                    self.deadlines.set(LISTENER, Instant::now() + ACCEPT_PAUSE);
                    return None;
                }
            }
        }
    }

    /// Handles a client whose stream is readable.
    fn on_client(&mut self, token: Token, watch: &mut Watch<'_>) {
        match self.clients.on_readable(token) {
            Outcome::Incomplete => return,
            Outcome::Connect(stream, port) => self.mux.connect(token, stream, port),
            Outcome::Refused(stream) => {
                tracing::debug!("vsock: a client did not send CONNECT <port>: disconnecting it");
                let _ = watch.remove(&stream);
            }
        }
        self.deadlines.clear(token);
        self.admit(watch);
    }

    /// Disconnects clients and aborts connections whose deadline has passed.
    fn expire(&mut self, watch: &mut Watch<'_>) {
        self.alarm = None;
        let now = Instant::now();
        self.mux.expire(now);
        while let Some(token) = self.deadlines.pop_expired(now) {
            if let Some(stream) = self.clients.remove(token) {
                tracing::debug!(
                    "vsock: a client did not finish its CONNECT line: disconnecting it"
                );
                let _ = watch.remove(&stream);
            }
        }
        self.admit(watch);
    }

    /// Sets the alarm to the next deadline. A deadline that is cleared later costs one wake-up.
    fn set_alarm(&mut self, watch: &mut Watch<'_>) {
        let next = [self.deadlines.next(), self.mux.next_deadline()].into_iter().flatten().min();
        let Some(next) = next else { return };
        if self.alarm.is_none_or(|alarm| next < alarm) {
            watch.set_alarm(next, ALARM);
            self.alarm = Some(next);
        }
    }

    /// Handles the inbox: new clients, and a transport reset.
    fn on_inbox(&mut self, watch: &mut Watch<'_>) {
        self.shared.clear_bell();
        if self.shared.take_transport_reset() {
            self.mux.close_all();
            self.reset_due = true;
        }
        self.admit(watch);
    }
}

impl Handler for Worker {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(&self.doorbell, DOORBELL, Interest::Read)?;
        watch.add(self.shared.bell(), INBOX, Interest::Read)?;
        if let Some(listener) = &self.listener {
            watch.add(listener, LISTENER, self.listening)?;
        }
        self.on_inbox(watch);
        // Chains may have become available before the doorbell was watched.
        self.serve();
        self.mux.apply(watch);
        self.set_alarm(watch);
        Ok(())
    }

    fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
        match event.token {
            DOORBELL => {
                // The event says that it was rung.
                let _ = self.doorbell.clear();
            }
            ALARM => self.expire(watch),
            INBOX => self.on_inbox(watch),
            LISTENER => self.admit(watch),
            client if self.clients.contains(client) => self.on_client(client, watch),
            _ => self.mux.on_event(event),
        }
        self.serve();
        self.mux.apply(watch);
        self.set_alarm(watch);
    }
}
