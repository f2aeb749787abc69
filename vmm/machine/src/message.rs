//! Messages to the main thread of a VM process, and its replies.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use boxlite_contract::control::{FromMachine, ToMachine};

use crate::hub::HubEvent;
use crate::vm_event::VmEvent;

/// A message to the main thread.
#[derive(Debug)]
pub(crate) enum Message {
    /// An event of the VM of the boot with this number.
    Vm(u64, VmEvent),
    /// An event of the hub.
    Hub(HubEvent),
    /// A thread of the process failed that is not the VM's, and why.
    ProcessFailed(String),
    /// A request, and where its reply goes.
    Request(ToMachine, Reply),
    /// A request to end the box, whose reply has been sent already.
    Acknowledged(ToMachine),
    /// The launcher exited.
    LauncherGone,
    /// The process received SIGTERM or SIGINT.
    Terminate,
}

/// The number of replies that have not been written to their connections: the process waits for them before it exits.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingReplies(Arc<(Mutex<usize>, Condvar)>);

impl PendingReplies {
    pub(crate) fn change(&self, f: impl FnOnce(&mut usize)) {
        let (count, changed) = &*self.0;
        f(&mut count.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// Waits until all replies are written, for `limit` at most.
    pub(crate) fn wait(&self, limit: Duration) {
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        // A client that has not taken its reply by then sees the end of the connection.
        let _ = changed.wait_timeout_while(count, limit, |count| *count > 0);
    }
}

/// Where the reply to a request goes.
#[derive(Debug)]
pub(crate) struct Reply(SyncSender<FromMachine>, PendingReplies);

impl Reply {
    pub(crate) fn new(to: SyncSender<FromMachine>, pending_replies: PendingReplies) -> Self {
        Self(to, pending_replies)
    }

    pub(crate) fn send(self, answer: FromMachine) {
        self.1.change(|count| *count += 1);
        if self.0.send(answer).is_err() {
            self.1.change(|count| *count -= 1);
        }
    }
}
