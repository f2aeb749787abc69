//! One epoll instance, edge-triggered: each readiness is reported once, and its receiver remembers it until
//! a call returns `EAGAIN`. So interests never change, which saves most system calls.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io;

/// Identifies a descriptor: the ID of its owner, and which of the owner's descriptors it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: u64,
    pub(crate) slot: u8,
}

impl Token {
    fn pack(self) -> EventData {
        EventData::new_u64(self.id << 8 | u64::from(self.slot))
    }

    fn unpack(data: EventData) -> Self {
        let data = data.u64();
        Self { id: data >> 8, slot: data as u8 }
    }
}

/// Readiness of a file descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// A read returns data, the end, or an error.
    pub(crate) read: bool,
    /// A write takes data, or returns an error.
    pub(crate) write: bool,
    /// The peer has hung up: reads will reach the end.
    pub(crate) hung_up: bool,
    /// Both directions are closed: written data will not be read.
    pub(crate) closed: bool,
}

impl Ready {
    /// Adds the readiness of an event.
    pub(crate) fn merge(&mut self, event: Self) {
        self.read |= event.read;
        self.write |= event.write;
        self.hung_up |= event.hung_up;
        self.closed |= event.closed;
    }
}

pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::new() })
    }

    /// Watches a descriptor until it is closed.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, token.pack(), flags)
    }

    /// Waits for events, at most for `timeout` (`None`: without limit).
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = (Token, Ready)> + '_> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        self.events.reserve(64);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        Ok(self.events.iter().map(|event| {
            let flags = event.flags;
            let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let ready = Ready {
                read: gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                write: gone || flags.contains(EventFlags::OUT),
                hung_up: gone || flags.contains(EventFlags::RDHUP),
                closed: gone,
            };
            (Token::unpack(event.data), ready)
        }))
    }
}
