//! The device at work on the event loop: takes packets from the tx queue, fills the rx queue, lets
//! clients in, and keeps time.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boxlite_hv::Doorbell;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_queue::Queue;

use super::clients::{Clients, Outcome};
use super::deadlines::Deadlines;
use super::handle::Shared;
use super::mux::{Mux, Sent};
use super::packet::TxPacket;
use super::ring::Ring;
use super::{DOORBELL, INBOX, LISTENER, TIMER, Token};
use crate::virtio::QueueInterrupt;
use crate::virtio::chain::Chain;
use crate::{Event, GuestMemory, Handler, Interest, Watch};

/// How many chains of each queue are served before the other devices of the loop have a turn.
const TURN: usize = 256;

/// How long no client is let in after the process had no file descriptor left for one.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, as a `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// The device between activation and reset.
pub(super) struct Worker {
    memory: Arc<GuestMemory>,
    rx: Ring,
    tx: Ring,
    events: Ring,
    doorbell: Doorbell,
    interrupt: QueueInterrupt,
    mux: Mux,
    shared: Arc<Shared>,
    listener: Option<Arc<UnixListener>>,
    listening: Interest,
    clients: Clients,
    deadlines: Deadlines,
    line_timeout: Duration,
    timer: OwnedFd,
    /// When the timer goes off.
    alarm: Option<Instant>,
    /// The guest has to hear of a transport reset.
    owes_event: bool,
}

/// What a [`Worker`] is made of.
pub(super) struct Parts {
    pub(super) memory: Arc<GuestMemory>,
    /// rx, tx and event queue.
    pub(super) queues: [Queue; 3],
    pub(super) doorbell: Doorbell,
    pub(super) interrupt: QueueInterrupt,
    /// The negotiated ones.
    pub(super) features: u64,
    pub(super) mux: Mux,
    /// How long a client may take to say which port it wants.
    pub(super) line_timeout: Duration,
    pub(super) shared: Arc<Shared>,
    pub(super) listener: Option<Arc<UnixListener>>,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> io::Result<Self> {
        let [rx, tx, events] = parts.queues;
        Ok(Self {
            memory: parts.memory,
            rx: Ring::new(rx, parts.features),
            tx: Ring::new(tx, parts.features),
            events: Ring::new(events, parts.features),
            doorbell: parts.doorbell,
            interrupt: parts.interrupt,
            mux: parts.mux,
            shared: parts.shared,
            listener: parts.listener,
            listening: Interest::Pause,
            clients: Clients::default(),
            deadlines: Deadlines::default(),
            line_timeout: parts.line_timeout,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
            )?,
            alarm: None,
            owes_event: false,
        })
    }

    /// The queues, to give back. All streams are closed.
    pub(super) fn into_queues(self) -> Vec<Queue> {
        [self.rx, self.tx, self.events].map(Ring::into_queue).into()
    }

    /// Serves what there is to serve, within a turn's limits.
    fn serve(&mut self) {
        let memory = Arc::clone(&self.memory);
        for ring in [&mut self.rx, &mut self.tx, &mut self.events] {
            ring.begin_turn();
        }
        let more_to_take = self.take_packets(&memory);
        let more_to_give = self.give_packets(&memory);
        self.give_event(&memory);
        if let Err(e) = self.interrupt(&memory) {
            self.mux.warn(format_args!("cannot interrupt the guest: {e}"));
        }
        // Resets that just went out may have been what packets were waiting for.
        if more_to_give || self.events.is_turn_over() || (more_to_take && self.mux.takes_packets())
        {
            // It fails for no reason that the next ring would not report.
            let _ = self.doorbell.ring();
        }
    }

    /// Tells the driver of used buffers, and of queues that it broke.
    fn interrupt(&mut self, memory: &GuestMemory) -> io::Result<()> {
        let mut used = false;
        for (name, ring) in
            [("rx", &mut self.rx), ("tx", &mut self.tx), ("event", &mut self.events)]
        {
            used |= ring.take_interrupt(memory);
            if let Some(error) = ring.take_failure() {
                let why = format_args!("stops: the driver broke the {name} queue: {error}");
                self.mux.warn(why);
                self.interrupt.device_failed()?;
            }
        }
        if used { self.interrupt.used_buffer() } else { Ok(()) }
    }

    /// Takes packets from the guest. True if some are left.
    fn take_packets(&mut self, memory: &GuestMemory) -> bool {
        self.tx.disable_doorbell(memory);
        for _ in 0..TURN {
            if !self.mux.takes_packets() {
                return true;
            }
            let Some(chain) = self.tx.pop(memory) else {
                if self.tx.enable_doorbell(memory) {
                    continue;
                }
                return false;
            };
            let head = chain.head_index();
            match TxPacket::parse(memory, chain) {
                Ok(packet) => self.mux.on_packet(&packet),
                Err(malformed) => self.mux.on_malformed(&malformed),
            }
            self.tx.give_back(memory, head, 0);
        }
        true
    }

    /// Sends packets to the guest. True if some are left that there are buffers for.
    fn give_packets(&mut self, memory: &GuestMemory) -> bool {
        self.rx.disable_doorbell(memory);
        for _ in 0..TURN {
            match self.mux.send_next(&mut self.rx, memory) {
                Sent::Some => {}
                Sent::Nothing => return false,
                Sent::Starved if self.rx.is_turn_over() => return true,
                Sent::Starved if self.rx.enable_doorbell(memory) => {}
                Sent::Starved => return false,
            }
        }
        true
    }

    /// Sends the transport reset event, if it is due and there is a buffer for it.
    fn give_event(&mut self, memory: &GuestMemory) {
        while self.owes_event {
            let Some(chain) = self.events.pop(memory) else {
                if !self.events.is_turn_over() && self.events.enable_doorbell(memory) {
                    continue;
                }
                return;
            };
            let head = chain.head_index();
            // A chain that is of no use to us is no place for the event.
            let written = Chain::collect(memory, chain, 1)
                .ok()
                .filter(|chain| chain.writable.len() >= TRANSPORT_RESET.len())
                .map_or(0, |chain| chain.writable.fill_from(&TRANSPORT_RESET));
            self.owes_event = written == 0;
            match written {
                0 => self.events.give_back_useless(memory, head),
                _ => self.events.give_back(memory, head, TRANSPORT_RESET.len() as u32),
            }
        }
    }

    /// Lets clients in while there is room for them.
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
                    self.mux.warn(format_args!("cannot watch a client, it is hung up on: {e}"));
                }
            }
        }
        self.listen(watch);
    }

    /// Watches the listening socket while clients are welcome.
    fn listen(&mut self, watch: &mut Watch<'_>) {
        let Some(listener) = &self.listener else { return };
        let welcome = self.clients.has_room() && !self.deadlines.is_set(LISTENER);
        let interest = if welcome { Interest::Read } else { Interest::Pause };
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
                    self.mux.warn(format_args!("cannot accept a client, will try again: {e}"));
                    self.deadlines.set(LISTENER, Instant::now() + ACCEPT_PAUSE);
                    return None;
                }
            }
        }
    }

    /// A client said something.
    fn on_client(&mut self, token: Token, watch: &mut Watch<'_>) {
        match self.clients.listen(token) {
            Outcome::Undecided => return,
            Outcome::Connect(stream, port) => self.mux.connect(token, stream, port),
            Outcome::Refused(stream) => {
                tracing::debug!("vsock: a client did not say CONNECT <port>; it is hung up on");
                let _ = watch.remove(&stream);
            }
        }
        self.deadlines.clear(token);
        self.admit(watch);
    }

    /// Ends what took too long.
    fn expire(&mut self, watch: &mut Watch<'_>) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        self.alarm = None;
        let now = Instant::now();
        self.mux.expire(now);
        while let Some(token) = self.deadlines.pop_expired(now) {
            if let Some(stream) = self.clients.remove(token) {
                tracing::debug!("vsock: a client did not finish its line; it is hung up on");
                let _ = watch.remove(&stream);
            }
        }
        self.admit(watch);
    }

    /// Sets the timer to the next deadline. A deadline that has been cleared costs one alarm.
    fn set_timer(&mut self) {
        let next = [self.deadlines.next(), self.mux.next_deadline()].into_iter().flatten().min();
        let Some(next) = next else { return };
        if self.alarm.is_some_and(|alarm| alarm <= next) {
            return;
        }
        // Zero would disarm it.
        let wait = next.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            Ok(_) => self.alarm = Some(next),
            Err(e) => self.mux.warn(format_args!("cannot set a timer: {e}")),
        }
    }

    /// Someone used the handle.
    fn on_inbox(&mut self, watch: &mut Watch<'_>) {
        self.shared.clear_bell();
        if self.shared.take_transport_reset() {
            self.mux.close_all();
            self.owes_event = true;
        }
        self.admit(watch);
    }
}

impl Handler for Worker {
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()> {
        watch.add(&self.doorbell, DOORBELL, Interest::Read)?;
        watch.add(&self.timer, TIMER, Interest::Read)?;
        watch.add(self.shared.bell(), INBOX, Interest::Read)?;
        if let Some(listener) = &self.listener {
            watch.add(listener, LISTENER, self.listening)?;
        }
        self.on_inbox(watch);
        // Buffers may be there that were added before anybody watched the doorbell.
        self.serve();
        self.mux.apply(watch);
        self.set_timer();
        Ok(())
    }

    fn ready(&mut self, event: Event, watch: &mut Watch<'_>) {
        match event.token {
            DOORBELL => {
                // It was rung, or this would not have been called.
                let _ = self.doorbell.clear();
            }
            TIMER => self.expire(watch),
            INBOX => self.on_inbox(watch),
            LISTENER => self.admit(watch),
            client if self.clients.contains(client) => self.on_client(client, watch),
            _ => self.mux.on_event(event),
        }
        self.serve();
        self.mux.apply(watch);
        self.set_timer();
    }
}
