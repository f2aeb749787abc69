//! Commands in a box, in the manner of `tokio::process::Command`.

use std::time::Duration;

use boxlite_contract::events::EventKind;
use boxlite_proto::message::{Exec, ExitStatus, TerminalSize};
use tokio::time::Instant;

pub use crate::client::{Exit, Output};

use super::call::Channel;
use super::config::{DEFAULT_TERM, Environment};
use super::handle::BoxHandle;
use super::{Error, Result, StartOptions, limits};
use crate::client::{self, AgentClient, ExecHandle, ExecOutput, ExecStdin};

/// Status of a command that was killed at its timeout.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// Commands in the box.
impl BoxHandle {
    /// Prepares a command with the environment, user and working directory of the box. A program name without a
    /// slash is looked up in the box's `PATH`.
    pub fn exec<S: Into<Vec<u8>>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let argv = argv.into_iter().map(Into::into).collect();
        Command { sandbox: self.clone(), exec: self.config().exec(argv), timeout: None }
    }

    /// Boots the box and attaches to its main command before the command starts, so that no output is missed.
    /// `size` is the size of the main command's terminal, if it has one. If the box runs already, this is
    /// [`attach`](Self::attach).
    pub async fn start_attached(&self, size: Option<TerminalSize>) -> Result<Attached> {
        self.start_with(StartOptions::default().wait_for_attach(size)).await?;
        self.attach().await
    }

    /// Attaches to the streams of the main command, from now on. Several callers may be attached at once.
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

    /// Sets the working directory, which is created if it does not exist.
    pub fn working_dir(mut self, dir: impl Into<Vec<u8>>) -> Self {
        self.exec.working_dir = dir.into();
        self
    }

    /// Sets the user, as `name`, `uid`, `name:group` or `uid:gid`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.exec.user = user.into();
        self
    }

    /// Sets whether the command has a standard input that the caller writes; otherwise it reads `/dev/null`.
    pub fn stdin(mut self, piped: bool) -> Self {
        self.exec.stdin = piped;
        self
    }

    /// Gives the command a terminal, which also carries its standard error. `TERM` is that of this process, unless
    /// the command or the box sets it.
    pub fn terminal(mut self, size: TerminalSize) -> Self {
        self.exec.terminal = Some(size);
        let ours = std::env::var("TERM");
        let mut env = Environment(std::mem::take(&mut self.exec.env));
        env.set_terminal_type(ours.as_deref().unwrap_or(DEFAULT_TERM));
        self.exec.env = env.0;
        self
    }

    /// Kills the command after this time, counted from [`spawn`](Self::spawn). The time includes the start, and any
    /// wait for a guest that does not answer.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Starts the command. Returns once it runs.
    ///
    /// # Errors
    /// [`ErrorKind::CommandTimeout`](crate::ErrorKind::CommandTimeout) if the command is not running within its
    /// [timeout](Self::timeout). A command that is still being started is killed.
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

    /// Starts the command detached: it has no input, its output is discarded, and it keeps running when this process
    /// exits. The timeout covers the start only. Returns the command's process ID in the box.
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

    /// Runs the command, waits for it, and collects all of its output in memory. If the output may be larger than
    /// memory allows, read [`Execution::stdout`] and [`Execution::stderr`] instead.
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

    /// Runs the command, waits for it, and discards its output.
    pub async fn status(self) -> Result<ExitStatus> {
        let mut execution = self.spawn().await?;
        (execution.handle.stdout, execution.handle.stderr) = (None, None);
        execution.wait().await
    }
}

/// Refuses a request that is too large, with the agent's own failure: sent, it would end the connection.
fn check_size(exec: &Exec) -> Result<()> {
    limits::check(exec)
        .map_err(|problem| Error::guest(client::Error::Failed(limits::failure(&problem))))
}

/// Awaits `work` until the command's deadline, if it has one.
async fn by<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match deadline {
        None => work.await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(Error::command_timeout()))
        }
    }
}

/// The program of a command, for events.
fn program(exec: &Exec) -> String {
    let program = exec.argv.first().map(|word| String::from_utf8_lossy(word).into_owned());
    program.unwrap_or_default()
}

/// A running command. Dropping it kills the command and all processes that it started.
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

    /// Takes the standard input. Shutting it down or dropping it ends the input.
    pub fn stdin(&mut self) -> Option<ExecStdin> {
        self.handle.stdin.take()
    }

    /// Takes the standard output, or the output of the terminal. The command blocks while nobody reads it.
    pub fn stdout(&mut self) -> Option<ExecOutput> {
        self.handle.stdout.take()
    }

    /// Takes the standard error. A command with a terminal has none.
    pub fn stderr(&mut self) -> Option<ExecOutput> {
        self.handle.stderr.take()
    }

    /// Sends a signal (Linux number) to the command's process group.
    pub fn signal(&self, signal: i32) {
        self.handle.signal(signal);
    }

    /// Changes the size of the command's terminal.
    pub fn resize(&self, size: TerminalSize) {
        self.handle.resize(size);
    }

    /// Kills the command and all processes that it started.
    pub fn kill(&self) {
        self.handle.kill();
    }

    /// Waits for the command to exit, and kills it at its timeout. Does not end a standard input that was taken.
    /// Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus> {
        Ok(self.wait_exit().await?.status)
    }

    /// Like [`wait`](Self::wait); also says whether the guest ran out of memory.
    pub async fn wait_exit(&self) -> Result<Exit> {
        let ended = |status| EventKind::ExecEnded { pid: self.pid(), status };
        match by(self.deadline, async { Ok(self.handle.wait_exit().await) }).await {
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

/// The streams of a box's main command. Dropping them detaches; the command keeps running.
#[derive(Debug)]
pub struct Attached {
    sandbox: BoxHandle,
    handle: ExecHandle,
}

impl Attached {
    /// Takes the standard input, if the box is interactive. Shutting it down or dropping it ends the input for every
    /// attached caller; [`detach`](ExecStdin::detach) keeps it open for the others.
    pub fn stdin(&mut self) -> Option<ExecStdin> {
        self.handle.stdin.take()
    }

    /// Takes the standard output, or the output of the terminal. The command blocks while nobody reads it.
    pub fn stdout(&mut self) -> Option<ExecOutput> {
        self.handle.stdout.take()
    }

    /// Takes the standard error. A command with a terminal has none.
    pub fn stderr(&mut self) -> Option<ExecOutput> {
        self.handle.stderr.take()
    }

    /// Sends a signal (Linux number) to the process of the command, not to processes that it started.
    pub fn signal(&self, signal: i32) {
        self.handle.signal(signal);
    }

    /// Changes the size of the command's terminal.
    pub fn resize(&self, size: TerminalSize) {
        self.handle.resize(size);
    }

    /// Waits for the command to exit. Cancel safe.
    pub async fn wait(&self) -> Result<ExitStatus> {
        match self.handle.exited().await {
            Ok(status) => Ok(status),
            Err(e) => Err(self.sandbox.explain(e).await),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // An input that was not taken must not end for the other callers.
        if let Some(stdin) = self.handle.stdin.take() {
            stdin.detach();
        }
    }
}
