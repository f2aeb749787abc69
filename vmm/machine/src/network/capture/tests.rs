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

fn network(capture: CaptureOutput) -> BoxNetwork {
    let spec = NetworkSpec::default();
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
    let mut network = network(CaptureOutput::File(File::create(&path).unwrap()));
    let mut driver = driver(&network);
    let first = ask(&mut driver);
    // The port comes back out of the link, and goes to a new one.
    let second = ask(&mut driver);
    network.finish_capture();
    assert_eq!(frames(&std::fs::read(path).unwrap()), [request(), first, request(), second]);
}

fn stream() -> (UnixStream, CaptureOutput) {
    let (reader, writer) = UnixStream::pair().unwrap();
    let writer = File::from(std::os::fd::OwnedFd::from(writer));
    (reader, CaptureOutput::Stream(CaptureStream::new(writer)))
}

/// The content of a stream's chunks, and its end.
fn unwrap_chunks(mut stream: &[u8]) -> (Vec<u8>, CaptureEnd) {
    let mut content = Vec::new();
    loop {
        let mut take = |len: usize| stream.split_off(..len).unwrap();
        let len = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
        match len {
            0 => {
                take(4);
                return (content, serde_json::from_slice(stream).unwrap());
            }
            len => content.extend(take(len)),
        }
    }
}

#[test]
fn a_stream_says_that_it_is_complete() {
    let (mut reader, output) = stream();
    let mut network = network(output);
    let mut driver = driver(&network);
    let answer = ask(&mut driver);
    network.finish_capture();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    let (file, end) = unwrap_chunks(&all);
    assert_eq!(frames(&file), [request(), answer]);
    assert_eq!(end, CaptureEnd::default());
}

#[test]
fn a_stream_says_what_is_missing() {
    let cases = [(End::Stopped, false), (End::Full, true)];
    for (end, full) in cases {
        let (mut reader, output) = stream();
        output.end(&Summary { end, skipped: 3 }).unwrap();
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(unwrap_chunks(&all), (Vec::new(), CaptureEnd { full, skipped: 3 }));
    }
    let (mut reader, output) = stream();
    let end = End::WriteFailed(io::ErrorKind::BrokenPipe.into());
    output.end(&Summary { end, skipped: 0 }).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "no end follows a part of a chunk");
}

#[test]
fn a_reader_that_has_gone_ends_the_capture_and_nothing_else() {
    let (mut reader, output) = stream();
    let mut network = network(output);
    let mut header = [0; 4 + 24];
    reader.read_exact(&mut header).unwrap();
    drop(reader);
    let mut driver = driver(&network);
    for _ in 0..3 {
        assert_eq!(ask(&mut driver).len(), request().len());
    }
    network.finish_capture();
}
