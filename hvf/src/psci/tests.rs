use proptest::prelude::*;

use super::status::*;
use super::*;

const VCPUS: usize = 4;
/// The bit of MPIDR_EL1 that reads as one.
const RES1: u64 = 1 << 31;

/// A VM whose first vCPU runs.
fn booted(vcpus: usize) -> Psci {
    let mut psci = Psci::new((0..vcpus as u64).map(|id| id | RES1));
    psci.set_power(0, Power::On);
    psci
}

fn call(psci: &mut Psci, caller: usize, function: u32, arguments: [u64; 3]) -> Action {
    let [x1, x2, x3] = arguments;
    psci.call(caller, Call::new([function.into(), x1, x2, x3]))
}

#[test]
fn linux_finds_its_firmware() {
    let mut psci = booted(1);
    let mut ask = |function, argument| call(&mut psci, 0, function, [argument, 0, 0]);
    assert_eq!(ask(0x8400_0000, 0), Action::Return(0x1_0001), "PSCI_VERSION");
    assert_eq!(ask(0x8400_0006, 0), Action::Return(2), "MIGRATE_INFO_TYPE");
    assert_eq!(ask(0x8400_000a, 0x8000_0000), Action::Return(0), "FEATURES of SMCCC_VERSION");
    assert_eq!(ask(0x8000_0000, 0), Action::Return(0x1_0001), "SMCCC_VERSION");
    for present in [0x8400_0003, 0xc400_0003, 0x8400_0001, 0xc400_0012, 0x8400_0008] {
        assert_eq!(ask(0x8400_000a, present), Action::Return(SUCCESS), "{present:#x}");
    }
    // MIGRATE, SYSTEM_SUSPEND, and 64-bit forms that do not exist.
    for absent in [0x8400_0005, 0xc400_000e, 0xc400_0002, 0xc400_0008, 0x8000_0001, 0] {
        assert_eq!(ask(0x8400_000a, absent), Action::Return(NOT_SUPPORTED), "{absent:#x}");
    }
}

#[test]
fn no_workaround_is_offered() {
    let mut psci = booted(1);
    for workaround in [0x8000_8000, 0x8000_7fff, 0x8000_3fff] {
        let features = call(&mut psci, 0, 0x8000_0001, [workaround, 0, 0]);
        assert_eq!(features, Action::Return(NOT_SUPPORTED));
        let called = call(&mut psci, 0, workaround as u32, [0; 3]);
        assert_eq!(called, Action::Return(NOT_SUPPORTED));
    }
}

#[test]
fn a_vcpu_starts_once() {
    let mut psci = booted(2);
    let on = [1 | RES1, 0x8000_0000, 7];
    assert_eq!(call(&mut psci, 0, 0xc400_0003, on), Action::Start(1));
    assert_eq!(call(&mut psci, 0, 0xc400_0003, on), Action::Return(ON_PENDING));
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [1, 0, 0]), Action::Return(2), "pending");
    let start = Start { entry: 0x8000_0000, context: 7 };
    assert_eq!(psci.take_start(1), Some(start));
    assert_eq!(psci.take_start(1), None);
    assert_eq!(call(&mut psci, 0, 0xc400_0003, on), Action::Return(ALREADY_ON));
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [1, 0, 0]), Action::Return(0), "on");
    assert_eq!(call(&mut psci, 1, 0x8400_0002, [0; 3]), Action::Park);
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [1, 0, 0]), Action::Return(1), "off");
    assert_eq!(call(&mut psci, 0, 0xc400_0003, on), Action::Start(1));
}

#[test]
fn bad_arguments_are_named() {
    let mut psci = booted(2);
    let unknown = call(&mut psci, 0, 0xc400_0003, [2, 0x8000_0000, 0]);
    assert_eq!(unknown, Action::Return(INVALID_PARAMETERS));
    let misaligned = call(&mut psci, 0, 0xc400_0003, [1, 0x8000_0001, 0]);
    assert_eq!(misaligned, Action::Return(INVALID_ADDRESS));
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [9, 0, 0]), Action::Return(INVALID_PARAMETERS));
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [0, 4, 0]), Action::Return(INVALID_PARAMETERS));
    assert_eq!(call(&mut psci, 0, 0xc400_0004, [7, 1, 0]), Action::Return(0), "a cluster is on");
    let vendor = call(&mut psci, 0, 0xc400_0012, [1 << 31, 0, 0]);
    assert_eq!(vendor, Action::Return(INVALID_PARAMETERS));
}

#[test]
fn calls_of_32_bits_take_the_lower_halves() {
    let mut psci = booted(2);
    let high = 0xdead << 32;
    let action = call(&mut psci, 0, 0x8400_0003, [high | 1, high | 0x8000_0000, high | 5]);
    assert_eq!(action, Action::Start(1));
    assert_eq!(psci.take_start(1), Some(Start { entry: 0x8000_0000, context: 5 }));
    assert_eq!(Call::new([high | 0x8400_0000, 0, 0, 0]).function, 0x8400_0000);
}

#[test]
fn the_system_stops_with_all_vcpus_off() {
    let cases = [
        (0x8400_0008, Action::SystemOff),
        (0x8400_0009, Action::SystemReset),
        (0xc400_0012, Action::SystemReset),
    ];
    for (function, action) in cases {
        let mut psci = booted(2);
        psci.set_power(1, Power::Pending(Start { entry: 0, context: 0 }));
        assert_eq!(call(&mut psci, 0, function, [0; 3]), action);
        assert_eq!([0, 1].map(|id| psci.power(id)), [Power::Off; 2]);
        assert_eq!(psci.take_start(1), None);
    }
}

/// What happens to a VM in a property test.
#[derive(Clone, Debug)]
enum Event {
    Call(usize, [u64; 4]),
    Started(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let known = prop_oneof![
        4 => Just(0xc400_0003u64),
        2 => Just(0x8400_0002),
        1 => Just(0xc400_0004),
        1 => 0x8400_0000..0x8400_0020u64,
        1 => 0xc400_0000..0xc400_0020u64,
        1 => any::<u64>(),
    ];
    let target = prop_oneof![4 => 0..VCPUS as u64 + 1, 1 => any::<u64>()];
    let entry = prop_oneof![4 => Just(0x8000_0000u64), 1 => any::<u64>()];
    prop_oneof![
        3 => (0..VCPUS, known, target, entry, any::<u64>())
            .prop_map(|(caller, x0, x1, x2, x3)| Event::Call(caller, [x0, x1, x2, x3])),
        1 => (0..VCPUS).prop_map(Event::Started),
    ]
}

/// Whether this is the vCPU's own power-off, or the VM's.
fn turns_off(action: Action) -> bool {
    matches!(action, Action::Park | Action::SystemOff | Action::SystemReset)
}

proptest! {
    /// Between two power-offs of a vCPU, CPU_ON succeeds once; and none is lost: what is off can be started, and
    /// what was started runs.
    #[test]
    fn no_vcpu_starts_twice_or_is_lost(events in prop::collection::vec(event(), 0..200)) {
        let mut psci = booted(VCPUS);
        let mut started = [false; VCPUS];
        started[0] = true;
        for event in events {
            match event {
                Event::Call(caller, registers) if psci.power(caller) == Power::On => {
                    match psci.call(caller, Call::new(registers)) {
                        Action::Start(vcpu) => {
                            prop_assert!(!started[vcpu], "vCPU {} started twice", vcpu);
                            started[vcpu] = true;
                        }
                        Action::Park => started[caller] = false,
                        action if turns_off(action) => started = [false; VCPUS],
                        action => prop_assert!(matches!(action, Action::Return(_))),
                    }
                }
                Event::Call(..) => {}
                Event::Started(vcpu) => {
                    let pending = matches!(psci.power(vcpu), Power::Pending(_));
                    prop_assert_eq!(psci.take_start(vcpu).is_some(), pending);
                }
            }
            for (vcpu, started) in started.iter().enumerate() {
                prop_assert_eq!(psci.power(vcpu) != Power::Off, *started);
            }
        }
        for vcpu in (0..VCPUS).filter(|&vcpu| !started[vcpu]) {
            let on = Call { function: 0xc400_0003, arguments: [vcpu as u64, 0x8000_0000, 0] };
            prop_assert_eq!(psci.clone().call(0, on), Action::Start(vcpu));
        }
    }

    #[test]
    fn every_call_has_an_answer(registers: [u64; 4], caller in 0..VCPUS + 2) {
        let action = booted(VCPUS).call(caller, Call::new(registers));
        if !is_supported(registers[0] as u32) {
            prop_assert_eq!(action, Action::Return(NOT_SUPPORTED));
        }
    }
}
