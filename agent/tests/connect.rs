//! Streams to sockets of the nested host: both directions, each end, failed connections, and commands that serve a socket.
//! The server reaps every child of its process, so this is a test binary of its own. Needs root, as the agent has it.

#[path = "common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use boxlite_proto::boot::Role;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::Channel;
use boxlite_proto::message::{Connect, Control, Exec, FailureKind, Request, Response, ServerExec};

use self::common::client::Client;
use self::common::needs_root;
use self::common::server::serve;

static SERVER: LazyLock<PathBuf> = LazyLock::new(|| serve(Role::SoftHost));

fn connect() -> Client {
    Client::new(UnixStream::connect(&*SERVER).unwrap())
}

/// A socket under a name of its own.
struct Peer {
    name: Vec<u8>,
    listener: UnixListener,
}

impl Peer {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("boxlite-test-{}-{number}", std::process::id()).into_bytes();
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self { name, listener: UnixListener::bind_addr(&address).unwrap() }
    }

    /// Connects a stream of the host's; the stream and the peer's end.
    fn connect(&self, host: &Client) -> (u32, UnixStream) {
        let stream = host.request(&Request::Connect(Connect { name: self.name.clone() }));
        let (socket, _) = self.listener.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (stream, socket)
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Waits until the peer's end reads as over, however that is told.
fn read_to_the_end(socket: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    bytes
}

#[test]
fn bytes_go_both_ways_unchanged_and_each_way_ends_by_itself() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, socket) = peer.connect(&host);
    let data = noise(4 << 20);
    let echo = std::thread::spawn(move || {
        let (mut from, mut to) = (&socket, &socket);
        std::io::copy(&mut from, &mut to).unwrap();
        to.write_all(b"after the end").unwrap();
    });
    assert_eq!(host.write_stdin(stream, &data), data.len());
    host.end_stdin(stream);
    let seen = host.finish(stream);
    echo.join().unwrap();
    assert_eq!(seen.responses, [Response::Done]);
    assert_eq!(seen.ended, [Channel::Stdout]);
    let (echoed, rest) = seen.stdout.split_at(data.len());
    assert!(echoed == data && rest == b"after the end");
}

#[test]
fn a_peer_that_sends_no_more_still_reads() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, mut socket) = peer.connect(&host);
    socket.write_all(b"all").unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let seen = host.wait_for(stream, |seen| !seen.ended.is_empty());
    assert_eq!((&*seen.stdout, seen.responses.len()), (&b"all"[..], 0));
    host.write_stdin(stream, b"still");
    host.end_stdin(stream);
    assert_eq!(read_to_the_end(&mut socket), b"still");
    assert_eq!(host.finish(stream).responses, [Response::Done]);
}

#[test]
fn a_peer_that_closes_ends_the_stream() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, mut socket) = peer.connect(&host);
    socket.write_all(b"last").unwrap();
    drop(socket);
    let seen = host.finish(stream);
    assert_eq!((&*seen.stdout, &*seen.responses), (&b"last"[..], &[Response::Done][..]));
    // Also one that has not read all.
    let (stream, socket) = peer.connect(&host);
    host.write_stdin(stream, b"unread");
    socket.peek_some();
    drop(socket);
    assert_eq!(host.finish(stream).responses, [Response::Done]);
}

trait PeekSome {
    fn peek_some(&self);
}

impl PeekSome for UnixStream {
    /// Waits until there is something to read, and leaves it there.
    fn peek_some(&self) {
        let mut byte = [0];
        rustix::net::recv(self, &mut byte, rustix::net::RecvFlags::PEEK).unwrap();
    }
}

#[test]
fn a_host_that_gives_up_closes_the_socket() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, mut socket) = peer.connect(&host);
    host.control(stream, Control::Kill);
    assert_eq!(host.finish(stream).responses, [Response::Done]);
    assert!(read_to_the_end(&mut socket).is_empty());
    assert!(socket.write_all(b"x").is_err());
    // And one whose connection ends.
    let (_, mut socket) = peer.connect(&host);
    host.close();
    assert!(read_to_the_end(&mut socket).is_empty());
}

#[test]
fn a_host_that_reads_no_more_still_sends() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, mut socket) = peer.connect(&host);
    host.send(&boxlite_proto::frame::Frame::end(stream, Channel::Stdout));
    host.write_stdin(stream, b"sent");
    let mut bytes = [0; 4];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"sent");
    host.end_stdin(stream);
    assert_eq!(host.finish(stream).responses, [Response::Done]);
    assert!(socket.write_all(b"x").is_err());
}

#[test]
fn a_host_that_leaves_has_all_its_input_delivered() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    let (stream, mut socket) = peer.connect(&host);
    // More than the socket takes before its peer reads.
    let data = noise(WINDOW as usize);
    assert_eq!(host.write_stdin(stream, &data), data.len());
    host.end_stdin(stream);
    host.send(&boxlite_proto::frame::Frame::end(stream, Channel::Stdout));
    // A peer that writes is no reason to give up.
    socket.write_all(b"output that nobody reads").unwrap();
    assert!(read_to_the_end(&mut socket) == data);
    assert_eq!(host.finish(stream).responses, [Response::Done]);
}

#[test]
fn whoever_does_not_read_stops_nobody_else() {
    needs_root!();
    let (host, peer) = (connect(), Peer::new());
    *host.taking.lock().unwrap() = false;
    // The host takes nothing of what the one peer sends, the other peer nothing of what the host sends.
    let (untaken, mut sending) = peer.connect(&host);
    let (unread, mut reading) = peer.connect(&host);
    let more_than_fits = noise(WINDOW as usize * 4);
    let data = more_than_fits.clone();
    let writer = std::thread::spawn(move || sending.write_all(&data));
    let first = host.wait_for(untaken, |seen| seen.stdout.len() == WINDOW as usize);
    assert!(first.stdout == more_than_fits[..WINDOW as usize], "a window, and no more");
    let window = &more_than_fits[..WINDOW as usize];
    assert_eq!(host.write_stdin(unread, window), window.len());
    host.end_stdin(unread);
    // Others go on.
    assert_eq!(host.ask(&Request::Ping), Response::Done);
    let (stream, mut socket) = peer.connect(&host);
    host.write_stdin(stream, b"?");
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    socket.write_all(b"!").unwrap();
    drop(socket);
    assert_eq!(host.finish(stream).stdout, b"!");
    // What waited is all there.
    let mut read = Vec::new();
    reading.read_to_end(&mut read).unwrap();
    assert!(read == window);
    drop(reading);
    assert_eq!(host.finish(unread).responses, [Response::Done]);
    host.control(untaken, Control::Kill);
    host.finish(untaken);
    assert!(writer.join().unwrap().is_err(), "its socket is closed");
}

#[test]
fn what_cannot_be_connected_says_so() {
    needs_root!();
    let host = connect();
    let ask = |name: Vec<u8>| match host.ask(&Request::Connect(Connect { name })) {
        Response::Failed(failure) => failure,
        other => panic!("{other:?}"),
    };
    let failure = ask(b"boxlite-test-nobody\xff".to_vec());
    assert_eq!(failure.kind, FailureKind::Other);
    assert!(failure.message.contains("@boxlite-test-nobody\\xff: Connection refused"), "{failure}");
    assert_eq!(ask(vec![b'x'; 4000]).kind, FailureKind::Other);
    // A socket that accepts nobody: one that is full is an error, too, and not a wait.
    let peer = Peer::new();
    rustix::net::listen(&peer.listener, 0).unwrap();
    let name = Connect { name: peer.name.clone() };
    let held = host.request(&Request::Connect(name));
    assert!(ask(peer.name.clone()).message.contains("temporarily unavailable"));
    host.control(held, Control::Kill);
    assert_eq!(host.finish(held).responses, [Response::Done]);
}

/// The request for a command that serves the socket `name`.
fn server(script: &str, name: &[u8]) -> Request {
    let argv = ["perl", "-MSocket", "-e", script].map(|arg| arg.as_bytes().to_vec()).into();
    let exec = Exec { argv, stdin: true, ..Exec::default() };
    Request::ExecServer(ServerExec { exec, socket: name.to_vec() })
}

#[test]
fn a_command_serves_its_socket_to_connections_that_came_before_it_ran() {
    needs_root!();
    let host = connect();
    let name = format!("boxlite-test-server-{}", std::process::id()).into_bytes();
    // The first line shows how many descriptors above the standard ones were inherited.
    let script = r#"opendir(D, "/proc/$$/fd"); my $d = fileno(D); my @f = grep {/\d/ && $_ > 2 && $_ != $d} readdir D;
        $| = 1; print "@f\n"; open(L, "+<&=", 3); while (accept(C, L)) { syswrite(C, "hello"); close C }"#;
    let command = host.request(&server(script, &name));
    let streams = [(); 3].map(|()| host.request(&Request::Connect(Connect { name: name.clone() })));
    for stream in streams {
        host.end_stdin(stream);
        let seen = host.finish(stream);
        assert_eq!((&*seen.stdout, &seen.responses[..]), (&b"hello"[..], &[Response::Done][..]));
    }
    let seen = host.wait_for(command, |seen| seen.stdout.ends_with(b"\n"));
    assert_eq!(seen.stdout, b"3\n");
    // The name is in use until the command ends, and then connections fail.
    let again = host.ask(&server("", &name));
    assert!(matches!(&again, Response::Failed(f) if f.message.contains("in use")), "{again:?}");
    host.control(command, Control::Kill);
    host.finish(command);
    let refused = host.ask(&Request::Connect(Connect { name }));
    assert!(
        matches!(&refused, Response::Failed(f) if f.message.contains("refused")),
        "{refused:?}"
    );
}

#[test]
fn connections_to_a_command_that_never_accepts_end_with_it() {
    needs_root!();
    let host = connect();
    let name = format!("boxlite-test-idle-{}", std::process::id()).into_bytes();
    let command = host.request(&server("<STDIN>", &name));
    let waiting = host.request(&Request::Connect(Connect { name: name.clone() }));
    host.end_stdin(command);
    host.finish(command);
    assert_eq!(host.finish(waiting).responses, [Response::Done]);
    // One that cannot be started leaves no socket behind.
    let mut missing = server("", &name);
    if let Request::ExecServer(server) = &mut missing {
        server.exec.argv = vec![b"/nonexistent".to_vec()];
    }
    let failed = host.ask(&missing);
    assert!(
        matches!(&failed, Response::Failed(f) if f.kind == FailureKind::NotFound),
        "{failed:?}"
    );
    let refused = host.ask(&Request::Connect(Connect { name }));
    assert!(
        matches!(&refused, Response::Failed(f) if f.message.contains("refused")),
        "{refused:?}"
    );
}
