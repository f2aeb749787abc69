//! A hostile driver of virtio-net: any rings, descriptors and headers, at any time.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz virtio_net`

#![no_main]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use boxlite_devices::virtio::MmioTransport;
use boxlite_devices::virtio::net::{
    MAX_FRAME, NetBackend, NetDevice, NetOptions, NetPort, Offload,
};
use boxlite_devices::{BusDevice, GuestMemory};
use boxlite_devices_testing::{DRIVER_OK, Driver, FEATURES_OK, Layout, Line, Registers, Ring};
use boxlite_hv::Doorbell;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 1 << 18;
/// Distance between the descriptor tables of two queues: a table and rings for 16 descriptors.
const QUEUE: u64 = 0x400;
const SIZE: u16 = 16;
/// All features that the device offers, except those beyond bit 32.
const FEATURES: u64 = 0x1_3087_b82b;
/// The register `QueueReady`.
const QUEUE_READY: u32 = 0x44;
/// Size of the initial content of guest memory, from the start of the input: queues and their buffers.
const IMAGE: usize = 0x1000;

#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<NetPort>>>);

impl NetBackend for Slot {
    fn attach(&mut self, port: NetPort) -> io::Result<()> {
        *self.0.lock().expect("the port") = Some(port);
        Ok(())
    }

    fn detach(&mut self) -> Option<NetPort> {
        self.0.lock().expect("the port").take()
    }
}

struct Transport(MmioTransport);

impl Registers for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// Initializes the device from reset to DRIVER_OK with the features that it offers. The content of its
/// queues is in memory already.
fn start(driver: &mut Driver<Transport>) {
    assert_eq!(driver.negotiate(FEATURES), FEATURES_OK);
    for (queue, table) in (0..3).zip((QUEUE..).step_by(QUEUE as usize)) {
        let layout = Layout { table, available: table + 0x100, used: table + 0x200 };
        driver.rings[queue as usize] = Ring::new(layout, SIZE, true);
        driver.lay_out_queue(queue);
        driver.write(QUEUE_READY, 1);
    }
    driver.set_status(DRIVER_OK);
}

fuzz_target!(|input: &[u8]| {
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"));
    let (image, steps) = input.split_at(input.len().min(IMAGE));
    memory.write_slice(image, GuestAddress(QUEUE)).expect("the image fits");
    let slot = Slot::default();
    let options = NetOptions { tso_from_guest: true, ..NetOptions::new([2; 6]) };
    let device = NetDevice::new(options, slot.clone()).expect("a device");
    let doorbell = Doorbell::new().expect("a doorbell");
    let line = Line::default();
    let transport =
        MmioTransport::new(Box::new(device), Arc::clone(&memory), line.interrupt(), doorbell)
            .expect("a transport");
    let mut driver = Driver::new(Transport(transport), Arc::clone(&memory), line, SIZE);
    start(&mut driver);
    let mut bytes = vec![0xff; MAX_FRAME + 1];
    for step in steps.chunks_exact(4) {
        let value = u16::from_le_bytes([step[1], step[2]]);
        if step[0] % 8 == 0 {
            start(&mut driver);
            continue;
        }
        let mut port = slot.0.lock().expect("the port");
        let Some(port) = port.as_mut() else { continue };
        match step[0] % 8 {
            1 => port.woken(),
            2 | 3 => {
                if let Ok(Some(mut frame)) = port.receive() {
                    let len = frame.remaining();
                    assert!(len <= MAX_FRAME);
                    assert_eq!(frame.slices().map(|slice| slice.len()).sum::<usize>(), len);
                    assert_eq!(frame.read(&mut bytes), len);
                }
            }
            4 | 5 => {
                let frame = bytes.get(..usize::from(value)).unwrap_or_default();
                let _ = port.send(&[IoSlice::new(frame)], &Offload::default());
            }
            6 => {
                let _ = port.flush();
            }
            _ => memory
                .write_slice(&step[3..4], GuestAddress(QUEUE + u64::from(value) % IMAGE as u64))
                .expect("the image is in memory"),
        }
    }
    drop(driver);
    assert!(slot.0.lock().expect("the port").is_none());
});
