//! Tests of the whole device, between a driver and Unix streams.

mod bounds;
mod event_loop;
mod flow;
mod fuzz;
mod guest;
mod setup;
mod socket;

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use guest::{Guest, Packet, Setup};
use socket::Socket;

use super::HostPorts;
use super::packet::op;

/// The guest's port.
const PORT: u32 = 1024;

/// Serves no port of the host.
fn no_ports(_: u32) -> io::Result<UnixStream> {
    Err(ErrorKind::ConnectionRefused.into())
}

/// Serves all ports of the host: the receiver yields the servers' ends.
fn all_ports() -> (impl HostPorts, Receiver<(u32, UnixStream)>) {
    let (sender, receiver) = channel();
    let ports = move |port| {
        let (ours, theirs) = UnixStream::pair()?;
        sender.send((port, theirs)).map_err(io::Error::other)?;
        Ok(ours)
    };
    (ports, receiver)
}

/// A stream for `VsockHandle::attach`, and its other end, with timeouts.
fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    theirs.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    (ours, theirs)
}

/// A client that has requested [`PORT`], and the request that the guest received.
fn ask(guest: &mut Guest) -> (UnixStream, Packet) {
    let (ours, mut client) = pair();
    guest.handle().attach(ours).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = guest.expect(op::REQUEST);
    (client, request)
}

/// A connection that a client requested.
fn connect(guest: &mut Guest) -> (UnixStream, Socket) {
    connect_with_buffer(guest, 256 * 1024)
}

fn connect_with_buffer(guest: &mut Guest, buf_alloc: u32) -> (UnixStream, Socket) {
    let (mut client, request) = ask(guest);
    let socket = Socket { buf_alloc, ..Socket::of(&request) };
    assert_eq!(socket.guest_port, PORT);
    socket.send(guest, op::RESPONSE);
    assert_eq!(read_line(&mut client), format!("OK {}\n", socket.host_port));
    (client, socket)
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads to the end of the stream.
fn read_rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Pseudo-random bytes, which differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
}

/// Asserts that two long byte strings are equal; reports the first difference.
fn assert_same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    let differs = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first wrong byte");
}
