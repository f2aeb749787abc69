//! Takes a VM down in bounded time.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use boxlite_contract::control::TEARDOWN_LIMIT;

use super::{FromMachine, Input, Process, RunningVm, ToMachine};
use crate::backend;
use crate::message::Message;

/// Timeout for the teardown once a client has requested an end at once.
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two checks for such a request, and for messages.
const TEARDOWN_PAUSE: Duration = Duration::from_millis(100);

impl Process {
    pub(super) fn stop_vm(&mut self) {
        self.vsock.set(None);
        if let Some(vm) = self.vm.take() {
            self.past_counters = self.counters(&vm);
            self.take_down(vm);
        }
        if let Some(hub) = &self.hub {
            hub.disconnect();
        }
    }

    /// Stops a VM on a thread of its own: one of its disks may hang in the host's kernel, which no signal
    /// interrupts.
    fn take_down(&mut self, vm: RunningVm<backend::HostVm>) {
        let (done, stopped) = sync_channel::<()>(1);
        let work = move || {
            vm.stop();
            let _ = done.send(());
        };
        if self.threads.spawn("teardown", work).is_err() || !self.is_taken_down(&stopped) {
            self.teardown_failed = true;
            let why = "a disk of the box hangs in the host's kernel, or a thread of its VM does";
            // This input is never refused.
            let _ = self.lifecycle.on(Input::ProcessFailed(why.into()), Instant::now());
        }
    }

    /// Waits for the teardown, for a bounded time, and answers requests to end the box meanwhile. Returns whether
    /// the VM is down.
    fn is_taken_down(&mut self, stopped: &Receiver<()>) -> bool {
        let begun = Instant::now();
        let mut killed = None;
        loop {
            if self.killed.load(Ordering::SeqCst) {
                killed.get_or_insert_with(Instant::now);
            }
            match stopped.recv_timeout(TEARDOWN_PAUSE) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => self.answer_early(),
            }
            if begun.elapsed() >= TEARDOWN_LIMIT
                || killed.is_some_and(|killed| killed.elapsed() >= KILL_LIMIT)
            {
                return false;
            }
        }
    }

    /// Answers requests to end the box, since the end has begun or follows when the VM is down. Other messages wait.
    fn answer_early(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.send(FromMachine::Done);
        }
        while let Ok(message) = self.inbox.try_recv() {
            let message = match message {
                Message::Request(end @ (ToMachine::Stop { .. } | ToMachine::Kill), reply)
                    if self.hub.is_some() =>
                {
                    reply.send(FromMachine::Done);
                    Message::Acknowledged(end)
                }
                message => message,
            };
            self.deferred.push_back(message);
        }
    }
}
