//! The connection to the agent, and what runs on it: the main command, a health check, the request
//! to shut down. The guest is hostile: what breaks the protocol ends the connection.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use boxlite_contract::status::MainEnd;
use boxlite_proto::credit::{ReceiveWindow, SendWindow};
use boxlite_proto::frame::{Channel, Frame, Kind};
use boxlite_proto::message::{
    ClockReading, Control, Event, Exec, ExitStatus, FailureKind, Hello, MainExec, Request, Response,
};
use boxlite_proto::{AGENT_PORT, PROTOCOL_VERSION};
use bytes::Bytes;

use super::link::{Broken, Link};
use super::peer::{OUTPUTS, index};

/// The longest answer to `CONNECT`: "OK" and a port.
const MAX_ANSWER: usize = 32;
/// The longest message of a guest that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;
/// Bytes of a health check's output that are kept: the last ones.
const KEPT_OUTPUT: usize = 4096;

/// The streams on which the guest's clock is asked for and set; commands have those from 1 on.
const CLOCK: u32 = u32::MAX - 1;
const SET_CLOCK: u32 = u32::MAX;
/// A way that is longer says too little about the time.
const LONG_WAY: Duration = Duration::from_millis(500);

/// A connection to the agent, from `CONNECT` on. What is asked before the agent has answered waits
/// on the way.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) link: Link,
    greeting: Greeting,
    last_stream: u32,
    pub(super) main: Option<Run>,
    check: Option<Check>,
    /// It has said that it gives up: the first reason counts, and others are not told.
    gave_up: bool,
    /// When the guest's clock was asked for, and whether to ask once more if the answer takes long.
    clock: Option<(Instant, bool)>,
}

#[derive(Debug)]
enum Greeting {
    /// The device's answer to `CONNECT`.
    Line(Vec<u8>),
    /// The agent's hello.
    Hello,
    Over,
}

/// What the agent said.
#[derive(Debug)]
pub(super) enum Said {
    /// The main command runs.
    MainStarted(u32),
    /// It wrote something.
    Output(Channel, Bytes),
    /// It writes nothing more there.
    OutputEnded(Channel),
    /// It ended: for those who are attached, and for the machine.
    MainEnded(Response, MainEnd),
    /// The health check of this number ended.
    Checked(u64, Result<String, String>),
    /// The agent gives up.
    Fatal(String),
}

/// The main command, once it has been asked for.
#[derive(Debug)]
pub(super) struct Run {
    stream: u32,
    /// Once it runs.
    pub(super) pid: Option<u32>,
    pub(super) stdin: SendWindow,
    /// It takes no more input.
    pub(super) stdin_ended: bool,
    outputs: [Output; 2],
}

#[derive(Debug, Default)]
struct Output {
    window: ReceiveWindow,
    /// Bytes that somebody has not taken.
    held: usize,
    ended: bool,
}

/// A health check.
#[derive(Debug)]
struct Check {
    number: u64,
    stream: u32,
    windows: [ReceiveWindow; 2],
    output: Vec<u8>,
}

impl Agent {
    /// Says hello to the agent behind a vsock client's socket.
    pub(super) fn connect(vsock: UnixStream) -> io::Result<Self> {
        let mut link = Link::new(vsock)?;
        link.push_raw(&greeting());
        Ok(Self {
            link,
            greeting: Greeting::Line(Vec::new()),
            last_stream: 0,
            main: None,
            check: None,
            gave_up: false,
            clock: None,
        })
    }

    fn ask(&mut self, request: &Request) -> Option<u32> {
        let stream = self.last_stream.checked_add(1)?;
        self.last_stream = stream;
        self.link.push(&request.frame(stream));
        Some(stream)
    }

    /// Runs the main command. One at a time: another is asked for when this one has ended.
    pub(super) fn start_main(&mut self, main: &MainExec) {
        if self.main.is_some() {
            return;
        }
        let stdin_ended = !main.exec.stdin;
        if let Some(stream) = self.ask(&Request::ExecMain(main.clone())) {
            let (stdin, outputs) = (SendWindow::default(), Default::default());
            self.main = Some(Run { stream, pid: None, stdin, stdin_ended, outputs });
        }
    }

    /// Tells the main command something. A signal is for its own process alone.
    pub(super) fn control_main(&mut self, control: Control) {
        let control = match control {
            Control::Signal(signal) => Control::SignalProcess(signal),
            other => other,
        };
        if let Some(main) = &self.main {
            self.link.push(&control.frame(main.stream));
        }
    }

    /// Begins to set the guest's clock: asks for a reading of the one that nobody sets.
    pub(super) fn ask_clock(&mut self) {
        // A question that has no answer yet, of a box that was paused meanwhile for instance, is asked again then.
        if self.clock.is_none() {
            self.ask_clock_now(true);
        }
    }

    fn ask_clock_now(&mut self, again: bool) {
        self.clock = Some((Instant::now(), again));
        self.link.push(&Request::Clock.frame(CLOCK));
    }

    /// The reading has come: tells what time it was then, as exactly as the way allows.
    fn on_clock(&mut self, frame: &Frame, asked: Instant, again: bool) -> Result<(), Broken> {
        self.clock = None;
        match frame.decode()? {
            Response::Clock { monotonic_ns } => {
                let way = asked.elapsed() / 2;
                let then = unix_time().saturating_sub(way);
                let reading = ClockReading {
                    monotonic_ns,
                    unix_time_ns: nanoseconds(then),
                    error_ns: nanoseconds(way),
                };
                self.link.push(&Request::SetClock(reading).frame(SET_CLOCK));
                if again && way > LONG_WAY {
                    self.ask_clock_now(false);
                }
                Ok(())
            }
            // An agent that is older than this.
            Response::Failed(_) => Ok(()),
            _ => Err(Broken::Protocol("an unexpected answer to a question for the clock")),
        }
    }

    /// Begins a health check. If the last one has not ended, this one fails.
    pub(super) fn check(&mut self, number: u64, exec: &Exec) -> Result<(), String> {
        if self.check.is_some() {
            return Err("the last check was killed and has not ended".into());
        }
        let stream = self.ask(&Request::Exec(exec.clone())).ok_or("too many requests")?;
        self.check =
            Some(Check { number, stream, windows: Default::default(), output: Vec::new() });
        Ok(())
    }

    /// Kills the health check that runs.
    pub(super) fn cancel_check(&mut self) {
        if let Some(check) = &self.check {
            self.link.push(&Control::Kill.frame(check.stream));
        }
    }

    /// Asks the guest to end everything and itself.
    pub(super) fn shut_down(&mut self, grace: Duration) {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.ask(&Request::Shutdown { grace_ms });
    }

    /// Takes input for the main command; at most its window has room for.
    pub(super) fn input(&mut self, bytes: &[u8]) {
        if let Some(main) = &mut self.main {
            main.stdin.spend(bytes.len());
            self.link.push_parts(main.stream, Kind::Stdin, bytes);
        }
    }

    /// Ends the main command's input.
    pub(super) fn end_input(&mut self) {
        if let Some(main) = &mut self.main
            && !std::mem::replace(&mut main.stdin_ended, true)
        {
            self.link.push(&Frame::end(main.stream, Channel::Stdin));
        }
    }

    /// Nobody reads that output of the main command any more.
    pub(super) fn close_output(&mut self, channel: Channel) {
        if let Some(main) = &self.main {
            self.link.push(&Frame::end(main.stream, channel));
        }
    }

    /// Of a channel's output, somebody has not taken `held` bytes: the command may write as much more
    /// as has been taken.
    pub(super) fn release(&mut self, channel: Channel, held: usize) {
        let Some(main) = &mut self.main else { return };
        let Some(output) = index(channel).and_then(|index| main.outputs.get_mut(index)) else {
            return;
        };
        let taken = output.held.saturating_sub(held);
        output.held -= taken;
        let credit = output.window.take(taken).filter(|_| !output.ended);
        if let Some(credit) = credit {
            self.link.push(&Frame::credit(main.stream, channel, credit));
        }
    }

    /// Reads once; what the agent said, in its order.
    pub(super) fn receive(&mut self) -> Result<Vec<Said>, Broken> {
        while let Greeting::Line(line) = &mut self.greeting {
            let Some(byte) = self.link.byte()? else { return Ok(Vec::new()) };
            line.push(byte);
            if byte == b'\n' && line.starts_with(b"OK ") {
                self.greeting = Greeting::Hello;
            } else if byte == b'\n' || line.len() == MAX_ANSWER {
                return Err(Broken::Protocol("the guest's agent does not accept connections"));
            }
        }
        let mut said = Vec::new();
        for frame in self.link.receive()? {
            self.handle(frame, &mut said)?;
        }
        Ok(said)
    }

    fn handle(&mut self, frame: Frame, said: &mut Vec<Said>) -> Result<(), Broken> {
        if frame.stream == 0 {
            return self.on_connection(&frame, said);
        }
        if !matches!(self.greeting, Greeting::Over) {
            return Err(Broken::Protocol("no hello from the guest's agent"));
        }
        if self.main.as_ref().is_some_and(|main| main.stream == frame.stream) {
            self.on_main(frame, said)
        } else if self.check.as_ref().is_some_and(|check| check.stream == frame.stream) {
            self.on_check(&frame, said)
        } else if let (CLOCK, Some((asked, again))) = (frame.stream, self.clock) {
            self.on_clock(&frame, asked, again)
        } else if frame.stream == SET_CLOCK {
            // The clock is as it can be.
            Ok(())
        } else if frame.stream > self.last_stream {
            Err(Broken::Protocol("a stream that was never opened"))
        } else {
            // The answer to a shutdown, or the last words of something that was over.
            Ok(())
        }
    }

    fn on_connection(&mut self, frame: &Frame, said: &mut Vec<Said>) -> Result<(), Broken> {
        match (frame.kind, &self.greeting) {
            (Kind::Hello, Greeting::Hello) => {
                let hello: Hello = frame.decode()?;
                if hello.version != PROTOCOL_VERSION {
                    return Err(Broken::Protocol("the guest's agent speaks another version"));
                }
                self.greeting = Greeting::Over;
                self.ask_clock();
            }
            (Kind::Event, _) => {
                // Events of a newer agent are not for this host.
                if let Ok(Event::Fatal { message }) = frame.decode()
                    && !std::mem::replace(&mut self.gave_up, true)
                {
                    said.push(Said::Fatal(cut(message)));
                }
            }
            _ => return Err(Broken::Protocol("an unexpected frame on stream 0")),
        }
        Ok(())
    }

    fn on_main(&mut self, frame: Frame, said: &mut Vec<Said>) -> Result<(), Broken> {
        let Some(main) = &mut self.main else { return Ok(()) };
        let running = main.pid.is_some();
        match frame.kind {
            Kind::Stdout | Kind::Stderr if running => {
                let channel = frame.data_channel().ok_or(Broken::Protocol("no channel"))?;
                let output = index(channel).and_then(|index| main.outputs.get_mut(index));
                let output = output.filter(|output| !output.ended);
                let output = output.ok_or(Broken::Protocol("output after its end"))?;
                output.window.receive(frame.body.len()).map_err(broken_credit)?;
                output.held += frame.body.len();
                said.push(Said::Output(channel, frame.body));
            }
            Kind::End if running => {
                let channel = frame.ended_channel()?;
                match index(channel).and_then(|index| main.outputs.get_mut(index)) {
                    None => main.stdin_ended = true,
                    Some(output) => {
                        output.ended = true;
                        said.push(Said::OutputEnded(channel));
                    }
                }
            }
            Kind::Credit if running => {
                let (channel, bytes) = frame.granted_credit()?;
                if channel != Channel::Stdin {
                    return Err(Broken::Protocol("credit for output"));
                }
                main.stdin.grant(bytes).map_err(broken_credit)?;
            }
            Kind::Response => match frame.decode()? {
                Response::Started { pid } if !running => {
                    main.pid = Some(pid);
                    said.push(Said::MainStarted(pid));
                }
                response => {
                    let (response, end) = last_word(response, running)
                        .ok_or(Broken::Protocol("an unexpected answer to an exec"))?;
                    self.main = None;
                    said.push(Said::MainEnded(response, end));
                }
            },
            _ => return Err(Broken::Protocol("an unexpected frame of the main command")),
        }
        Ok(())
    }

    fn on_check(&mut self, frame: &Frame, said: &mut Vec<Said>) -> Result<(), Broken> {
        let Some(check) = &mut self.check else { return Ok(()) };
        match frame.kind {
            Kind::Stdout | Kind::Stderr => {
                let channel = frame.data_channel().ok_or(Broken::Protocol("no channel"))?;
                let window = index(channel).and_then(|index| check.windows.get_mut(index));
                let window = window.ok_or(Broken::Protocol("no channel"))?;
                window.receive(frame.body.len()).map_err(broken_credit)?;
                if let Some(credit) = window.take(frame.body.len()) {
                    self.link.push(&Frame::credit(check.stream, channel, credit));
                }
                check.output.extend_from_slice(&frame.body);
                let over = check.output.len().saturating_sub(KEPT_OUTPUT);
                check.output.drain(..over);
            }
            Kind::Response => {
                let response = match frame.decode()? {
                    Response::Started { .. } => return Ok(()),
                    response => last_word(response, true),
                };
                let (_, end) =
                    response.ok_or(Broken::Protocol("an unexpected answer to an exec"))?;
                let text = cut(String::from_utf8_lossy(&check.output).into_owned());
                said.push(Said::Checked(check.number, verdict(end, text)));
                self.check = None;
            }
            Kind::End | Kind::Credit => {}
            _ => return Err(Broken::Protocol("an unexpected frame of a health check")),
        }
        Ok(())
    }

    /// The channels of output that wait for somebody.
    pub(super) fn channels(&self) -> impl Iterator<Item = Channel> + use<> {
        let running = self.main.is_some();
        OUTPUTS.into_iter().filter(move |_| running)
    }
}

/// `CONNECT` and the hello, which says what time it is not before.
fn greeting() -> Vec<u8> {
    let unix_time_ns = nanoseconds(unix_time());
    let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns };
    let mut bytes = format!("CONNECT {AGENT_PORT}\n").into_bytes();
    bytes.extend(hello.frame(0).to_bytes());
    bytes
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What the last frame of a command's stream means. Every way a command can end is here.
fn last_word(response: Response, running: bool) -> Option<(Response, MainEnd)> {
    let end = match &response {
        Response::Exited(status) if running => {
            MainEnd::Exited { status: *status, out_of_memory: false }
        }
        Response::ExitedOutOfMemory(status) if running => {
            MainEnd::Exited { status: *status, out_of_memory: true }
        }
        Response::Failed(failure) => {
            let code = match failure.kind {
                FailureKind::NotFound => 127,
                FailureKind::NotExecutable => 126,
                _ => 125,
            };
            let mut failure = failure.clone();
            failure.message = cut(failure.message);
            let message = failure.message.clone();
            return Some((Response::Failed(failure), MainEnd::NotStarted { code, message }));
        }
        _ => return None,
    };
    Some((response, end))
}

/// What a health check says that ended so and wrote that.
fn verdict(end: MainEnd, text: String) -> Result<String, String> {
    let why = match end {
        MainEnd::Exited { out_of_memory: true, .. } => "the guest ran out of memory".to_owned(),
        MainEnd::Exited { status: ExitStatus::Code(0), .. } => return Ok(text),
        MainEnd::Exited { status: ExitStatus::Code(code), .. } => format!("exit code {code}"),
        MainEnd::Exited { status: ExitStatus::Signal(signal), .. } => format!("signal {signal}"),
        MainEnd::NotStarted { message, .. } => return Err(message),
    };
    Err(if text.trim().is_empty() { why } else { text })
}

/// Cuts what a guest wrote for people to a length that people read.
fn cut(mut message: String) -> String {
    let end = (0..=MAX_MESSAGE.min(message.len())).rfind(|at| message.is_char_boundary(*at));
    message.truncate(end.unwrap_or(0));
    message
}

fn broken_credit<E>(_: E) -> Broken {
    Broken::Protocol("flow control")
}
