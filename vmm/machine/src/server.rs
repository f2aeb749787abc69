//! Serves the launcher, the control socket, the vsock socket and signals: a thread for each, and a bounded number
//! of connections.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use boxlite_contract::control::{self, FromMachine, ToMachine};
use boxlite_devices::virtio::vsock::VsockHandle;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::hub::{Hub, HubCommand};
use super::message::{Message, PendingReplies, Reply};
use super::sys;
use super::threads::Threads;

/// Connections to the control socket that may make any request. Those beyond may only end the box.
const MAX_CONNECTIONS: usize = 64;
/// Connections beyond [`MAX_CONNECTIONS`], reserved for requests to end the box.
const RESERVED_CONNECTIONS: usize = 16;
/// Timeout for a request; a connection without one is closed, to free its slot.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// Timeout for a request on a reserved connection.
const RESERVED_IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Timeout for writing an answer; then the connection is closed.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause after a failed `accept`: with too many open files, some may be closed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The vsock of the running VM, if there is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Vsock(Arc<Mutex<Option<VsockHandle>>>);

impl Vsock {
    fn get(&self) -> MutexGuard<'_, Option<VsockHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the VM's vsock.
    pub(super) fn set(&self, handle: Option<VsockHandle>) {
        *self.get() = handle;
    }

    /// Passes on a client, which will send `CONNECT <port>`.
    pub(super) fn attach(&self, client: UnixStream) -> io::Result<()> {
        let handle = self.get().clone();
        let handle = handle.ok_or_else(|| io::Error::other("the VM does not run"))?;
        handle.attach(client)
    }
}

/// What the serving threads share.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) inbox: Sender<Message>,
    pub(super) vsock: Vsock,
    pub(super) hub: Option<Hub>,
    pub(super) pending_replies: PendingReplies,
    /// Whether the box keeps running when its launcher exits.
    pub(super) outlives: Arc<AtomicBool>,
    pub(super) threads: Threads,
    /// Set by a request for an end at once, which the main thread checks while it waits for something else.
    pub(super) killed: Arc<AtomicBool>,
}

impl Server {
    /// Serves a connection as far as it was admitted.
    fn serve_as(&self, admission: Admission, peer: &UnixStream) {
        let idle = match admission {
            Admission::Full => IDLE_LIMIT,
            Admission::EndOnly => RESERVED_IDLE_LIMIT,
        };
        if peer.set_read_timeout(Some(idle)).is_err() {
            return;
        }
        match admission {
            Admission::Full => self.serve(peer),
            Admission::EndOnly => match control::receive(peer) {
                Ok(Some((message, files))) if is_end_request(&message) => {
                    self.reply(peer, message, files);
                }
                Ok(Some(_)) => refuse(peer),
                _ => {}
            },
        }
    }

    /// Serves requests until the connection ends.
    pub(super) fn serve(&self, peer: &UnixStream) {
        // A malformed message ends the connection.
        while let Ok(Some((message, files))) = control::receive(peer) {
            if matches!(message, ToMachine::Outlive) {
                self.outlive();
            }
            if !self.reply(peer, message, files) {
                return;
            }
        }
    }

    /// Answers a message. Returns `false` if the answer cannot be sent.
    fn reply(&self, peer: &UnixStream, message: ToMachine, files: Vec<OwnedFd>) -> bool {
        let Some((answer, counted)) = self.answer(message, files) else { return true };
        let sent = control::send(peer, &answer, &[]);
        if counted {
            self.pending_replies.change(|count| *count = count.saturating_sub(1));
        }
        sent.is_ok()
    }

    /// Keeps the box running when its launcher exits. Set here, because the launcher's thread does not ask the main
    /// thread.
    fn outlive(&self) {
        self.outlives.store(true, Ordering::SeqCst);
        if let Some(hub) = &self.hub {
            hub.send(HubCommand::KeepOutput);
        }
    }

    /// The answer to a message, if it has one, and whether the answer is counted in `pending_replies`.
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
                        Some(hub) => hub.send(HubCommand::Attach(UnixStream::from(file))),
                        None => tracing::warn!("this VM has no box: nothing to attach to"),
                    }
                }
                None
            }
            ToMachine::Launch(_) => {
                Some((FromMachine::Refused("the VM runs already".into()), false))
            }
            message => {
                if matches!(message, ToMachine::Kill) {
                    self.killed.store(true, Ordering::SeqCst);
                }
                let (reply, answer) = sync_channel(1);
                let reply = Reply::new(reply, self.pending_replies.clone());
                self.inbox.send(Message::Request(message, reply)).ok()?;
                // No reply means that the process is exiting, which closes this connection.
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
            let Some(admission) = slot.admission() else { return refuse(&peer) };
            let (server, threads) = (server.clone(), &server.threads);
            let spawned = threads.spawn("control", move || {
                server.serve_as(admission, &peer);
                // In this order, a client that sees the connection closed finds the slot free.
                drop(slot);
                drop(peer);
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

/// Whether a request may be made on a reserved connection.
fn is_end_request(message: &ToMachine) -> bool {
    matches!(message, ToMachine::Stop { .. } | ToMachine::Kill)
}

/// Tells a client that too many connections are open.
fn refuse(peer: &UnixStream) {
    let why = format!(
        "{MAX_CONNECTIONS} connections to its process are open already, which leaves room only for \
         ending it; try again"
    );
    let _ = control::send(peer, &FromMachine::Refused(why), &[]);
}

/// What a connection may request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// Anything.
    Full,
    /// Only the end of the box: the connection is in a reserved slot.
    EndOnly,
}

/// One of a bounded number of connections.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::SeqCst);
        Self(all.clone())
    }

    /// The admission of the connection that was counted last; `None` if all are taken.
    fn admission(&self) -> Option<Admission> {
        match self.0.load(Ordering::SeqCst) {
            0..=MAX_CONNECTIONS => Some(Admission::Full),
            n if n <= MAX_CONNECTIONS + RESERVED_CONNECTIONS => Some(Admission::EndOnly),
            _ => None,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Accepts connections on a thread of its own, and passes those of this process's user to `serve`.
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

/// Handles signals on a thread of its own: SIGTERM and SIGINT stop the box, SIGHUP is ignored.
pub(super) fn handle_signals(threads: &Threads, inbox: Sender<Message>) -> io::Result<()> {
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
