//! Frames to the guest.

use super::*;

/// Makes buffers of `len` bytes available, one after the other in memory.
fn fill(pair: &mut Pair, len: u32) {
    for head in 0..SIZE {
        pair.add_buffer(head, DATA + u64::from(len) * u64::from(head), len);
    }
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut pair = Pair::start(MERGEABLE | 1 << VIRTIO_NET_F_MTU);
    let sent = frame(65_534, 9);
    let total = 12 + 65_534;
    fill(&mut pair, 4200);
    assert_eq!(pair.send(&sent), Sent::Sent);
    let mut got = Vec::new();
    for head in 0..SIZE {
        let at = DATA + 4200 * u64::from(head);
        let (id, len) = pair.driver.wait_used(RX);
        assert_eq!(id, u32::from(head));
        assert_eq!(len as usize, 4200.min(total - got.len()));
        got.extend(pair.driver.get(at, len as usize));
    }
    assert_eq!(got.len(), total);
    assert_eq!(got[..10], [0; 10]);
    assert_eq!(got[10..12], SIZE.to_le_bytes(), "num_buffers");
    assert!(got[12..] == sent);
    let counters = pair.meter.counters();
    assert_eq!((counters.frames_to_guest, counters.bytes_to_guest), (1, 65_534));
}

#[test]
fn buffers_may_be_in_pieces_and_have_readable_descriptors() {
    let mut pair = Pair::start(MERGEABLE);
    let sent = frame(100, 9);
    pair.driver.put(DATA, &[0xaa; 0x4000]);
    pair.driver.write_chain(
        RX,
        0,
        &[
            (DATA + 0x3000, 50, false),
            (DATA, 7, true),
            (DATA + 0x800, 0, true),
            (DATA + 0x1000, 30, true),
            (DATA + 0x2000, 500, true),
        ],
    );
    pair.driver.make_available(RX, 0);
    assert_eq!(pair.send(&sent), Sent::Sent);
    assert_eq!(pair.driver.wait_used(RX), (0, 112));
    let pieces = [(DATA, 7), (DATA + 0x1000, 30), (DATA + 0x2000, 75)];
    let got = pieces.map(|(at, len)| pair.driver.get(at, len)).concat();
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(got[12..], sent);
    for (at, len) in [(DATA + 7, 100), (DATA + 0x101e, 100), (DATA + 0x204b, 100)] {
        assert_eq!(pair.driver.get(at, len), vec![0xaa; len], "written past the frame");
    }
    assert_eq!(pair.driver.get(DATA + 0x3000, 50), [0xaa; 50]);
}

#[test]
fn the_header_requests_the_offload() {
    let mut pair = Pair::new(NetOptions { tso_to_guest: true, ..NetOptions::new(MAC) });
    pair.driver.start(u64::MAX, 3);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let segmentation = Some(Segmentation { v6: true, header_len: 74, segment_size: 1428 });
    fill(&mut pair, 4200);
    let offload = Offload { checksum, segmentation };
    assert_eq!(pair.send_with(&frame(60_000, 0), &offload), Sent::Sent);
    assert_eq!(pair.driver.get(DATA, 12), [1, 4, 74, 0, 0x94, 5, 34, 0, 16, 0, 15, 0]);
}

#[test]
fn a_guest_gets_no_offload_that_it_did_not_negotiate() {
    let mut pair = Pair::start(MERGEABLE);
    fill(&mut pair, 4200);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let offload = Offload { checksum, segmentation: None };
    assert_eq!(pair.send_with(&frame(100, 0), &offload), Sent::Dropped);
    assert_eq!(pair.send(&frame(13, 0)), Sent::Dropped);
    assert_eq!(pair.send(&frame(MAX_FRAME + 1, 0)), Sent::Dropped);
    assert_eq!(pair.send(&frame(100, 0)), Sent::Sent);
    assert_eq!(pair.meter.counters().dropped_to_guest, 3);
}

#[test]
fn a_frame_longer_than_the_mtu_is_dropped() {
    let mut pair = Pair::new(NetOptions { mtu: 1500, ..NetOptions::new(MAC) });
    pair.driver.start(u64::MAX, 3);
    fill(&mut pair, 4200);
    assert_eq!(pair.send(&frame(1519, 0)), Sent::Dropped);
    assert_eq!(pair.send(&frame(1518, 0)), Sent::Sent);
}

#[test]
fn a_frame_waits_for_enough_buffers() {
    for features in [MERGEABLE, MERGEABLE | EVENT_IDX] {
        let event_idx = features & EVENT_IDX != 0;
        let mut pair = Pair::start(features);
        let sent = frame(2500, 1);
        for (head, at) in [(0, DATA), (1, DATA + 0x1000)] {
            assert_eq!(pair.send(&sent), Sent::Full);
            match event_idx {
                // Buffers that the device has seen cause no notification.
                true => assert_eq!(pair.driver.available_event(RX), head),
                false => assert_eq!(pair.driver.used_flags(RX), 0),
            }
            pair.add_buffer(head, at, 1000);
        }
        assert_eq!(pair.send(&sent), Sent::Full);
        assert_eq!(pair.driver.used_index(RX), 0);
        pair.add_buffer(2, DATA + 0x2000, 1000);
        assert_eq!(pair.send(&sent), Sent::Sent);
        let lens = [(0, 1000), (1, 1000), (2, 512)].map(|used| {
            assert_eq!(pair.driver.wait_used(RX), used);
            usize::try_from(used.1).unwrap()
        });
        let got = (0..3).flat_map(|i| pair.driver.get(DATA + 0x1000 * i as u64, lens[i]));
        assert_eq!(got.skip(12).collect::<Vec<_>>(), sent);
        assert!(event_idx || pair.driver.used_flags(RX) == 1, "no more notifications are needed");
        assert_eq!(pair.meter.counters().dropped_to_guest, 0);
    }
}

#[test]
fn unusable_buffers_are_returned_after_the_frame() {
    let mut pair = Pair::start(MERGEABLE);
    let sent = frame(1500, 1);
    pair.add_buffer(0, DATA, 1000);
    pair.add_buffer(1, MEMORY_END - 10, 1000);
    pair.add_buffer(2, DATA + 0x1000, 11);
    pair.driver.write_chain(RX, 3, &[(DATA, 1000, false)]);
    pair.driver.make_available(RX, 3);
    // They are popped twice and returned once.
    assert_eq!(pair.send(&sent), Sent::Full);
    pair.add_buffer(4, DATA + 0x2000, 1000);
    assert_eq!(pair.send(&sent), Sent::Sent);
    for used in [(0, 1000), (4, 512), (1, 0), (2, 0), (3, 0)] {
        assert_eq!(pair.driver.wait_used(RX), used);
    }
    assert_eq!(pair.driver.get(DATA + 10, 2), [2, 0]);
    assert!(!pair.needs_reset());
}

#[test]
fn a_frame_larger_than_all_buffers_is_dropped() {
    let mut pair = Pair::start(MERGEABLE);
    fill(&mut pair, 100);
    assert_eq!(pair.send(&frame(2000, 0)), Sent::Dropped);
    for head in 0..SIZE {
        assert_eq!(pair.driver.wait_used(RX), (head.into(), 0));
    }
    pair.add_buffer(0, DATA, 3000);
    assert_eq!(pair.send(&frame(2000, 0)), Sent::Sent);
    assert_eq!(pair.meter.counters().dropped_to_guest, 1);
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_buffer() {
    let mut pair = Pair::start(0);
    pair.add_buffer(0, DATA, 1526);
    pair.add_buffer(1, DATA + 0x1000, 1526);
    assert_eq!(pair.send(&frame(1515, 0)), Sent::Dropped);
    assert_eq!(pair.send(&frame(1514, 5)), Sent::Sent);
    assert_eq!(pair.driver.wait_used(RX), (0, 0));
    assert_eq!(pair.driver.wait_used(RX), (1, 1526));
    assert_eq!(pair.driver.get(DATA + 0x1000 + 12, 1514), frame(1514, 5));
    assert_eq!(pair.send(&frame(60, 0)), Sent::Full);
}

#[test]
fn an_interrupt_comes_when_the_driver_wants_it() {
    let mut pair = Pair::start(MERGEABLE | EVENT_IDX);
    fill(&mut pair, 200);
    let raised = pair.driver.raised();
    pair.driver.set_used_event(RX, 2);
    for expected in [0, 0, 1, 1] {
        assert_eq!(pair.send(&frame(60, 0)), Sent::Sent);
        pair.flush();
        assert_eq!(pair.driver.raised() - raised, expected);
    }
    // One interrupt for all frames of a turn.
    pair.driver.set_used_event(RX, 6);
    (0..8).for_each(|_| assert_eq!(pair.send(&frame(60, 0)), Sent::Sent));
    pair.flush();
    assert_eq!(pair.driver.raised() - raised, 2);
}

#[test]
fn a_broken_queue_needs_a_reset() {
    let mut pair = Pair::start(MERGEABLE);
    pair.driver.set_available_index(RX, SIZE + 1);
    let failed = pair.port(|port| port.send(&[IoSlice::new(&[0; 60])], &Offload::default()));
    assert!(matches!(failed, Err(NeedsReset)), "{failed:?}");
    assert!(pair.needs_reset());
}
