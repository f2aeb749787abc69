//! A vCPU's thread: runs the guest, hands its exits to the buses, counts them, and stands still
//! while the machine is paused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use boxlite_devices::Bus;
use boxlite_hv::{BootState, Exit, Result, Vcpu, Vm};

use super::build::{Said, Stop, Tell};
use super::control::ExitCounts;

/// What the vCPUs of a machine share.
pub(super) struct Shared<V> {
    pub(super) vm: Arc<V>,
    pub(super) mmio: Arc<Bus>,
    pub(super) pio: Arc<Bus>,
    /// Says when the vCPUs are to stand still or to end.
    pub(super) gate: Gate,
    pub(super) tell: Tell,
    /// All vCPUs exist before the first one runs: it may start the others at once.
    pub(super) all_bound: Barrier,
    /// One for each vCPU.
    pub(super) counters: Vec<Counters>,
}

/// Counts of one vCPU, which alone writes them, on a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Counters {
    mmio: AtomicU64,
    pio: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    /// The counts now.
    pub(super) fn get(&self) -> ExitCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExitCounts { mmio: get(&self.mmio), pio: get(&self.pio), other: get(&self.other) }
    }
}

/// One more. There is one writer, so that no locked instruction is needed on the way of every exit.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Where vCPUs wait while the machine is paused. Whoever closes it kicks them out of the guest.
#[derive(Debug)]
pub(super) struct Gate {
    /// Whether a vCPU has to look at the state before it runs on.
    closed: AtomicBool,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug)]
struct GateState {
    order: Order,
    /// vCPUs that are not in the guest and will not enter it while the order stands.
    waiting: usize,
    all: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Wait,
    End,
}

impl Gate {
    /// An open gate for so many vCPUs.
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            closed: AtomicBool::new(false),
            state: Mutex::new(GateState { order: Order::Run, waiting: 0, all: vcpus }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        let mut state = self.state();
        if state.order != Order::End {
            state.order = order;
            self.closed.store(order != Order::Run, Ordering::SeqCst);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// vCPUs stop here from now on.
    pub(super) fn close(&self) {
        self.order(Order::Wait);
    }

    /// They go on.
    pub(super) fn open(&self) {
        self.order(Order::Run);
    }

    /// They end here, for good.
    pub(super) fn end(&self) {
        self.order(Order::End);
    }

    /// Waits until no vCPU of a closed gate is in the guest any more, at most so long. Returns
    /// whether that is so.
    pub(super) fn all_wait(&self, limit: Duration) -> bool {
        let all = self.changed.wait_timeout_while(self.state(), limit, |state| {
            state.order == Order::Wait && state.waiting < state.all
        });
        let (state, _) = all.unwrap_or_else(PoisonError::into_inner);
        state.order == Order::Wait && state.waiting >= state.all
    }

    /// Before every entry into the guest: whether the vCPU is to run.
    fn pass(&self) -> bool {
        if !self.closed.load(Ordering::SeqCst) {
            return true;
        }
        let mut state = self.state();
        state.waiting += 1;
        self.changed.notify_all();
        while state.order == Order::Wait {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.order == Order::Run
    }

    /// A vCPU's thread ends: nobody has to wait for it.
    fn leave(&self) {
        let mut state = self.state();
        state.all = state.all.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }
}

/// Starts the thread of vCPU `id`.
pub(super) fn spawn<V: Vm>(
    shared: Arc<Shared<V>>,
    id: u32,
    boot: BootState,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
        let vcpu = shared.vm.bind_vcpu(id, &boot);
        shared.all_bound.wait();
        let result = vcpu.and_then(|mut vcpu| run(&shared, id, &mut vcpu));
        shared.gate.leave();
        if let Err(e) = result {
            (shared.tell)(Said::Stop(Stop::Failed(e.to_string())));
        }
    })
}

/// Runs until the guest ends itself or the machine is stopped.
fn run<V: Vm>(shared: &Shared<V>, id: u32, vcpu: &mut V::Vcpu) -> Result<()> {
    let nowhere = Counters::default();
    let counters = shared.counters.get(id as usize).unwrap_or(&nowhere);
    while shared.gate.pass() {
        match vcpu.run()? {
            Exit::MmioRead { gpa, data } => {
                count(&counters.mmio);
                shared.mmio.read(gpa, data);
            }
            Exit::MmioWrite { gpa, data } => {
                count(&counters.mmio);
                shared.mmio.write(gpa, data);
            }
            Exit::PioRead { port, data } => {
                count(&counters.pio);
                shared.pio.read(port.into(), data);
            }
            Exit::PioWrite { port, data } => {
                count(&counters.pio);
                shared.pio.write(port.into(), data);
            }
            Exit::Shutdown | Exit::Reset => {
                count(&counters.other);
                (shared.tell)(Said::Stop(Stop::Guest));
                return Ok(());
            }
            Exit::Kicked => count(&counters.other),
            other => {
                count(&counters.other);
                tracing::warn!(exit = ?other, "vCPU exit ignored");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "vcpu_tests.rs"]
mod tests;
