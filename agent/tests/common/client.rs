//! A host for the server under test: a thread reads, and the test sends requests.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, Kind};
use boxlite_proto::message::{Control, Exec, Hello, Request, Response};

const PATIENCE: Duration = Duration::from_secs(20);

/// Everything received on a stream.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) ended: Vec<Channel>,
    pub(crate) responses: Vec<Response>,
    /// Credit for stdin.
    credit: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            ended: Vec::new(),
            responses: Vec::new(),
            credit: WINDOW as usize,
        }
    }
}

impl Seen {
    fn is_over(&self) -> bool {
        self.responses.last().is_some_and(|last| !matches!(last, Response::Started { .. }))
    }

    /// The last response, and both outputs as text.
    pub(crate) fn result(&self) -> (Response, String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (self.responses.last().unwrap().clone(), text(&self.stdout), text(&self.stderr))
    }
}

#[derive(Default)]
struct Shared {
    seen: Mutex<(BTreeMap<u32, Seen>, bool)>,
    changed: Condvar,
}

pub(crate) struct Client {
    /// Two threads write whole frames.
    socket: Arc<Mutex<UnixStream>>,
    shared: Arc<Shared>,
    next: AtomicU32,
    /// Streams whose output is taken. On others, the reader has stopped.
    pub(crate) taking: Arc<Mutex<bool>>,
}

impl Client {
    /// Connects, and sends a hello.
    pub(crate) fn new(socket: UnixStream) -> Self {
        let client = Self::without_hello(socket);
        let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
        client.send(&hello.frame(0));
        client
    }

    pub(crate) fn without_hello(socket: UnixStream) -> Self {
        let shared = Arc::new(Shared::default());
        let taking = Arc::new(Mutex::new(true));
        let reader = socket.try_clone().unwrap();
        let socket = Arc::new(Mutex::new(socket));
        let for_grants = Arc::clone(&socket);
        let (for_reader, taking_too) = (Arc::clone(&shared), Arc::clone(&taking));
        std::thread::spawn(move || read_all(reader, &for_grants, &for_reader, &taking_too));
        Self { socket, shared, next: AtomicU32::new(1), taking }
    }

    pub(crate) fn send(&self, frame: &Frame) {
        self.send_bytes(&frame.to_bytes());
    }

    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        // Some tests expect a closed connection.
        let _ = self.socket.lock().unwrap().write_all(bytes);
    }

    pub(crate) fn request(&self, request: &Request) -> u32 {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        self.shared.seen.lock().unwrap().0.insert(stream, Seen::default());
        self.send(&request.frame(stream));
        stream
    }

    pub(crate) fn exec(&self, exec: Exec) -> u32 {
        self.request(&Request::Exec(exec))
    }

    pub(crate) fn control(&self, stream: u32, control: Control) {
        self.send(&control.frame(stream));
    }

    /// Sends within the credit, until the agent closes the input. Returns the number of bytes sent.
    pub(crate) fn write_stdin(&self, stream: u32, data: &[u8]) -> usize {
        let mut sent = 0;
        while sent < data.len() {
            let mut room = 0;
            self.wait_for(stream, |seen| {
                room = seen.credit.min(64 << 10).min(data.len() - sent);
                seen.credit -= room;
                room > 0 || seen.ended.contains(&Channel::Stdin) || seen.is_over()
            });
            if room == 0 {
                break;
            }
            self.send(&Frame::data(stream, Channel::Stdin, &data[sent..sent + room]));
            sent += room;
        }
        sent
    }

    pub(crate) fn end_stdin(&self, stream: u32) {
        self.send(&Frame::end(stream, Channel::Stdin));
    }

    /// Waits until the received data of a stream is as wanted.
    pub(crate) fn wait_for(&self, stream: u32, mut wanted: impl FnMut(&mut Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.lock().unwrap();
        loop {
            if wanted(seen.0.entry(stream).or_default()) {
                return seen.0[&stream].clone();
            }
            let (guard, timeout) = self.shared.changed.wait_timeout(seen, PATIENCE).unwrap();
            seen = guard;
            let said = &seen.0[&stream].responses;
            assert!(!timeout.timed_out(), "nothing more on stream {stream}: {said:?}");
            assert!(!seen.1, "the connection is closed");
        }
    }

    pub(crate) fn finish(&self, stream: u32) -> Seen {
        self.wait_for(stream, |seen| seen.is_over())
    }

    pub(crate) fn run(&self, exec: Exec) -> (Response, String, String) {
        self.finish(self.exec(exec)).result()
    }

    pub(crate) fn ask(&self, request: &Request) -> Response {
        self.finish(self.request(request)).responses.pop().unwrap()
    }

    /// Waits until the agent has closed the connection.
    pub(crate) fn wait_closed(&self) {
        let seen = self.shared.seen.lock().unwrap();
        let (_seen, timeout) =
            self.shared.changed.wait_timeout_while(seen, PATIENCE, |seen| !seen.1).unwrap();
        assert!(!timeout.timed_out(), "the connection is still open");
    }

    pub(crate) fn close(self) {
        self.socket.lock().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn read_all(
    mut socket: UnixStream,
    grants: &Mutex<UnixStream>,
    shared: &Shared,
    taking: &Mutex<bool>,
) {
    while let Ok(Some(frame)) = Frame::read(&mut socket) {
        let mut all = shared.seen.lock().unwrap();
        let seen = all.0.entry(frame.stream).or_default();
        match frame.kind {
            Kind::Response => {
                assert!(!seen.is_over(), "a frame after the last one");
                seen.responses.push(frame.decode().unwrap());
            }
            Kind::Stdout | Kind::Stderr => {
                let channel = frame.data_channel().unwrap();
                let output =
                    if channel == Channel::Stdout { &mut seen.stdout } else { &mut seen.stderr };
                output.extend_from_slice(&frame.body);
                if *taking.lock().unwrap() {
                    let grant = Frame::credit(frame.stream, channel, frame.body.len() as u32);
                    let _ = grants.lock().unwrap().write_all(&grant.to_bytes());
                }
            }
            Kind::End => seen.ended.push(frame.ended_channel().unwrap()),
            Kind::Credit => seen.credit += frame.granted_credit().unwrap().1 as usize,
            _ => {}
        }
        drop(all);
        shared.changed.notify_all();
    }
    shared.seen.lock().unwrap().1 = true;
    shared.changed.notify_all();
}
