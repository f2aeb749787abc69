//! Taking a box's machine down, in bounded time.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use boxlite_contract::control::TEARDOWN_LIMIT;

use super::{FromMachine, Input, Machine, Process, ToMachine};
use crate::backend;
use crate::message::Message;

/// The same from the moment that somebody wants an end at once.
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks whether that is so, and who asks for something.
const TEARDOWN_PAUSE: Duration = Duration::from_millis(100);

impl Process {
    pub(super) fn stop_machine(&mut self) {
        self.vsock.set(None);
        if let Some(machine) = self.machine.take() {
            self.past = self.counted(&machine);
            self.take_down(machine);
        }
        if let Some(hub) = &self.hub {
            hub.disconnect();
        }
    }

    /// Stops a machine on a thread of its own: one of its disks may hang in the host's kernel, and no
    /// signal ends that.
    fn take_down(&mut self, machine: Machine<backend::Machine>) {
        let (done, stopped) = sync_channel::<()>(1);
        let work = move || {
            machine.stop();
            let _ = done.send(());
        };
        if self.threads.spawn("teardown", work).is_err() || !self.is_done(&stopped) {
            self.hangs = true;
            let why =
                "a disk of the box hangs in the host's kernel, or a thread of its machine does";
            // It is refused only in states that cannot be refused anything.
            let _ = self.life.on(Input::ProcessFailed(why.into()), Instant::now());
        }
    }

    /// Waits for the end of the teardown a bounded time. Meanwhile whoever wants the box to end is answered.
    fn is_done(&mut self, stopped: &Receiver<()>) -> bool {
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

    /// Answers those who ask for an end: it has begun, or follows as soon as the machine is down. All else waits.
    fn answer_early(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply.send(FromMachine::Done);
        }
        while let Ok(message) = self.inbox.try_recv() {
            let message = match message {
                Message::Asked(end @ (ToMachine::Stop { .. } | ToMachine::Kill), reply)
                    if self.hub.is_some() =>
                {
                    reply.send(FromMachine::Done);
                    Message::Answered(end)
                }
                message => message,
            };
            self.late.push_back(message);
        }
    }
}
