//! The connection to the launcher: messages to it, and what happens when it exits.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use boxlite_contract::control::{self, FromMachine};
use boxlite_contract::events::EventKind;
use boxlite_contract::status::BoxEnd;

use crate::message::Message;
use crate::record::Record;
use crate::server::Server;

/// Timeout for a message to the launcher, after which no more are sent.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(1);

/// The sending side of the connection.
pub(super) struct Launcher {
    socket: UnixStream,
    lost: bool,
}

impl Launcher {
    pub(super) fn new(socket: UnixStream) -> Self {
        // Without a timeout, a stopped launcher could block the box.
        let lost = socket.set_write_timeout(Some(LAUNCHER_LIMIT)).is_err();
        Self { socket, lost }
    }

    pub(super) fn ended(&mut self, ended: &BoxEnd) {
        self.send(&FromMachine::Ended(ended.clone()));
    }

    pub(super) fn send(&mut self, message: &FromMachine) {
        // After an error half a message may have been sent: nothing can follow it.
        self.lost = self.lost || control::send(&self.socket, message, &[]).is_err();
    }
}

/// What is needed to remove a box when its launcher exits.
pub(super) struct Orphan {
    pub(super) record: Record,
    pub(super) remove: bool,
}

/// Serves the launcher on a thread of its own. When the launcher exits, a VM without a box and a box that is removed
/// at its end exit at once, whatever the main thread does.
pub(super) fn serve_launcher(
    launcher: UnixStream,
    server: Server,
    orphan: Option<Orphan>,
) -> io::Result<()> {
    let threads = server.threads.clone();
    threads.spawn("launcher", move || {
        server.serve(&launcher);
        match orphan {
            None => std::process::exit(0),
            Some(orphan) if orphan.remove && !server.outlives.load(Ordering::SeqCst) => {
                orphan.record.event(EventKind::Stopped { code: None });
                orphan.record.remove();
                orphan.record.flush();
                std::process::exit(0)
            }
            Some(_) => {
                let _ = server.inbox.send(Message::LauncherGone);
            }
        }
    })?;
    Ok(())
}
