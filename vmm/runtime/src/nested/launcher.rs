//! The launcher's side: finds or starts the nested host, and runs a command in it.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use boxlite_contract::nested::INSIDE_VARIABLE;
use boxlite_kernel::Arch;
use boxlite_proto::message::{Control, Exec, FailureKind};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::is_hang_up;
use super::folder::{HostFolder, last_lines};
use super::{Error, Options, qemu};
use crate::client::{self, AgentClient, Attachment, AttachmentEnd, Streams};
use crate::sys::{in_new_session, inherit_only};

/// Timeout for a nested host: the end of an earlier one, and its boot.
const DEADLINE: Duration = Duration::from_secs(240);

/// Time between two attempts to connect to the keeper.
const PAUSE: Duration = Duration::from_millis(10);

/// Number of keepers that are started.
const ATTEMPTS: u32 = 3;

/// Lines of the keeper's log in an error message.
const LINES: usize = 15;

/// A command to run in the nested host.
#[derive(Clone, Debug)]
pub struct NestedCommand {
    /// The program and its arguments. A program name without a slash is looked up in `PATH`.
    pub argv: Vec<OsString>,
    /// The complete environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory, an absolute path.
    pub working_dir: PathBuf,
}

impl NestedCommand {
    /// A command for a nested host, with this process's environment and working directory.
    ///
    /// # Errors
    /// This process's working directory does not exist any more.
    pub fn new(
        argv: impl IntoIterator<Item = impl Into<OsString>>,
        options: &Options,
    ) -> Result<Self, Error> {
        Ok(Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: options.environment(),
            working_dir: std::env::current_dir().map_err(Error::Runtime)?,
        })
    }

    pub(super) fn exec(self) -> Exec {
        let mut env: Vec<Vec<u8>> = self
            .env
            .into_iter()
            .filter(|(name, _)| name != INSIDE_VARIABLE)
            .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
            .collect();
        env.push(format!("{INSIDE_VARIABLE}=1").into_bytes());
        Exec {
            argv: self.argv.into_iter().map(OsString::into_vec).collect(),
            env,
            working_dir: self.working_dir.into_os_string().into_vec(),
            stdin: true,
            ..Exec::default()
        }
    }
}

/// Runs a command in the nested host of `options`' home, and connects this process to it: standard streams, signals,
/// and the terminal if all three streams are terminals. `connecting` is [`connect`], possibly with a progress display
/// around it. Returns the exit code as a shell reports it (126 and 127 if the command cannot be executed or found).
///
/// # Errors
/// The nested host does not start, or fails.
pub async fn run(
    options: &Options,
    connecting: impl Future<Output = Result<AgentClient, Error>>,
    command: NestedCommand,
) -> Result<u8, Error> {
    let mut attachment = Attachment::new(Attachment::all_terminals()).map_err(Error::Runtime)?;
    let folder = HostFolder::open(&options.home)?;
    let mut exec = command.exec();
    exec.terminal = attachment.terminal_size();
    let started = async {
        let client = connecting.await?;
        Ok::<_, Error>(client.exec(exec).await)
    };
    let handle = tokio::select! {
        started = started => started?,
        signal = attachment.interrupted() => return Ok(128 | (signal & 0x7f) as u8),
    };
    let mut handle = match handle {
        Ok(handle) => handle,
        Err(error) => return could_not_start(error, options, &folder),
    };
    let streams = Streams {
        stdin: handle.stdin.take(),
        stdout: handle.stdout.take(),
        stderr: handle.stderr.take(),
    };
    let control = |control| match control {
        Control::Signal(signal) => handle.signal(signal),
        Control::Resize(size) => handle.resize(size),
        _ => handle.kill(),
    };
    match attachment.run(streams, control, handle.exited()).await {
        Ok(AttachmentEnd::Exited(status)) => Ok(status.shell_code()),
        Ok(AttachmentEnd::Detached) => Ok(0),
        Ok(AttachmentEnd::WriteFailed(error)) => Err(Error::WriteFailed(error)),
        Err(error) => Err(Error::of_connection(error, &folder)),
    }
}

/// Prints why a command could not be started, and returns a shell's exit code for that.
fn could_not_start(
    error: client::Error,
    options: &Options,
    folder: &HostFolder,
) -> Result<u8, Error> {
    let code = match error.failure().map(|failure| failure.kind) {
        Some(FailureKind::NotFound) => 127,
        Some(FailureKind::NotExecutable) => 126,
        _ => return Err(Error::of_connection(error, folder)),
    };
    let advice = match options.arch {
        Arch::HOST => String::new(),
        arch => format!(
            " (the software host is {arch}: it runs programs for {arch}, not those of this machine)"
        ),
    };
    let _ = writeln!(std::io::stderr(), "{error}{advice}");
    Ok(code)
}

/// Connects to the nested host of `options`' home, which is started if necessary.
///
/// # Errors
/// As [`run`].
pub async fn connect(options: &Options) -> Result<AgentClient, Error> {
    let deadline = Instant::now() + DEADLINE;
    match timeout_at(deadline, Search::new(options)?.run()).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(DEADLINE.as_secs())),
    }
}

/// The search for a keeper, which may run, be about to exit, or not exist.
struct Search<'a> {
    options: &'a Options,
    folder: HostFolder,
    /// The keeper that this process started.
    keeper: Option<Child>,
    started: u32,
}

impl<'a> Search<'a> {
    fn new(options: &'a Options) -> Result<Self, Error> {
        Ok(Self { options, folder: HostFolder::open(&options.home)?, keeper: None, started: 0 })
    }

    async fn run(mut self) -> Result<AgentClient, Error> {
        self.folder.check_arch(self.options.arch)?;
        loop {
            if let Some(connection) = self.folder.connect().await? {
                match AgentClient::connect(connection, 0).await {
                    Ok(client) => {
                        // A keeper that another process started meanwhile may have made the disk.
                        self.folder.check_arch(self.options.arch)?;
                        return Ok(client);
                    }
                    Err(client::Error::Lost(loss)) if is_hang_up(&loss) => {}
                    // The failure of an earlier keeper is irrelevant: this process starts the next one.
                    Err(client::Error::Lost(loss))
                        if self.keeper.is_none() && matches!(*loss, client::Loss::Fatal(_)) => {}
                    Err(error) => return Err(Error::of_connection(error, &self.folder)),
                }
            } else {
                self.start()?;
            }
            sleep(PAUSE).await;
        }
    }

    /// Starts a keeper, unless one runs, which is about to listen or to exit.
    fn start(&mut self) -> Result<(), Error> {
        if let Some(keeper) = &mut self.keeper
            && let Some(status) = keeper.try_wait().map_err(Error::Qemu)?
        {
            self.keeper = None;
            if !status.success() || self.started >= ATTEMPTS {
                return Err(self.failed(status));
            }
        }
        let Some(lock) = self.folder.lock()? else { return Ok(()) };
        // Here rather than in the keeper, because the user reads this process's messages.
        let arch = self.options.arch;
        if qemu::find(arch).is_none() {
            return Err(Error::NoQemu(arch));
        }
        let log = self.folder.new_log()?;
        let (program, args) = self.options.keeper_command();
        let mut command = tokio::process::Command::new(program);
        command
            .arg0("boxlite-vmm")
            .args(args)
            .current_dir("/")
            .stdin(Stdio::from(lock))
            .stdout(Stdio::null());
        command.stderr(Stdio::from(log));
        in_new_session(command.as_std_mut());
        inherit_only(command.as_std_mut(), Vec::new());
        self.keeper = Some(command.spawn().map_err(Error::Qemu)?);
        self.started += 1;
        if let (1, Some(notice)) = (self.started, &self.options.notice) {
            let _ = writeln!(std::io::stderr(), "{notice}");
        }
        Ok(())
    }

    fn failed(&self, status: ExitStatus) -> Error {
        let path = self.folder.log();
        Error::Start { reason: status.to_string(), log: last_lines(&path, LINES), path }
    }
}
