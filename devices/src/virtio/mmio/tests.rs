use std::sync::Mutex;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::*;
use crate::virtio::ActivateError;
use crate::virtio::testing::{
    ACKNOWLEDGED, DRIVER_OK, Driver, FEATURES_OK, Layout, MEMORY_END, SIZE, driver,
};

/// A device that records what happens to it.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Record>>);

#[derive(Default)]
struct Record {
    broken: bool,
    activations: usize,
    queues: Vec<Queue>,
    features: u64,
    config: Vec<u8>,
    interrupt: Option<QueueInterrupt>,
    doorbell: Option<Doorbell>,
}

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;

impl VirtioDevice for Recorder {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        EVENT_IDX | RING_RESET | 1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_bytes(&self.0.lock().unwrap().config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let config = &mut self.0.lock().unwrap().config;
        for (to, from) in config.iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut record = self.0.lock().unwrap();
        if record.broken {
            return Err(ActivateError { device: "recorder", reason: "broken".into() });
        }
        assert!(record.queues.is_empty(), "activated twice");
        record.activations += 1;
        record.queues = activation.queues;
        record.features = activation.features;
        record.interrupt = Some(activation.interrupt);
        record.doorbell = Some(activation.doorbell);
        Ok(())
    }

    fn reset(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.0.lock().unwrap().queues)
    }
}

fn recorded() -> (Driver, Recorder) {
    let recorder = Recorder::default();
    (driver(recorder.clone()), recorder)
}

#[test]
fn the_constant_registers_describe_the_device() {
    let (mut driver, _) = recorded();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.offered(), EVENT_IDX | RING_RESET | 1 | 1 << VIRTIO_F_VERSION_1);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
    driver.write(VIRTIO_MMIO_SHM_SEL, 3);
    for register in [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH] {
        assert_eq!(driver.read(register), u32::MAX, "there is no shared memory");
    }
    for (queue, max) in [(0, SIZE.into()), (1, 64), (2, 0), (u32::MAX, 0)] {
        driver.write(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), max);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn status_bits_are_set_in_order_and_cleared_by_reset_only() {
    let (mut driver, recorder) = recorded();
    assert_eq!(driver.set_status(VIRTIO_CONFIG_S_DRIVER), 0);
    assert_eq!(driver.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE), 1);
    assert_eq!(driver.set_status(1 | VIRTIO_CONFIG_S_FEATURES_OK), 1);
    assert_eq!(driver.set_status(ACKNOWLEDGED), ACKNOWLEDGED);
    assert_eq!(driver.set_status(ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER_OK), ACKNOWLEDGED);
    assert_eq!(recorder.0.lock().unwrap().activations, 0, "DRIVER_OK came before FEATURES_OK");
    assert_eq!(driver.set_status(VIRTIO_CONFIG_S_DRIVER), ACKNOWLEDGED, "cleared a bit");
    assert_eq!(driver.set_status(ACKNOWLEDGED | 0x30), ACKNOWLEDGED, "there are no such bits");
    assert_eq!(driver.set_status(0), 0);
}

#[test]
fn features_are_accepted_only_if_offered_and_modern() {
    let (mut driver, recorder) = recorded();
    for features in [0, EVENT_IDX, 1 << VIRTIO_F_VERSION_1 | 2, u64::MAX] {
        driver.set_status(0);
        driver.set_status(ACKNOWLEDGED);
        driver.accept_features(features);
        assert_eq!(driver.set_status(FEATURES_OK), ACKNOWLEDGED, "took {features:#x}");
    }
    driver.start(EVENT_IDX, 1);
    driver.accept_features(0);
    let record = recorder.0.lock().unwrap();
    assert_eq!(record.features, EVENT_IDX | 1 << VIRTIO_F_VERSION_1);
    assert!(record.queues[0].event_idx_enabled());
}

#[test]
fn activation_hands_the_queues_over_and_reset_takes_them_back() {
    let (mut driver, recorder) = recorded();
    driver.start(0, 1);
    {
        let record = recorder.0.lock().unwrap();
        assert_eq!(record.activations, 1);
        let [first, second] = &record.queues[..] else { panic!("two queues") };
        assert!(first.ready() && !second.ready() && !first.event_idx_enabled());
        let Layout { table, used, .. } = Layout::of(0);
        assert_eq!((first.size(), first.desc_table(), first.used_ring()), (SIZE, table, used));
        let doorbell = record.doorbell.as_ref().unwrap();
        assert!(doorbell.clear().unwrap(), "rung once for chains that are available already");
        drop(record);
    }
    driver.kick(7);
    let doorbell = recorder.0.lock().unwrap().doorbell.take().unwrap();
    assert!(!doorbell.clear().unwrap(), "there is no queue 7");
    driver.kick(1);
    assert!(doorbell.clear().unwrap());

    assert_eq!(driver.set_status(0), 0);
    assert!(recorder.0.lock().unwrap().queues.is_empty());
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.kick(0);
    assert!(!doorbell.clear().unwrap(), "a device in reset is not notified");
    driver.start(0, 2);
    assert_eq!(recorder.0.lock().unwrap().activations, 2);
}

#[test]
fn a_ready_or_running_queue_is_fixed() {
    let (mut driver, recorder) = recorded();
    driver.negotiate(0);
    driver.make_ready(0);
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
    driver.set_status(DRIVER_OK);
    driver.lay_out_queue(1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "made ready after DRIVER_OK");
    let record = recorder.0.lock().unwrap();
    assert_eq!(
        (record.queues[0].desc_table(), record.queues[0].size()),
        (Layout::of(0).table, SIZE)
    );
    assert!(!record.queues[1].ready());
}

#[test]
fn an_invalid_queue_does_not_become_ready() {
    let (mut driver, _) = recorded();
    driver.negotiate(0);
    let end = MEMORY_END as u32;
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 0),
        (VIRTIO_MMIO_QUEUE_NUM, 3),
        (VIRTIO_MMIO_QUEUE_NUM, 2 * u32::from(SIZE)),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0010),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1008),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2001),
        (VIRTIO_MMIO_QUEUE_USED_LOW, 0x3002),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, end - 16),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, end - 2),
        (VIRTIO_MMIO_QUEUE_USED_LOW, end),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, u32::MAX),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, 0x8000_0000),
    ] {
        driver.lay_out_queue(0);
        driver.write(register, value);
        driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0, "{register:#x} = {value:#x}");
    }
    driver.lay_out_queue(0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn one_queue_is_reset_while_the_other_keeps_its_position() {
    let (mut driver, recorder) = recorded();
    driver.start(RING_RESET, 2);
    {
        let queues = &mut recorder.0.lock().unwrap().queues;
        queues[0].set_next_avail(5);
        queues[1].set_next_avail(7);
    }
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    driver.write(QUEUE_RESET, 1);
    assert_eq!(driver.read(QUEUE_RESET), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    {
        let record = recorder.0.lock().unwrap();
        assert_eq!(record.activations, 2);
        assert_eq!(record.queues[0].next_avail(), 5);
        assert!(record.queues[0].ready() && !record.queues[1].ready());
    }
    driver.make_ready(1);
    let record = recorder.0.lock().unwrap();
    assert_eq!(record.activations, 3);
    assert_eq!((record.queues[0].next_avail(), record.queues[1].next_avail()), (5, 0));
    assert!(record.queues[1].ready());
}

#[test]
fn queue_reset_must_be_negotiated() {
    let (mut driver, recorder) = recorded();
    driver.start(0, 1);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(QUEUE_RESET, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 1);
    assert_eq!(recorder.0.lock().unwrap().activations, 1);
    // To stop a queue without restarting it needs no feature.
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(!recorder.0.lock().unwrap().queues[0].ready());
}

#[test]
fn a_device_that_fails_to_activate_needs_a_reset() {
    let (mut driver, recorder) = recorded();
    recorder.0.lock().unwrap().broken = true;
    driver.negotiate(0);
    driver.make_ready(0);
    assert_eq!(driver.set_status(DRIVER_OK), DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.raised(), 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    driver.kick(0);
    recorder.0.lock().unwrap().broken = false;
    driver.start(0, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_driver_that_sets_failed_stops_the_device() {
    let (mut driver, recorder) = recorded();
    driver.start(0, 1);
    let failed = driver.set_status(DRIVER_OK | VIRTIO_CONFIG_S_FAILED);
    assert_eq!(failed, DRIVER_OK | VIRTIO_CONFIG_S_FAILED);
    assert!(recorder.0.lock().unwrap().queues.is_empty());
    assert_eq!(driver.set_status(DRIVER_OK), failed);
    driver.start(0, 1);
}

#[test]
fn interrupts_are_acknowledged_by_reason() {
    let (mut driver, recorder) = recorded();
    driver.start(0, 1);
    let interrupt = recorder.0.lock().unwrap().interrupt.take().unwrap();
    interrupt.used_buffer().unwrap();
    interrupt.config_change().unwrap();
    assert_eq!((driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), driver.raised()), (3, 2));
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
    driver.set_status(0);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn configuration_space_takes_every_width_and_counts_changes() {
    let (mut driver, recorder) = recorded();
    recorder.0.lock().unwrap().config = (1..=10).collect();
    assert_eq!(driver.config(0), [1]);
    assert_eq!(driver.config(3), [4, 5]);
    assert_eq!(driver.config(0), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(driver.config(8), [9, 10, 0, 0], "zero beyond its end");
    assert_eq!(driver.config(0xe00), [0; 8]);

    let before = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    assert_eq!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), before);
    recorder.0.lock().unwrap().config[4] = 99;
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), before);

    driver.transport.write(u64::from(VIRTIO_MMIO_CONFIG) + 1, &[7]);
    assert_eq!(driver.config(0), [1, 7, 3, 4]);
}

#[test]
fn malformed_accesses_read_nothing_and_change_nothing() {
    let (mut driver, recorder) = recorded();
    recorder.0.lock().unwrap().config = vec![1; 16];
    driver.set_status(ACKNOWLEDGED);
    for (offset, len) in [
        (0x70, 1),
        (0x70, 2),
        (0x70, 8),
        (0x71, 4),
        (0xfe, 4),
        (0x100, 3),
        (0x100, 0),
        (1 << 40, 4),
    ] {
        let mut data = vec![0; len];
        driver.transport.write(offset, &data);
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset:#x}");
    }
    assert_eq!(driver.status(), ACKNOWLEDGED);
    assert_eq!(recorder.0.lock().unwrap().config, [1; 16]);
}

#[test]
fn a_dropped_transport_stops_its_device() {
    let (mut driver, recorder) = recorded();
    driver.start(0, 1);
    drop(driver);
    assert!(recorder.0.lock().unwrap().queues.is_empty());
}

proptest! {
    /// The device has the queues exactly while it runs.
    #[test]
    fn any_register_writes_leave_it_consistent(
        features in prop::option::of(prop::sample::select(vec![0, EVENT_IDX, RING_RESET])),
        writes in prop::collection::vec(crate::virtio::testing::any_write(), 0..200),
    ) {
        let (mut driver, recorder) = recorded();
        if let Some(features) = features {
            driver.start(features, 2);
        }
        for (offset, data) in writes {
            driver.transport.write(offset, &data);
            let status = driver.status();
            for (bit, before) in STATUS_ORDER {
                prop_assert!(status & bit == 0 || status & before == before, "status {status:#x}");
            }
            let runs = status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)
                == VIRTIO_CONFIG_S_DRIVER_OK;
            let record = recorder.0.lock().unwrap();
            prop_assert_eq!(record.queues.len(), if runs { 2 } else { 0 });
            for queue in record.queues.iter().filter(|queue| queue.ready()) {
                prop_assert!(queue.is_valid(&*driver.memory));
            }
        }
        driver.start(0, 2);
    }
}
