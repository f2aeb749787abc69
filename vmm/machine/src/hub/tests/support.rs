//! An agent and peers that do what the test says.

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

use super::super::{Commands, Hub, HubCommand, Note, Threads};

/// Longer than anything takes that happens at all.
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
    notes: Receiver<Note>,
    /// Credit of the command's output, and frames that came while it was waited for.
    credit: [usize; 2],
    heard: VecDeque<Frame>,
}

impl Fixture {
    pub(super) fn with(commands: Commands) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (sender, notes) = channel();
        let hub = Hub::start(&Threads::new(|_| {}), commands, folder.path(), move |note| {
            let _ = sender.send(note);
        });
        let (hub, credit, heard) = (hub.unwrap(), [WINDOW as usize; 2], VecDeque::new());
        Self { hub, folder, agent: None, clock: 0, notes, credit, heard }
    }

    /// A hub with a command of each kind and its agent.
    pub(super) fn connected() -> Self {
        let exec = |name: &str| {
            let argv = vec![name.as_bytes().to_vec()];
            Some(Exec { argv, stdin: name == "main", ..Exec::default() })
        };
        let mut fixture = Self::with(Commands {
            main: exec("main").map(|exec| MainExec { exec, init: true }),
            check: exec("check"),
            ..Commands::default()
        });
        fixture.connect();
        fixture
    }

    /// As `connected`, and the main command runs as process 7 on stream 1.
    pub(super) fn running() -> Self {
        let mut fixture = Self::connected();
        fixture.start();
        fixture.say(&Response::Started { pid: 7 }.frame(1));
        assert_eq!(fixture.note(), Note::MainStarted(7));
        fixture
    }

    /// Becomes the agent.
    pub(super) fn connect(&mut self) {
        let mut agent = self.raw_agent();
        agent.write_all(b"OK 4000\n").unwrap();
        hello().write(&mut agent).unwrap();
        // The guest's clock, which is set before anything runs.
        let asked = Frame::read(&mut agent).unwrap().unwrap();
        assert_eq!(asked.decode::<Request>().unwrap(), Request::Clock);
        Response::Clock { monotonic_ns: 1 }.frame(asked.stream).write(&mut agent).unwrap();
        let told = Frame::read(&mut agent).unwrap().unwrap();
        assert!(matches!(told.decode().unwrap(), Request::SetClock(_)));
        self.clock = told.stream;
        self.agent = Some(agent);
        self.credit = [WINDOW as usize; 2];
    }

    /// An agent that has been greeted and has not answered.
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

    /// Lets the main command be asked for.
    pub(super) fn start(&mut self) {
        self.hub.send(HubCommand::StartMain);
        let request = self.hear().decode().unwrap();
        assert!(
            matches!(request, Request::ExecMain(main) if main.exec.argv == [b"main"] && main.init)
        );
    }

    pub(super) fn note(&self) -> Note {
        self.notes.recv_timeout(PATIENCE).expect("a note")
    }

    pub(super) fn no_note(&self, within: Duration) {
        assert!(self.notes.recv_timeout(within).is_err());
    }

    /// The agent says something.
    pub(super) fn say(&mut self, frame: &Frame) {
        self.to_hub(frame).write(self.agent.as_mut().unwrap()).unwrap();
    }

    /// A frame of a test, with the number that its stream has on the connection.
    pub(super) fn to_hub(&self, frame: &Frame) -> Frame {
        let clock = if frame.stream == 0 { 0 } else { self.clock };
        Frame { stream: frame.stream + clock, ..frame.clone() }
    }

    fn read(&mut self) -> Result<Option<Frame>, FrameError> {
        let frame = Frame::read(self.agent.as_mut().unwrap());
        let clock = self.clock;
        frame.map(|frame| frame.map(|f| Frame { stream: f.stream.wrapping_sub(clock), ..f }))
    }

    /// The main command writes something: the agent has credit, or waits for it.
    pub(super) fn output(&mut self, channel: Channel, bytes: &[u8]) {
        let index = usize::from(channel == Channel::Stderr);
        for chunk in bytes.chunks(MAX_DATA) {
            while self.credit[index] < chunk.len() {
                assert!(self.take_credit(PATIENCE), "no credit");
            }
            self.credit[index] -= chunk.len();
            self.say(&Frame::data(1, channel, chunk));
        }
    }

    /// Whether there is credit for a whole frame.
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
            _ => self.heard.push_back(frame),
        }
        true
    }

    /// What the agent hears next.
    pub(super) fn hear(&mut self) -> Frame {
        match self.heard.pop_front() {
            Some(frame) => frame,
            None => self.read().unwrap().unwrap(),
        }
    }

    /// A peer without a word.
    pub(super) fn connect_peer(&self) -> TestPeer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.set_write_timeout(Some(PATIENCE)).unwrap();
        self.hub.send(HubCommand::Attach(theirs));
        TestPeer(ours)
    }

    /// A peer that has asked for the main command, on stream 9.
    pub(super) fn attach(&self) -> TestPeer {
        let mut peer = self.connect_peer();
        peer.send(&hello());
        assert_eq!(peer.receive(), hello());
        peer.ask(&Request::Exec(Exec::default()));
        peer
    }

    /// A peer of the command that runs.
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

    /// Takes everything to the last frame, granting credit for it.
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
                        // A hub that has said all that it had hangs up, whatever it is granted.
                        let credit = Frame::credit(9, channel, frame.body.len() as u32);
                        let _ = credit.write(&mut peer.0);
                    }
                    Kind::End => {}
                    _ => return (streams, frame.decode().unwrap()),
                }
            }
        })
    }

    /// Sends input as the hub gives credit for it.
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
