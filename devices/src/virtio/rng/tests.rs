use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::BusDevice;
use crate::log_budget::testing::assert_bounded;
use crate::virtio::testing::{
    Buffer, DATA, DRIVER_OK, Driver, MEMORY_END, SIZE, TestLoop, any_write, driver, wait_until,
};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

fn started() -> (Driver, TestLoop) {
    let test_loop = TestLoop::start();
    (driver(RngDevice::new(test_loop.handle.clone())), test_loop)
}

#[test]
fn requests_are_filled_up_to_the_cap() {
    let (mut driver, _loop) = started();
    for features in [0, EVENT_IDX] {
        driver.start(features, 1);
        driver.put(DATA, &[0; 20_000]);
        assert_eq!(driver.request(&[(DATA, 100, true), (DATA + 200, 100, true)]), 200);
        let bytes = driver.get(DATA, 300);
        assert!(bytes[..100].iter().any(|&b| b != 0) && bytes[200..].iter().any(|&b| b != 0));
        assert!(bytes[100..200].iter().all(|&b| b == 0), "wrote outside of the buffers");
        assert_ne!(bytes[..100], bytes[200..]);

        assert_eq!(driver.request(&[(DATA, 20_000, true)]), MAX_BYTES as u32);
        assert!(driver.get(DATA + MAX_BYTES as u64, 8000).iter().all(|&b| b == 0));
        assert!(driver.raised() > 0);
    }
}

#[test]
fn chains_without_room_are_returned_empty() {
    let (mut driver, _loop) = started();
    driver.start(0, 1);
    assert_eq!(driver.request(&[(DATA, 64, false)]), 0);
    assert_eq!(driver.request(&[(DATA, 0, true)]), 0);
    assert_eq!(driver.request(&[(MEMORY_END - 1, 64, true)]), 0);
    assert_eq!(driver.request(&[(DATA, 64, true)]), 64);
}

#[test]
fn a_full_ring_is_served_to_the_end() {
    let (mut driver, _loop) = started();
    driver.start(EVENT_IDX, 1);
    for head in 0..SIZE {
        driver.write_chain(0, head, &[(DATA + 64 * u64::from(head), 64, true)]);
        driver.make_available(0, head);
    }
    driver.kick(0);
    for head in 0..SIZE {
        assert_eq!(driver.wait_used(0), (head.into(), 64));
    }
}

#[test]
fn an_invalid_available_index_needs_a_reset() {
    let (mut driver, _loop) = started();
    driver.start(0, 1);
    driver.set_available_index(0, SIZE + 1);
    driver.kick(0);
    let failed = DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET;
    wait_until("DEVICE_NEEDS_RESET", || driver.status() == failed);
    driver.kick(0);
    driver.start(0, 1);
    assert_eq!(driver.request(&[(DATA, 8, true)]), 8);
}

#[test]
fn log_messages_are_bounded_over_activations() {
    let test_loop = TestLoop::start();
    let device = RngDevice::new(test_loop.handle.clone());
    let log = device.log.clone();
    let mut driver = driver(device);
    for _ in 0..30 {
        driver.start(0, 1);
        assert_eq!(driver.request(&[(MEMORY_END - 1, 64, true)]), 0);
        driver.set_available_index(0, SIZE + 2);
        driver.kick(0);
        wait_until("DEVICE_NEEDS_RESET", || driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0);
    }
    assert_bounded(&log, 60);
}

#[test]
fn indirect_descriptors_are_refused_unless_they_were_negotiated() {
    let (mut driver, _loop) = started();
    let inner = RawDescriptor::from(Descriptor::new(DATA, 64, VRING_DESC_F_WRITE as u16, 0));
    driver.memory.write_obj(inner, GuestAddress(DATA + 0x1000)).unwrap();
    let outer = Descriptor::new(DATA + 0x1000, 16, VRING_DESC_F_INDIRECT as u16, 0);
    for (features, filled) in [(0, 0), (1 << VIRTIO_RING_F_INDIRECT_DESC, 64)] {
        driver.start(features, 1);
        driver.write_descriptor(0, 0, outer);
        driver.make_available(0, 0);
        driver.kick(0);
        assert_eq!(driver.wait_used(0), (0, filled));
    }
}

#[test]
fn nothing_is_written_after_reset() {
    let (mut driver, _loop) = started();
    for _ in 0..50 {
        driver.start(0, 1);
        for head in 0..SIZE {
            driver.write_chain(0, head, &[(DATA, 4096, true)]);
            driver.make_available(0, head);
        }
        driver.kick(0);
        driver.set_status(0);
        driver.put(DATA, &[0; 4096]);
        std::thread::yield_now();
        assert_eq!(driver.get(DATA, 4096), [0; 4096]);
    }
}

#[test]
fn activation_fails_on_a_stopped_loop() {
    let (mut driver, test_loop) = started();
    drop(test_loop);
    driver.negotiate(0);
    driver.make_ready(0);
    assert_eq!(driver.set_status(DRIVER_OK), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
}

#[test]
fn a_device_stops_with_its_loop() {
    let (mut driver, test_loop) = started();
    driver.start(0, 1);
    drop(test_loop);
    assert_eq!(driver.set_status(0), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_driver_is_survived(
        chains in prop::collection::vec(
            prop::collection::vec((0..MEMORY_END + 0x1000, 0u32..0x2000, any::<bool>()), 1..5), 0..8,
        ),
        writes in prop::collection::vec(any_write(), 0..60),
    ) {
        let (mut driver, _loop) = started();
        driver.start(0, 1);
        for (head, chain) in (0..).zip(&chains) {
            let chain: &[Buffer] = chain;
            driver.write_chain(0, head, chain);
            driver.make_available(0, head);
        }
        driver.kick(0);
        for (offset, data) in writes {
            driver.transport.write(offset, &data);
        }
        driver.start(0, 1);
        prop_assert_eq!(driver.request(&[(DATA, 8, true)]), 8);
    }
}
