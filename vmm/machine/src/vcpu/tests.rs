//! Tests of the gate with threads in place of vCPUs; the tests of the process use real ones.

use std::thread;

use super::*;

const LIMIT: Duration = Duration::from_secs(120);

/// A gate whose vCPUs all exist.
fn bound(vcpus: u32) -> Gate {
    let gate = Gate::new(vcpus);
    (0..vcpus).for_each(|_| gate.bound());
    gate
}

#[test]
fn the_gate_opens_when_all_vcpus_exist_or_ends() {
    let gate = Arc::new(Gate::new(2));
    let other = gate.clone();
    let first = thread::spawn(move || {
        let _guard = GateGuard(&other);
        other.bound();
        other.pass() == Pass::Run
    });
    // The second vCPU fails before it exists: the first waits until the VM is taken down.
    let second = gate.clone();
    let panicked = thread::spawn(move || {
        let _guard = GateGuard(&second);
        panic!("no vCPU");
    });
    panicked.join().unwrap_err();
    gate.close();
    assert!(gate.all_wait(LIMIT));
    gate.open();
    assert!(!first.is_finished());
    gate.end();
    assert!(!first.join().unwrap(), "a machine that lacks a vCPU does not run");
}

#[test]
fn a_closed_gate_holds_all_until_it_opens() {
    let gate = Arc::new(bound(3));
    let passed = Arc::new(AtomicU64::new(0));
    let vcpus: Vec<_> = (0..3)
        .map(|_| {
            let (gate, passed) = (gate.clone(), passed.clone());
            thread::spawn(move || {
                while gate.pass() != Pass::End {
                    passed.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                }
                gate.leave();
            })
        })
        .collect();
    for _ in 0..20 {
        gate.close();
        assert!(gate.all_wait(LIMIT));
        let before = passed.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(passed.load(Ordering::SeqCst), before);
        gate.open();
        while passed.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
    }
    gate.close();
    gate.end();
    gate.open();
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
}

#[test]
fn all_wait_ignores_ended_vcpus_and_times_out() {
    let gate = bound(2);
    gate.close();
    assert!(!gate.all_wait(Duration::from_millis(10)));
    gate.leave();
    gate.leave();
    assert!(gate.all_wait(LIMIT));
}

/// A VM whose vCPUs only count their calls.
#[derive(Clone, Default)]
struct Fake {
    resumed: Arc<AtomicU64>,
    /// The vCPUs that have run, one bit each.
    ran: Arc<AtomicU64>,
    /// The vCPUs in the order of their creation.
    bound: Arc<Mutex<Vec<u32>>>,
}

/// A vCPU whose exits are kicks.
struct FakeVcpu {
    id: u32,
    machine: Fake,
}

impl Vm for Fake {
    type Vcpu = FakeVcpu;
    type State = ();

    #[allow(unsafe_code)]
    unsafe fn map(&self, _: u64, _: *mut u8, _: usize, _: boxlite_hv::Perms) -> Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn irq(&self, _: u32) -> Result<boxlite_hv::Interrupt> {
        Err(boxlite_hv::Error::Missing("interrupts"))
    }

    fn doorbell(&self, _: u64) -> Option<boxlite_hv::Doorbell> {
        None
    }

    fn bind_vcpu(&self, id: u32, _: &BootState) -> Result<FakeVcpu> {
        self.bound.lock().unwrap().push(id);
        Ok(FakeVcpu { id, machine: self.clone() })
    }

    fn kick(&self, _: u32) -> Result<()> {
        Ok(())
    }

    fn save(&self) -> Result<()> {
        Ok(())
    }

    fn restore(&self, (): &()) -> Result<()> {
        Ok(())
    }
}

impl Vcpu for FakeVcpu {
    type State = ();

    fn run(&mut self) -> Result<Exit<'_>> {
        self.machine.ran.fetch_or(1 << self.id, Ordering::SeqCst);
        thread::yield_now();
        Ok(Exit::Kicked)
    }

    fn resumed(&mut self) {
        self.machine.resumed.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&mut self) -> Result<()> {
        Ok(())
    }

    fn restore(&mut self, (): &()) -> Result<()> {
        Ok(())
    }
}

fn shared(machine: &Fake, vcpus: u32) -> Shared<Fake> {
    Shared {
        vm: Arc::new(machine.clone()),
        buses: Buses::default(),
        gate: Gate::new(vcpus),
        events: Arc::new(|_| {}),
        log: LogBudget::default(),
        counters: Vec::new(),
    }
}

#[test]
fn every_vcpu_is_told_of_a_pause_once() {
    let machine = Fake::default();
    let resumed = machine.resumed.clone();
    let shared = Arc::new(shared(&machine, 2));
    let threads = Threads::new(|why| panic!("{why}"));
    let vcpus = [0, 1].map(|id| spawn(&threads, shared.clone(), id, BootState::Parked).unwrap());
    // A pause before a vCPU's first run does not count for it.
    while machine.ran.load(Ordering::SeqCst) != 0b11 {
        thread::yield_now();
    }
    for pauses in 1..=3 {
        shared.gate.close();
        assert!(shared.gate.all_wait(LIMIT));
        assert_eq!(resumed.load(Ordering::SeqCst), 2 * (pauses - 1));
        shared.gate.open();
        while resumed.load(Ordering::SeqCst) < 2 * pauses {
            thread::yield_now();
        }
    }
    shared.gate.end();
    vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    assert_eq!(resumed.load(Ordering::SeqCst), 6, "neither the start nor the end is a pause");
}

#[test]
fn vcpus_are_created_in_the_order_of_their_ids() {
    let machine = Fake::default();
    let shared = Arc::new(shared(&machine, 8));
    let threads = Threads::new(|why| panic!("{why}"));
    // The threads start in another order.
    let vcpus = [7, 2, 5, 0, 3, 6, 1, 4];
    let vcpus = vcpus.map(|id| spawn(&threads, shared.clone(), id, BootState::Parked).unwrap());
    while machine.ran.load(Ordering::SeqCst) != 0xff {
        thread::yield_now();
    }
    shared.gate.end();
    vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    assert_eq!(*machine.bound.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_vcpu_that_lacks_an_earlier_one_ends_with_the_vm() {
    let machine = Fake::default();
    let shared = Arc::new(shared(&machine, 2));
    let threads = Threads::new(|why| panic!("{why}"));
    let second = spawn(&threads, shared.clone(), 1, BootState::Parked).unwrap();
    shared.gate.end();
    second.join().unwrap();
    assert!(machine.bound.lock().unwrap().is_empty());
}

#[test]
fn counts_add_up() {
    let counters = [Counters::default(), Counters::default()];
    for _ in 0..3 {
        count(&counters[0].mmio);
        count(&counters[1].mmio);
        count(&counters[1].pio);
    }
    let sum: VmExitCounts = counters.iter().map(Counters::get).sum();
    assert_eq!((sum.mmio, sum.pio, sum.other), (6, 3, 0));
    assert!(std::mem::align_of::<Counters>() >= 64);
}
