//! What the main thread of a box's process is told, and the way of its answers.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use boxlite_contract::control::{FromMachine, ToMachine};

use crate::hub::Note;
use crate::vm_event::VmEvent;

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The machine of this boot said something.
    Machine(u64, VmEvent),
    /// The hub said something.
    Hub(Note),
    /// A thread that is not the machine's alone failed, and why.
    Broken(String),
    /// Somebody asks for something, and is to be answered.
    Asked(ToMachine, Reply),
    /// Somebody asked for this end of the box, and has been answered that it begins.
    Answered(ToMachine),
    /// The launcher is gone.
    LauncherGone,
    /// The process is to end.
    Terminate,
}

/// Answers that were given and have not left: the process waits for them before it ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unsent(Arc<(Mutex<usize>, Condvar)>);

impl Unsent {
    pub(crate) fn change(&self, f: impl FnOnce(&mut usize)) {
        let (count, changed) = &*self.0;
        f(&mut count.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    /// Waits until all have left, at most so long.
    pub(crate) fn wait(&self, limit: Duration) {
        let (count, changed) = &*self.0;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has not taken its answer by then will see the end of the connection.
        let _ = changed.wait_timeout_while(count, limit, |count| *count > 0);
    }
}

/// The way of an answer.
#[derive(Debug)]
pub(crate) struct Reply(SyncSender<FromMachine>, Unsent);

impl Reply {
    pub(crate) fn new(to: SyncSender<FromMachine>, unsent: Unsent) -> Self {
        Self(to, unsent)
    }

    pub(crate) fn send(self, answer: FromMachine) {
        self.1.change(|count| *count += 1);
        if self.0.send(answer).is_err() {
            self.1.change(|count| *count -= 1);
        }
    }
}
