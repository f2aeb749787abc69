//! A scripted agent and scripted peers.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, FrameError, Kind, MAX_DATA};
use boxlite_proto::message::{Exec, Hello, MainExec, Request, Response};

use super::super::{Hub, HubCommand, HubEvent, Programs, Threads};

/// A generous timeout for anything that should happen.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn hello() -> Frame {
    Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 }.frame(0)
}

pub(super) struct Fixture {
    pub(super) hub: Hub,
    pub(super) folder: tempfile::TempDir,
    pub(super) agent: Option<UnixStream>,
    /// The last stream of the clock. Tests count the streams after it from 1.
    clock: u32,
    events: Receiver<HubEvent>,
    /// Credit for the command's output.
    credit: [usize; 2],
    /// Frames that arrived while the agent waited for credit.
    received: VecDeque<Frame>,
}

impl Fixture {
    pub(super) fn with(programs: Programs) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (sender, events) = channel();
        let hub = Hub::start(&Threads::new(|_| {}), programs, folder.path(), move |event| {
            let _ = sender.send(event);
        });
        let (hub, credit, received) = (hub.unwrap(), [WINDOW as usize; 2], VecDeque::new());
        Self { hub, folder, agent: None, clock: 0, events, credit, received }
    }

    /// A hub with a command of each kind and its agent.
    pub(super) fn connected() -> Self {
        let exec = |name: &str| {
            let argv = vec![name.as_bytes().to_vec()];
            Some(Exec { argv, stdin: name == "main", ..Exec::default() })
        };
        let mut fixture = Self::with(Programs {
            main: exec("main").map(|exec| MainExec { exec, init: true }),
            check: exec("check"),
            ..Programs::default()
        });
        fixture.connect();
        fixture
    }

    /// As `connected`, and the main command runs as process 7 on stream 1.
    pub(super) fn running() -> Self {
        let mut fixture = Self::connected();
        fixture.start();
        fixture.send(&Response::Started { pid: 7 }.frame(1));
        assert_eq!(fixture.event(), HubEvent::MainStarted(7));
        fixture
    }

    /// Connects as the agent.
    pub(super) fn connect(&mut self) {
        let mut agent = self.raw_agent();
        agent.write_all(b"OK 4000\n").unwrap();
        hello().write(&mut agent).unwrap();
        // The hub sets the guest's clock first.
        let asked = Frame::read(&mut agent).unwrap().unwrap();
        assert_eq!(asked.decode::<Request>().unwrap(), Request::Clock);
        Response::Clock { monotonic_ns: 1 }.frame(asked.stream).write(&mut agent).unwrap();
        let told = Frame::read(&mut agent).unwrap().unwrap();
        assert!(matches!(told.decode().unwrap(), Request::SetClock(_)));
        self.clock = told.stream;
        self.agent = Some(agent);
        self.credit = [WINDOW as usize; 2];
    }

    /// An agent that has got the hub's hello and not answered.
    pub(super) fn raw_agent(&self) -> UnixStream {
        let (mut agent, theirs) = UnixStream::pair().unwrap();
        agent.set_read_timeout(Some(PATIENCE)).unwrap();
        agent.set_write_timeout(Some(PATIENCE)).unwrap();
        self.hub.send(HubCommand::Connect(theirs));
        let mut line = [0; 13];
        agent.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        let frame = Frame::read(&mut agent).unwrap().unwrap();
        assert!(frame.decode::<Hello>().unwrap().unix_time_ns > 0);
        agent
    }

    /// Makes the hub request the main command.
    pub(super) fn start(&mut self) {
        self.hub.send(HubCommand::StartMain);
        let request = self.receive().decode().unwrap();
        assert!(
            matches!(request, Request::ExecMain(main) if main.exec.argv == [b"main"] && main.init)
        );
    }

    pub(super) fn event(&self) -> HubEvent {
        self.events.recv_timeout(PATIENCE).expect("a note")
    }

    pub(super) fn no_event(&self, within: Duration) {
        assert!(self.events.recv_timeout(within).is_err());
    }

    /// Sends a frame as the agent.
    pub(super) fn send(&mut self, frame: &Frame) {
        self.to_hub(frame).write(self.agent.as_mut().unwrap()).unwrap();
    }

    /// A test's frame, with its stream renumbered for the connection.
    pub(super) fn to_hub(&self, frame: &Frame) -> Frame {
        let clock = if frame.stream == 0 { 0 } else { self.clock };
        Frame { stream: frame.stream + clock, ..frame.clone() }
    }

    fn read(&mut self) -> Result<Option<Frame>, FrameError> {
        let frame = Frame::read(self.agent.as_mut().unwrap());
        let clock = self.clock;
        frame.map(|frame| frame.map(|f| Frame { stream: f.stream.wrapping_sub(clock), ..f }))
    }

    /// Sends output of the main command, once there is credit.
    pub(super) fn output(&mut self, channel: Channel, bytes: &[u8]) {
        let index = usize::from(channel == Channel::Stderr);
        for chunk in bytes.chunks(MAX_DATA) {
            while self.credit[index] < chunk.len() {
                assert!(self.take_credit(PATIENCE), "no credit");
            }
            self.credit[index] -= chunk.len();
            self.send(&Frame::data(1, channel, chunk));
        }
    }

    /// Whether there is credit for a whole frame within this time.
    pub(super) fn has_credit(&mut self, channel: Channel, within: Duration) -> bool {
        let until = Instant::now() + within;
        let index = usize::from(channel == Channel::Stderr);
        while self.credit[index] < MAX_DATA {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.take_credit(left) {
                return false;
            }
        }
        true
    }

    fn take_credit(&mut self, within: Duration) -> bool {
        self.agent.as_ref().unwrap().set_read_timeout(Some(within)).unwrap();
        let frame = self.read();
        self.agent.as_ref().unwrap().set_read_timeout(Some(PATIENCE)).unwrap();
        let Ok(Some(frame)) = frame else { return false };
        match frame.granted_credit() {
            Ok((channel, bytes)) if frame.stream == 1 => {
                self.credit[usize::from(channel == Channel::Stderr)] += bytes as usize;
            }
            _ => self.received.push_back(frame),
        }
        true
    }

    /// The next frame that the agent receives.
    pub(super) fn receive(&mut self) -> Frame {
        match self.received.pop_front() {
            Some(frame) => frame,
            None => self.read().unwrap().unwrap(),
        }
    }

    /// A peer that has sent nothing.
    pub(super) fn connect_peer(&self) -> TestPeer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        self.hub.send(HubCommand::Attach(theirs));
        TestPeer(ours)
    }

    /// A peer that has requested the main command, on stream 9.
    pub(super) fn attach(&self) -> TestPeer {
        let mut peer = self.connect_peer();
        peer.send(&hello());
        assert_eq!(peer.receive(), hello());
        peer.ask(&Request::Exec(Exec::default()));
        peer
    }

    /// A peer that is attached to the running command.
    pub(super) fn attached(&self) -> TestPeer {
        let mut peer = self.attach();
        assert_eq!(peer.response(), Response::Started { pid: 7 });
        peer
    }
}

pub(super) struct TestPeer(pub(super) UnixStream);

impl TestPeer {
    pub(super) fn send(&mut self, frame: &Frame) {
        frame.write(&mut self.0).unwrap();
    }

    pub(super) fn ask(&mut self, request: &Request) {
        self.send(&request.frame(9));
    }

    pub(super) fn receive(&mut self) -> Frame {
        Frame::read(&mut self.0).unwrap().expect("a frame")
    }

    pub(super) fn response(&mut self) -> Response {
        let frame = self.receive();
        assert_eq!((frame.kind, frame.stream), (Kind::Response, 9));
        frame.decode().unwrap()
    }

    pub(super) fn data(&mut self) -> (Channel, Vec<u8>) {
        let frame = self.receive();
        (frame.data_channel().expect("data"), frame.body.to_vec())
    }

    pub(super) fn is_hung_up_on(&mut self) -> bool {
        matches!(Frame::read(&mut self.0), Ok(None)) || self.0.write(&[0]).is_err()
    }

    /// Receives everything up to the final response, and grants credit for it.
    pub(super) fn collect(&mut self) -> JoinHandle<([Vec<u8>; 2], Response)> {
        let mut peer = TestPeer(self.0.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut streams = [Vec::new(), Vec::new()];
            loop {
                let frame = peer.receive();
                match frame.kind {
                    Kind::Stdout | Kind::Stderr => {
                        let channel = frame.data_channel().unwrap();
                        streams[usize::from(channel == Channel::Stderr)].extend(&frame.body);
                        // The hub may have closed the connection already.
                        let credit = Frame::credit(9, channel, frame.body.len() as u32);
                        let _ = credit.write(&mut peer.0);
                    }
                    Kind::End => {}
                    _ => return (streams, frame.decode().unwrap()),
                }
            }
        })
    }

    /// Sends input as the hub grants credit for it.
    pub(super) fn send_under_credit(&mut self, bytes: &[u8]) {
        let mut credit = WINDOW as usize;
        for chunk in bytes.chunks(MAX_DATA) {
            while credit < chunk.len() {
                credit += self.receive().granted_credit().unwrap().1 as usize;
            }
            credit -= chunk.len();
            self.send(&Frame::data(9, Channel::Stdin, chunk));
        }
    }
}
