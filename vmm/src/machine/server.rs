//! Those who speak to a machine: its launcher, whoever connects to the box's control socket, clients
//! of its vsock, and signals. A thread each, and a bounded number of them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use boxlite_devices::virtio::vsock::VsockHandle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::control::{self, FromMachine, ToMachine};
use super::hub::{Command, Hub};
use super::process::Message;
use super::sys;
use super::threads::Threads;

/// More connections to the control socket than this at a time are refused.
const MAX_CONNECTIONS: usize = 64;
/// Whoever does not take an answer for so long is hung up on.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// After a failed `accept` (too many open files): until some may have been closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The vsock of the machine that runs, if one does.
#[derive(Clone, Debug, Default)]
pub(super) struct Vsock(Arc<Mutex<Option<VsockHandle>>>);

impl Vsock {
    fn get(&self) -> MutexGuard<'_, Option<VsockHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another machine, or none.
    pub(super) fn set(&self, handle: Option<VsockHandle>) {
        *self.get() = handle;
    }

    /// Hands over a client, which will say `CONNECT <port>`.
    pub(super) fn attach(&self, client: UnixStream) -> io::Result<()> {
        let handle = self.get().clone();
        let handle = handle.ok_or_else(|| io::Error::other("the machine does not run"))?;
        handle.attach(client)
    }
}

/// Answers that were given and have not left: the process waits for them before it ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsent(Arc<(Mutex<usize>, Condvar)>);

impl Unsent {
    fn change(&self, f: impl FnOnce(&mut usize)) {
        let (count, changed) = &*self.0;
        f(&mut count.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// Waits until all have left, at most so long.
    pub(super) fn wait(&self, limit: Duration) {
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has not taken its answer by then will see the end of the connection.
        let _ = changed.wait_timeout_while(count, limit, |count| *count > 0);
    }
}

/// What the threads need.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) inbox: Sender<Message>,
    pub(super) vsock: Vsock,
    pub(super) hub: Option<Hub>,
    pub(super) unsent: Unsent,
    pub(super) threads: Threads,
    /// Set when somebody asks for an end at once: the main thread may be waiting for something else.
    pub(super) killed: Arc<AtomicBool>,
}

/// The way of an answer.
#[derive(Debug)]
pub(super) struct Reply(SyncSender<FromMachine>, Unsent);

impl Reply {
    pub(super) fn send(self, answer: FromMachine) {
        self.1.change(|count| *count += 1);
        if self.0.send(answer).is_err() {
            self.1.change(|count| *count -= 1);
        }
    }
}

impl Server {
    /// Takes what somebody says, to the end of the connection. `heard` sees each message first.
    pub(super) fn serve(&self, peer: &UnixStream, mut heard: impl FnMut(&ToMachine)) {
        // Anything else than whole messages ends the connection.
        while let Ok(Some((message, files))) = control::receive(peer) {
            heard(&message);
            let Some((answer, counted)) = self.answer(message, files) else { continue };
            let sent = control::send(peer, &answer, &[]);
            if counted {
                self.unsent.change(|count| *count = count.saturating_sub(1));
            }
            if sent.is_err() {
                return;
            }
        }
    }

    /// The answer to a message, if it has one, and whether it is counted as unsent.
    fn answer(&self, message: ToMachine, files: Vec<OwnedFd>) -> Option<(FromMachine, bool)> {
        match message {
            ToMachine::Client => {
                for file in files {
                    if let Err(e) = self.vsock.attach(UnixStream::from(file)) {
                        tracing::warn!("a vsock client is refused: {e}");
                    }
                }
                None
            }
            ToMachine::Attach => {
                for file in files {
                    match &self.hub {
                        Some(hub) => hub.send(Command::Attach(UnixStream::from(file))),
                        None => tracing::warn!("the machine is no box: nothing to attach to"),
                    }
                }
                None
            }
            ToMachine::Launch(_) => {
                Some((FromMachine::Refused("the machine runs already".into()), false))
            }
            message => {
                if matches!(message, ToMachine::Kill) {
                    self.killed.store(true, Ordering::SeqCst);
                }
                let (reply, answer) = sync_channel(1);
                let reply = Reply(reply, self.unsent.clone());
                self.inbox.send(Message::Asked(message, reply)).ok()?;
                // Without an answer the process is ending, and so does this connection.
                answer.recv().ok().map(|answer| (answer, true))
            }
        }
    }

    /// Serves the control socket on threads of its own.
    pub(super) fn listen_for_control(&self, listener: UnixListener) -> io::Result<()> {
        let server = self.clone();
        let connections = Arc::new(AtomicUsize::new(0));
        accept(&self.threads, "control", listener, move |peer| {
            let _ = peer.set_write_timeout(Some(ANSWER_LIMIT));
            let slot = Slot::take(&connections);
            if slot.0.load(Ordering::SeqCst) > MAX_CONNECTIONS {
                let why = format!("{MAX_CONNECTIONS} connections to the box are open already");
                let _ = control::send(&peer, &FromMachine::Refused(why), &[]);
                return;
            }
            let (server, threads) = (server.clone(), &server.threads);
            let spawned = threads.spawn("control", move || {
                server.serve(&peer, |_| {});
                drop(slot);
            });
            if let Err(e) = spawned {
                tracing::warn!("cannot serve a connection: {e}");
            }
        })
    }

    /// Serves the vsock's socket on a thread of its own.
    pub(super) fn listen_for_vsock(&self, listener: UnixListener) -> io::Result<()> {
        let vsock = self.vsock.clone();
        accept(&self.threads, "vsock", listener, move |client| {
            if let Err(e) = vsock.attach(client) {
                tracing::debug!("a vsock client is refused: {e}");
            }
        })
    }
}

/// One of a bounded number of connections.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::SeqCst);
        Self(all.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Calls `serve` with each connection of a process of our own user.
fn accept(
    threads: &Threads,
    name: &'static str,
    listener: UnixListener,
    mut serve: impl FnMut(UnixStream) + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    let own = rustix::process::getuid().as_raw();
    threads.spawn(name, move || {
        loop {
            match listener.accept() {
                Ok((peer, _)) => match sys::peer_uid(&peer) {
                    Ok(uid) if uid == own => serve(peer),
                    Ok(uid) => tracing::warn!("{name}: refused a process of user {uid}"),
                    Err(e) => tracing::warn!("{name}: refused an unknown process: {e}"),
                },
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!("{name}: cannot accept a connection: {e}");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    })?;
    Ok(())
}

/// SIGTERM and SIGINT end the box in order, SIGHUP does nothing.
pub(super) fn hear_signals(threads: &Threads, inbox: Sender<Message>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    threads.spawn("signals", move || {
        for signal in signals.forever() {
            if signal != SIGHUP && inbox.send(Message::Terminate).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
