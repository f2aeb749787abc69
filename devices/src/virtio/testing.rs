//! Shared by unit tests of devices: the driver of boxlite-devices-testing with a transport, an event
//! loop, and arbitrary register writes.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

pub(crate) use boxlite_devices_testing::*;
use boxlite_hv::Doorbell;
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use super::{MmioTransport, VirtioDevice};
use crate::{BusDevice, EventLoop, LoopHandle};

/// The size of the queues.
pub(crate) const SIZE: u16 = 16;

pub(crate) type Driver = boxlite_devices_testing::Driver<MmioTransport>;

impl Registers for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        BusDevice::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        BusDevice::write(self, offset, data);
    }
}

/// A driver of `device`, which it has not initialized.
pub(crate) fn driver(device: impl VirtioDevice + 'static) -> Driver {
    let (memory, line) = (memory(), Line::default());
    let doorbell = Doorbell::new().unwrap();
    let transport =
        MmioTransport::new(Box::new(device), Arc::clone(&memory), line.interrupt(), doorbell);
    Driver::new(transport.unwrap(), memory, line, SIZE)
}

/// An event loop on a thread that ends with the test.
pub(crate) struct TestLoop {
    pub(crate) handle: LoopHandle,
    thread: Option<JoinHandle<()>>,
}

impl TestLoop {
    pub(crate) fn start() -> Self {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let thread = thread::spawn(move || event_loop.run().unwrap());
        Self { handle, thread: Some(thread) }
    }
}

impl Drop for TestLoop {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A write to the registers: mostly a proper one, with any value.
pub(crate) fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let register = prop_oneof![
        Just(VIRTIO_MMIO_STATUS),
        Just(VIRTIO_MMIO_QUEUE_READY),
        Just(VIRTIO_MMIO_QUEUE_NOTIFY),
        (0..0x40u32).prop_map(|index| index * 4),
    ];
    let value = prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            ACKNOWLEDGED,
            FEATURES_OK,
            DRIVER_OK,
            2,
            16,
            0x1000,
            0x2000
        ]),
        any::<u32>(),
    ];
    let proper = (register, value)
        .prop_map(|(register, value)| (u64::from(register), value.to_le_bytes().to_vec()));
    // The features that every driver must accept.
    let modern = prop::sample::select(vec![
        (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1u32),
        (VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (VIRTIO_MMIO_DRIVER_FEATURES, 0x101),
    ])
    .prop_map(|(register, value)| (u64::from(register), value.to_le_bytes().to_vec()));
    let wild = (0..0x200u64, prop::collection::vec(any::<u8>(), 0..9));
    prop_oneof![8 => proper, 3 => modern, 1 => wild]
}
