//! The connection to the agent, and what runs on it: the main command, a health check, the request
//! to shut down. The guest is hostile: what breaks the protocol ends the connection.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use boxlite_contract::status::MainEnd;
use boxlite_proto::frame::Channel;
use boxlite_proto::message::{
    ClockReading, Control, Event, Exec, ExitStatus, FailureKind, Hello, MainExec, Request, Response,
};
use boxlite_proto::session::{Chunks, Client, ClientEvent, truncate};
use boxlite_proto::{AGENT_PORT, PROTOCOL_VERSION};
use bytes::Bytes;

use super::link::{Broken, Link};

/// The longest answer to `CONNECT`: "OK" and a port.
const MAX_ANSWER: usize = 32;
/// Bytes of a health check's output that are kept: the last ones.
const KEPT_OUTPUT: usize = 4096;

/// A way that is longer says too little about the time.
const LONG_WAY: Duration = Duration::from_millis(500);

/// A connection to the agent, from `CONNECT` on. What is asked before the agent has answered waits
/// on the way.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) link: Link,
    pub(super) session: Client<Task>,
    /// What has come of the device's answer to `CONNECT`; none once it is complete.
    line: Option<Vec<u8>>,
    pub(super) main: Option<Main>,
    check: Option<Check>,
    /// It has said that it gives up: the first reason counts, and others are not told.
    gave_up: bool,
    /// The guest's clock was asked for.
    clock_is_asked: bool,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    Main,
    Check,
    /// When the guest's clock was asked for, and whether to ask once more if the answer takes long.
    Clock(Instant, bool),
    /// Nobody waits for the answer.
    Unheeded,
}

/// What happened in the guest.
#[derive(Debug)]
pub(super) enum AgentEvent {
    /// The main command runs.
    MainStarted(u32),
    /// It wrote something.
    Output(Channel, Bytes),
    /// It writes nothing more there.
    OutputEnded(Channel),
    /// It ended: for those who are attached, and for the lifecycle.
    MainEnded(Response, MainEnd),
    /// The health check of this number ended.
    Checked(u64, Result<String, String>),
    /// The agent gives up.
    Fatal(String),
}

/// The main command, once it has been asked for.
#[derive(Debug)]
pub(super) struct Main {
    stream: u32,
    /// Whether it was asked for with an input.
    has_input: bool,
    /// Once it runs.
    pub(super) pid: Option<u32>,
}

/// A health check.
#[derive(Debug)]
struct Check {
    number: u64,
    stream: u32,
    output: Vec<u8>,
}

impl Agent {
    /// Says hello to the agent behind a vsock client's socket.
    pub(super) fn connect(vsock: UnixStream) -> io::Result<Self> {
        let unix_time_ns = nanoseconds(unix_time());
        let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns };
        let connect = format!("CONNECT {AGENT_PORT}\n");
        Ok(Self {
            link: Link::new(vsock)?,
            session: Client::with_preamble(connect.as_bytes(), &hello),
            line: Some(Vec::new()),
            main: None,
            check: None,
            gave_up: false,
            clock_is_asked: false,
        })
    }

    fn ask(&mut self, request: &Request, task: Task) -> Option<u32> {
        self.session.request(request, |_| task).ok()
    }

    /// Runs the main command. One at a time: another is asked for when this one has ended.
    pub(super) fn start_main(&mut self, main: &MainExec) {
        if self.main.is_some() {
            return;
        }
        if let Some(stream) = self.ask(&Request::ExecMain(main.clone()), Task::Main) {
            self.main = Some(Main { stream, has_input: main.exec.stdin, pid: None });
        }
    }

    /// The stream of the main command, if it runs and has an input.
    fn input_stream(&self) -> Option<u32> {
        let main = self.main.as_ref().filter(|main| main.pid.is_some() && main.has_input);
        main.map(|main| main.stream)
    }

    /// Tells the main command something. A signal is for its own process alone.
    pub(super) fn control_main(&mut self, control: Control) {
        let control = match control {
            Control::Signal(signal) => Control::SignalProcess(signal),
            other => other,
        };
        if let Some(main) = &self.main {
            self.session.control(main.stream, control);
        }
    }

    /// Begins to set the guest's clock: asks for a reading of the one that nobody sets.
    pub(super) fn ask_clock(&mut self) {
        // A question that has no answer yet, of a box that was paused meanwhile for instance, is asked again then.
        if !self.clock_is_asked {
            self.ask_clock_now(true);
        }
    }

    fn ask_clock_now(&mut self, again: bool) {
        let task = Task::Clock(Instant::now(), again);
        self.clock_is_asked = self.ask(&Request::Clock, task).is_some();
    }

    /// The reading has come: tells what time it was then, as exactly as the way allows.
    fn on_clock(&mut self, response: &Response, asked: Instant, again: bool) {
        self.clock_is_asked = false;
        // An agent that is older than this has no such clock.
        let Response::Clock { monotonic_ns } = *response else { return };
        let way = asked.elapsed() / 2;
        let then = unix_time().saturating_sub(way);
        let reading = ClockReading {
            monotonic_ns,
            unix_time_ns: nanoseconds(then),
            error_ns: nanoseconds(way),
        };
        self.ask(&Request::SetClock(reading), Task::Unheeded);
        if again && way > LONG_WAY {
            self.ask_clock_now(false);
        }
    }

    /// Begins a health check. If the last one has not ended, this one fails.
    pub(super) fn check(&mut self, number: u64, exec: &Exec) -> Result<(), String> {
        if self.check.is_some() {
            return Err("the last check was killed and has not ended".into());
        }
        let stream =
            self.ask(&Request::Exec(exec.clone()), Task::Check).ok_or("too many requests")?;
        self.check = Some(Check { number, stream, output: Vec::new() });
        Ok(())
    }

    /// Kills the health check that runs.
    pub(super) fn cancel_check(&mut self) {
        if let Some(check) = &self.check {
            self.session.control(check.stream, Control::Kill);
        }
    }

    /// Asks the guest to end everything and itself.
    pub(super) fn shut_down(&mut self, grace: Duration) {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.ask(&Request::Shutdown { grace_ms }, Task::Unheeded);
    }

    /// Whether the main command runs and takes input, now or later.
    pub(super) fn takes_input(&self) -> bool {
        self.input_stream().is_some_and(|stream| self.session.is_input_open(stream))
    }

    /// Bytes of input that the main command may be sent now.
    pub(super) fn input_room(&self) -> usize {
        self.input_stream().map_or(0, |stream| self.session.input_room(stream))
    }

    /// Sends input to the main command, as much as there is room for; how much that was.
    pub(super) fn send_input(&mut self, bytes: &mut Chunks) -> usize {
        self.input_stream().map_or(0, |stream| self.session.send_input_from(stream, bytes))
    }

    /// Ends the main command's input.
    pub(super) fn end_input(&mut self) {
        if let Some(main) = &self.main {
            self.session.end_input(main.stream);
        }
    }

    /// Nobody reads that output of the main command any more.
    pub(super) fn close_output(&mut self, channel: Channel) {
        if let Some(main) = &self.main {
            self.session.close_output(main.stream, channel);
        }
    }

    /// Grants credit for the main command's output, down to `held` bytes that the slowest peer has not taken.
    pub(super) fn release(&mut self, channel: Channel, held: usize) {
        if let Some(main) = &self.main {
            let taken = self.session.output_held(main.stream, channel).saturating_sub(held);
            self.session.output_taken(main.stream, channel, taken);
        }
    }

    /// Reads once. What happened is added to `events`, in order, also what came before an error.
    pub(super) fn receive(&mut self, events: &mut Vec<AgentEvent>) -> Result<(), Broken> {
        while let Some(line) = &mut self.line {
            let Some(byte) = self.link.byte()? else { return Ok(()) };
            line.push(byte);
            if byte == b'\n' && line.starts_with(b"OK ") {
                self.line = None;
            } else if byte == b'\n' || line.len() == MAX_ANSWER {
                return Err(Broken::Transport("the guest's agent does not accept connections"));
            }
        }
        self.link.read()?;
        while let Some(event) = self.session.receive(&mut self.link.input)? {
            self.on_event(event, events);
        }
        Ok(())
    }

    fn on_event(&mut self, event: ClientEvent<Task>, events: &mut Vec<AgentEvent>) {
        let main = self.main.as_ref().map(|main| main.stream);
        match event {
            ClientEvent::Hello(_) => self.ask_clock(),
            ClientEvent::Event(Event::Fatal { message })
                if !std::mem::replace(&mut self.gave_up, true) =>
            {
                events.push(AgentEvent::Fatal(message));
            }
            ClientEvent::Event(_) => {}
            ClientEvent::Started { stream, pid } => {
                if let Some(main) = self.main.as_mut().filter(|main| main.stream == stream) {
                    main.pid = Some(pid);
                    events.push(AgentEvent::MainStarted(pid));
                }
            }
            ClientEvent::Output { stream, channel, data } if main == Some(stream) => {
                events.push(AgentEvent::Output(channel, data));
            }
            ClientEvent::Output { stream, channel, data } => {
                self.on_check_output(stream, channel, &data);
            }
            ClientEvent::OutputEnded { stream, channel } if main == Some(stream) => {
                events.push(AgentEvent::OutputEnded(channel));
            }
            ClientEvent::OutputEnded { .. }
            | ClientEvent::InputRoom { .. }
            | ClientEvent::InputClosed { .. } => {}
            ClientEvent::Ended { tag: Task::Main, response, .. } => {
                self.main = None;
                events.extend(main_end(&response).map(|e| AgentEvent::MainEnded(response, e)));
            }
            ClientEvent::Ended { tag: Task::Check, response, .. } => {
                let check = self.check.take().zip(main_end(&response));
                events.extend(check.map(|(check, end)| check.verdict(end)));
            }
            ClientEvent::Ended { tag: Task::Clock(asked, again), response, .. } => {
                self.on_clock(&response, asked, again);
            }
            ClientEvent::Ended { tag: Task::Unheeded, .. } => {}
        }
    }

    fn on_check_output(&mut self, stream: u32, channel: Channel, data: &[u8]) {
        self.session.output_taken(stream, channel, data.len());
        if let Some(check) = &mut self.check {
            check.output.extend_from_slice(data);
            let over = check.output.len().saturating_sub(KEPT_OUTPUT);
            check.output.drain(..over);
        }
    }
}

impl Check {
    /// What a health check says that ended so.
    fn verdict(self, end: MainEnd) -> AgentEvent {
        let mut text = String::from_utf8_lossy(&self.output).into_owned();
        truncate(&mut text);
        let why = match end {
            MainEnd::Exited { out_of_memory: true, .. } => "the guest ran out of memory".to_owned(),
            MainEnd::Exited { status: ExitStatus::Code(0), .. } => {
                return AgentEvent::Checked(self.number, Ok(text));
            }
            MainEnd::Exited { status: ExitStatus::Code(code), .. } => format!("exit code {code}"),
            MainEnd::Exited { status: ExitStatus::Signal(signal), .. } => {
                format!("signal {signal}")
            }
            MainEnd::NotStarted { message, .. } => {
                return AgentEvent::Checked(self.number, Err(message));
            }
        };
        let output = if text.trim().is_empty() { why } else { text };
        AgentEvent::Checked(self.number, Err(output))
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What the last answer to a command means. Every way a command can end is here.
fn main_end(response: &Response) -> Option<MainEnd> {
    Some(match response {
        Response::Exited(status) => MainEnd::Exited { status: *status, out_of_memory: false },
        Response::ExitedOutOfMemory(status) => {
            MainEnd::Exited { status: *status, out_of_memory: true }
        }
        Response::Failed(failure) => {
            let code = match failure.kind {
                FailureKind::NotFound => 127,
                FailureKind::NotExecutable => 126,
                _ => 125,
            };
            MainEnd::NotStarted { code, message: failure.message.clone() }
        }
        _ => return None,
    })
}
