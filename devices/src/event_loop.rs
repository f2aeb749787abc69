//! The event loop that the devices without a thread of their own share.
//!
//! A [`Handler`] owns some file descriptors and is called on the loop's thread when one of them is
//! ready. The loop is the same on every system; `sys` waits for the descriptors, by epoll or kqueue. Both are
//! level-triggered: a handler need not take all that there is.
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

mod sys;

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Instant;

use boxlite_hv::Doorbell;

use sys::{Poller, Ready};

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

/// What a handler waits for: its file descriptors, and its alarm.
///
/// A handler removes a file descriptor before it closes it. When a handler is removed, its file
/// descriptors are no longer watched.
pub struct Watch<'a> {
    sources: &'a mut Sources,
    handler: HandlerId,
}

impl Watch<'_> {
    /// Starts watching `fd`; its events carry `token`. Fails if it is watched already.
    pub fn add(&mut self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        self.sources.add(self.handler, fd, token, interest)
    }

    /// Changes the token and interest of a watched `fd`.
    pub fn modify(&mut self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        self.sources.modify(fd, token, interest)
    }

    /// Stops watching `fd`: none of its events is reported afterwards, not even a pending one.
    pub fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        self.sources.remove(fd)
    }

    /// Sets the handler's alarm, which replaces an earlier one: from `at` on, once, an event with `token` is readable.
    pub fn set_alarm(&mut self, at: Instant, token: u32) {
        self.sources.alarms.insert(self.handler, Alarm { at, token });
    }
}

/// A number that no other handler of the loop has or had.
type HandlerId = u64;

/// The key of the loop's own doorbell. Registrations of handlers begin behind it.
const CALLS: u64 = 0;

/// The watched file descriptors and the alarms of all handlers.
struct Sources {
    poller: Poller,
    /// By the key of the registration.
    watched: HashMap<u64, Source>,
    keys: HashMap<RawFd, u64>,
    last_key: u64,
    alarms: HashMap<HandlerId, Alarm>,
}

struct Source {
    fd: RawFd,
    handler: HandlerId,
    token: u32,
}

#[derive(Clone, Copy)]
struct Alarm {
    at: Instant,
    token: u32,
}

impl Sources {
    fn add(
        &mut self,
        handler: HandlerId,
        fd: impl AsFd,
        token: u32,
        interest: Interest,
    ) -> io::Result<()> {
        let (fd, number) = (fd.as_fd(), fd.as_fd().as_raw_fd());
        if self.keys.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let key = self.last_key + 1;
        self.poller.add(fd, key, interest)?;
        self.last_key = key;
        self.keys.insert(number, key);
        self.watched.insert(key, Source { fd: number, handler, token });
        Ok(())
    }

    fn modify(&mut self, fd: impl AsFd, token: u32, interest: Interest) -> io::Result<()> {
        let key = self.key(&fd)?;
        self.poller.modify(fd.as_fd(), key, interest)?;
        if let Some(source) = self.watched.get_mut(&key) {
            source.token = token;
        }
        Ok(())
    }

    fn remove(&mut self, fd: impl AsFd) -> io::Result<()> {
        let key = self.key(&fd)?;
        self.keys.remove(&fd.as_fd().as_raw_fd());
        self.watched.remove(&key);
        self.poller.remove(fd.as_fd().as_raw_fd(), key)
    }

    /// Removes all that a handler waits for.
    fn forget(&mut self, handler: HandlerId) {
        self.alarms.remove(&handler);
        for (key, source) in self.watched.extract_if(|_, source| source.handler == handler) {
            self.keys.remove(&source.fd);
            // Fails if the handler has closed the descriptor, which removed it.
            let _ = self.poller.remove(source.fd, key);
        }
    }

    fn key(&self, fd: &impl AsFd) -> io::Result<u64> {
        let key = self.keys.get(&fd.as_fd().as_raw_fd());
        key.copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// An event loop, which the VMM [runs](Self::run) on a thread of its own.
pub struct EventLoop {
    state: State,
    calls: Receiver<Call>,
    handle: LoopHandle,
}

/// What runs on the loop's thread between two events, for another thread.
type Call = Box<dyn FnOnce(&mut State) + Send>;

/// The handlers and what they wait for.
struct State {
    handlers: HashMap<HandlerId, Box<dyn Handler>>,
    last_handler: HandlerId,
    sources: Sources,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    thread: OnceLock<ThreadId>,
}

impl EventLoop {
    /// An event loop without handlers.
    pub fn new() -> io::Result<Self> {
        let bell = Doorbell::new()?;
        let mut poller = Poller::new()?;
        poller.add(bell.as_fd(), CALLS, Interest::Read)?;
        let (sender, calls) = mpsc::channel();
        let sources = Sources {
            poller,
            watched: HashMap::new(),
            keys: HashMap::new(),
            last_key: CALLS,
            alarms: HashMap::new(),
        };
        Ok(Self {
            state: State { handlers: HashMap::new(), last_handler: 0, sources },
            calls,
            handle: LoopHandle { calls: sender, bell: Arc::new(bell), shared: Arc::default() },
        })
    }

    /// Registers a handler before the loop runs; [`LoopHandle::add`] does so afterwards.
    pub fn add(&mut self, handler: impl Handler) -> io::Result<()> {
        self.state.add(Box::new(handler)).map(drop)
    }

    /// A handle to this loop for other threads.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Serves events on the calling thread until [`LoopHandle::stop`]. Every handler that is still
    /// registered is dropped before this returns.
    pub fn run(self) -> io::Result<()> {
        let Self { mut state, calls, handle } = self;
        // Not set before: `run` consumes the loop.
        let _ = handle.shared.thread.set(thread::current().id());
        let result = serve(&mut state, &calls, &handle);
        // In this order, a caller that is told that the loop has stopped finds the handlers dropped.
        drop(state);
        drop(calls);
        result
    }
}

fn serve(state: &mut State, calls: &Receiver<Call>, handle: &LoopHandle) -> io::Result<()> {
    let mut ready = Vec::new();
    while !handle.shared.stop.load(Ordering::Acquire) {
        let next = state.sources.alarms.values().map(|alarm| alarm.at).min();
        let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
        ready.clear();
        state.sources.poller.wait(&mut ready, timeout)?;
        let mut called = false;
        for event in &ready {
            called |= event.key == CALLS;
            state.dispatch(event);
        }
        if next.is_some() {
            state.ring_alarms();
        }
        // After the events, none of which is then for a handler that a call has removed.
        if called {
            handle.bell.clear()?;
            calls.try_iter().for_each(|call| call(state));
        }
    }
    Ok(())
}

impl State {
    /// Starts a handler. A handler that does not start is dropped.
    fn add(&mut self, mut handler: Box<dyn Handler>) -> io::Result<HandlerId> {
        let id = self.last_handler + 1;
        self.last_handler = id;
        let started = handler.start(&mut Watch { sources: &mut self.sources, handler: id });
        self.handlers.insert(id, handler);
        if let Err(e) = started {
            drop(self.remove(id));
            return Err(e);
        }
        Ok(id)
    }

    /// Removes a handler, with all that it waits for.
    fn remove(&mut self, id: HandlerId) -> Option<Box<dyn Handler>> {
        let handler = self.handlers.remove(&id)?;
        self.sources.forget(id);
        Some(handler)
    }

    /// Calls the handler of a descriptor, unless it was removed after the event.
    fn dispatch(&mut self, ready: &Ready) {
        let Some(source) = self.sources.watched.get(&ready.key) else { return };
        let &Ready { readable, writable, hang_up, error, .. } = ready;
        let event = Event { token: source.token, readable, writable, hang_up, error };
        self.call(source.handler, event);
    }

    fn call(&mut self, id: HandlerId, event: Event) {
        if let Some(handler) = self.handlers.get_mut(&id) {
            handler.ready(event, &mut Watch { sources: &mut self.sources, handler: id });
        }
    }

    /// Calls the handlers whose alarm is due.
    fn ring_alarms(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self.sources.alarms.extract_if(|_, alarm| alarm.at <= now).collect();
        for (id, Alarm { token, .. }) in due {
            let event =
                Event { token, readable: true, writable: false, hang_up: false, error: false };
            self.call(id, event);
        }
    }
}

/// A handle to a running [`EventLoop`]. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct LoopHandle {
    calls: Sender<Call>,
    /// Rung when there is a call, and to stop.
    bell: Arc<Doorbell>,
    shared: Arc<Shared>,
}

impl LoopHandle {
    /// Adds a handler to the loop, and waits until it has started.
    ///
    /// Fails with the error of [`Handler::start`], or if the loop has stopped.
    pub fn add<H: Handler>(&self, handler: H) -> io::Result<Registration<H>> {
        let id = self.call(move |state| state.add(Box::new(handler)))?;
        Ok(Registration { event_loop: self.clone(), id, handler: PhantomData })
    }

    /// Stops the loop after the event that it is serving. Does not wait for that: join its thread.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.bell.ring();
    }

    /// Runs `f` on the loop's thread, between two events, and waits for it.
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut State) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.shared.thread.get() == Some(&thread::current().id()) {
            return Err(io::Error::new(
                io::ErrorKind::Deadlock,
                "a handler must not wait for its own event loop",
            ));
        }
        let stopped = || io::Error::new(io::ErrorKind::BrokenPipe, "the event loop has stopped");
        let (sender, answer) = mpsc::channel();
        let call: Call = Box::new(move |state| {
            let _ = sender.send(f(state));
        });
        self.calls.send(call).map_err(|_| stopped())?;
        self.bell.ring()?;
        answer.recv().map_err(|_| stopped())?
    }
}

/// A handler in a running loop. It stays there when this is dropped.
#[must_use = "without it the handler cannot be removed from the loop"]
pub struct Registration<H> {
    event_loop: LoopHandle,
    id: HandlerId,
    handler: PhantomData<fn() -> H>,
}

impl<H: Handler> Registration<H> {
    /// Removes the handler from the loop, and waits for that: it is not called again.
    ///
    /// Fails if the loop has stopped, which has dropped the handler before this returns.
    pub fn remove(self) -> io::Result<H> {
        let id = self.id;
        let handler = self.event_loop.call(move |state| {
            state.remove(id).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        })?;
        let handler: Box<dyn Any> = handler;
        match handler.downcast() {
            Ok(handler) => Ok(*handler),
            Err(_) => unreachable!("a registration names the handler it was made for"),
        }
    }
}

#[cfg(test)]
mod tests;
