//! Readiness by kqueue. [`super::filters`] decides on the filters; this module makes the system calls.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::kqueue::{Event, EventFilter, EventFlags, kevent_timespec, kqueue};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::filters::{Direction, Filters, Mode};
use super::{BATCH, Ready};
use crate::event_loop::Interest;

/// A kqueue.
pub(in crate::event_loop) struct Poller {
    queue: OwnedFd,
    sources: HashMap<u64, Source>,
}

#[derive(Clone, Copy)]
struct Source {
    fd: RawFd,
    filters: Filters,
}

impl Poller {
    pub(in crate::event_loop) fn new() -> io::Result<Self> {
        let queue = kqueue()?;
        fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
        Ok(Self { queue, sources: HashMap::new() })
    }

    pub(in crate::event_loop) fn add(
        &mut self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let source = Source { fd: fd.as_raw_fd(), filters: Filters::new(interest) };
        self.change(key, source, [Mode::Off; 2])
    }

    pub(in crate::event_loop) fn modify(
        &mut self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let source = *self.sources.get(&key).ok_or(Errno::NOENT)?;
        debug_assert_eq!(source.fd, fd.as_raw_fd(), "a key has one descriptor");
        let filters = source.filters.with(interest);
        self.change(key, Source { filters, ..source }, modes(source.filters))
    }

    pub(in crate::event_loop) fn remove(&mut self, _fd: RawFd, key: u64) -> io::Result<()> {
        let source = self.sources.remove(&key).ok_or(Errno::NOENT)?;
        let before = modes(source.filters);
        for (direction, mode) in DIRECTIONS.into_iter().zip(before) {
            self.set(key, source.fd, direction, mode, Mode::Off)?;
        }
        Ok(())
    }

    /// Waits until a descriptor is ready, or for `timeout`; may also end early, without any. Appends to `ready`.
    pub(in crate::event_loop) fn wait(
        &mut self,
        ready: &mut Vec<Ready>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        // A timeout of more than the system can represent is as good as none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut batch = [const { MaybeUninit::uninit() }; BATCH];
        // SAFETY: no filter is changed. Those that are set are the kernel's own: it removes them when their
        // descriptor is closed.
        let waited = unsafe { kevent_timespec(&self.queue, &[], &mut batch, timeout.as_ref()) };
        match waited {
            Ok((events, _)) => events.iter().for_each(|event| self.on_event(event, ready)),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn on_event(&mut self, event: &Event, ready: &mut Vec<Ready>) {
        let direction = match event.filter() {
            EventFilter::Read(_) => Direction::Read,
            EventFilter::Write(_) => Direction::Write,
            _ => return,
        };
        let key = event.udata().addr() as u64;
        let Some(mut source) = self.sources.get(&key).copied() else { return };
        if event.flags().contains(EventFlags::EOF) {
            let before = modes(source.filters);
            source.filters.end(direction);
            if self.change(key, source, before).is_err() {
                // It cannot be watched for the end of its other direction: both count as ended.
                DIRECTIONS.into_iter().for_each(|direction| source.filters.end(direction));
                self.sources.insert(key, source);
            }
        }
        // The change may have found that the other direction has ended, too.
        let filters = self.sources.get(&key).map_or(source.filters, |source| source.filters);
        ready.extend(filters.ready(key, direction));
    }

    /// Sets the filters of a source, whose modes were `before`, and stores it. After an error it has none and is not
    /// stored.
    fn change(&mut self, key: u64, mut source: Source, before: [Mode; 2]) -> io::Result<()> {
        for (direction, before) in DIRECTIONS.into_iter().zip(before) {
            let mode = source.filters.mode(direction);
            match self.set(key, source.fd, direction, before, mode) {
                Ok(true) => {}
                Ok(false) => source.filters.end(direction),
                Err(e) => {
                    self.sources.remove(&key);
                    for direction in DIRECTIONS {
                        // What is not there need not be removed.
                        let _ = self.set(key, source.fd, direction, Mode::Edge, Mode::Off);
                    }
                    return Err(e);
                }
            }
        }
        self.sources.insert(key, source);
        Ok(())
    }

    /// Sets one filter. Returns whether the direction is open: a pipe without a reader takes no write filter.
    fn set(
        &self,
        key: u64,
        fd: RawFd,
        direction: Direction,
        before: Mode,
        mode: Mode,
    ) -> io::Result<bool> {
        if before == mode {
            return Ok(true);
        }
        // Whether a filter is edge-triggered cannot be changed: it is removed and set again.
        if before != Mode::Off {
            match self.submit(event(key, fd, direction, EventFlags::DELETE)) {
                // The kernel removed the filter with its descriptor.
                Ok(()) | Err(Errno::NOENT | Errno::BADF) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let trigger = match mode {
            Mode::Off => return Ok(true),
            Mode::Edge => EventFlags::CLEAR,
            Mode::Level => EventFlags::empty(),
        };
        match self.submit(event(key, fd, direction, EventFlags::ADD | trigger)) {
            Ok(()) => Ok(true),
            Err(Errno::PIPE) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes one change. An error of the change itself is the call's, as there is no room for an event.
    fn submit(&self, change: Event) -> Result<(), Errno> {
        let mut none: [Event; 0] = [];
        // SAFETY: the descriptor is open, as its handler owns it while it is registered. The kernel removes the
        // filters of a descriptor that is closed.
        unsafe { kevent_timespec(&self.queue, &[change], &mut none, None) }.map(drop)
    }
}

const DIRECTIONS: [Direction; 2] = [Direction::Read, Direction::Write];

fn modes(filters: Filters) -> [Mode; 2] {
    DIRECTIONS.map(|direction| filters.mode(direction))
}

fn event(key: u64, fd: RawFd, direction: Direction, flags: EventFlags) -> Event {
    let filter = match direction {
        Direction::Read => EventFilter::Read(fd),
        Direction::Write => EventFilter::Write(fd),
    };
    Event::new(filter, flags, ptr::without_provenance_mut(key as usize))
}
