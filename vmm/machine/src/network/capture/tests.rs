//! A driver asks for the gateway's Ethernet address, in two lives of its device.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use boxlite_contract::nested::HostEnvironment;
use boxlite_contract::spec::NetworkSpec;
use boxlite_devices::BusDevice;
use boxlite_devices::virtio::MmioTransport;
use boxlite_devices_testing::{DATA, Driver, Line, Registers, memory};
use boxlite_hv::Doorbell;

use super::*;
use crate::network::BoxNetwork;

const RX: u32 = 0;
const TX: u32 = 1;
const QUEUES: u32 = 3;
/// Bytes of `struct virtio_net_hdr`.
const HEADER: usize = 12;
/// Where the guest's receive buffer is.
const BUFFER: u64 = DATA + 0x1000;

struct Transport(MmioTransport);

impl Registers for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        BusDevice::read(&mut self.0, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        BusDevice::write(&mut self.0, offset, data);
    }
}

fn network(capture: impl Into<std::os::fd::OwnedFd>) -> BoxNetwork {
    let (spec, capture) = (NetworkSpec::default(), File::from(capture.into()));
    let threads = Threads::new(|why| panic!("{why}"));
    BoxNetwork::start(&spec, HostEnvironment::Real, Some(capture), &threads, |_, _| {}).unwrap()
}

fn driver(network: &BoxNetwork) -> Driver<Transport> {
    let (memory, line) = (memory(), Line::default());
    let device = Box::new(network.device().unwrap());
    let doorbell = Doorbell::new().unwrap();
    let transport = MmioTransport::new(device, Arc::clone(&memory), line.interrupt(), doorbell);
    Driver::new(Transport(transport.unwrap()), memory, line, 16)
}

/// An ARP request: who has 192.168.127.1?
fn request() -> Vec<u8> {
    let guest = [2, 0x62, 0x6f, 0x78, 0, 2];
    let ethernet = [&[0xff; 6][..], &guest, &[8, 6]].concat();
    let arp = [0, 1, 8, 0, 6, 4, 0, 1];
    [&ethernet[..], &arp, &guest, &[192, 168, 127, 2], &[0; 6], &[192, 168, 127, 1]].concat()
}

/// Starts the device, sends the request, and returns the answer.
fn ask(driver: &mut Driver<Transport>) -> Vec<u8> {
    driver.start(0, QUEUES);
    driver.write_chain(RX, 0, &[(BUFFER, 0x1000, true)]);
    driver.make_available(RX, 0);
    driver.kick(RX);
    let frame = [&[0; HEADER][..], &request()].concat();
    driver.put(DATA, &frame);
    driver.write_chain(TX, 0, &[(DATA, frame.len() as u32, false)]);
    driver.make_available(TX, 0);
    driver.kick(TX);
    let (_, len) = driver.wait_used(RX);
    driver.get(BUFFER, len as usize).split_off(HEADER)
}

/// The frames of a capture, after its header.
fn frames(mut file: &[u8]) -> Vec<Vec<u8>> {
    let number = |at: usize, file: &[u8]| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!((number(0, file), number(20, file)), (0xa1b2_3c4d, 1));
    file = &file[24..];
    let mut frames = Vec::new();
    while !file.is_empty() {
        let end = 16 + number(8, file) as usize;
        frames.push(file[16..end].to_vec());
        file = &file[end..];
    }
    frames
}

#[test]
fn a_capture_goes_on_when_the_guest_restarts_and_is_whole_at_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("packets");
    let mut network = network(File::create(&path).unwrap());
    let mut driver = driver(&network);
    let first = ask(&mut driver);
    // The port comes back out of the link, and goes to a new one.
    let second = ask(&mut driver);
    network.finish_capture();
    assert_eq!(frames(&std::fs::read(path).unwrap()), [request(), first, request(), second]);
}

#[test]
fn a_reader_that_has_gone_ends_the_capture_and_nothing_else() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    let mut network = network(writer);
    let mut header = [0; 24];
    reader.read_exact(&mut header).unwrap();
    drop(reader);
    let mut driver = driver(&network);
    for _ in 0..3 {
        assert_eq!(ask(&mut driver).len(), request().len());
    }
    network.finish_capture();
}
