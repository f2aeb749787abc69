//! The event loop that the devices without a thread of their own share.
//!
//! A [`Handler`] owns some file descriptors and is called on the loop's thread when one of them is
//! ready. The implementation uses event-manager (epoll). The interface names nothing of that crate, so
//! that a host without epoll needs another implementation of this file only.
//!
//! ```text
//!   vCPU thread                             loop thread
//!   activate ── LoopHandle::add ──────────▶ Handler::start, then Handler::ready …
//!   reset ───── Registration::remove ─────▶ removed between two events
//!      ◀──────────── the handler ──────────────┘
//! ```
//!
//! **No deadlock:** `add` and `remove` wait for the loop, so a handler never waits for a vCPU
//! thread, nor for a lock that one may hold while it calls them.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use event_manager::{
    Error, EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint,
    SubscriberId, SubscriberOps,
};

/// Handles events of file descriptors on an event loop.
///
/// Its methods must not block, and must not panic on anything that a guest or a peer sends: every
/// device of the loop would stop.
pub trait Handler: Any + Send {
    /// Called once on the loop's thread: register file descriptors with `watch`. After an error
    /// the handler is dropped and [`LoopHandle::add`] returns the error.
    fn start(&mut self, watch: &mut Watch<'_>) -> io::Result<()>;

    /// Handles the readiness of a watched file descriptor. Called again at once while it stays ready.
    fn ready(&mut self, event: Event, watch: &mut Watch<'_>);
}

/// The events of a file descriptor to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// It can be read, or its peer has closed.
    Read,
    /// It can be written.
    Write,
    /// Both.
    ReadWrite,
    /// Neither: keep it registered, and report a hang-up or an error once.
    Pause,
}

impl Interest {
    fn event_set(self) -> EventSet {
        match self {
            Self::Read => EventSet::IN,
            Self::Write => EventSet::OUT,
            Self::ReadWrite => EventSet::IN | EventSet::OUT,
            // Hang-ups and errors cannot be masked; an edge of them cannot spin the loop.
            Self::Pause => EventSet::EDGE_TRIGGERED,
        }
    }
}

/// The readiness of a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number that it was registered with.
    pub token: u32,
    /// A read does not block. It may return the end of the stream, or an error.
    pub readable: bool,
    /// A write does not block. It may return an error.
    pub writable: bool,
    /// Both directions are closed.
    pub hang_up: bool,
    /// It has an error.
    pub error: bool,
}

impl From<Events> for Event {
    fn from(events: Events) -> Self {
        let set = events.event_set();
        let error = set.contains(EventSet::ERROR);
        let hang_up = set.contains(EventSet::HANG_UP);
        Self {
            token: events.data(),
            readable: error || hang_up || set.contains(EventSet::IN),
            writable: error || set.contains(EventSet::OUT),
            hang_up,
            error,
        }
    }
}

/// The file descriptors that a handler watches.
///
/// A handler removes a file descriptor before it closes it. When a handler is removed, its file
/// descriptors are no longer watched.
pub struct Watch<'a>(&'a mut dyn WatchList);

/// What [`Watch`] needs of event-manager, whose `EventOps` has a lifetime that cannot be named
/// behind a second reference.
trait WatchList {
    fn add(&mut self, events: Events) -> Result<(), Error>;
    fn modify(&mut self, events: Events) -> Result<(), Error>;
    fn remove(&mut self, events: Events) -> Result<(), Error>;
}

impl WatchList for EventOps<'_> {
    fn add(&mut self, events: Events) -> Result<(), Error> {
        EventOps::add(self, events)
    }

    fn modify(&mut self, events: Events) -> Result<(), Error> {
        EventOps::modify(self, events)
    }

    fn remove(&mut self, events: Events) -> Result<(), Error> {
        EventOps::remove(self, events)
    }
}

impl Watch<'_> {
    /// Starts watching `fd`; its events carry `token`. Fails if it is watched already.
    pub fn add(&mut self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        self.0.add(events(fd.as_fd(), token, interest)).map_err(to_io)
    }

    /// Changes the token and interest of a watched `fd`.
    pub fn modify(&mut self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        self.0.modify(events(fd.as_fd(), token, interest)).map_err(to_io)
    }

    /// Stops watching `fd`: none of its events is reported afterwards, not even a pending one.
    pub fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        self.0.remove(events(fd.as_fd(), 0, Interest::Read)).map_err(to_io)
    }
}

fn events(fd: BorrowedFd<'_>, token: u32, interest: Interest) -> Events {
    Events::with_data(&fd.as_raw_fd(), token, interest.event_set())
}

fn to_io(error: Error) -> io::Error {
    match error {
        Error::Epoll(errno) | Error::EventFd(errno) => errno.into(),
        Error::ChannelSend | Error::ChannelRecv => {
            io::Error::new(io::ErrorKind::BrokenPipe, "the event loop has ended")
        }
        other => io::Error::other(other.to_string()),
    }
}

/// A handler, as event-manager calls it.
struct Subscriber {
    handler: Box<dyn Handler>,
    started: io::Result<()>,
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.started = self.handler.start(&mut Watch(ops));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.handler.ready(events.into(), &mut Watch(ops));
    }
}

/// An event loop, which the VMM [runs](Self::run) on a thread of its own.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    thread: OnceLock<ThreadId>,
}

impl EventLoop {
    /// An event loop without handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { manager: EventManager::new().map_err(to_io)?, shared: Arc::default() })
    }

    /// Registers a handler before the loop runs; [`LoopHandle::add`] does so afterwards.
    pub fn add(&mut self, handler: impl Handler) -> io::Result<()> {
        add(&mut self.manager, Box::new(handler)).map(drop)
    }

    /// A handle to this loop for other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle { endpoint: self.manager.remote_endpoint(), shared: Arc::clone(&self.shared) }
    }

    /// Serves events on the calling thread until [`LoopHandle::stop`]. Every handler that is still
    /// registered is dropped before this returns.
    pub fn run(mut self) -> io::Result<()> {
        // Not set before: `run` consumes the loop.
        let _ = self.shared.thread.set(thread::current().id());
        while !self.shared.stop.load(Ordering::Acquire) {
            self.manager.run().map_err(to_io)?;
        }
        Ok(())
    }
}

fn add(
    ops: &mut dyn SubscriberOps<Subscriber = Subscriber>,
    handler: Box<dyn Handler>,
) -> io::Result<SubscriberId> {
    let id = ops.add_subscriber(Subscriber { handler, started: Ok(()) });
    let started = match ops.subscriber_mut(id) {
        Ok(subscriber) => std::mem::replace(&mut subscriber.started, Ok(())),
        Err(e) => Err(to_io(e)),
    };
    if let Err(e) = started {
        let _ = ops.remove_subscriber(id);
        return Err(e);
    }
    Ok(id)
}

/// A handle to a running [`EventLoop`]. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
    shared: Arc<Shared>,
}

impl LoopHandle {
    /// Adds a handler to the loop, and waits until it has started.
    ///
    /// Fails with the error of [`Handler::start`], or if the loop has stopped.
    pub fn add<H: Handler>(&self, handler: H) -> io::Result<Registration<H>> {
        let id = self.call(move |ops| add(ops, Box::new(handler)))?;
        Ok(Registration { event_loop: self.clone(), id, handler: PhantomData })
    }

    /// Stops the loop after the event that it is serving. Does not wait for that: join its thread.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        // Fails only if the loop has stopped already.
        let _ = self.endpoint.kick();
    }

    /// Runs `f` on the loop's thread, between two events, and waits for it.
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Subscriber>) -> io::Result<T>
        + Send
        + 'static,
    ) -> io::Result<T> {
        if self.shared.thread.get() == Some(&thread::current().id()) {
            return Err(io::Error::new(
                io::ErrorKind::Deadlock,
                "a handler must not wait for its own event loop",
            ));
        }
        let answer: Result<io::Result<T>, Error> = self.endpoint.call_blocking(|ops| Ok(f(ops)));
        answer.map_err(to_io)?
    }
}

/// A handler in a running loop. It stays there when this is dropped.
#[must_use = "without it the handler cannot be removed from the loop"]
pub struct Registration<H> {
    event_loop: LoopHandle,
    id: SubscriberId,
    handler: PhantomData<fn() -> H>,
}

impl<H: Handler> Registration<H> {
    /// Removes the handler from the loop, and waits for that: it is not called again.
    ///
    /// Fails if the loop has stopped, which has dropped the handler before this returns.
    pub fn remove(self) -> io::Result<H> {
        let id = self.id;
        let subscriber =
            self.event_loop.call(move |ops| ops.remove_subscriber(id).map_err(to_io))?;
        let handler: Box<dyn Any> = subscriber.handler;
        match handler.downcast() {
            Ok(handler) => Ok(*handler),
            Err(_) => unreachable!("a registration names the handler it was made for"),
        }
    }
}

#[cfg(test)]
mod tests;
