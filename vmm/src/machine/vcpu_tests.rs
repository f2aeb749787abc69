//! The gate by threads that stand for vCPUs; real ones are in the tests of the process.

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_closed_gate_holds_all_until_it_opens() {
    let gate = Arc::new(Gate::new(3));
    let passed = Arc::new(AtomicU64::new(0));
    let vcpus: Vec<_> = (0..3)
        .map(|_| {
            let (gate, passed) = (gate.clone(), passed.clone());
            thread::spawn(move || {
                while gate.pass() {
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
fn nobody_waits_for_a_vcpu_that_ended_or_for_ever() {
    let gate = Gate::new(2);
    gate.close();
    assert!(!gate.all_wait(Duration::from_millis(10)));
    gate.leave();
    gate.leave();
    assert!(gate.all_wait(LIMIT));
}

#[test]
fn counts_add_up() {
    let counters = [Counters::default(), Counters::default()];
    for _ in 0..3 {
        count(&counters[0].mmio);
        count(&counters[1].mmio);
        count(&counters[1].pio);
    }
    let sum: ExitCounts = counters.iter().map(Counters::get).sum();
    assert_eq!(sum, ExitCounts { mmio: 6, pio: 3, other: 0 });
    assert!(std::mem::align_of::<Counters>() >= 64);
}
