//! A hostile driver of virtio-net: any rings, descriptors and headers, at any time.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz virtio_net`

#![no_main]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use boxlite_hv::{Doorbell, Interrupt};
use boxlite_devices::virtio::MmioTransport;
use boxlite_devices::virtio::net::{
    MAX_FRAME, NetBackend, NetDevice, NetOptions, NetPort, Offload,
};
use boxlite_devices::{BusDevice, GuestMemory};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 1 << 18;
/// Tables and rings of a queue of 16, then those of the next.
const QUEUE: u64 = 0x400;
const SIZE: u32 = 16;
/// All that the device offers, but for those beyond bit 31.
const FEATURES: u32 = 0x3087_b82b;
/// What the input starts with is here: queues and what they point to.
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

/// Takes the device from reset to DRIVER_OK with the features that it offers.
fn start(transport: &mut MmioTransport) {
    let mut write = |register: u64, value: u32| transport.write(register, &value.to_le_bytes());
    write(0x70, 0);
    write(0x70, 3);
    for (window, features) in [(0, FEATURES), (1, 1)] {
        write(0x24, window);
        write(0x20, features);
    }
    write(0x70, 11);
    for queue in 0..3 {
        write(0x30, queue);
        write(0x38, SIZE);
        let base = QUEUE as u32 * (queue + 1);
        for (register, offset) in [(0x80, 0), (0x90, 0x100), (0xa0, 0x200)] {
            write(register, base + offset);
        }
        write(0x44, 1);
    }
    write(0x70, 15);
}

fuzz_target!(|input: &[u8]| {
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"));
    let (image, steps) = input.split_at(input.len().min(IMAGE));
    memory.write_slice(image, GuestAddress(QUEUE)).expect("the image fits");
    let slot = Slot::default();
    let options = NetOptions { tso_from_guest: true, ..NetOptions::new([2; 6]) };
    let device = NetDevice::new(options, slot.clone()).expect("a device");
    let doorbell = Doorbell::new().expect("a doorbell");
    let interrupt = Interrupt::new(|| Ok(()));
    let mut transport =
        MmioTransport::new(Box::new(device), Arc::clone(&memory), interrupt, doorbell)
            .expect("a transport");
    start(&mut transport);
    let mut bytes = vec![0xff; MAX_FRAME + 1];
    for step in steps.chunks_exact(4) {
        let value = u16::from_le_bytes([step[1], step[2]]);
        if step[0] % 8 == 0 {
            start(&mut transport);
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
    drop(transport);
    assert!(slot.0.lock().expect("the port").is_none());
});
