//! Commands in a box, in the manner of `tokio::process::Command`.

use std::time::Duration;

use boxlite_contract::events::EventKind;
use boxlite_proto::message::{Exec, ExitStatus, TerminalSize};
use tokio::time::Instant;

pub use crate::client::{Exit, Output};

use super::call::{Channel, Start};
use super::config::{DEFAULT_TERM, Environment};
use super::handle::BoxHandle;
use super::{Error, Result, limits};
use crate::client::{self, AgentClient, ExecHandle, ExecOutput, ExecStdin};

/// How a command ends that took too long.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// Commands in the box.
impl BoxHandle {
    /// A command to run in the box, with the environment, user and working directory of the box.
    /// Without a slash, the program is looked up in the box's `PATH`.
    pub fn exec<S: Into<Vec<u8>>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let argv = argv.into_iter().map(Into::into).collect();
        Command { sandbox: self.clone(), exec: self.config().exec(argv), timeout: None }
    }

    /// Boots the box with its main command attached: nothing that it writes is missed. `size` is
    /// that of the terminal that the main command has, if it has one. A box that runs is attached
    /// to as by [`attach`](Self::attach).
    pub async fn start_attached(&self, size: Option<TerminalSize>) -> Result<Attached> {
        self.start_as(Start { wait_for_attach: true, size, detach: false }).await?;
        self.attach().await
    }

    /// Attaches to the main command: its streams from now on. Several callers may be attached at once.
    pub async fn attach(&self) -> Result<Attached> {
        let stream = self.open(Channel::Main { id: self.id().to_owned() }).await?;
        let options = &self.config().options;
        let exec = Exec {
            stdin: options.interactive,
            terminal: options.tty.then_some(TerminalSize { rows: 24, columns: 80 }),
            ..Exec::default()
        };
        // A connection of its own, which carries the main command alone.
        let attached = async { AgentClient::connect(stream, 0).await?.exec(exec).await };
        let handle = self.explained(attached.await).await?;
        Ok(Attached { sandbox: self.clone(), handle })
    }
}

/// A command to run in a box.
#[derive(Clone, Debug)]
#[must_use = "a command runs when it is spawned"]
pub struct Command {
    sandbox: BoxHandle,
    exec: Exec,
    timeout: Option<Duration>,
}

impl Command {
    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let mut env = Environment(std::mem::take(&mut self.exec.env));
        env.set(name.as_ref(), value.as_ref());
        self.exec.env = env.0;
        self
    }

    /// Sets the working directory, which is made if it does not exist.
    pub fn working_dir(mut self, dir: impl Into<Vec<u8>>) -> Self {
        self.exec.working_dir = dir.into();
        self
    }

    /// Sets the user, as `name`, `uid`, `name:group` or `uid:gid`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.exec.user = user.into();
        self
    }

    /// Gives the command a standard input; without, it reads `/dev/null`.
    pub fn stdin(mut self, piped: bool) -> Self {
        self.exec.stdin = piped;
        self
    }

    /// Gives the command a terminal, on which standard error appears as well. `TERM` is this process's,
    /// unless the command or the box has one.
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.exec.terminal = Some(size);
        let ours = std::env::var("TERM");
        let mut env = Environment(std::mem::take(&mut self.exec.env));
        env.set_terminal_type(ours.as_deref().unwrap_or(DEFAULT_TERM));
        self.exec.env = env.0;
        self
    }

    /// Kills the command when it has taken so long since [`spawn`](Self::spawn): starting it counts,
    /// and so does waiting for a guest that does not answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Starts the command; returns once it runs.
    ///
    /// # Errors
    /// [`ErrorKind::CommandTimeout`](crate::ErrorKind::CommandTimeout) when it does not run within its [timeout](Self::timeout): it is
    /// killed then, if it was about to run.
    pub async fn spawn(self) -> Result<Execution> {
        let Self { sandbox, exec, timeout } = self;
        check_size(&exec)?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let handle = by(deadline, async {
            let program = program(&exec);
            let handle = match sandbox.agent().await?.exec(exec).await {
                Ok(handle) => handle,
                Err(e) => return Err(sandbox.explain(e).await),
            };
            sandbox.note(EventKind::ExecStarted { pid: handle.pid(), program }).await;
            Ok(handle)
        });
        let handle = handle.await?;
        Ok(Execution { sandbox, handle, deadline })
    }

    /// Starts the command for nobody: it goes on when this process ends, has no input, and its output is
    /// dropped. Its timeout is for its start alone. Returns its process ID in the box.
    pub async fn spawn_detached(self) -> Result<u32> {
        let Self { sandbox, exec, timeout } = self;
        check_size(&exec)?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let started = by(deadline, async {
            let program = program(&exec);
            let pid = match sandbox.agent().await?.exec_detached(exec).await {
                Ok(pid) => pid,
                Err(e) => return Err(sandbox.explain(e).await),
            };
            sandbox.note(EventKind::ExecStarted { pid, program }).await;
            Ok(pid)
        });
        started.await
    }

    /// Runs the command to its end and collects what it wrote: all of it, in memory. Of a command that may
    /// write more than there is room for, read [`Execution::stdout`] and [`Execution::stderr`] instead, as far
    /// as wanted.
    ///
    /// Dropping the future kills the command.
    pub async fn output(self) -> Result<Output> {
        let Execution { sandbox, handle, deadline } = self.spawn().await?;
        let pid = handle.pid();
        let output = handle.wait_with_output();
        match by(deadline, async { Ok(output.await) }).await {
            Ok(Ok(output)) => {
                sandbox.note(EventKind::ExecEnded { pid, status: output.status }).await;
                Ok(output)
            }
            Ok(Err(e)) => Err(sandbox.explain(e).await),
            Err(timeout) => {
                sandbox.note(EventKind::ExecEnded { pid, status: KILLED }).await;
                Err(timeout)
            }
        }
    }

    /// Runs the command to its end and drops what it writes.
    pub async fn status(self) -> Result<ExitStatus> {
        let mut execution = self.spawn().await?;
        (execution.handle.stdout, execution.handle.stderr) = (None, None);
        execution.wait().await
    }
}

/// Refuses what no agent could run, as an agent would: a request that is too large would end the connection.
fn check_size(exec: &Exec) -> Result<()> {
    limits::check(exec)
        .map_err(|problem| Error::guest(client::Error::Failed(limits::failure(&problem))))
}

/// Awaits something by a command's deadline, if it has one.
async fn by<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => work.await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(Error::command_timeout()))
        }
    }
}

/// The program of a command, for people.
fn program(exec: &Exec) -> String {
    let program = exec.argv.first().map(|word| String::from_utf8_lossy(word).into_owned());
    program.unwrap_or_default()
}

/// A running command. Dropping it kills the command with everything that it started.
#[derive(Debug)]
pub struct Execution {
    sandbox: BoxHandle,
    handle: ExecHandle,
    deadline: Option<Instant>,
}

impl Execution {
    /// The command's process ID in the box.
    pub fn pid(&self) -> u32 {
        self.handle.pid()
    }

    /// Its standard input, once. Shutting it down or dropping it is the end of the input.
    pub fn stdin(&mut self) -> Option<ExecStdin> {
        self.handle.stdin.take()
    }

    /// Its standard output, or what its terminal shows, once. While nobody reads it, the command
    /// waits.
    pub fn stdout(&mut self) -> Option<ExecOutput> {
        self.handle.stdout.take()
    }

    /// Its standard error, once; none with a terminal.
    pub fn stderr(&mut self) -> Option<ExecOutput> {
        self.handle.stderr.take()
    }

    /// Sends a signal (Linux number) to the command's process group.
    pub fn signal(&self, signal: i32) {
        self.handle.signal(signal);
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, size: TerminalSize) {
        self.handle.resize(size);
    }

    /// Kills the command with everything that it started.
    pub fn kill(&self) {
        self.handle.kill();
    }

    /// Waits for the command to end, by its timeout at the latest. Standard input stays open if it
    /// was taken. Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus> {
        Ok(self.exit().await?.status)
    }

    /// As [`wait`](Self::wait), and tells a lack of memory apart from every other end.
    pub async fn exit(&self) -> Result<Exit> {
        let ended = |status| EventKind::ExecEnded { pid: self.pid(), status };
        match by(self.deadline, async { Ok(self.handle.exit().await) }).await {
            Ok(Ok(exit)) => {
                self.sandbox.note(ended(exit.status)).await;
                Ok(exit)
            }
            Ok(Err(e)) => Err(self.sandbox.explain(e).await),
            Err(timeout) => {
                self.handle.kill();
                self.sandbox.note(ended(KILLED)).await;
                Err(timeout)
            }
        }
    }
}

/// A box's main command, attached to. Dropping it leaves the command alone.
#[derive(Debug)]
pub struct Attached {
    sandbox: BoxHandle,
    handle: ExecHandle,
}

impl Attached {
    /// Its standard input, once, if the box is interactive. Shutting it down, or dropping it, is the end of the input,
    /// for all who are attached; [`leave`](ExecStdin::leave) it if others may have more.
    pub fn stdin(&mut self) -> Option<ExecStdin> {
        self.handle.stdin.take()
    }

    /// Its standard output, or what its terminal shows, once. While nobody reads it, the command
    /// waits.
    pub fn stdout(&mut self) -> Option<ExecOutput> {
        self.handle.stdout.take()
    }

    /// Its standard error, once; none with a terminal.
    pub fn stderr(&mut self) -> Option<ExecOutput> {
        self.handle.stderr.take()
    }

    /// Sends a signal (Linux number) to the command's process group.
    pub fn signal(&self, signal: i32) {
        self.handle.signal(signal);
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, size: TerminalSize) {
        self.handle.resize(size);
    }

    /// Waits for the command to end. Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus> {
        match self.handle.exited().await {
            Ok(status) => Ok(status),
            Err(e) => Err(self.sandbox.explain(e).await),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // An input that nobody wanted here is not at its end.
        if let Some(stdin) = self.handle.stdin.take() {
            stdin.leave();
        }
    }
}
