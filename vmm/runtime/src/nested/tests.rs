//! The options of the keeper, and the router between a test agent and test launchers: two launchers share a link, a
//! launcher that does not read does not block the other, and the commands of a lost launcher are killed.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use boxlite_kernel::Arch;
use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, Kind, MAX_DATA};
use boxlite_proto::message::{
    Control, Event, Exec, ExitStatus, FailureKind, Hello, Request, Response, Stage,
};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::router::Router;
use super::{InnerLauncher, Options};
use crate::client::wire::FrameReader;
use crate::client::{AgentClient, Error, greet};

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), future).await };
    runtime.block_on(limited).expect("nothing hangs")
}

/// The agent's end of the link.
struct Agent {
    frames: FrameReader<DuplexStream>,
}

impl Agent {
    async fn next(&mut self) -> Frame {
        self.frames.next().await.unwrap().expect("the link stays up")
    }

    async fn send(&mut self, frame: Frame) {
        self.frames.io_mut().write_all(&frame.to_bytes()).await.unwrap();
    }

    /// Starts the next exec. Returns its stream and program.
    async fn start(&mut self) -> (u32, String) {
        let frame = self.next().await;
        let Request::Exec(exec) = frame.decode().unwrap() else { panic!("{frame:?}") };
        self.send(Response::Started { pid: frame.stream }.frame(frame.stream)).await;
        (frame.stream, String::from_utf8(exec.argv[0].clone()).unwrap())
    }
}

/// A router after the agent's hello.
async fn routed() -> (Arc<Router>, Agent) {
    let (host, guest) = duplex(1 << 16);
    let agent = async {
        let mut agent = Agent { frames: FrameReader::new(guest) };
        assert_eq!(agent.next().await.kind, Kind::Hello);
        let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
        agent.send(hello.frame(0)).await;
        agent.send(Event::Stage(Stage::Ready).frame(0)).await;
        agent
    };
    let (frames, agent) = tokio::join!(greet(host, 0), agent);
    let router = Arc::new(Router::default());
    let link = Arc::clone(&router);
    tokio::spawn(async move {
        let why = link.run_link(frames.unwrap(), 0).await;
        link.shut_down(why);
    });
    (router, agent)
}

async fn launcher(router: &Arc<Router>) -> AgentClient {
    let (ours, theirs) = duplex(1 << 16);
    let router = Arc::clone(router);
    tokio::spawn(async move { router.serve(theirs).await });
    AgentClient::connect(ours, 0).await.unwrap()
}

fn exec(program: &str) -> Exec {
    Exec { argv: vec![program.into()], stdin: true, ..Exec::default() }
}

#[test]
fn streams_of_launchers_do_not_mix() {
    run(async {
        let (router, mut agent) = routed().await;
        let serve = async {
            let mut streams = HashMap::new();
            for _ in 0..2 {
                let (stream, program) = agent.start().await;
                streams.insert(stream, program);
            }
            assert_eq!(streams.len(), 2, "each has a number of its own");
            for _ in 0..2 {
                let frame = agent.next().await;
                assert_eq!(frame.kind, Kind::Stdin);
                assert_eq!(frame.body, format!("to {}", streams[&frame.stream]).as_bytes());
                assert_eq!(agent.next().await, Frame::end(frame.stream, Channel::Stdin));
            }
            for (stream, program) in streams {
                agent.send(Frame::data(stream, Channel::Stderr, format!("from {program}"))).await;
                agent
                    .send(Response::Exited(ExitStatus::Code(program.as_bytes()[0])).frame(stream))
                    .await;
            }
        };
        let one = |program: &'static str| {
            let router = &router;
            async move {
                let client = launcher(router).await;
                let mut handle = client.exec(exec(program)).await.unwrap();
                let mut stdin = handle.stdin.take().unwrap();
                stdin.write_all(format!("to {program}").as_bytes()).await.unwrap();
                drop(stdin);
                let output = handle.wait_with_output().await.unwrap();
                assert_eq!(output.stderr, format!("from {program}").as_bytes());
                assert_eq!(output.status, ExitStatus::Code(program.as_bytes()[0]));
            }
        };
        tokio::join!(serve, one("a"), one("b"));
    });
}

#[test]
fn a_launcher_that_does_not_read_blocks_no_other() {
    run(async {
        let (router, mut agent) = routed().await;
        let (deaf, other) = (launcher(&router).await, launcher(&router).await);
        let serve = async {
            let (deaf_stream, _) = agent.start().await;
            // A window in tiny frames, then one in large frames.
            for _ in 0..MAX_DATA {
                agent.send(Frame::data(deaf_stream, Channel::Stdout, [1])).await;
            }
            for _ in 0..WINDOW as usize / MAX_DATA {
                agent.send(Frame::data(deaf_stream, Channel::Stderr, vec![2; MAX_DATA])).await;
            }
            let (stream, _) = agent.start().await;
            agent.send(Response::Exited(ExitStatus::Code(0)).frame(stream)).await;
            agent.send(Response::Exited(ExitStatus::Code(5)).frame(deaf_stream)).await;
            agent
        };
        let talk = async {
            let handle = deaf.exec(exec("deaf")).await.unwrap();
            let mut second = other.exec(exec("other")).await.unwrap();
            assert_eq!(second.wait().await.unwrap(), ExitStatus::Code(0));
            let output = handle.wait_with_output().await.unwrap();
            assert_eq!((output.stdout.len(), output.stderr.len()), (MAX_DATA, WINDOW as usize));
            assert_eq!(output.status, ExitStatus::Code(5));
        };
        tokio::join!(serve, talk);
    });
}

#[test]
fn commands_of_a_lost_launcher_are_killed_and_their_output_dropped() {
    run(async {
        let (router, mut agent) = routed().await;
        // As if killed: the connection ends without a message.
        let (mut ours, theirs) = duplex(1 << 16);
        let serving = Arc::clone(&router);
        tokio::spawn(async move { serving.serve(theirs).await });
        let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 1 };
        ours.write_all(&hello.frame(0).to_bytes()).await.unwrap();
        ours.write_all(&Request::Exec(exec("x")).frame(77).to_bytes()).await.unwrap();
        let (stream, _) = agent.start().await;
        drop(ours);
        let kill = agent.next().await;
        assert_eq!((kill.stream, kill.decode::<Control>().unwrap()), (stream, Control::Kill));
        assert_eq!(agent.next().await, Frame::end(stream, Channel::Stdout));
        assert_eq!(agent.next().await, Frame::end(stream, Channel::Stderr));
        agent.send(Frame::data(stream, Channel::Stdout, b"late".as_slice())).await;
        agent.send(Response::Exited(ExitStatus::Signal(9)).frame(stream)).await;
        // The link still works.
        let client = launcher(&router).await;
        let answer = async {
            let ping = agent.next().await;
            assert_eq!(ping.kind, Kind::Request);
            agent.send(Response::Done.frame(ping.stream)).await;
        };
        let (result, ()) = tokio::join!(client.ping(), answer);
        result.unwrap();
    });
}

#[test]
fn a_launcher_cannot_stop_the_host_of_others() {
    run(async {
        let (router, _agent) = routed().await;
        let client = launcher(&router).await;
        let error = client.shutdown(Duration::ZERO).await.unwrap_err();
        assert_eq!(error.failure().unwrap().kind, FailureKind::Unsupported);
    });
}

#[test]
fn launchers_are_told_why_the_host_failed() {
    run(async {
        let (router, mut agent) = routed().await;
        let client = launcher(&router).await;
        agent.send(Event::Fatal { message: "no root".into() }.frame(0)).await;
        drop(agent);
        let error = client.ping().await.unwrap_err();
        assert!(error.to_string().ends_with("no root"), "{error}");
        let (ours, theirs) = duplex(1 << 16);
        let late = Arc::clone(&router);
        tokio::spawn(async move { late.serve(theirs).await });
        let error = AgentClient::connect(ours, 0).await.unwrap_err();
        assert!(matches!(error, Error::Lost(_)) && error.to_string().ends_with("no root"));
    });
}

#[test]
fn launchers_are_greeted_when_the_agent_is() {
    run(async {
        let router = Arc::new(Router::default());
        let (ours, theirs) = duplex(1 << 16);
        let early = Arc::clone(&router);
        tokio::spawn(async move { early.serve(theirs).await });
        let (done, mut greeted) = mpsc::channel(1);
        tokio::spawn(async move { done.send(AgentClient::connect(ours, 0).await).await });
        assert!(tokio::time::timeout(Duration::from_millis(50), greeted.recv()).await.is_err());
        router.shut_down("it does not boot".into());
        let error = greeted.recv().await.unwrap().unwrap_err();
        assert!(error.to_string().ends_with("it does not boot"), "{error}");
    });
}

#[test]
fn hostile_launchers_are_disconnected() {
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), Request::Ping.frame(1).to_bytes()] {
        run(async {
            let (router, mut agent) = routed().await;
            let (mut ours, theirs) = duplex(1 << 16);
            let task = tokio::spawn(async move { router.serve(theirs).await });
            ours.write_all(&bytes).await.unwrap();
            task.await.unwrap();
            let silent = tokio::time::timeout(Duration::from_millis(20), agent.frames.next());
            assert!(silent.await.is_err(), "nothing reaches the agent");
        });
    }
}

#[test]
fn the_keeper_gets_the_options_of_its_launcher() {
    let arch = Arch::Aarch64;
    for inner in [None, Some(InnerLauncher { path: "/opt/arm/boxlite-vmm".into(), arch })] {
        let options = Options {
            home: "/home/a b".into(),
            arch,
            kernel: "/guest/aarch64/Image".into(),
            initramfs: "/guest/aarch64/initramfs".into(),
            template: "/guest/aarch64/template".into(),
            inner: inner.clone(),
            launcher: None,
            notice: None,
        };
        let (_, args) = options.keeper_command();
        assert_eq!(Options::from_args(args.into_iter().skip(1)).unwrap(), options);
        let environment = options.environment();
        let set = |name: &str| {
            let found = environment.iter().find(|(variable, _)| variable == name);
            found.map(|(_, value)| value.to_string_lossy().into_owned())
        };
        // Without an inner launcher, the variables are this process's.
        if inner.is_some() {
            assert_eq!(set("BOXLITE_VMM").as_deref(), Some("/opt/arm/boxlite-vmm"));
            assert_eq!(set("BOXLITE_GUEST_DIR").as_deref(), Some("/guest/aarch64"));
        }
    }
    assert_eq!(Options::from_args(["riscv64", "/home"].map(Into::into)), None);
}
