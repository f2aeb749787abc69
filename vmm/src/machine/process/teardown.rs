//! Taking a box's machine down, in bounded time.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::{Input, Machine, Process};
use crate::backend;

/// How long a machine may take to be taken down, and one that is killed.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(60);
const KILL_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks whether it has become one that is killed.
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
        let begun = Instant::now();
        let (done, stopped) = sync_channel::<()>(1);
        let work = move || {
            machine.stop();
            let _ = done.send(());
        };
        let spawned = self.threads.spawn("teardown", work);
        let result = loop {
            match stopped.recv_timeout(TEARDOWN_PAUSE) {
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < self.patience() => {}
                result => break result,
            }
        };
        if spawned.is_err() || result.is_err() {
            self.hangs = true;
            let why =
                "a disk of the box hangs in the host's kernel, or a thread of its machine does";
            // It is refused only in states that cannot be refused anything.
            let _ = self.life.on(Input::Broken(why.into()), Instant::now());
        }
    }

    /// How long a machine may take to be taken down: what the guest has written goes to its disks.
    fn patience(&self) -> Duration {
        match self.killed.load(Ordering::SeqCst) {
            true => KILL_LIMIT,
            false => TEARDOWN_LIMIT,
        }
    }
}
