//! The device's configuration, activation and reset.

use super::*;
use crate::log_budget::testing::assert_bounded;

#[test]
fn the_device_describes_itself() {
    let mut pair = Pair::new(NetOptions { mtu: 65_520, ..NetOptions::new(MAC) });
    assert_eq!(pair.mac(), MAC);
    assert_eq!(pair.driver.config::<2>(6), [1, 0], "the link is up");
    assert_eq!(pair.driver.config::<2>(10), 65_520u16.to_le_bytes());
    assert_eq!(pair.driver.config::<4>(12), [0; 4]);
    let offered = pair.driver.offered();
    for bit in [0, 1, 3, 5, 15, 16, 17, 18, 23, 28, 29, 32] {
        assert_ne!(offered & 1 << bit, 0, "feature {bit}");
    }
    for bit in [7, 8, 10, 11, 12, 13, 14] {
        assert_eq!(offered & 1 << bit, 0, "feature {bit}");
    }
}

#[test]
fn segmentation_is_offered_as_the_options_say() {
    let tso = |from, to| {
        let options = NetOptions { tso_from_guest: from, tso_to_guest: to, ..NetOptions::new(MAC) };
        Pair::new(options).driver.offered() & 0x7f80
    };
    assert_eq!(tso(false, false), 0);
    assert_eq!(tso(true, false), 1 << 11 | 1 << 12 | 1 << 13);
    assert_eq!(tso(false, true), 1 << 7 | 1 << 8);
}

#[test]
fn invalid_options_are_refused() {
    let refused = |options| NetDevice::new(options, Slot::default()).unwrap_err();
    let group = [1, 0, 0, 0, 0, 0];
    assert_eq!(refused(NetOptions::new(group)), NetOptionsError::MulticastMac(group));
    assert_eq!(refused(NetOptions { mtu: 67, ..NetOptions::new(MAC) }), NetOptionsError::Mtu(67));
}

#[test]
fn the_network_sees_the_negotiated_features() {
    let options = NetOptions { tso_to_guest: true, ..NetOptions::new(MAC) };
    for (features, expected) in [
        (0, OffloadFeatures::default()),
        (GUEST_CSUM, OffloadFeatures { checksum: true, ..OffloadFeatures::default() }),
        (u64::MAX, OffloadFeatures { checksum: true, tso4: true, tso6: true }),
    ] {
        let mut pair = Pair::new(options);
        pair.driver.start(features, 3);
        assert_eq!(pair.port(|port| port.features()), expected);
    }
}

#[test]
fn a_network_that_refuses_needs_a_reset() {
    let slot = Slot { refuses: true, ..Slot::default() };
    let mut driver = driver(NetDevice::new(NetOptions::new(MAC), slot).unwrap());
    driver.negotiate(0);
    (0..3).for_each(|queue| driver.make_ready(queue));
    assert_eq!(driver.set_status(DRIVER_OK), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.set_status(0), 0);
}

#[test]
fn a_network_that_has_stopped_needs_a_reset() {
    let mut pair = Pair::start(u64::MAX);
    drop(pair.slot.port.lock().unwrap().take());
    pair.driver.write(VIRTIO_MMIO_QUEUE_SEL, RX);
    pair.driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert!(pair.needs_reset());
    pair.driver.start(u64::MAX, 3);
    pair.transmit_frame(0, PLAIN, &frame(60, 0));
    assert_eq!(pair.received().unwrap().0, frame(60, 0));
}

#[test]
fn a_reset_takes_the_port_back_at_any_time() {
    let mut pair = Pair::start(EVENT_IDX | MERGEABLE);
    for round in 0..3 {
        pair.transmit_frame(0, PLAIN, &frame(60, round));
        pair.transmit_frame(1, PLAIN, &frame(61, round));
        pair.add_buffer(0, DATA + 0x8000, 100);
        assert_eq!(pair.received().unwrap().0, frame(60, round));
        // One frame is received and one is not; the only buffer is too small.
        assert_eq!(pair.send(&frame(1000, 0)), Sent::Full);
        pair.driver.set_status(0);
        assert!(pair.slot.port.lock().unwrap().is_none(), "the port is with the network");
        pair.driver.start(EVENT_IDX | MERGEABLE, 3);
        assert_eq!(pair.received(), None);
    }
    assert_eq!(pair.meter.counters().frames_from_guest, 3);
}

#[test]
fn the_other_queues_keep_their_state_when_one_is_reset() {
    let mut pair = Pair::start(u64::MAX);
    assert_eq!(pair.command(&[0, 0, 0]), Some(0));
    assert_eq!(pair.command(&[1, 1, 2, 9, 9, 9, 9, 9]), Some(0));
    pair.transmit_frame(0, PLAIN, &frame(60, 0));
    pair.transmit_frame(1, PLAIN, &frame(60, 1));
    assert_eq!(pair.received().unwrap().0, frame(60, 0));
    pair.driver.write(VIRTIO_MMIO_QUEUE_SEL, RX);
    pair.driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(pair.send(&frame(60, 0)), Sent::Full, "there is no receive queue");
    // Only the chain of the received frame is returned.
    assert_eq!(pair.driver.wait_used(TX), (0, 0));
    pair.driver.make_ready(RX);
    assert_eq!(pair.received().unwrap().0, frame(60, 1));
    assert_eq!(pair.received(), None);
    pair.add_buffer(0, DATA, 2000);
    let to = |mac: &[u8]| [mac, &frame(60, 0)[6..]].concat();
    assert_eq!(pair.send(&to(&MAC)), Sent::Dropped, "the driver has set another address");
    assert_eq!(pair.send(&to(&[2, 9, 9, 9, 9, 9])), Sent::Sent);
}

#[test]
fn a_reset_clears_the_drivers_settings() {
    let mut pair = Pair::start(u64::MAX);
    let generation = pair.driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(pair.command(&[1, 1, 2, 9, 9, 9, 9, 9]), Some(0));
    assert_eq!(pair.command(&[0, 0, 0]), Some(0));
    assert_eq!(pair.mac(), [2, 9, 9, 9, 9, 9]);
    assert_ne!(pair.driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    pair.driver.set_status(0);
    assert_eq!(pair.mac(), MAC);
    pair.driver.start(u64::MAX, 3);
    assert_eq!(pair.mac(), MAC);
    pair.add_buffer(0, DATA, 2000);
    assert_eq!(pair.send(&[&[4; 6][..], &frame(60, 0)[6..]].concat()), Sent::Sent);
}

#[test]
fn commands_are_answered() {
    let mut pair = Pair::start(EVENT_IDX);
    let raised = pair.driver.raised();
    assert_eq!(pair.command(&[0, 1, 1]), Some(0));
    assert_eq!(pair.command(&[9, 9]), Some(1));
    assert_eq!(pair.command(&[0]), Some(1));
    pair.flush();
    assert!(pair.driver.raised() > raised);
    assert!(pair.rung());
    // A command without room for its `ack`, and a command outside of memory, are skipped.
    for (head, chain) in [(3, (DATA, 3, false)), (4, (MEMORY_END, 3, false))] {
        pair.driver.write_chain(CONTROL, head, &[chain]);
        pair.driver.make_available(CONTROL, head);
        pair.port(|port| port.woken());
        assert_eq!(pair.driver.wait_used(CONTROL), (head.into(), 0));
    }
    assert_eq!(pair.driver.available_event(CONTROL), 5);
}

#[test]
fn a_broken_control_queue_stops_the_port() {
    let mut pair = Pair::start(0);
    pair.driver.set_available_index(CONTROL, SIZE + 1);
    pair.port(|port| port.woken());
    assert!(pair.needs_reset());
    assert!(matches!(pair.port(|port| port.receive().map(drop)), Err(NeedsReset)));
    pair.driver.start(0, 3);
    assert!(!pair.needs_reset());
    assert_eq!(pair.command(&[0, 1, 1]), Some(0));
}

#[test]
fn log_messages_are_bounded_over_activations() {
    let slot = Slot::default();
    let device = NetDevice::new(NetOptions::new(MAC), slot.clone()).unwrap();
    let (log, meter) = (device.shared.log.clone(), device.meter());
    let mut pair = Pair { driver: driver(device), slot, meter };
    for _ in 0..30 {
        pair.driver.start(0, 3);
        pair.transmit(0, &[(MEMORY_END, 60, false)]);
        assert_eq!(pair.received(), None);
        pair.driver.set_available_index(CONTROL, SIZE + 1);
        pair.port(|port| port.woken());
        assert!(pair.needs_reset());
    }
    assert_bounded(&log, 60);
}
