//! A link that loses, reorders, repeats and delays frames.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, OffloadFeatures};

use crate::lab::{Lab, OUTSIDE, Running, in_lab};
use crate::wire::{Faults, Wire};

/// Sends in both directions at once over a faulty wire, and checks every byte.
fn exchange(lab: &Lab, len: u32) {
    let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let guest = lab.guest(|| TcpStream::connect(address).unwrap());
    let (host, _) = listener.accept().unwrap();
    let data: Vec<u8> = (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    thread::scope(|scope| {
        for stream in [&guest, &host] {
            // On a busy machine, each step of the wire waits for the processor.
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
            let data = &data;
            scope.spawn(move || {
                let mut stream = stream;
                stream.write_all(data).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut stream = stream;
                let mut received = Vec::new();
                stream.read_to_end(&mut received).unwrap();
                assert!(received == *data, "{} of {} bytes", received.len(), data.len());
            });
        }
    });
}

fn on_a_bad_link(faults: Faults, mtu: u16, len: u32) {
    in_lab(move |lab| {
        let (_wire, link) = Wire::new(lab.tap(OffloadFeatures::default()), faults);
        let network = Running::start(NetworkOptions { mtu, ..Default::default() }, Box::new(link));
        lab.configure_guest(mtu);
        let started = Instant::now();
        exchange(lab, len);
        // By chance, no frame of the network may have been lost: then try again.
        for _ in 0..20 {
            if faults.lost == 0 || network.counters().retransmits > 0 {
                break;
            }
            exchange(lab, len);
        }
        let counters = network.counters();
        println!("{faults:?}, MTU {mtu}: {:?}, {counters:?}", started.elapsed());
        assert!(faults.lost == 0 || counters.retransmits > 0, "nothing was lost");
        network.wait_for("the flow ends", |c| c.tcp_open == 0);
    });
}

#[test]
fn loss() {
    on_a_bad_link(Faults { lost: 2, ..Default::default() }, 1500, 1_000_000);
    on_a_bad_link(Faults { lost: 5, ..Default::default() }, 65_520, 4_000_000);
}

#[test]
fn reordering() {
    let jitter = Duration::from_millis(2);
    on_a_bad_link(Faults { reordered: 10, jitter, ..Default::default() }, 1500, 1_000_000);
}

#[test]
fn duplicates() {
    on_a_bad_link(Faults { repeated: 20, ..Default::default() }, 1500, 1_000_000);
}

#[test]
fn delay() {
    let delay = Duration::from_millis(20);
    on_a_bad_link(Faults { delay, ..Default::default() }, 65_520, 4_000_000);
}

#[test]
fn all_at_once() {
    let (delay, jitter) = (Duration::from_millis(3), Duration::from_millis(2));
    on_a_bad_link(Faults { lost: 1, repeated: 2, reordered: 5, delay, jitter }, 9000, 1_500_000);
}
