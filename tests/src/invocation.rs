//! One run of the launcher. Every run has a deadline, at which it is killed and the test fails.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::transcript::Transcript;

/// Default timeout of a run. A box takes two seconds under emulation, but test machines are busy.
const DEADLINE: Duration = Duration::from_secs(240);

/// Timeout for the end of the output after the process has exited.
pub(crate) const OUTPUT_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of output that a failure shows.
const SHOWN: usize = 16 << 10;

/// Part of the line that the launcher prints when it starts a software host. Tests ignore that line by default.
pub const SOFTHOST_NOTE: &str = "starting the software host";

/// A run of the launcher that has not started.
#[derive(Debug)]
#[must_use = "nothing runs before `output` or `spawn`"]
pub struct Invocation {
    command: Command,
    stdin: Input,
    stdout: Option<File>,
    deadline: Duration,
    slowness: Duration,
}

#[derive(Debug)]
enum Input {
    /// `/dev/null`.
    None,
    Bytes(Vec<u8>),
    /// A pipe that the test writes to.
    Pipe,
}

impl Invocation {
    pub(crate) fn new(command: Command) -> Self {
        let (stdin, stdout) = (Input::None, None);
        Self { command, stdin, stdout, deadline: DEADLINE, slowness: Duration::ZERO }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable of the launcher.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Writes these bytes to the launcher's standard input, which is `/dev/null` by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Connects the launcher's standard input to a pipe: see [`Running::stdin`].
    pub fn stdin_pipe(mut self) -> Self {
        self.stdin = Input::Pipe;
        self
    }

    /// Connects the launcher's standard output to `file`; the output is not recorded.
    pub fn stdout(mut self, file: impl Into<File>) -> Self {
        self.stdout = Some(file.into());
        self
    }

    /// Sets the timeout, at which the launcher is killed and the test fails.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Waits that long before the launcher's standard output is read.
    pub fn read_after(mut self, slowness: Duration) -> Self {
        self.slowness = slowness;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn output(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it to its end and discards its output.
    pub(crate) fn quiet(mut self) -> std::io::Result<ExitStatus> {
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
    }

    /// Starts it.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        let input = if matches!(self.stdin, Input::None) { Stdio::null() } else { Stdio::piped() };
        let stdout = self.stdout.map_or_else(Stdio::piped, Stdio::from);
        self.command.stdin(input).stdout(stdout).stderr(Stdio::piped());
        let what = describe(&self.command);
        let begun = Instant::now();
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("cannot run {what}: {error}"));
        let stdout = child.stdout.take().map(|pipe| Transcript::of(pipe, self.slowness));
        let stderr = child.stderr.take().map(|pipe| Transcript::of(pipe, Duration::ZERO));
        let mut stdin = child.stdin.take();
        if let Input::Bytes(bytes) = self.stdin
            && let Some(mut pipe) = stdin.take()
        {
            // A command may end without reading all of its input.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        Running {
            child,
            stdin,
            stdout: stdout.unwrap_or_else(Transcript::empty),
            stderr: stderr.unwrap_or_else(Transcript::empty),
            what,
            begun,
            deadline: begun + self.deadline,
        }
    }
}

/// The command line as typed, shortened.
pub(crate) fn describe(command: &Command) -> String {
    let words = command.get_args().map(|word| word.to_string_lossy());
    let mut text = words.fold("boxlite-vmm".to_owned(), |text, word| text + " " + &word);
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A run of the launcher. If it is dropped, as when a test fails, the launcher is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The launcher's standard input, after [`Invocation::stdin_pipe`]. Dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    stdout: Transcript,
    stderr: Transcript,
    what: String,
    begun: Instant,
    deadline: Instant,
}

impl Running {
    /// The launcher's process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the launcher.
    pub fn signal(&self, signal: Signal) {
        // The launcher may have exited already.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits until the launcher has written this text to standard output.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if !self.stdout.wait_for(text, self.deadline) {
            self.give_up(&format!("it did not write {text:?}"));
        }
    }

    /// What it has written to standard output so far; only the beginning of a long output.
    pub fn stdout_so_far(&self) -> String {
        self.stdout.text()
    }

    /// Ends its standard input and waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        self.stdin = None;
        self.wait_with_open_input()
    }

    /// Waits for its end while its standard input is open.
    #[track_caller]
    pub fn wait_with_open_input(mut self) -> Output {
        let status = self.wait_for_exit();
        let elapsed = self.begun.elapsed();
        let deadline = self.deadline.max(Instant::now() + OUTPUT_LIMIT);
        if !self.stdout.wait_for_end(deadline) || !self.stderr.wait_for_end(deadline) {
            self.give_up("it exited, but a process that it left behind holds its output open");
        }
        let stderr = String::from_utf8_lossy(&self.stderr.bytes()).into_owned();
        Output {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.bytes(),
            started_softhost: stderr.contains(SOFTHOST_NOTE),
            stderr: without_note(&stderr),
            elapsed,
            what: self.what.clone(),
        }
    }

    #[track_caller]
    fn wait_for_exit(&mut self) -> ExitStatus {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < self.deadline => {}
                Ok(None) => self.give_up("it did not exit in time"),
                Err(error) => self.give_up(&error.to_string()),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[track_caller]
    fn give_up(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        panic!(
            "{}\n{why}, after {:.1?}\nstdout: {}\nstderr: {}",
            self.what,
            self.begun.elapsed(),
            self.stdout.text(),
            self.stderr.text()
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn without_note(stderr: &str) -> String {
    stderr.lines().filter(|line| !line.contains(SOFTHOST_NOTE)).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

/// The exit status and output of the launcher.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, without the line about the software host.
    pub stderr: String,
    /// Whether it announced that it starts a software host.
    pub started_softhost: bool,
    /// How long it took.
    pub elapsed: Duration,
    what: String,
}

impl Output {
    /// Standard output as text.
    pub fn stdout_lossy(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test unless the exit code is this one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        if self.code != Some(code) {
            let shown = &self.stdout[..self.stdout.len().min(SHOWN)];
            let stdout = String::from_utf8_lossy(shown);
            panic!(
                "{}\nended with code {:?}, signal {:?}, not with code {code}, after {:.1?}\nstdout: {stdout}\nstderr: {}",
                self.what, self.code, self.signal, self.elapsed, self.stderr
            );
        }
        self
    }

    /// Fails the test unless the exit code is 0. Returns standard output without leading and trailing white space.
    #[track_caller]
    pub fn success(self) -> String {
        let output = self.expect(0);
        output.stdout_lossy().trim().to_owned()
    }

    /// Fails the test unless the exit code is 125 (the launcher itself failed, not a command in the box), and the
    /// message contains all of `parts`.
    #[track_caller]
    pub fn fails_with(self, parts: &[&str]) -> Self {
        self.expect(125).says(parts)
    }

    /// Fails the test unless the exit code is 1, and the message contains all of `parts`.
    #[track_caller]
    pub fn refuses_with(self, parts: &[&str]) -> Self {
        self.expect(1).says(parts)
    }

    /// Fails the test unless the launcher's message contains all of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let output = self;
        for part in parts {
            assert!(
                output.stderr.contains(part),
                "{}\nits message does not say {part:?}:\n{}",
                output.what,
                output.stderr
            );
        }
        output
    }
}
