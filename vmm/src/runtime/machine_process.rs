//! The process of a box, seen from its launcher: started, told what to build, watched to its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use boxlite_proto::AGENT_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::{Error, Result};
use crate::client::AgentClient;
use crate::machine::BootStage;
use crate::machine::LaunchSpec;
use crate::machine::control::{self, FromMachine, ToMachine};
use crate::machine::status::End;

const EXECUTABLE: &str = "boxlite-vmm";

/// The longest answer to `CONNECT`: "OK" and a port.
const MAX_ANSWER: usize = 32;

/// A machine's process. Dropping it kills the machine.
#[derive(Debug)]
pub(crate) struct MachineProcess {
    control: UnixStream,
    state: watch::Receiver<State>,
}

/// What is known of a machine.
#[derive(Clone, Debug, Default)]
struct State {
    /// The last stage of its boot, and when it was reached.
    stage: Option<(BootStage, Duration)>,
    /// How it ended.
    end: Option<Ended>,
}

#[derive(Clone, Debug)]
enum Ended {
    /// It said how.
    Said(End),
    /// It did not.
    Silently(String),
}

impl Ended {
    fn into_error(self) -> Error {
        match self {
            Self::Said(End::Guest | End::Stopped | End::Main | End::Killed | End::Orphaned) => {
                Error::GuestEnded
            }
            Self::Said(End::Panic(lines)) => Error::Panic(lines),
            Self::Said(End::Agent(message)) => Error::Agent(message),
            Self::Said(End::NotReady { timeout_ms, stage }) => {
                Error::NotReady { timeout: Duration::from_millis(timeout_ms), stage }
            }
            Self::Said(End::Failed(message) | End::DiskFull(message) | End::Unhealthy(message)) => {
                Error::Machine(message)
            }
            Self::Silently(status) => Error::ProcessEnded(status),
        }
    }
}

impl MachineProcess {
    /// Starts a machine's process and hands it the spec with its files; those after the ones that
    /// the spec numbers are only kept open. Its log goes to `log`, or to this process's stderr.
    pub(crate) fn start(
        launcher: &Path,
        spec: LaunchSpec,
        files: &[BorrowedFd<'_>],
        log: Option<File>,
    ) -> Result<Self> {
        let failed = |source| Error::Spawn { launcher: launcher.to_owned(), source };
        let (control, theirs) = UnixStream::pair().map_err(failed)?;
        let mut child = std::process::Command::new(launcher)
            .arg("machine")
            // A terminal's Ctrl-C is for the command in the box, not for the box.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(log.map_or_else(Stdio::inherit, Stdio::from))
            .spawn()
            .map_err(failed)?;
        control::send(&control, &ToMachine::Launch(Box::new(spec)), files).map_err(failed)?;
        let (sender, state) = watch::channel(State::default());
        let events = control.try_clone().map_err(failed)?;
        thread::Builder::new()
            .name("machine".into())
            .spawn(move || follow(&events, &sender, || child.wait()))
            .map_err(failed)?;
        Ok(Self { control, state })
    }

    /// Waits until the agent serves. The error says how the machine ended or where its boot stood.
    pub(crate) async fn ready(&self, timeout: Duration) -> Result<()> {
        let mut state = self.state.clone();
        let reached = |state: &State| {
            state.end.is_some() || state.stage.is_some_and(|(stage, _)| stage == BootStage::Ready)
        };
        let waited = tokio::time::timeout(timeout, state.wait_for(reached)).await;
        match waited {
            Ok(_) => match self.state.borrow().end.clone() {
                Some(end) => Err(end.into_error()),
                None => Ok(()),
            },
            Err(_) => {
                let stage = self.state.borrow().stage.map(|(stage, _)| stage);
                Err(Error::NotReady { timeout, stage })
            }
        }
    }

    /// How long after its start the machine was ready.
    pub(crate) fn boot_time(&self) -> Option<Duration> {
        self.state.borrow().stage.map(|(_, after)| after)
    }

    /// Connects to the guest's agent.
    pub(crate) async fn connect(&self) -> Result<AgentClient> {
        let (mut ours, theirs) = tokio::net::UnixStream::pair().map_err(self.lost())?;
        control::send(&self.control, &ToMachine::Client, &[theirs.as_fd()]).map_err(self.lost())?;
        drop(theirs);
        let greeting = format!("CONNECT {AGENT_PORT}\n");
        ours.write_all(greeting.as_bytes()).await.map_err(self.lost())?;
        // One byte at a time: what follows the line belongs to the agent's protocol.
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
            answer.push(ours.read_u8().await.map_err(self.lost())?);
        }
        if !answer.starts_with(b"OK ") {
            return Err(Error::Machine("the guest's agent does not accept connections".into()));
        }
        Ok(AgentClient::connect(ours, 0).await?)
    }

    fn lost(&self) -> impl FnOnce(io::Error) -> Error + '_ {
        |e| match self.state.borrow().end.clone() {
            Some(end) => end.into_error(),
            None => Error::Machine(format!("the connection to the box's process failed: {e}")),
        }
    }

    /// Why the machine is no longer there, if it is not: waits a moment for its last words.
    pub(crate) async fn end_reason(&self) -> Option<Error> {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.end.is_some());
        let ended = tokio::time::timeout(Duration::from_secs(2), ended).await;
        ended.ok()?.ok()?.end.clone().map(Ended::into_error)
    }

    /// Stops the machine without asking the guest and waits for its process to end.
    pub(crate) async fn stop(&self) {
        // If it cannot be told it is gone already; how it went does not matter any more.
        let _ = control::send(&self.control, &ToMachine::Kill, &[]);
        let _ = self.ended().await;
    }

    /// Waits for the process to end. Returns whether the guest ended it in good order.
    pub(crate) async fn ended(&self) -> Result<()> {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.end.is_some()).await;
        match ended.ok().and_then(|state| state.end.clone()) {
            None | Some(Ended::Said(End::Guest | End::Stopped)) => Ok(()),
            Some(end) => Err(end.into_error()),
        }
    }
}

impl Drop for MachineProcess {
    fn drop(&mut self) {
        // The machine ends with this connection; the thread that follows it reaps the process.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

/// Takes what the machine says until its process has ended.
fn follow(
    events: &UnixStream,
    state: &watch::Sender<State>,
    wait: impl FnOnce() -> io::Result<ExitStatus>,
) {
    let mut said = None;
    while let Ok(Some((message, _))) = control::receive(events) {
        match message {
            FromMachine::Stage { stage, micros } => {
                let after = Duration::from_micros(micros);
                state.send_modify(|state| state.stage = Some((stage, after)));
            }
            FromMachine::Ended(ended) => said = Some(ended.end),
            _ => {}
        }
    }
    let status = wait();
    let end = match (said, status) {
        (Some(end), _) => Ended::Said(end),
        (None, Ok(status)) => Ended::Silently(status.to_string()),
        (None, Err(e)) => Ended::Silently(e.to_string()),
    };
    state.send_modify(|state| state.end = Some(end));
}

/// The executable of the boxes' processes.
pub(crate) fn find_launcher(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given.or_else(|| std::env::var_os("BOXLITE_VMM").map(PathBuf::from)) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NoLauncher { tried: format!("at {}", path.display()) })
        };
    }
    let this = std::env::current_exe().ok();
    if let Some(this) = this.as_ref().filter(|this| this.file_stem() == Some(EXECUTABLE.as_ref())) {
        return Ok(this.clone());
    }
    // Examples and tests lie one folder deeper than the executable.
    let beside = this.iter().flat_map(|this| this.ancestors().skip(1).take(2));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .map(Path::to_owned)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(EXECUTABLE))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::NoLauncher { tried: "beside this executable and in PATH".into() })
}
