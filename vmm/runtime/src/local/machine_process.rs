//! A box's process, on the launcher's side: started, sent its spec, followed to its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use boxlite_contract::boot::BootStage;
use boxlite_contract::control::{self, FromMachine, MAX_MESSAGE, ToMachine};
use boxlite_contract::spec::LaunchSpec;
use boxlite_contract::status::BoxEnd;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use super::reaped::Reaped;
use super::streams::connect_agent;
use crate::client::AgentClient;
use crate::launcher::{LAUNCHER_PATH_VARIABLE, MACHINE_SUBCOMMAND};
use crate::nested;
use crate::state::{BoxState, FailureReason, end_state};
use crate::sys::{in_new_session, inherit_only};
use crate::{Error, Result};

const EXECUTABLE: &str = "boxlite-vmm";

/// A box's process, or that of a VM that builds a disk. Dropping it stops the VM, unless the box is detached.
#[derive(Debug)]
pub(crate) struct MachineProcess {
    control: UnixStream,
    state: watch::Receiver<State>,
}

/// The progress of a process.
#[derive(Clone, Debug, Default)]
struct State {
    ready: bool,
    /// The VM has ended.
    end: Option<ProcessExit>,
}

/// How the VM process terminated.
#[derive(Clone, Debug)]
enum ProcessExit {
    /// As the process reported.
    Reported(BoxEnd),
    /// The process exited without a report.
    Unreported(String),
}

impl ProcessExit {
    fn into_error(self, name: Option<&str>) -> Error {
        match self {
            Self::Reported(ended) => match (end_state(&ended), name) {
                (BoxState::Failed(reason), name) => Error::failed(name, &reason),
                (_, Some(name)) => Error::ended(name, "it shut down"),
                (_, None) => {
                    let reason = FailureReason::Machine("it shut itself down".into());
                    Error::failed(None, &reason)
                }
            },
            Self::Unreported(status) => {
                tracing::debug!(status, "a box's process exited without a report");
                Error::failed(name, &FailureReason::ProcessDied)
            }
        }
    }
}

impl MachineProcess {
    /// Starts a process and sends it the spec with its files. Files beyond those that the spec numbers are only kept
    /// open. The process logs to `log`, or to this process's stderr, and more with `debug`.
    ///
    /// Must be called within a tokio runtime, in which a task follows the process.
    pub(crate) fn start(
        launcher: &Path,
        debug: bool,
        spec: LaunchSpec,
        files: &[OwnedFd],
        log: Option<File>,
    ) -> Result<Self> {
        let failed = Error::spawn(launcher);
        let (control, theirs) = UnixStream::pair().map_err(&failed)?;
        // A box that is not detached shuts itself down when this process exits, which closes the socket.
        let outlive = spec.sandbox.is_some();
        let mut command = Command::new(launcher);
        command
            .args(debug.then_some("--debug"))
            .arg(MACHINE_SUBCOMMAND)
            // So that the box does not keep the launcher's file system mounted.
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(log.map_or_else(Stdio::inherit, Stdio::from));
        // Ctrl-C at a terminal is for the command in the box, not for the box's process.
        in_new_session(&mut command);
        inherit_only(&mut command, Vec::new());
        let child = command.spawn().map_err(&failed)?;
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        if outlive {
            nested::outlive(child.id());
        }
        if let Err(error) = control::send(&control, &ToMachine::Launch(Box::new(spec)), &files) {
            drop(control);
            return Err(failed(ended_at_once(error, child)));
        }
        let (sender, state) = watch::channel(State::default());
        let events = control.try_clone().and_then(|events| {
            events.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(events)
        });
        tokio::spawn(follow(events.map_err(&failed)?, sender, Reaped::new(child)));
        Ok(Self { control, state })
    }

    /// Waits until the agent is ready, or the VM has ended. The error is about the box `name`.
    pub(crate) async fn ready(&self, name: Option<&str>) -> Result<()> {
        let mut state = self.state.clone();
        let settled = state.wait_for(|state| state.end.is_some() || state.ready).await;
        match settled.ok().and_then(|state| state.end.clone()) {
            Some(end) => Err(end.into_error(name)),
            None => Ok(()),
        }
    }

    /// Connects to the guest's agent.
    pub(crate) async fn connect(&self) -> Result<AgentClient> {
        let (ours, theirs) = tokio::net::UnixStream::pair().map_err(self.lost())?;
        control::send(&self.control, &ToMachine::Client, &[theirs.as_fd()]).map_err(self.lost())?;
        drop(theirs);
        let stream = connect_agent(ours).await.map_err(self.lost())?;
        AgentClient::connect(stream, 0).await.map_err(Error::guest)
    }

    fn lost(&self) -> impl FnOnce(io::Error) -> Error + '_ {
        |e| match self.state.borrow().end.clone() {
            Some(end) => end.into_error(None),
            None => Error::internal(format!("the connection to a box's process failed: {e}")),
        }
    }

    /// How the VM ended, if it has: waits a moment for the process's report.
    pub(crate) async fn end_reason(&self) -> Option<Error> {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.end.is_some());
        let ended = tokio::time::timeout(Duration::from_secs(2), ended).await;
        Some(ended.ok()?.ok()?.end.clone()?.into_error(None))
    }

    /// The reported end, if there is one.
    pub(super) fn reported_end(&self) -> Option<BoxEnd> {
        match self.state.borrow().end.clone()? {
            ProcessExit::Reported(ended) => Some(ended),
            ProcessExit::Unreported(_) => None,
        }
    }

    /// Waits for the reported end.
    pub(super) async fn said_last(&self) -> Option<BoxEnd> {
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| state.end.is_some()).await;
        self.reported_end()
    }

    /// Waits for the process to exit after an orderly end.
    pub(crate) async fn ended(&self) -> Result<()> {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.end.is_some()).await;
        match ended.ok().and_then(|state| state.end.clone()) {
            Some(ProcessExit::Reported(ended)) if end_state(&ended) == BoxState::Stopped => Ok(()),
            Some(end) => Err(end.into_error(None)),
            None => Ok(()),
        }
    }
}

impl Drop for MachineProcess {
    fn drop(&mut self) {
        // The process sees the closed socket and exits; the task that follows it reaps it.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

/// The error of a process that did not take its spec: its exit status, if it has exited.
fn ended_at_once(error: io::Error, mut child: std::process::Child) -> io::Error {
    match (error.kind(), child.wait()) {
        (io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset, Ok(status)) => {
            io::Error::other(format!("it exited at once ({status})"))
        }
        _ => error,
    }
}

/// Receives the messages of a process until it has exited.
async fn follow(
    mut events: tokio::net::UnixStream,
    state: watch::Sender<State>,
    mut child: Reaped,
) {
    let mut reported = None;
    while let Ok(Some(message)) = receive(&mut events).await {
        match message {
            FromMachine::Stage { stage: BootStage::Ready, .. } => {
                state.send_modify(|state| state.ready = true);
            }
            FromMachine::Ended(ended) => reported = Some(ended),
            _ => {}
        }
    }
    let end = match (reported, child.wait().await) {
        (Some(end), _) => ProcessExit::Reported(end),
        (None, Ok(status)) => ProcessExit::Unreported(status.to_string()),
        (None, Err(e)) => ProcessExit::Unreported(e.to_string()),
    };
    state.send_modify(|state| state.end = Some(end));
}

/// Finds the executable of the boxes' processes. Returns an absolute path, since they have another working directory.
pub(crate) fn find_launcher(given: Option<PathBuf>) -> Result<PathBuf> {
    let found = search_launcher(given)?;
    std::path::absolute(&found).map_err(Error::spawn(&found))
}

fn search_launcher(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) =
        given.or_else(|| std::env::var_os(LAUNCHER_PATH_VARIABLE).map(PathBuf::from))
    {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::no_launcher(&format!("at {}", path.display())))
        };
    }
    let this = std::env::current_exe().ok();
    if let Some(this) = this.as_ref().filter(|this| this.file_stem() == Some(EXECUTABLE.as_ref())) {
        return Ok(this.clone());
    }
    // Examples and tests are built one folder below the executable.
    let beside = this.iter().flat_map(|this| this.ancestors().skip(1).take(2));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .map(Path::to_owned)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(EXECUTABLE))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::no_launcher("beside this executable and in PATH"))
}

/// Receives a message without descriptors, or `None` at the end of the connection. Not cancel safe.
async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let length = match from.read_u32_le().await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length? as usize,
    };
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            vcpus: 1,
            memory_mib: 128,
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            boot: Default::default(),
            host: Default::default(),
            disks: Vec::new(),
            console: None,
            network: None,
            nested: false,
            sandbox: None,
        }
    }

    #[tokio::test]
    async fn many_processes_are_followed_without_a_thread_each() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = dir.path().join("launcher");
        std::fs::write(&launcher, "#!/bin/sh\ncat > /dev/null\nexit 3\n").unwrap();
        std::fs::set_permissions(&launcher, std::fs::Permissions::from_mode(0o755)).unwrap();
        let start = || MachineProcess::start(&launcher, false, spec(), &[], None).unwrap();
        let machines: Vec<_> = (0..50).map(|_| start()).collect();
        // Other tests have threads, too, but of other names than one for each machine had.
        for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            assert_ne!(name.trim(), "machine");
        }
        let states: Vec<_> = machines.iter().map(|machine| machine.state.clone()).collect();
        drop(machines);
        for mut state in states {
            let end = state.wait_for(|state| state.end.is_some()).await.unwrap().end.clone();
            assert!(matches!(end, Some(ProcessExit::Unreported(how)) if how == "exit status: 3"));
        }
    }
}
