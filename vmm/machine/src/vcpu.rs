//! A vCPU's thread: runs the guest, dispatches its exits to the buses, counts them, and waits while the VM is
//! paused.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use boxlite_contract::metrics::VmExitCounts;
use boxlite_devices::LogBudget;
use boxlite_hv::{BootState, Error, Exit, Result, Vcpu, Vm};

use super::threads::Threads;
use super::vm_event::{EventSink, VmEvent, VmStop};
use crate::arch::Buses;

/// Timeout for the creation of a vCPU's predecessors. It takes milliseconds, but the host may be busy.
const BIND_LIMIT: Duration = Duration::from_secs(60);

/// What the vCPUs of a VM share.
pub(super) struct Shared<V> {
    pub(super) vm: Arc<V>,
    pub(super) buses: Buses,
    /// Where the vCPUs wait or end.
    pub(super) gate: Gate,
    pub(super) events: EventSink,
    pub(super) log: LogBudget,
    /// One for each vCPU.
    pub(super) counters: Vec<Counters>,
}

/// Exit counters of one vCPU, on a cache line of their own. Only the vCPU's thread writes them.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Counters {
    mmio: AtomicU64,
    pio: AtomicU64,
    other: AtomicU64,
}

impl Counters {
    /// The current counts.
    pub(super) fn get(&self) -> VmExitCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut counts = VmExitCounts::default();
        counts.mmio = get(&self.mmio);
        counts.pio = get(&self.pio);
        counts.other = get(&self.other);
        counts
    }
}

/// Increments a counter. There is one writer, so an exit needs no locked instruction.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Where vCPUs wait while the VM is paused, and until all of them exist, as the first may start the others at once.
/// After closing the gate, the caller kicks the vCPUs out of the guest.
#[derive(Debug)]
pub(super) struct Gate {
    /// Whether a vCPU has to check the state before it enters the guest.
    closed: AtomicBool,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug)]
struct GateState {
    order: Order,
    /// vCPUs that are outside the guest and stay there while the gate is closed.
    waiting: usize,
    /// vCPUs whose threads have not ended.
    all: usize,
    /// vCPUs that exist: those with a lower ID than this.
    bound: u32,
    vcpus: u32,
}

impl GateState {
    fn is_closed(&self) -> bool {
        self.order != Order::Run || self.bound < self.vcpus
    }
}

/// What a vCPU at the gate is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Run,
    /// Run, after a pause of the VM.
    Resume,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Wait,
    End,
}

impl Gate {
    /// A gate that opens when this many vCPUs exist.
    pub(super) fn new(vcpus: u32) -> Self {
        let all = vcpus as usize;
        let state = GateState { order: Order::Run, waiting: 0, all, bound: 0, vcpus };
        Self {
            closed: AtomicBool::new(state.is_closed()),
            state: Mutex::new(state),
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
            self.closed.store(state.is_closed(), Ordering::SeqCst);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Makes vCPUs wait from now on.
    pub(super) fn close(&self) {
        self.order(Order::Wait);
    }

    /// Lets vCPUs run again.
    pub(super) fn open(&self) {
        self.order(Order::Run);
    }

    /// Makes vCPUs end, for good.
    pub(super) fn end(&self) {
        self.order(Order::End);
    }

    /// Waits until all vCPUs have left the guest, for `limit` at most. Returns whether they have and the gate is still
    /// closed.
    pub(super) fn all_wait(&self, limit: Duration) -> bool {
        let all = self.changed.wait_timeout_while(self.state(), limit, |state| {
            state.order == Order::Wait && state.waiting < state.all
        });
        let (state, _) = all.unwrap_or_else(PoisonError::into_inner);
        state.order == Order::Wait && state.waiting >= state.all
    }

    /// Called before every entry into the guest: waits if the gate is closed, and returns what to do.
    fn pass(&self) -> Pass {
        if !self.closed.load(Ordering::SeqCst) {
            return Pass::Run;
        }
        let mut state = self.state();
        let mut paused = false;
        state.waiting += 1;
        self.changed.notify_all();
        while state.order != Order::End && state.is_closed() {
            paused |= state.order == Order::Wait;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        match state.order {
            Order::End => Pass::End,
            _ if paused => Pass::Resume,
            _ => Pass::Run,
        }
    }

    /// Waits until it is the turn of vCPU `id` to be created, for [`BIND_LIMIT`] at most. Returns whether it is to be
    /// created.
    fn turn(&self, id: u32) -> Result<bool> {
        let turn = self.changed.wait_timeout_while(self.state(), BIND_LIMIT, |state| {
            state.order != Order::End && state.bound < id
        });
        let (state, timeout) = turn.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let reason = format!("vCPU {} was not created in time", state.bound);
            return Err(Error::Vcpu { id, reason });
        }
        Ok(state.order != Order::End)
    }

    /// Counts a vCPU that has been created, and lets the next one be created.
    fn bound(&self) {
        let mut state = self.state();
        state.bound += 1;
        self.closed.store(state.is_closed(), Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// Removes a vCPU whose thread ends, so that nothing waits for it.
    fn leave(&self) {
        let mut state = self.state();
        state.all = state.all.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }
}

/// Removes a vCPU from the gate when its thread ends, also by a panic.
struct GateGuard<'g>(&'g Gate);

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Starts the thread of vCPU `id`.
pub(super) fn spawn<V: Vm>(
    threads: &Threads,
    shared: Arc<Shared<V>>,
    id: u32,
    boot: BootState,
) -> std::io::Result<JoinHandle<()>> {
    threads.spawn(format!("vcpu{id}"), move || {
        let guard = GateGuard(&shared.gate);
        let result = bind_and_run(&shared, id, &boot);
        drop(guard);
        if let Err(e) = result {
            (shared.events)(VmEvent::Stop(VmStop::Failed(e.to_string())));
        }
    })
}

/// Creates the vCPU when the ones before it exist, and runs it.
fn bind_and_run<V: Vm>(shared: &Shared<V>, id: u32, boot: &BootState) -> Result<()> {
    if !shared.gate.turn(id)? {
        return Ok(());
    }
    let mut vcpu = shared.vm.bind_vcpu(id, boot)?;
    shared.gate.bound();
    run(shared, id, &mut vcpu)
}

/// Runs until the guest powers off or the VM is stopped.
fn run<V: Vm>(shared: &Shared<V>, id: u32, vcpu: &mut V::Vcpu) -> Result<()> {
    let nowhere = Counters::default();
    let counters = shared.counters.get(id as usize).unwrap_or(&nowhere);
    loop {
        match shared.gate.pass() {
            Pass::Run => {}
            Pass::Resume => vcpu.resumed(),
            Pass::End => return Ok(()),
        }
        #[cfg(test)]
        super::threads::fault::check();
        match vcpu.run()? {
            Exit::MmioRead { gpa, data } => {
                count(&counters.mmio);
                shared.buses.mmio.read(gpa, data);
            }
            Exit::MmioWrite { gpa, data } => {
                count(&counters.mmio);
                shared.buses.mmio.write(gpa, data);
            }
            Exit::PioRead { port, data } => {
                count(&counters.pio);
                shared.buses.pio.read(port.into(), data);
            }
            Exit::PioWrite { port, data } => {
                count(&counters.pio);
                shared.buses.pio.write(port.into(), data);
            }
            Exit::Shutdown | Exit::Reset => {
                count(&counters.other);
                (shared.events)(VmEvent::Stop(VmStop::Guest));
                return Ok(());
            }
            Exit::Kicked => count(&counters.other),
            other => {
                count(&counters.other);
                shared.log.warn(format_args!("vCPU {id}: exit {other:?} is ignored"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
