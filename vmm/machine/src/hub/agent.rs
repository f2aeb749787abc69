//! The connection to the agent, which carries the main command, a health check, the clock and the shutdown
//! request. The guest is hostile: a violation of the protocol ends the connection.

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

use super::link::{Link, LinkError};

/// The longest answer to `CONNECT`: "OK" and a port.
const MAX_ANSWER: usize = 32;
/// Bytes of a health check's output that are kept, from its end.
const KEPT_OUTPUT: usize = 4096;

/// A delay above which a clock reading is too inexact and is repeated once.
const LONG_DELAY: Duration = Duration::from_millis(500);

/// A connection to the agent, from `CONNECT` on. Requests may be made before the agent has answered.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) link: Link,
    pub(super) session: Client<Task>,
    /// The beginning of the device's answer to `CONNECT`; `None` once the answer is complete.
    line: Option<Vec<u8>>,
    pub(super) main: Option<Main>,
    check: Option<Check>,
    /// The agent has reported that it gives up. Only the first report is passed on.
    gave_up: bool,
    /// A reading of the guest's clock has been requested.
    clock_is_asked: bool,
}

/// The purpose of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    Main,
    Check,
    /// A reading of the guest's clock: when it was requested, and whether to repeat it if the answer takes long.
    Clock(Instant, bool),
    /// A request whose answer is ignored.
    Ignored,
}

/// An event in the guest.
#[derive(Debug)]
pub(super) enum AgentEvent {
    /// The main command runs, with this process ID.
    MainStarted(u32),
    /// The main command wrote output.
    Output(Channel, Bytes),
    /// The main command closed an output.
    OutputEnded(Channel),
    /// The main command ended: the response for the peers, and the end for the lifecycle.
    MainEnded(Response, MainEnd),
    /// The health check with this number ended.
    HealthChecked(u64, Result<String, String>),
    /// The agent gives up.
    Fatal(String),
}

/// The main command, once it has been requested.
#[derive(Debug)]
pub(super) struct Main {
    stream: u32,
    /// Whether it was requested with an input.
    has_input: bool,
    /// Its process ID in the guest, once it runs.
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
    /// Opens a connection to the agent over a vsock client's socket.
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

    /// Starts the main command, unless one runs.
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

    /// Sends the main command a control message. A signal goes to its own process only.
    pub(super) fn control_main(&mut self, control: Control) {
        let control = match control {
            Control::Signal(signal) => Control::SignalProcess(signal),
            other => other,
        };
        if let Some(main) = &self.main {
            self.session.control(main.stream, control);
        }
    }

    /// Begins to set the guest's clock: requests a reading of its monotonic clock.
    pub(super) fn ask_clock(&mut self) {
        // If a request is unanswered, for instance because the box was paused, its late answer makes another.
        if !self.clock_is_asked {
            self.ask_clock_now(true);
        }
    }

    fn ask_clock_now(&mut self, again: bool) {
        let task = Task::Clock(Instant::now(), again);
        self.clock_is_asked = self.ask(&Request::Clock, task).is_some();
    }

    /// Takes the reading, and tells the guest the time at that moment. The delay bounds the error.
    fn on_clock(&mut self, response: &Response, asked: Instant, again: bool) {
        self.clock_is_asked = false;
        // An older agent does not know the request.
        let Response::Clock { monotonic_ns } = *response else { return };
        let delay = asked.elapsed() / 2;
        let then = unix_time().saturating_sub(delay);
        let reading = ClockReading {
            monotonic_ns,
            unix_time_ns: nanoseconds(then),
            error_ns: nanoseconds(delay),
        };
        self.ask(&Request::SetClock(reading), Task::Ignored);
        if again && delay > LONG_DELAY {
            self.ask_clock_now(false);
        }
    }

    /// Starts a health check. Fails if the last one has not ended.
    pub(super) fn check(&mut self, number: u64, exec: &Exec) -> Result<(), String> {
        if self.check.is_some() {
            return Err("the last check was killed and has not ended".into());
        }
        let stream =
            self.ask(&Request::Exec(exec.clone()), Task::Check).ok_or("too many requests")?;
        self.check = Some(Check { number, stream, output: Vec::new() });
        Ok(())
    }

    /// Kills the running health check.
    pub(super) fn cancel_check(&mut self) {
        if let Some(check) = &self.check {
            self.session.control(check.stream, Control::Kill);
        }
    }

    /// Asks the guest to end all processes and power off.
    pub(super) fn shut_down(&mut self, grace: Duration) {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.ask(&Request::Shutdown { grace_ms }, Task::Ignored);
    }

    /// Whether the main command runs and has not closed its input.
    pub(super) fn takes_input(&self) -> bool {
        self.input_stream().is_some_and(|stream| self.session.is_input_open(stream))
    }

    /// Bytes of input that the main command may be sent now.
    pub(super) fn input_room(&self) -> usize {
        self.input_stream().map_or(0, |stream| self.session.input_room(stream))
    }

    /// Sends the main command as much input as it has room for. Returns the number of bytes.
    pub(super) fn send_input(&mut self, bytes: &mut Chunks) -> usize {
        self.input_stream().map_or(0, |stream| self.session.send_input_from(stream, bytes))
    }

    /// Ends the main command's input.
    pub(super) fn end_input(&mut self) {
        if let Some(main) = &self.main {
            self.session.end_input(main.stream);
        }
    }

    /// Closes an output of the main command, which sees a broken pipe.
    pub(super) fn close_output(&mut self, channel: Channel) {
        if let Some(main) = &self.main {
            self.session.close_output(main.stream, channel);
        }
    }

    /// Grants credit for the main command's output, except for `held` bytes that the slowest peer has not taken.
    pub(super) fn release(&mut self, channel: Channel, held: usize) {
        if let Some(main) = &self.main {
            let taken = self.session.output_held(main.stream, channel).saturating_sub(held);
            self.session.output_taken(main.stream, channel, taken);
        }
    }

    /// Reads once. Adds events to `events`, in order, including those before an error.
    pub(super) fn receive(&mut self, events: &mut Vec<AgentEvent>) -> Result<(), LinkError> {
        while let Some(line) = &mut self.line {
            let Some(byte) = self.link.byte()? else { return Ok(()) };
            line.push(byte);
            if byte == b'\n' && line.starts_with(b"OK ") {
                self.line = None;
            } else if byte == b'\n' || line.len() == MAX_ANSWER {
                return Err(LinkError::Transport("the guest's agent does not accept connections"));
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
            ClientEvent::Ended { tag: Task::Ignored, .. } => {}
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
    /// The result of a health check that ended this way.
    fn verdict(self, end: MainEnd) -> AgentEvent {
        let mut text = String::from_utf8_lossy(&self.output).into_owned();
        truncate(&mut text);
        let why = match end {
            MainEnd::Exited { out_of_memory: true, .. } => "the guest ran out of memory".to_owned(),
            MainEnd::Exited { status: ExitStatus::Code(0), .. } => {
                return AgentEvent::HealthChecked(self.number, Ok(text));
            }
            MainEnd::Exited { status: ExitStatus::Code(code), .. } => format!("exit code {code}"),
            MainEnd::Exited { status: ExitStatus::Signal(signal), .. } => {
                format!("signal {signal}")
            }
            MainEnd::NotStarted { message, .. } => {
                return AgentEvent::HealthChecked(self.number, Err(message));
            }
        };
        let output = if text.trim().is_empty() { why } else { text };
        AgentEvent::HealthChecked(self.number, Err(output))
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// The end of a command that a final response reports; `None` for other responses.
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
