//! vCPUs that wait outside the guest: until CPU_ON starts them, or for an interrupt.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::kick::Kicked;
use crate::psci::{Action, Call, Power, Psci, Start};

/// The power states of a VM's vCPUs, and the threads that wait for them.
#[derive(Debug)]
pub(super) struct PowerController {
    psci: Mutex<Psci>,
    changed: Condvar,
}

/// Why a vCPU stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// It is on.
    On,
    /// It is on from now, and starts here.
    Start(Start),
    /// It was kicked, and is off.
    Kicked,
}

impl PowerController {
    pub(super) fn new(psci: Psci) -> Self {
        Self { psci: Mutex::new(psci), changed: Condvar::new() }
    }

    fn psci(&self) -> MutexGuard<'_, Psci> {
        self.psci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn power(&self, id: u32) -> Power {
        self.psci().power(id as usize)
    }

    pub(super) fn set_power(&self, id: u32, power: Power) {
        self.psci().set_power(id as usize, power);
        self.changed.notify_all();
    }

    /// Handles a firmware call of vCPU `id`.
    pub(super) fn call(&self, id: u32, call: Call) -> Action {
        let action = self.psci().call(id as usize, call);
        if let Action::Start(_) = action {
            self.changed.notify_all();
        }
        action
    }

    /// Waits until vCPU `id` is on, or is kicked.
    pub(super) fn wait(&self, id: u32, kicked: &Kicked) -> Ready {
        let mut psci = self.psci();
        loop {
            if let Some(start) = psci.take_start(id as usize) {
                return Ready::Start(start);
            }
            if psci.power(id as usize) == Power::On {
                return Ready::On;
            }
            if kicked.take() {
                return Ready::Kicked;
            }
            psci = self.changed.wait(psci).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for `time` at most, for a kick or for anything else to change.
    pub(super) fn idle(&self, time: Duration, kicked: &Kicked) {
        let psci = self.psci();
        if !kicked.is_set() {
            drop(self.changed.wait_timeout(psci, time));
        }
    }

    /// Wakes all waiting vCPUs, after one was kicked. The lock makes sure that it either sees its kick or waits already.
    pub(super) fn wake(&self) {
        drop(self.psci());
        self.changed.notify_all();
    }
}
