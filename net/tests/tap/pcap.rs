//! A capture of a Linux guest's traffic, read back by tcpdump.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use boxlite_net::NetworkOptions;
use boxlite_net::link::pcap::{self, CaptureLink, CaptureOptions};

use crate::lab::{FEATURES, OUTSIDE, Running, in_lab, missing, run};

#[test]
fn tcpdump_reads_a_connection_from_its_first_to_its_last_segment() {
    if let Some(reason) = missing(&["tcpdump"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("box.pcap");
        let file = File::create(&path).unwrap();
        let (capture, writer) = pcap::capture(file, CaptureOptions::default());
        let writer = thread::spawn(move || writer.run());
        let options = NetworkOptions::default();
        let mtu = options.mtu;
        let link = CaptureLink::new(lab.tap(FEATURES), Some(capture.clone()));
        let network = Running::start(options, Box::new(link));
        lab.configure_guest(mtu);

        let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut guest = lab.guest(|| TcpStream::connect(address).unwrap());
        let (mut host, _) = listener.accept().unwrap();
        let data = vec![9; 1 << 20];
        thread::scope(|scope| {
            scope.spawn(|| {
                host.write_all(&data).unwrap();
                host.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = Vec::new();
            guest.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), data.len());
        });
        drop((guest, host));
        network.wait_for("the flow ends", |c| c.tcp_open == 0);
        // The link is dropped with the network, and with it the last clone of the capture.
        let handle = network.handle.clone();
        drop((network, capture));
        writer.join().unwrap();
        let counters = handle.counters();

        let path = path.to_str().unwrap();
        let shown = |filter: &[&str]| {
            let args = [&["-n", "--nano", "-r", path], filter].concat();
            let text = run(Command::new("tcpdump").args(args));
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let frames = counters.frames_from_guest + counters.frames_to_guest;
        assert_eq!(shown(&[]).len() as u64, frames);
        let port = address.port().to_string();
        let connection = shown(&["tcp", "port", &port]);
        assert!(connection[0].contains("Flags [S]"), "{}", connection[0]);
        assert!(connection[1].contains("Flags [S.]"), "{}", connection[1]);
        assert!(!shown(&["src", OUTSIDE, "and", "greater", "60000"]).is_empty(), "whole, as sent");
        assert!(connection.iter().any(|line| line.contains("Flags [F")), "{connection:?}");
        let bytes = counters.bytes_from_guest + counters.bytes_to_guest;
        assert_eq!(fs::metadata(path).unwrap().len(), 24 + 16 * frames + bytes);
    });
}
