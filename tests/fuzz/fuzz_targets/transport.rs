//! A hostile driver: any reads and writes of a device's registers.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz transport`

#![no_main]

use std::sync::Arc;

use boxlite_hv::{Doorbell, Interrupt};
use boxlite_devices::virtio::MmioTransport;
use boxlite_devices::virtio::rng::RngDevice;
use boxlite_devices::{BusDevice, EventLoop, GuestMemory};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestAddress;

fuzz_target!(|accesses: &[u8]| {
    let event_loop = EventLoop::new().expect("an event loop");
    let handle = event_loop.handle();
    let thread = std::thread::spawn(move || event_loop.run());
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 16)]).expect("memory");
    let device = Box::new(RngDevice::new(handle.clone()));
    let doorbell = Doorbell::new().expect("a doorbell");
    let mut transport =
        MmioTransport::new(device, Arc::new(memory), Interrupt::new(|| Ok(())), doorbell)
            .expect("a transport");
    for access in accesses.chunks_exact(8) {
        let offset = u64::from(u16::from_le_bytes([access[0], access[1]]) & 0xfff);
        let width = 1 << (access[2] % 4);
        let mut data = [access[4], access[5], access[6], access[7], 0, 0, 0, 0];
        match access[3] % 2 {
            0 => transport.read(offset, &mut data[..width]),
            _ => transport.write(offset, &data[..width]),
        }
    }
    drop(transport);
    handle.stop();
    thread.join().expect("the loop's thread").expect("the loop");
});
