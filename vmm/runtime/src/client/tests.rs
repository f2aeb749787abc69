//! The client against test agents: honest, slow and hostile ones.

mod guest;
mod hostile;
mod socket;

use std::future::Future;
use std::io;
use std::time::Duration;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, HEADER_LEN, Kind, MAX_BODY, MAX_DATA};
use boxlite_proto::message::{
    Control, Event, Exec, ExitStatus, Failure, FailureKind, Hello, Request, Response, Stage,
    TerminalSize,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::wire::FrameReader;
use super::*;

/// The agent's end of a connection.
struct Agent {
    frames: FrameReader<DuplexStream>,
}

impl Agent {
    async fn next(&mut self) -> Option<Frame> {
        self.frames.next().await.expect("the client sends frames")
    }

    async fn request(&mut self) -> (u32, Request) {
        let frame = self.next().await.expect("a request");
        assert_eq!(frame.kind, Kind::Request);
        (frame.stream, frame.decode().unwrap())
    }

    async fn send(&mut self, frame: Frame) {
        self.send_bytes(&frame.to_bytes()).await;
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        // The client may have closed the connection already.
        let _ = self.frames.io_mut().write_all(bytes).await;
    }

    /// Serves until the client closes the connection. Output waits for credit.
    async fn expect_hang_up(mut self) {
        while let Ok(Some(_)) = self.frames.next().await {}
    }

    /// Answers an exec with a process ID.
    async fn start(&mut self) -> u32 {
        let (stream, request) = self.request().await;
        assert!(matches!(request, Request::Exec(_)));
        self.send(Response::Started { pid: 40 + stream }.frame(stream)).await;
        stream
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), future).await };
    runtime.block_on(limited).expect("nothing hangs")
}

/// A client and its agent, after the exchange of hellos.
async fn connected() -> (AgentClient, Agent) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let agent = async {
        let mut agent = Agent { frames: FrameReader::new(theirs) };
        let hello: Hello = agent.next().await.unwrap().decode().unwrap();
        assert_eq!((hello.version, hello.generation), (PROTOCOL_VERSION, 3));
        assert!(hello.unix_time_ns > 1_700_000_000_000_000_000);
        agent.send(Hello { unix_time_ns: 0, ..hello }.frame(0)).await;
        agent
    };
    let (client, agent) = tokio::join!(AgentClient::connect(ours, 3), agent);
    (client.unwrap(), agent)
}

fn exec(stdin: bool) -> Exec {
    Exec { argv: vec![b"cat".to_vec()], stdin, ..Exec::default() }
}

/// Starts a command, whose part `act` plays for the agent.
async fn running<F: Future<Output = Agent>>(
    stdin: bool,
    act: impl FnOnce(Agent, u32) -> F,
) -> (Result<ExecHandle>, Agent) {
    let (client, mut agent) = connected().await;
    let agent = async {
        let stream = agent.start().await;
        act(agent, stream).await
    };
    tokio::join!(client.exec(exec(stdin)), agent)
}

#[test]
fn futures_can_move_between_threads() {
    fn send<T: Send>(_: fn(&'static AgentClient) -> T) {}
    send(|client| client.exec(Exec::default()));
    send(|client| client.unpack_layer(tokio::io::empty()));
    send(|client| client.copy_in(Default::default(), tokio::io::empty()));
    send(|client| client.copy_out(Default::default()));
    send(|client| client.exec_detached(Exec::default()));
    send(|client| client.metrics());
    send(|client| client.processes());
    send(|client| client.stat(Default::default()));
    fn movable<T: Send + Unpin + 'static>() {}
    movable::<Archive>();
    movable::<SocketStream>();
    send(|_| AgentClient::connect(tokio::io::duplex(1).0, 0));
}

#[test]
fn output_is_there_when_waiting_ends() {
    run(async {
        let (handle, agent) = running(false, |mut agent, stream| async move {
            agent.send(Frame::data(stream, Channel::Stdout, b"out".as_slice())).await;
            agent.send(Frame::data(stream, Channel::Stderr, b"err".as_slice())).await;
            agent.send(Response::Exited(ExitStatus::Code(7)).frame(stream)).await;
            agent
        })
        .await;
        let mut handle = handle.unwrap();
        assert_eq!(handle.pid(), 41);
        assert_eq!(handle.wait().await.unwrap(), ExitStatus::Code(7));
        assert_eq!(handle.try_wait().unwrap(), Some(ExitStatus::Code(7)));
        drop(agent);
        let output = handle.wait_with_output().await.unwrap();
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (b"out".as_slice(), b"err".as_slice())
        );
    });
}

#[test]
fn a_failure_has_its_kind_and_a_bounded_message() {
    run(async {
        let (client, mut agent) = connected().await;
        let failure = Failure { kind: FailureKind::NotFound, message: "ä".repeat(1 << 20) };
        let agent = async {
            let (stream, _) = agent.request().await;
            agent.send(Response::Failed(failure).frame(stream)).await;
        };
        let (error, ()) = tokio::join!(client.exec(exec(false)), agent);
        let error = error.unwrap_err();
        let failure = error.failure().unwrap();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert!(failure.message.len() <= 4096 + '…'.len_utf8());
    });
}

#[test]
fn calls_and_controls_reach_the_agent_in_order() {
    run(async {
        let (client, mut agent) = connected().await;
        let calls = async {
            client.ping().await.unwrap();
            client.sync().await.unwrap();
            client.shutdown(Duration::from_millis(1500)).await.unwrap();
            let handle = client.exec(exec(false)).await.unwrap();
            handle.signal(15);
            handle.resize(TerminalSize { rows: 10, columns: 20 });
            handle.kill();
        };
        let answers = async {
            for expected in [Request::Ping, Request::Sync, Request::Shutdown { grace_ms: 1500 }] {
                let (stream, request) = agent.request().await;
                assert_eq!(request, expected);
                agent.send(Response::Done.frame(stream)).await;
            }
            let stream = agent.start().await;
            assert_eq!(stream, 4, "streams are numbered on");
            for expected in [
                Control::Signal(15),
                Control::Resize(TerminalSize { rows: 10, columns: 20 }),
                Control::Kill,
            ] {
                let frame = agent.next().await.unwrap();
                assert_eq!((frame.stream, frame.decode::<Control>().unwrap()), (stream, expected));
            }
        };
        tokio::join!(calls, answers);
    });
}

#[test]
fn dropped_handles_kill_and_end() {
    run(async {
        let (handle, mut agent) = running(true, |agent, _| async { agent }).await;
        drop(handle.unwrap());
        let mut kinds = Vec::new();
        while let Some(frame) = agent.next().await {
            kinds.push(match frame.kind {
                Kind::Control => format!("{:?}", frame.decode::<Control>().unwrap()),
                _ => format!("{:?}", frame.ended_channel().unwrap()),
            });
        }
        kinds.sort();
        assert_eq!(kinds, ["Kill", "Stderr", "Stdin", "Stdout"]);
    });
}

#[test]
fn a_detached_command_keeps_its_input_and_its_outputs() {
    run(async {
        let (handle, mut agent) = running(true, |agent, _| async { agent }).await;
        let mut handle = handle.unwrap();
        handle.stdin.take().unwrap().detach_all();
        drop(handle);
        // The process that shares the command among its clients ignores this.
        let kill = agent.next().await.unwrap();
        assert_eq!(kill.decode::<Control>().unwrap(), Control::Kill);
        assert!(agent.next().await.is_none());
    });
}

#[test]
fn an_abandoned_exec_is_killed_before_it_started() {
    run(async {
        let (client, mut agent) = connected().await;
        let asked = client.exec(exec(false));
        assert!(tokio::time::timeout(Duration::from_millis(20), asked).await.is_err());
        let (stream, _) = agent.request().await;
        let kill = agent.next().await.unwrap();
        assert_eq!((kill.stream, kill.decode::<Control>().unwrap()), (stream, Control::Kill));
        // Its late answers are harmless.
        agent.send(Response::Started { pid: 1 }.frame(stream)).await;
        agent.send(Frame::data(stream, Channel::Stdout, vec![0; MAX_DATA])).await;
        agent.send(Response::Exited(ExitStatus::Signal(9)).frame(stream)).await;
        let answer = async {
            let (stream, _) = agent.request().await;
            agent.send(Response::Done.frame(stream)).await;
        };
        tokio::join!(async { client.ping().await.unwrap() }, answer);
    });
}

/// An agent that runs `cat` on every stream, under flow control, and checks the client's credit.
async fn cat(mut agent: Agent, limit: usize) {
    #[derive(Default)]
    struct Cat {
        input: std::collections::VecDeque<u8>,
        taken: usize,
        credit: usize,
        ended: bool,
    }
    let mut cats: std::collections::HashMap<u32, Cat> = Default::default();
    while let Some(frame) = agent.next().await {
        let stream = frame.stream;
        match frame.kind {
            Kind::Request => {
                cats.insert(stream, Cat { credit: WINDOW as usize, ..Cat::default() });
                agent.send(Response::Started { pid: stream }.frame(stream)).await;
            }
            Kind::Stdin => {
                let cat = cats.get_mut(&stream).unwrap();
                cat.input.extend(&frame.body);
                assert!(cat.input.len() <= WINDOW as usize, "the client overran the window");
            }
            Kind::Credit => {
                let (channel, bytes) = frame.granted_credit().unwrap();
                assert_eq!(channel, Channel::Stdout);
                if let Some(cat) = cats.get_mut(&stream) {
                    cat.credit += bytes as usize;
                }
            }
            Kind::End => {
                if let (Channel::Stdin, Some(cat)) =
                    (frame.ended_channel().unwrap(), cats.get_mut(&stream))
                {
                    cat.ended = true;
                }
            }
            other => panic!("{other:?}"),
        }
        let Some(cat) = cats.get_mut(&stream) else { continue };
        while !cat.input.is_empty() && cat.credit > 0 {
            let n = cat.input.len().min(cat.credit).min(limit);
            let data: Vec<u8> = cat.input.drain(..n).collect();
            cat.credit -= n;
            cat.taken += n;
            agent.send(Frame::data(stream, Channel::Stdout, data)).await;
        }
        if cat.taken > 0 {
            let taken = std::mem::take(&mut cat.taken) as u32;
            agent.send(Frame::credit(stream, Channel::Stdin, taken)).await;
        }
        if cat.ended && cat.input.is_empty() {
            cats.remove(&stream);
            agent.send(Response::Exited(ExitStatus::Code(0)).frame(stream)).await;
        }
    }
}

/// Bytes without repetitions.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        })
        .collect()
}

async fn through_cat(client: AgentClient, input: Vec<u8>, slow: bool) {
    let mut handle = client.exec(exec(true)).await.unwrap();
    let (mut stdin, mut stdout) = (handle.stdin.take().unwrap(), handle.stdout.take().unwrap());
    let write = async {
        stdin.write_all(&input).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let read = async {
        let mut output = Vec::new();
        while stdout.read_buf(&mut output).await.unwrap() > 0 {
            if slow {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        output
    };
    let ((), output) = tokio::join!(write, read);
    assert!(output == input, "{} bytes came back as {}", input.len(), output.len());
    assert_eq!(handle.wait().await.unwrap(), ExitStatus::Code(0));
}

#[test]
fn many_streams_share_a_connection_and_a_slow_one_blocks_no_other() {
    run(async {
        let (client, agent) = connected().await;
        tokio::spawn(cat(agent, MAX_DATA));
        let mut tasks = tokio::task::JoinSet::new();
        for seed in 0..32 {
            tasks.spawn(through_cat(client.clone(), noise(seed, 2 << 20), seed == 7));
        }
        // A stream whose output is never read.
        let mut stuck = client.exec(exec(true)).await.unwrap();
        let mut stdin = stuck.stdin.take().unwrap();
        let stuck_write = async { stdin.write_all(&noise(99, 4 << 20)).await };
        tokio::select! {
            _ = stuck_write => panic!("more than the windows hold was written"),
            () = async { while tasks.join_next().await.transpose().unwrap().is_some() {} } => {}
        }
    });
}

#[test]
fn a_dropped_reader_unblocks_the_writer() {
    run(async {
        let (handle, mut agent) = running(true, |agent, _| async { agent }).await;
        let mut handle = handle.unwrap();
        let mut stdin = handle.stdin.take().unwrap();
        let end = async {
            for _ in 0..WINDOW as usize / MAX_DATA {
                assert_eq!(agent.next().await.unwrap().kind, Kind::Stdin);
            }
            agent.send(Frame::end(1, Channel::Stdin)).await;
        };
        let data = noise(1, 1 << 20);
        let (written, ()) = tokio::join!(stdin.write_all(&data), end);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn a_layer_is_sent_completely_and_counted() {
    run(async {
        let (client, mut agent) = connected().await;
        let tar = noise(5, 3 << 20);
        let unpack = async {
            let (stream, request) = agent.request().await;
            assert_eq!(request, Request::UnpackLayer);
            let mut got = Vec::new();
            loop {
                let frame = agent.next().await.unwrap();
                match frame.kind {
                    Kind::Stdin => {
                        got.extend_from_slice(&frame.body);
                        let bytes = frame.body.len() as u32;
                        agent.send(Frame::credit(stream, Channel::Stdin, bytes)).await;
                    }
                    _ => break assert_eq!(frame.ended_channel().unwrap(), Channel::Stdin),
                }
            }
            agent.send(Response::Unpacked { entries: 9, bytes: 10 }.frame(stream)).await;
            got
        };
        let (unpacked, got) = tokio::join!(client.unpack_layer(tar.as_slice()), unpack);
        assert_eq!(unpacked.unwrap(), Unpacked { entries: 9, bytes: 10 });
        assert!(got == tar);
    });
}

#[test]
fn a_layer_that_cannot_be_read_is_never_ended() {
    run(async {
        let (client, mut agent) = connected().await;
        let tar = tokio_test_reader();
        let unpack = async {
            let (_, request) = agent.request().await;
            assert_eq!(request, Request::UnpackLayer);
            loop {
                match agent.next().await.unwrap() {
                    frame if frame.kind == Kind::Stdin => {}
                    frame => break frame.decode::<Control>().unwrap(),
                }
            }
        };
        let (error, control) = tokio::join!(client.unpack_layer(tar), unpack);
        assert!(matches!(error, Err(Error::Source(_))), "{error:?}");
        assert_eq!(control, Control::Kill);
    });
}

/// A reader that fails after a few bytes.
fn tokio_test_reader() -> impl AsyncRead + Unpin {
    struct Broken(bool);
    impl AsyncRead for Broken {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            into: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            if std::mem::replace(&mut self.0, true) {
                return std::task::Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            into.put_slice(&[1; 512]);
            std::task::Poll::Ready(Ok(()))
        }
    }
    Broken(false)
}

#[test]
fn a_refused_layer_reports_the_refusal() {
    run(async {
        let (client, mut agent) = connected().await;
        let refuse = async {
            let (stream, _) = agent.request().await;
            let message = "no space left on the disk".to_owned();
            let failure = Failure { kind: FailureKind::DiskFull, message };
            agent.send(Frame::end(stream, Channel::Stdin)).await;
            agent.send(Response::Failed(failure).frame(stream)).await;
        };
        let (error, ()) = tokio::join!(client.unpack_layer(tokio::io::repeat(1)), refuse);
        assert_eq!(error.unwrap_err().failure().unwrap().kind, FailureKind::DiskFull);
    });
}

#[test]
fn early_events_are_kept_and_a_fatal_one_explains_the_loss() {
    run(async {
        let (client, mut agent) = connected().await;
        let mut events = client.events();
        for _ in 0..100 {
            agent.send(Event::Stage(Stage::Root).frame(0)).await;
        }
        agent.send(Event::Stage(Stage::Ready).frame(0)).await;
        agent.send(Event::Fatal { message: "the disk is gone".into() }.frame(0)).await;
        drop(agent);
        let error = client.ping().await.unwrap_err();
        assert!(error.to_string().ends_with("the disk is gone"), "{error}");
        let mut all = Vec::new();
        while let Some(event) = events.next().await {
            all.push(event);
        }
        assert_eq!(all.len(), 64);
        assert_eq!(all[62], Event::Stage(Stage::Ready));
        // And so do all later requests.
        assert!(matches!(client.exec(exec(false)).await, Err(Error::Lost(_))));
    });
}

#[test]
fn a_lost_connection_fails_readers_writers_and_waiters() {
    run(async {
        let (handle, agent) = running(true, |mut agent, stream| async move {
            agent.send(Frame::data(stream, Channel::Stdout, b"half".as_slice())).await;
            agent
        })
        .await;
        let mut handle = handle.unwrap();
        drop(agent);
        let mut output = Vec::new();
        let error = handle.stdout.take().unwrap().read_to_end(&mut output).await.unwrap_err();
        assert_eq!(
            (output.as_slice(), error.kind()),
            (b"half".as_slice(), io::ErrorKind::ConnectionReset)
        );
        let error = handle.stdin.take().unwrap().write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(handle.wait().await.is_err());
    });
}

#[test]
fn a_request_that_does_not_fit_is_refused_here() {
    run(async {
        let (client, _agent) = connected().await;
        let exec = Exec { argv: vec![vec![0; MAX_BODY]], ..Exec::default() };
        assert!(matches!(client.exec(exec).await, Err(Error::TooLarge { .. })));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The frames are the same however the bytes are split.
    #[test]
    fn frames_survive_any_cut(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5000), 1..20),
        cuts in proptest::collection::vec(1..7000usize, 1..50),
    ) {
        let frames: Vec<Frame> = (1..).zip(bodies)
            .map(|(stream, body)| Frame::data(stream, Channel::Stdout, body))
            .collect();
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::to_bytes).collect();
        let got = run(async {
            let (mut ours, theirs) = tokio::io::duplex(4096);
            let send = async move {
                let mut rest = bytes.as_slice();
                for cut in cuts.into_iter().cycle() {
                    let (now, later) = rest.split_at(cut.min(rest.len()));
                    ours.write_all(now).await.unwrap();
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let receive = async {
                let mut reader = FrameReader::new(theirs);
                let mut got = Vec::new();
                while let Some(frame) = reader.next().await.unwrap() {
                    got.push(frame);
                }
                got
            };
            tokio::join!(send, receive).1
        });
        prop_assert_eq!(got, frames);
    }
}
