//! The queue engine with drivers that follow the specification, and with hostile ones.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::LogBudget;
use crate::log_budget::testing::assert_bounded;
use crate::virtio::QueueInterrupt;
use crate::virtio::testing::{DATA, Layout, Line, MEMORY_END, Ring, memory};

const SIZE: u16 = 16;

/// Both ends of a queue, with its interrupt.
struct Pair {
    memory: Arc<GuestMemory>,
    driver: Ring,
    queue: Virtqueue,
    notifier: Notifier,
    line: Line,
    interrupt: QueueInterrupt,
    log: LogBudget,
}

impl Pair {
    fn new(event_idx: bool) -> Self {
        let (memory, line) = (memory(), Line::default());
        let mut driver = Ring::new(Layout::of(0), SIZE, event_idx);
        let interrupt = QueueInterrupt::new(line.interrupt());
        let log = LogBudget::default();
        let notifier = Notifier::new("device", interrupt.clone(), log.clone());
        let queue = Virtqueue::new("test", driver.queue(&memory), 0);
        Self { memory, driver, queue, notifier, line, interrupt, log }
    }

    /// The driver adds a chain of one descriptor. Returns whether it notifies.
    fn offer(&mut self) -> bool {
        self.driver.publish(&self.memory, &[(DATA, 64)], true)
    }

    fn offer_all(&mut self, count: usize) {
        for _ in 0..count {
            self.offer();
        }
    }

    /// The device uses all chains of a turn. Returns their number.
    fn serve(&mut self, budget: usize) -> usize {
        self.queue.begin_turn(budget);
        let heads =
            std::iter::from_fn(|| self.queue.pop(&self.memory)).map(Descriptors::head_index);
        let heads = heads.collect::<Vec<_>>();
        for head in &heads {
            self.queue.add_used(&self.memory, *head, 64);
        }
        heads.len()
    }

    fn finish(&mut self) -> Result<(), NeedsReset> {
        self.notifier.finish(&self.memory, &mut [&mut self.queue])
    }

    /// The driver takes all used chains. Returns their number.
    fn reap(&mut self) -> usize {
        let used = std::iter::from_fn(|| self.driver.take_used(&self.memory)).collect::<Vec<_>>();
        let count = used.len();
        used.into_iter().for_each(|(ids, _)| self.driver.recycle(ids));
        count
    }

    fn raised(&self) -> u32 {
        self.line.raised()
    }
}

#[test]
fn a_turn_takes_no_more_than_its_budget() {
    let mut pair = Pair::new(true);
    pair.offer_all(10);
    assert_eq!(pair.serve(4), 4);
    assert!(pair.queue.is_turn_over(), "the driver does not notify of chains that are left");
    assert_eq!(pair.serve(6), 6);
    assert!(pair.queue.is_turn_over(), "the queue was not checked again after the last chain");
    assert_eq!(pair.serve(1), 0);
    assert!(!pair.queue.is_turn_over());
    assert!(pair.offer(), "the driver notifies of the next one");
}

#[test]
fn chains_that_are_put_back_are_taken_again_without_cost() {
    let mut pair = Pair::new(false);
    pair.offer_all(4);
    pair.queue.begin_turn(4);
    let take = |pair: &mut Pair| pair.queue.take(&pair.memory).map(Descriptors::head_index);
    let first = [0; 3].map(|_| take(&mut pair).unwrap());
    for _ in 0..100 {
        pair.queue.put_back(3);
        assert_eq!([0; 3].map(|_| take(&mut pair).unwrap()), first);
    }
    assert!(take(&mut pair).is_some());
    assert!(take(&mut pair).is_none() && pair.queue.is_turn_over());
}

#[test]
fn a_chain_added_while_notifications_are_enabled_is_seen() {
    for event_idx in [false, true] {
        let mut pair = Pair::new(event_idx);
        pair.queue.begin_turn(8);
        assert!(pair.queue.take(&pair.memory).is_none());
        pair.queue.disarm(&pair.memory);
        pair.offer();
        assert!(pair.queue.arm(&pair.memory), "EVENT_IDX {event_idx}");
        assert!(pair.queue.pop(&pair.memory).is_some());
    }
}

#[test]
fn a_resumed_queue_interrupts_for_chains_used_before() {
    let mut pair = Pair::new(true);
    pair.offer_all(2);
    pair.serve(1);
    // The device loses the queue before it sends the interrupt that the driver waits for.
    let queue = std::mem::replace(&mut pair.queue, Virtqueue::new("x", Queue::new(1).unwrap(), 0));
    pair.queue = Virtqueue::new("test", queue.into_queue(), 0);
    pair.serve(1);
    pair.finish().unwrap();
    assert_eq!(pair.raised(), 1);
}

#[test]
fn a_broken_queue_is_empty_and_reported_once() {
    let breaks: [fn(&mut Pair); 2] = [
        |pair| pair.driver.break_available_index(&pair.memory),
        |pair| assert!(pair.driver.make_available(&pair.memory, SIZE)),
    ];
    for break_queue in breaks {
        let mut pair = Pair::new(true);
        break_queue(&mut pair);
        assert_eq!(pair.serve(8), 0);
        assert!(!pair.queue.is_turn_over() && !pair.interrupt.has_failed());
        assert_eq!(pair.finish(), Err(NeedsReset));
        assert!(pair.interrupt.has_failed());
        assert_eq!(pair.raised(), 1);
        pair.offer();
        for _ in 0..3 {
            assert_eq!(pair.serve(8), 0);
            pair.queue.add_used(&pair.memory, 0, 1);
            assert_eq!(pair.finish(), Err(NeedsReset));
        }
        assert_eq!((pair.raised(), pair.reap()), (1, 0));
        assert_bounded(&pair.log, 1);
    }
}

#[test]
fn a_queue_that_is_not_ready_is_empty() {
    let mut pair = Pair::new(true);
    pair.offer();
    pair.queue = Virtqueue::new("test", Queue::new(SIZE).unwrap(), 0);
    assert_eq!(pair.serve(8), 0);
    assert!(!pair.queue.arm(&pair.memory) && !pair.queue.is_turn_over());
    pair.queue.add_used(&pair.memory, 0, 1);
    assert_eq!(pair.finish(), Ok(()));
    assert_eq!(pair.raised(), 0);
}

/// A step of an honest driver or its device.
#[derive(Clone, Debug)]
enum Step {
    Offer,
    Serve(usize),
    Finish,
    Reap,
    /// The driver waits for an interrupt.
    Wait,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Offer),
        3 => (1..20usize).prop_map(Step::Serve),
        2 => Just(Step::Finish),
        2 => Just(Step::Reap),
        1 => Just(Step::Wait),
    ]
}

/// A write of a hostile driver to the rings, or a step of the device.
#[derive(Clone, Debug)]
enum Attack {
    Store { address: u64, value: u16 },
    BeginTurn(usize),
    Pop,
    Take,
    PutBack,
    AddUsed { all: bool },
    Arm,
    Disarm,
    Finish,
}

fn any_attack() -> impl Strategy<Value = Attack> {
    let (layout, rings) = (Layout::of(0), u64::from(SIZE));
    let address = prop_oneof![
        4 => Just(layout.available + INDEX),
        2 => (0..rings).prop_map(move |slot| layout.available + ELEMENTS + AVAIL_ELEMENT * slot),
        1 => Just(layout.available + FLAGS),
        1 => Just(layout.available + ELEMENTS + AVAIL_ELEMENT * rings),
        1 => Just(layout.used + INDEX),
        1 => Just(layout.used + ELEMENTS + USED_ELEMENT * rings),
    ];
    let value = prop_oneof![8 => 0..SIZE, 2 => 0..2 * SIZE, 1 => any::<u16>()];
    prop_oneof![
        8 => (address, value).prop_map(|(address, value)| Attack::Store { address, value }),
        3 => (0..40usize).prop_map(Attack::BeginTurn),
        6 => Just(Attack::Pop),
        4 => Just(Attack::Take),
        1 => Just(Attack::PutBack),
        4 => any::<bool>().prop_map(|all| Attack::AddUsed { all }),
        1 => Just(Attack::Arm),
        1 => Just(Attack::Disarm),
        2 => Just(Attack::Finish),
    ]
}

/// The content of guest memory outside of the queue's rings.
fn outside_memory(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY_END as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let rings = Layout::of(0).table as usize;
    bytes.drain(rings..rings + Layout::LEN as usize);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No chain, notification or interrupt is lost.
    #[test]
    fn an_honest_driver_is_served(event_idx: bool, steps in prop::collection::vec(any_step(), 0..300)) {
        let mut pair = Pair::new(event_idx);
        // Chains that the device has not taken, and used chains that the driver has not taken.
        let (mut offered, mut used) = (0, 0);
        // The driver notified, or the device has another turn anyway.
        let mut rung = false;
        // The driver waits for an interrupt, and one is due.
        let (mut waits, mut due) = (false, false);
        for step in steps {
            let raised = pair.raised();
            match step {
                Step::Offer if pair.driver.free.is_empty() => {}
                Step::Offer => {
                    rung |= pair.offer();
                    offered += 1;
                    prop_assert!(rung, "the device missed a chain");
                }
                Step::Serve(budget) if rung => {
                    let served = pair.serve(budget);
                    rung = pair.queue.is_turn_over();
                    prop_assert!(served <= budget);
                    prop_assert!(rung || served == offered);
                    offered -= served;
                    used += served;
                    due |= waits && served > 0;
                }
                Step::Serve(_) => prop_assert_eq!(offered, 0),
                Step::Finish => {
                    pair.finish().unwrap();
                    prop_assert!(!due || pair.raised() > raised, "the driver missed an interrupt");
                    waits &= !due;
                    due = false;
                }
                Step::Reap => {
                    prop_assert_eq!(pair.reap(), used);
                    used = 0;
                }
                Step::Wait => {
                    waits = pair.driver.ask_for_interrupt(&pair.memory);
                    due = false;
                    prop_assert_eq!(waits, used == 0);
                }
            }
        }
        prop_assert!(!pair.interrupt.has_failed());
    }

    /// Nothing panics, heads are in the queue, a turn is bounded, and no other memory changes.
    #[test]
    fn any_rings_are_survived(
        event_idx: bool,
        attacks in prop::collection::vec(any_attack(), 0..400),
    ) {
        let mut pair = Pair::new(event_idx);
        pair.memory.write_slice(&[0x5a; 0x1000], GuestAddress(DATA)).unwrap();
        let before = outside_memory(&pair.memory);
        let (mut left, mut taken, mut heads) = (0, 0, VecDeque::new());
        for attack in attacks {
            match attack {
                Attack::Store { address, value } => {
                    pair.memory.write_obj(value, GuestAddress(address)).unwrap();
                }
                Attack::BeginTurn(budget) => {
                    pair.queue.begin_turn(budget);
                    (left, taken) = (budget, 0);
                }
                Attack::Pop | Attack::Take => {
                    let chain = match attack {
                        Attack::Pop => pair.queue.pop(&pair.memory),
                        _ => pair.queue.take(&pair.memory),
                    };
                    if let Some(chain) = chain {
                        prop_assert!(chain.head_index() < SIZE);
                        prop_assert!(left > 0, "beyond the budget");
                        (left, taken) = (left - 1, taken + 1);
                        heads.push_back(chain.head_index());
                    }
                }
                Attack::PutBack => {
                    pair.queue.put_back(taken);
                    (left, taken) = (left + taken, 0);
                }
                Attack::AddUsed { all: false } => {
                    if let Some(head) = heads.pop_front() {
                        pair.queue.add_used(&pair.memory, head, u32::MAX);
                    }
                }
                Attack::AddUsed { all: true } => {
                    let all = std::mem::take(&mut heads).into_iter().map(|head| (head, 1));
                    pair.queue.add_all_used(&pair.memory, all);
                }
                Attack::Arm => {
                    pair.queue.arm(&pair.memory);
                }
                Attack::Disarm => pair.queue.disarm(&pair.memory),
                Attack::Finish => {
                    let failed = pair.finish().is_err();
                    prop_assert_eq!(failed, pair.interrupt.has_failed());
                }
            }
        }
        prop_assert!(outside_memory(&pair.memory) == before);
        prop_assert!(pair.log.spent().0 <= 1);
    }
}
