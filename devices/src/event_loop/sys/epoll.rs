//! Readiness by epoll.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use super::{BATCH, Ready};
use crate::event_loop::Interest;

/// An epoll instance.
pub(in crate::event_loop) struct Poller(OwnedFd);

impl Poller {
    pub(in crate::event_loop) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    pub(in crate::event_loop) fn add(
        &mut self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(key), flags(interest))?)
    }

    pub(in crate::event_loop) fn modify(
        &mut self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, EventData::new_u64(key), flags(interest))?)
    }

    pub(in crate::event_loop) fn remove(&mut self, fd: RawFd, _key: u64) -> io::Result<()> {
        // SAFETY: its handler closes a descriptor after this. Otherwise the call would fail, or find another
        // descriptor that is not watched, and have no effect.
        Ok(epoll::delete(&self.0, unsafe { BorrowedFd::borrow_raw(fd) })?)
    }

    /// Waits until a descriptor is ready, or for `timeout`; may also end early, without any. Appends to `ready`.
    pub(in crate::event_loop) fn wait(
        &mut self,
        ready: &mut Vec<Ready>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        // A timeout of more than the system can represent is as good as none.
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        let mut batch = [const { MaybeUninit::uninit() }; BATCH];
        match epoll::wait(&self.0, &mut batch, timeout.as_ref()) {
            Ok((events, _)) => ready.extend(events.iter().map(to_ready)),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

fn flags(interest: Interest) -> EventFlags {
    match interest {
        Interest::Read => EventFlags::IN,
        Interest::Write => EventFlags::OUT,
        Interest::ReadWrite => EventFlags::IN | EventFlags::OUT,
        // Hang-ups and errors cannot be masked; an edge of them cannot spin the loop.
        Interest::Pause => EventFlags::ET,
    }
}

fn to_ready(event: &epoll::Event) -> Ready {
    // Copied, because the record is packed.
    let (flags, data) = (event.flags, event.data);
    let error = flags.contains(EventFlags::ERR);
    let hang_up = flags.contains(EventFlags::HUP);
    Ready {
        key: data.u64(),
        readable: error || hang_up || flags.contains(EventFlags::IN),
        writable: error || flags.contains(EventFlags::OUT),
        hang_up,
        error,
    }
}
