//! The handle of other threads, and the thread that runs the loop.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use boxlite_net_policy::PublishedPort;
use mio::{Poll, Waker};

use crate::command::EngineCommand;
use crate::context::Source;
use crate::counters::{Counters, Meter};
use crate::dns;
use crate::engine::Engine;
use crate::error::NetworkError;
use crate::link::Link;
use crate::options::NetworkOptions;
use crate::ports::Listener;

/// The network of a box, ready to run.
///
/// Its ports are bound when it is made, so that a port in use is an error before anything boots. Clients
/// that connect wait until there is a guest.
pub struct Network {
    parts: Parts,
    handle: Handle,
}

/// The parts of an engine, which is made on the thread that runs it.
struct Parts {
    options: NetworkOptions,
    poll: Poll,
    resolver: dns::Config,
    commands: Receiver<EngineCommand>,
    listeners: Vec<(PublishedPort, Listener)>,
}

/// Controls a [`Network`] from any thread. The network goes on without handles; [`Handle::stop`] ends
/// it.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<EngineCommand>,
    waker: Arc<Waker>,
    meter: Arc<Meter>,
    ports: Arc<Mutex<Vec<PublishedPort>>>,
    search: Arc<Mutex<Vec<String>>>,
}

impl Network {
    /// Makes a network: binds its ports and opens the host's resolver configuration. A jail may be
    /// entered afterwards.
    ///
    /// # Errors
    /// An option is wrong, or the host cannot listen on a port; the error says which.
    pub fn new(mut options: NetworkOptions) -> Result<Self, NetworkError> {
        options.check()?;
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Source::Wake.token())?;
        let (sender, commands) = channel();
        let listeners = std::mem::take(&mut options.ports)
            .into_iter()
            .map(Listener::bind)
            .collect::<Result<Vec<_>, _>>()?;
        let search = Arc::new(Mutex::new(Vec::new()));
        let resolv_conf = options.resolv_conf.clone();
        let resolver = dns::Config::new(resolv_conf, Arc::clone(&search), Instant::now());
        let handle = Handle {
            commands: sender,
            waker: Arc::new(waker),
            meter: Arc::new(Meter::default()),
            ports: Arc::new(Mutex::new(listeners.iter().map(|(port, _)| *port).collect())),
            search,
        };
        Ok(Self { parts: Parts { options, poll, resolver, commands, listeners }, handle })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs on this thread until [`Handle::stop`], then closes flows and ports.
    ///
    /// # Errors
    /// The event loop failed.
    pub fn run(self) -> Result<(), NetworkError> {
        let Parts { options, poll, resolver, commands, listeners } = self.parts;
        let meter = Arc::clone(&self.handle.meter);
        let mut engine = Engine::new(options, poll, meter, resolver, commands)?;
        for (port, listener) in listeners {
            engine.publish(port, listener);
        }
        // A wake-up that is not delivered yet is lost with the last waker.
        let _waker = Arc::clone(&self.handle.waker);
        // This handle does not count as one of other threads.
        drop(self.handle);
        Ok(engine.run()?)
    }
}

impl Handle {
    /// Connects a guest. A guest that is connected already is dropped.
    ///
    /// # Errors
    /// The network has stopped.
    pub fn attach(&self, link: Box<dyn Link>) -> Result<(), NetworkError> {
        self.send(EngineCommand::Attach(link))
    }

    /// Disconnects the guest and returns its link; a cast to `Box<dyn Any>` recovers the link's type.
    /// Flows stay for a while, so that a guest whose driver restarts can go on. Waits for the network's
    /// thread, which must be running.
    ///
    /// # Errors
    /// The network has stopped.
    pub fn detach(&self) -> Result<Option<Box<dyn Link>>, NetworkError> {
        let (reply, answer) = channel();
        self.send(EngineCommand::Detach(reply))?;
        answer.recv().map_err(|_| NetworkError::Stopped)
    }

    /// Publishes a port; the returned port has the number that was bound.
    ///
    /// # Errors
    /// The host cannot listen on the port, or the network has stopped.
    pub fn publish(&self, port: PublishedPort) -> Result<PublishedPort, NetworkError> {
        let (port, listener) = Listener::bind(port)?;
        self.send(EngineCommand::Publish(port, listener))?;
        lock(&self.ports).push(port);
        Ok(port)
    }

    /// Closes a published port, which the host may use again when this returns; TCP flows that came
    /// through it live on. False if there is no such port. Waits for the network's thread, which must
    /// be running.
    ///
    /// # Errors
    /// The network has stopped.
    pub fn unpublish(&self, port: PublishedPort) -> Result<bool, NetworkError> {
        let (reply, answer) = channel();
        self.send(EngineCommand::Unpublish(port, reply))?;
        lock(&self.ports).retain(|known| *known != port);
        answer.recv().map_err(|_| NetworkError::Stopped)
    }

    /// The published ports, with the numbers that were bound.
    pub fn published(&self) -> Vec<PublishedPort> {
        lock(&self.ports).clone()
    }

    /// Sets the real host's own addresses ([`Addresses::own`](crate::Addresses::own)), which rules must
    /// name. Ends the wait of [`NetworkOptions::own_addresses_awaited`].
    ///
    /// # Errors
    /// The network has stopped.
    pub fn close_own(&self, addresses: Vec<IpAddr>) -> Result<(), NetworkError> {
        self.send(EngineCommand::Own(addresses))
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.meter.read()
    }

    /// The host's search domains, for a guest that is configured by other means than DHCP and router
    /// advertisements.
    pub fn search_domains(&self) -> Vec<String> {
        lock(&self.search).clone()
    }

    /// Ends [`Network::run`].
    pub fn stop(&self) {
        // Fails only if the network has stopped already.
        let _ = self.send(EngineCommand::Stop);
    }

    fn send(&self, command: EngineCommand) -> Result<(), NetworkError> {
        self.commands.send(command).map_err(|_| NetworkError::Stopped)?;
        self.waker.wake().map_err(|e: io::Error| NetworkError::Loop(e))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
