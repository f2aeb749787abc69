//! The launcher of a box: what it is told, and what its end means.

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

/// A launcher that takes nothing for so long is told nothing more.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(1);

/// The way to the launcher.
pub(super) struct Launcher {
    socket: UnixStream,
    lost: bool,
}

impl Launcher {
    pub(super) fn new(socket: UnixStream) -> Self {
        // Without it a launcher that stands still could hold the box up.
        let lost = socket.set_write_timeout(Some(LAUNCHER_LIMIT)).is_err();
        Self { socket, lost }
    }

    pub(super) fn ended(&mut self, ended: &BoxEnd) {
        self.say(&FromMachine::Ended(ended.clone()));
    }

    pub(super) fn say(&mut self, message: &FromMachine) {
        // Half a message may have left: nothing can follow it.
        self.lost = self.lost || control::send(&self.socket, message, &[]).is_err();
    }
}

/// What a box does without its launcher.
pub(super) struct Orphan {
    pub(super) record: Record,
    pub(super) remove: bool,
}

/// Hears the launcher on a thread of its own. When it is gone a machine ends at once, whatever the
/// main thread does, and so does a box of which nothing is kept.
pub(super) fn hear_launcher(
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
