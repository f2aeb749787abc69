//! Frames from the guest.

use super::*;

#[test]
fn a_frame_arrives_however_the_driver_splits_it() {
    let mut pair = Pair::start(u64::MAX);
    let header = [1, 0, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let bytes = [&header[..], &frame(300, 7)].concat();
    for cuts in [vec![312], vec![12, 300], vec![5, 7, 0, 1, 299], vec![40, 72, 200]] {
        let mut chain = Vec::new();
        let (mut at, mut from) = (DATA, 0);
        for len in cuts {
            pair.driver.put(at, &bytes[from..from + len]);
            chain.push((at, u32::try_from(len).unwrap(), false));
            at += 0x1000;
            from += len;
        }
        // A device-writable descriptor is not part of the frame.
        chain.push((at, 64, true));
        pair.transmit(0, &chain);
        let (got, offload) = pair.received().unwrap();
        assert_eq!(got, frame(300, 7));
        assert_eq!(offload.checksum, Some(PartialChecksum { start: 34, offset: 16 }));
        assert_eq!(offload.segmentation, None);
        assert_eq!(pair.received(), None);
        assert_eq!(pair.driver.wait_used(TX), (0, 0));
    }
    let counters = pair.meter.counters();
    assert_eq!((counters.frames_from_guest, counters.bytes_from_guest), (4, 1200));
    assert_eq!(counters.dropped_from_guest, 0);
}

#[test]
fn a_frame_can_be_used_in_place() {
    let mut pair = Pair::start(0);
    let sent = frame(200, 3);
    pair.driver.put(DATA, &[&PLAIN, &sent[..100]].concat());
    pair.driver.put(DATA + 0x1000, &sent[100..]);
    pair.transmit(0, &[(DATA, 112, false), (DATA + 0x1000, 100, false)]);
    pair.port(|port| {
        let mut frame = port.receive().unwrap().unwrap();
        let mut head = [0; 54];
        assert_eq!(frame.read(&mut head), 54);
        assert_eq!(head[..], sent[..54]);
        let mut rest = Vec::new();
        for slice in frame.slices() {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            rest.extend(bytes);
        }
        assert_eq!(rest, sent[54..]);
        assert_eq!(frame.slices().count(), 2);
    });
    assert_eq!(pair.driver.used_index(TX), 0, "its memory is still in use");
    pair.flush();
    assert_eq!(pair.driver.used_index(TX), 1);
}

#[test]
fn a_large_segment_arrives_if_negotiated() {
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    for (tso, arrives) in [(true, true), (false, false)] {
        let mut pair = Pair::new(NetOptions { tso_from_guest: tso, ..NetOptions::new(MAC) });
        pair.driver.start(u64::MAX, 3);
        let sent = frame(MAX_FRAME, 0);
        pair.driver.put(DATA, &[&header[..], &sent].concat());
        pair.transmit(0, &[(DATA, 12 + MAX_FRAME as u32, false)]);
        let Some((got, offload)) = pair.received() else {
            assert!(!arrives);
            continue;
        };
        assert!(arrives && got == sent);
        let gso = Segmentation { v6: false, header_len: 54, segment_size: 1448 };
        assert_eq!(offload.segmentation, Some(gso));
    }
}

#[test]
fn malformed_frames_are_dropped_and_the_others_arrive() {
    let mut pair = Pair::start(u64::MAX);
    let at = DATA;
    pair.driver.put(at, &[0; 100]);
    let looping: &[Buffer] = &[(at, 60, false), (at, 60, false)];
    let bad: [&[Buffer]; 8] = [
        &[(at, 11, false)],
        &[(at, 12 + 13, false)],
        &[(at, 12 + MAX_FRAME as u32 + 1, false)],
        &[(at, 12, false), (MEMORY_END - 10, 60, false)],
        &[(u64::MAX - 20, 60, false)],
        &[(at, 100, true)],
        &[(at, 12, true), (at, 60, false)],
        &[(at, u32::MAX, false), (at, u32::MAX, false)],
    ];
    for (dropped, chain) in (1..).zip(bad) {
        pair.transmit(0, chain);
        pair.transmit_frame(8, PLAIN, &frame(60, 1));
        assert_eq!(pair.received().unwrap().0, frame(60, 1), "after bad chain {dropped}");
        assert_eq!(pair.received(), None);
        assert_eq!(pair.meter.counters().dropped_from_guest, dropped);
        assert_eq!(pair.driver.wait_used(TX), (0, 0));
        assert_eq!(pair.driver.wait_used(TX), (8, 0));
    }
    // A chain that loops.
    pair.driver.write_chain(TX, 0, looping);
    pair.driver.write_chain(TX, 1, &[(at, 60, false), (at, 60, false)]);
    let back = virtio_queue::desc::split::Descriptor::new(at, 60, 1, 0);
    pair.driver.write_descriptor(TX, 1, back);
    pair.driver.make_available(TX, 0);
    // A checksum outside of its frame.
    pair.transmit_frame(8, [1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0], &frame(60, 0));
    assert_eq!(pair.received(), None);
    assert_eq!(pair.meter.counters().dropped_from_guest, 10);
    assert_eq!(pair.meter.counters().frames_from_guest, 8);
    assert!(!pair.needs_reset());
}

#[test]
fn malformed_frames_are_bounded_per_turn() {
    let mut pair = Pair::start(u64::MAX);
    for head in 0..SIZE {
        pair.transmit(head, &[(DATA, 1, false)]);
    }
    pair.rung();
    assert_eq!(pair.received(), None);
    assert_eq!(pair.meter.counters().dropped_from_guest, u64::from(SIZE));
    assert!(pair.rung(), "the network would sleep with frames in the queue");
}

#[test]
fn the_driver_notifies_of_an_empty_queue_only() {
    let mut pair = Pair::start(EVENT_IDX);
    for head in 0..4 {
        pair.transmit_frame(head, PLAIN, &frame(60, 0));
    }
    for _ in 0..4 {
        assert!(pair.received().is_some());
        assert_eq!(pair.driver.available_event(TX), 0, "the next frame needs no notification");
    }
    assert!(pair.received().is_none());
    assert_eq!(pair.driver.available_event(TX), 4);

    let mut pair = Pair::start(0);
    pair.transmit_frame(0, PLAIN, &frame(60, 0));
    assert!(pair.received().is_some());
    assert_eq!(pair.driver.used_flags(TX), 1);
    assert!(pair.received().is_none());
    assert_eq!(pair.driver.used_flags(TX), 0);
}

#[test]
fn one_interrupt_for_many_frames_and_only_if_wanted() {
    let mut pair = Pair::start(EVENT_IDX);
    let raised = pair.driver.raised();
    pair.driver.set_used_event(TX, 5);
    for head in 0..8 {
        pair.transmit_frame(head, PLAIN, &frame(60, 0));
    }
    for expected in [0, 1, 1] {
        (0..4).for_each(|_| drop(pair.received()));
        pair.flush();
        assert_eq!(pair.driver.raised() - raised, expected);
    }
    pair.flush();
    assert_eq!(pair.driver.raised() - raised, 1);

    let mut pair = Pair::start(0);
    let raised = pair.driver.raised();
    for (flags, expected) in [(1, 0), (0, 1)] {
        pair.driver.set_available_flags(TX, flags);
        pair.transmit_frame(0, PLAIN, &frame(60, 0));
        assert!(pair.received().is_some());
        pair.flush();
        assert_eq!(pair.driver.raised() - raised, expected);
    }
}

#[test]
fn a_broken_queue_needs_a_reset() {
    for breaks in [
        |pair: &mut Pair| pair.driver.set_available_index(TX, SIZE + 1),
        |pair: &mut Pair| pair.driver.make_available(TX, SIZE),
    ] {
        let mut pair = Pair::start(EVENT_IDX);
        breaks(&mut pair);
        let raised = pair.driver.raised();
        let failed = pair.port(|port| port.receive().map(drop));
        assert!(matches!(failed, Err(NeedsReset)), "{failed:?}");
        assert!(pair.needs_reset() && pair.driver.raised() == raised + 1);
        assert!(matches!(pair.port(|port| port.flush()), Err(NeedsReset)));
        let sent = pair.port(|port| port.send(&[IoSlice::new(&[0; 60])], &Offload::default()));
        assert!(matches!(sent, Err(NeedsReset)));
        assert_eq!(pair.driver.raised(), raised + 1, "it is reported once");
        pair.driver.start(EVENT_IDX, 3);
        pair.transmit_frame(0, PLAIN, &frame(60, 0));
        assert!(pair.received().is_some());
    }
}
