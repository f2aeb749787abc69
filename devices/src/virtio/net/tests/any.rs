//! Property tests with arbitrary drivers.

use proptest::prelude::*;

use super::*;
use crate::BusDevice;
use crate::virtio::testing::any_write;
use virtio_queue::desc::split::Descriptor;

/// Lengths of the pieces of a buffer, in bytes.
fn any_cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![0..40usize, 0..3000usize], 1..8)
}

/// A step of a driver or a network.
#[derive(Clone, Debug)]
enum Step {
    Describe { queue: u32, index: u16, address: u64, len: u32, flags: u16, next: u16 },
    Offer { queue: u32, head: u16 },
    SetAvailable { queue: u32, index: u16 },
    SetUsedEvent { queue: u32, index: u16 },
    Header(Vec<u8>),
    Register((u64, Vec<u8>)),
    Restart(u64),
    Wake,
    Receive,
    Send(usize),
    Flush,
}

fn any_step() -> impl Strategy<Value = Step> {
    let queue = || 0..3u32;
    let head = || prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    let address = prop_oneof![
        8 => DATA..DATA + 0x1_0000,
        1 => MEMORY_END - 100..MEMORY_END + 100,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0..70_000u32, 4 => 0..100u32, 1 => any::<u32>()];
    // Mostly NEXT and WRITE; sometimes INDIRECT.
    let flags = prop_oneof![6 => 0..4u16, 1 => 0..8u16, 1 => any::<u16>()];
    let describe = (queue(), 0..SIZE, address, len, flags, head()).prop_map(
        |(queue, index, address, len, flags, next)| {
            // An indirect table is a multiple of 16 bytes long.
            let len = if flags & 4 != 0 { len & !15 } else { len };
            Step::Describe { queue, index, address, len, flags, next }
        },
    );
    prop_oneof![
        12 => describe,
        8 => (queue(), head()).prop_map(|(queue, head)| Step::Offer { queue, head }),
        1 => (queue(), any::<u16>())
            .prop_map(|(queue, index)| Step::SetAvailable { queue, index }),
        1 => (queue(), any::<u16>())
            .prop_map(|(queue, index)| Step::SetUsedEvent { queue, index }),
        2 => prop::collection::vec(any::<u8>(), 32).prop_map(Step::Header),
        1 => any_write().prop_map(Step::Register),
        1 => any::<u64>().prop_map(Step::Restart),
        3 => Just(Step::Wake),
        8 => Just(Step::Receive),
        8 => prop_oneof![0..3000usize, 0..MAX_FRAME + 100].prop_map(Step::Send),
        3 => Just(Step::Flush),
    ]
}

fn take(pair: &mut Pair, step: Step) {
    let mut port = pair.slot.port.lock().unwrap();
    match (step, port.as_mut()) {
        (Step::Describe { queue, index, address, len, flags, next }, _) => {
            pair.driver.write_descriptor(queue, index, Descriptor::new(address, len, flags, next));
        }
        (Step::Offer { queue, head }, _) => pair.driver.make_available(queue, head),
        (Step::SetAvailable { queue, index }, _) => pair.driver.set_available_index(queue, index),
        (Step::SetUsedEvent { queue, index }, _) => pair.driver.set_used_event(queue, index),
        (Step::Header(bytes), _) => pair.driver.put(DATA, &bytes),
        (Step::Register((offset, data)), _) => {
            drop(port);
            pair.driver.transport.write(offset, &data);
        }
        (Step::Restart(features), _) => {
            drop(port);
            pair.driver.start(features, 3);
        }
        (Step::Wake, Some(port)) => port.woken(),
        (Step::Receive, Some(port)) => {
            if let Ok(Some(mut frame)) = port.receive() {
                let mut bytes = vec![0; MAX_FRAME + 1];
                let len = frame.remaining();
                assert!((14..=MAX_FRAME).contains(&len));
                assert_eq!(frame.slices().map(|slice| slice.len()).sum::<usize>(), len);
                assert_eq!(frame.read(&mut bytes), len);
            }
        }
        (Step::Send(len), Some(port)) => {
            let bytes = vec![0xff; len];
            if let Ok(sent) = port.send(&[IoSlice::new(&bytes)], &Offload::default()) {
                assert!(sent != Sent::Sent || (14..=MAX_FRAME).contains(&len));
            }
        }
        (Step::Flush, Some(port)) => drop(port.flush()),
        (Step::Wake | Step::Receive | Step::Send(_) | Step::Flush, None) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Nothing panics or hangs, and the device works after a reset.
    #[test]
    fn any_driver_is_survived(steps in prop::collection::vec(any_step(), 0..200)) {
        let mut pair = Pair::new(NetOptions { tso_from_guest: true, ..NetOptions::new(MAC) });
        pair.driver.start(u64::MAX, 3);
        for step in steps {
            take(&mut pair, step);
        }
        pair.driver.start(u64::MAX, 3);
        prop_assert!(!pair.needs_reset());
        pair.transmit_frame(0, PLAIN, &frame(60, 1));
        prop_assert_eq!(pair.received().unwrap().0, frame(60, 1));
        pair.add_buffer(0, DATA, 100);
        prop_assert_eq!(pair.send(&frame(60, 2)), Sent::Sent);
        prop_assert_eq!(pair.driver.get(DATA + 12, 60), frame(60, 2));
    }

    /// A frame arrives however the driver splits it.
    #[test]
    fn any_chain_carries_its_frame(cuts in any_cuts(), seed: u8) {
        let mut pair = Pair::start(u64::MAX);
        let len = cuts.iter().sum::<usize>();
        let sent = frame(len.saturating_sub(12).max(6), seed);
        let bytes = [&PLAIN, &sent[..]].concat();
        let (mut from, mut chain) = (0, Vec::new());
        for (len, at) in cuts.into_iter().zip((DATA..).step_by(0x2000)) {
            pair.driver.put(at, &bytes[from..from + len]);
            chain.push((at, u32::try_from(len).unwrap(), false));
            from += len;
        }
        pair.transmit(0, &chain);
        match pair.received() {
            Some((got, _)) => prop_assert_eq!(got, sent),
            None => prop_assert!(len < 12 + 14),
        }
    }

    /// Whatever buffers the driver makes available, frames arrive whole and in order, or not at all.
    #[test]
    fn any_buffers_take_frames(
        buffers in prop::collection::vec(any_cuts(), 1..SIZE as usize / 2),
        lens in prop::collection::vec(14..9000usize, 1..6),
    ) {
        let mut pair = Pair::start(MERGEABLE);
        let (mut at, mut head) = (DATA, 0);
        let mut places = vec![Vec::new(); SIZE.into()];
        for cuts in buffers {
            let count = u16::try_from(cuts.len()).unwrap();
            if head + count > SIZE {
                break;
            }
            let chain = cuts.iter().map(|&len| {
                let place = at;
                at += len as u64 + 1;
                (place, u32::try_from(len).unwrap(), true)
            });
            let chain = chain.collect::<Vec<_>>();
            pair.driver.write_chain(RX, head, &chain);
            pair.driver.make_available(RX, head);
            places[usize::from(head)] = chain;
            head += count;
        }
        let mut sent = Vec::new();
        for (len, seed) in lens.into_iter().zip(1..) {
            if pair.send(&frame(len, seed)) == Sent::Sent {
                sent.push(frame(len, seed));
            }
        }
        let used = pair.driver.used_index(RX);
        let mut got = Vec::new();
        let mut left = 0;
        for _ in 0..used {
            let (head, len) = pair.driver.wait_used(RX);
            let chain = places[usize::try_from(head).unwrap()].iter();
            let mut bytes =
                chain.flat_map(|&(at, len, _)| pair.driver.get(at, len as usize)).collect::<Vec<_>>();
            bytes.truncate(len as usize);
            match (left, bytes.is_empty()) {
                (0, true) => {}
                (0, false) => {
                    left = u16::from_le_bytes([bytes[10], bytes[11]]);
                    got.push(bytes.split_off(12));
                    left -= 1;
                }
                (_, _) => {
                    got.last_mut().unwrap().extend(bytes);
                    left -= 1;
                }
            }
        }
        prop_assert_eq!(left, 0);
        prop_assert!(got == sent);
    }
}
