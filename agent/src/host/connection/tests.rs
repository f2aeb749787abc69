use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::frame::Frame;
use boxlite_proto::message::{Failure, FailureKind, Hello, Request, Response};

use super::*;

#[test]
fn what_cannot_be_sent_waits_and_is_sent_in_order() {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, host) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let mut connection = Connection::new(ours, false);
    let mut scratch = vec![0; CHUNK];
    let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
    let mut expected = vec![hello.frame(0)];
    rustix::io::write(&host, &hello.frame(0).to_bytes()).unwrap();
    for stream in 1..64 {
        rustix::io::write(&host, &Request::Ping.frame(stream).to_bytes()).unwrap();
    }
    connection.receive(&mut scratch).unwrap();
    while let Some(event) = connection.next_event().unwrap() {
        let ServerEvent::Request { stream, .. } = event else { continue };
        let message = stream.to_string().repeat(16 << 10);
        let answer = Response::Failed(Failure { kind: FailureKind::Other, message });
        expected.push(answer.frame(stream));
        connection.session.respond(stream, &answer);
    }
    connection.flush().unwrap();
    assert!(connection.session.waiting() > 0 && !connection.ready.write);
    let (mut answers, mut got) = (Assembler::default(), Vec::<Frame>::new());
    while got.len() < expected.len() {
        if let Ok(n) = read(&host, &mut scratch[..]) {
            answers.extend(&scratch[..n]);
        }
        got.extend(std::iter::from_fn(|| answers.next_frame().unwrap()));
        connection.notify(Ready { write: true, ..Ready::default() });
        connection.flush().unwrap();
    }
    assert!(got == expected && connection.session.waiting() == 0);
}
