use std::time::{Duration, Instant};

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::Frame;
use boxlite_proto::message::{Hello, Request};
use rustix::event::{EventfdFlags, eventfd};

use super::*;

fn start(work: impl FnOnce(Input, Output) -> Response + Send + 'static) -> Job {
    let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    Job::start(ReplyTo { connection: 1, stream: 2 }, Arc::new(bell), work).unwrap()
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "never");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The length of what was read and whether it ended, as an answer.
fn read_all(mut input: Input, _: Output) -> Response {
    let mut bytes = Vec::new();
    let result = input.read_to_end(&mut bytes);
    let ended_again = input.fill_buf().is_ok_and(<[u8]>::is_empty);
    match result {
        Ok(_) if ended_again => Response::Started { pid: bytes.len() as u32 },
        Err(e) if e.kind() == io::ErrorKind::ConnectionAborted && !ended_again => Response::Done,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_end_of_the_input_is_not_its_being_cut_off() {
    let mut job = start(read_all);
    for data in [&b"ab"[..], b"", b"c"] {
        job.receive(Bytes::from_static(data));
    }
    job.end();
    assert_eq!(wait_for(|| job.advance(None)), Response::Started { pid: 3 });
    let mut job = start(read_all);
    job.receive(Bytes::from_static(b"ab"));
    job.cancel();
    job.end();
    assert_eq!(wait_for(|| job.advance(None)), Response::Done);
}

/// A connection on which stream 2 was asked for.
fn session() -> Session {
    let mut session = Session::default();
    let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
    for frame in [hello.frame(0), Request::CopyOut(Default::default()).frame(2)] {
        session.receive_frame(frame).unwrap();
    }
    session.outbox().clear();
    session
}

#[test]
fn output_waits_until_it_is_sent_and_is_bounded() {
    // Answers with the number of bytes that it has written.
    let mut job = start(|_, mut output| {
        let (data, mut written) = (vec![7; 2 << 20], 0);
        while written < data.len() {
            match output.write(&data[written..]) {
                Ok(n) => written += n,
                Err(_) => return Response::Started { pid: written as u32 },
            }
        }
        Response::Done
    });
    let waiting = |job: &Job| job.shared.lock().output.len();
    wait_for(|| (waiting(&job) == OUTPUT).then_some(()));
    let mut session = session();
    let mut sent = 0;
    while sent < WINDOW as usize {
        assert_eq!(job.advance(Some(&mut session)), None);
        sent += session.outbox().take().len();
    }
    // No more is sent without credit.
    wait_for(|| (waiting(&job) == OUTPUT).then_some(()));
    assert!(!job.can_advance(&session));
    assert_eq!(job.advance(Some(&mut session)), None);
    assert!(session.outbox().is_empty());
    session.receive_frame(Frame::credit(2, Channel::Stdout, 1000)).unwrap();
    assert!(job.can_advance(&session));
    job.cancel();
    session.outbox().clear();
    // No more was written than was sent and may wait.
    let written = (WINDOW as usize + OUTPUT) as u32;
    assert_eq!(wait_for(|| job.advance(Some(&mut session))), Response::Started { pid: written });
    assert!(session.outbox().is_empty(), "the output of a cancelled job is sent");
}
