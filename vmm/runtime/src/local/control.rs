//! Requests to the process of a live box, whichever process started it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use boxlite_contract::control::{self, FromMachine, STOP_LIMIT, ToMachine};
use boxlite_contract::metrics::MachineMetrics;
use boxlite_contract::status::STATUS_FILE;

use super::launch::within;
use super::{Dependent, Local};
use crate::local::events::LastWords;
use crate::local::home::{BoxFolder, CONTROL_SOCKET};
use crate::state::BoxInfo;
use crate::sys::ProcessEnd;
use crate::{Error, ErrorKind, Remedy, Result, blocking};

/// Timeout for an answer of a box's process.
const ANSWER: Duration = Duration::from_secs(10);

/// Timeout for the end of a killed box.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Timeout for the end of a box whose process does not accept requests any more, most likely because it is exiting.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for the ID of a box's process, which records it when it starts.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Time after which the box is checked again while the end of its process is awaited, in case the status names an
/// unrelated process.
const RECHECK: Duration = Duration::from_secs(30);

/// Time between two checks of a box whose process cannot be awaited: its ID is not known yet, it is about to exit, or
/// it is not visible from here.
const PAUSE: Duration = Duration::from_millis(50);

/// A box when a caller started to wait for its end.
pub(super) struct BeforeEnd {
    dependent: Option<Dependent>,
    words: LastWords,
    info: Option<BoxInfo>,
}

/// The error for a request that the process of the box `name` did not answer.
fn unanswered(name: &str, error: io::Error) -> Error {
    match error.kind() {
        // The box stopped during the request.
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => process_exited(name),
        _ => Error::home("the box's process does not answer", CONTROL_SOCKET)(error),
    }
}

fn process_exited(name: &str) -> Error {
    Error::ended(name, "its process has exited")
}

impl Local {
    /// Shuts a box down and waits for that. Does nothing if the box is not live.
    pub(super) async fn stop(self: &Arc<Self>, id: &str, grace_ms: u64) -> Result<()> {
        let (folder, process) = self.folder_and_process(id).await?;
        let Some(pid) = process else { return Ok(()) };
        // Others may start the box again as soon as this process has exited: only its end is awaited.
        match self.ask(id, ToMachine::Stop { grace_ms }).await {
            Ok(_) => {}
            Err(_) if !self.is_live(&folder).await? => return Ok(()),
            Err(e) if e.is_refusal() => return Err(e),
            Err(e) => {
                tracing::warn!("{}; it is killed", e.message());
                return self.kill(id).await;
            }
        }
        let timeout = Duration::from_millis(grace_ms).saturating_add(STOP_LIMIT);
        match within(timeout, "the end of the box", self.process_ended(&folder, pid)).await {
            Err(e) if e.kind() == ErrorKind::Timeout => self.kill(id).await,
            other => other,
        }
    }

    /// Stops the boxes that stop with this process.
    pub(crate) async fn stop_dependents(self: &Arc<Self>, grace_ms: u64) -> Result<()> {
        let ids: Vec<String> = self.dependents().keys().cloned().collect();
        let mut stops = tokio::task::JoinSet::new();
        for id in ids {
            let local = self.clone();
            stops.spawn(async move {
                let stopped = local.stop(&id, grace_ms).await;
                local.dependents().remove(&id);
                match stopped {
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
                    other => other,
                }
            });
        }
        let mut result = Ok(());
        while let Some(stopped) = stops.join_next().await {
            result = result.and(stopped.unwrap_or_else(|e| Err(Error::internal(e))));
        }
        result
    }

    /// Sends a signal to the current main command of a box, never to one that is started later.
    pub(super) async fn signal(self: &Arc<Self>, id: &str, signal: i32) -> Result<()> {
        let (local, query) = (self.clone(), id.to_owned());
        let status = blocking(move || {
            local.expect_serving(&query)?;
            Ok(local.look(&local.folder(&query)?)?.1)
        })
        .await?;
        let (pid, started_ms) = status.map_or((0, 0), |status| (status.pid, status.started_ms));
        if pid == 0 {
            let name = self.info_of(id).await?.name;
            return Err(Error::refused(&name, "its main command does not run now"));
        }
        self.ask(id, ToMachine::Signal { signal, pid, started_ms }).await.map(drop)
    }

    /// Kills a box.
    pub(super) async fn kill(self: &Arc<Self>, id: &str) -> Result<()> {
        let (folder, process) = self.folder_and_process(id).await?;
        let Some(pid) = process else { return Ok(()) };
        let timeout =
            if self.ask(id, ToMachine::Kill).await.is_ok() { KILL_TIMEOUT } else { EXIT_TIMEOUT };
        let ended = within(timeout, "the end of the box", self.process_ended(&folder, pid)).await;
        if ended.as_ref().err().is_none_or(|e| e.kind() != ErrorKind::Timeout) {
            return ended;
        }
        // The process does not accept requests, or does not exit.
        if self.is_process(&folder, pid).await?
            && let Some(victim) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(victim, rustix::process::Signal::KILL);
        }
        within(KILL_TIMEOUT, "the end of the killed box", self.process_ended(&folder, pid)).await
    }

    /// The folder of a box, and the ID of its process if the box is live. Waits until a process that starts has recorded
    /// its ID: without it, the process could not be told from the next one.
    async fn folder_and_process(self: &Arc<Self>, id: &str) -> Result<(BoxFolder, Option<u32>)> {
        let (local, id) = (self.clone(), id.to_owned());
        let folder = blocking(move || local.folder(&id)).await?;
        let mut status = self.watcher.follow(folder.file(STATUS_FILE));
        let recorded = async {
            loop {
                match self.process_of(&folder).await? {
                    Some(0) => drop(tokio::time::timeout(PAUSE, status.changed()).await),
                    process => return Ok(process),
                }
            }
        };
        let process = within(START_TIMEOUT, "the start of the box's process", recorded).await?;
        Ok((folder, process))
    }

    /// Whether the box is live as this process, according to a status that the process wrote itself: while a box starts,
    /// its status may still be that of the last run.
    async fn is_process(self: &Arc<Self>, folder: &BoxFolder, pid: u32) -> Result<bool> {
        let (is_live, status) = self.look_at(folder).await?;
        Ok(is_live && status.is_some_and(|status| status.pid == pid && status.ended.is_none()))
    }

    /// The ID of a box's process, if the box is live; 0 if the process has not recorded its ID yet.
    async fn process_of(self: &Arc<Self>, folder: &BoxFolder) -> Result<Option<u32>> {
        let (is_live, status) = self.look_at(folder).await?;
        Ok(is_live.then(|| status.map_or(0, |status| status.pid)))
    }

    async fn is_live(self: &Arc<Self>, folder: &BoxFolder) -> Result<bool> {
        Ok(self.process_of(folder).await?.is_some())
    }

    pub(super) async fn pause(self: &Arc<Self>, id: &str) -> Result<()> {
        self.ask(id, ToMachine::Pause).await.map(drop)
    }

    pub(super) async fn resume(self: &Arc<Self>, id: &str) -> Result<()> {
        self.ask(id, ToMachine::Resume).await.map(drop)
    }

    pub(super) async fn outlive(self: &Arc<Self>, id: &str) -> Result<()> {
        self.ask(id, ToMachine::Outlive).await?;
        if let (_, Some(pid)) = self.folder_and_process(id).await? {
            crate::nested::outlive(pid);
        }
        self.dependents().remove(id);
        Ok(())
    }

    pub(super) async fn metrics(self: &Arc<Self>, id: &str) -> Result<MachineMetrics> {
        match self.ask(id, ToMachine::Metrics).await? {
            FromMachine::Metrics(metrics) => Ok(metrics),
            other => Err(Error::internal(format!("unexpected answer {other:?}"))),
        }
    }

    /// Waits until a box is not live. Returns its final state.
    pub(super) async fn wait(self: &Arc<Self>, id: &str) -> Result<BoxInfo> {
        let before = self.before_end(id).await?;
        self.end_of(id, before).await
    }

    /// Prepares to learn the end of a box that is live now, also if it removes itself.
    pub(super) async fn before_end(self: &Arc<Self>, id: &str) -> Result<BeforeEnd> {
        // A box that removes itself leaves no status, so each waiting caller keeps what it needs.
        let dependent = self.dependents().get(id).cloned();
        let log = self.home.events();
        let words = blocking(move || Ok(LastWords::from_now(log))).await?;
        let info = self.info_of(id).await.ok().filter(|info| info.state.is_live());
        Ok(BeforeEnd { dependent, words, info })
    }

    /// Waits for the end of a box. Returns its final state.
    pub(super) async fn end_of(self: &Arc<Self>, id: &str, before: BeforeEnd) -> Result<BoxInfo> {
        let BeforeEnd { dependent, words, info: before } = before;
        self.process_ended(&self.home.folder(id), 0).await?;
        self.forget(id, dependent.as_ref());
        let missing = match self.info_of(id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => error,
            info => return info,
        };
        // The box removed itself. The process that started it was sent the end; others find it in the event log.
        if let Some(Dependent { machine, info }) = dependent {
            let Some(ended) = machine.said_last().await else { return Ok(info.died()) };
            return Ok(info.ended(&ended));
        }
        let Some(before) = before else { return Err(missing) };
        let id = id.to_owned();
        Ok(match blocking(move || Ok(words.of(&id))).await? {
            Some(event) => before.ended_by(&event),
            None => before.died(),
        })
    }

    /// Drops a stopped box from the dependents, unless it is live again.
    fn forget(&self, id: &str, ended: Option<&Dependent>) {
        let mut dependents = self.dependents();
        let is_same =
            |now: &Dependent| ended.is_some_and(|it| Arc::ptr_eq(&now.machine, &it.machine));
        if dependents.get(id).is_some_and(is_same) {
            dependents.remove(id);
        }
    }

    pub(super) fn folder(&self, id: &str) -> Result<BoxFolder> {
        Ok(self.home.folder(&self.entry(id)?.id))
    }

    /// Sends a request to the process of a live box.
    async fn ask(self: &Arc<Self>, id: &str, message: ToMachine) -> Result<FromMachine> {
        let (local, id) = (self.clone(), id.to_owned());
        let (name, answer) = blocking(move || {
            let entry = local.entry(&id)?;
            let info = local.info(&entry)?;
            if !info.state.is_live() {
                let remedy = Remedy::StartBox { name: entry.name.clone() };
                return Err(Error::wrong_state(&entry.name, &info.state, remedy));
            }
            let socket = local.home.folder(&entry.id).connect(CONTROL_SOCKET)?;
            let answer = || -> std::io::Result<_> {
                socket.set_read_timeout(Some(ANSWER))?;
                control::send(&socket, &message, &[])?;
                control::receive::<FromMachine>(&socket)
            };
            let answer = answer().map_err(|e| unanswered(&entry.name, e))?;
            Ok((entry.name, answer))
        })
        .await?;
        match answer {
            Some((FromMachine::Refused(reason), _)) => Err(Error::refused(&name, &reason)),
            Some((answer, _)) => Ok(answer),
            None => Err(process_exited(&name)),
        }
    }

    /// Sends a descriptor to the process of a box.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        id: &str,
        message: ToMachine,
        file: std::os::fd::OwnedFd,
    ) -> Result<()> {
        let (local, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let entry = local.entry(&id)?;
            let socket = local.home.folder(&entry.id).connect(CONTROL_SOCKET)?;
            control::send(&socket, &message, &[file.as_fd()])
                .map_err(|e| unanswered(&entry.name, e))
        })
        .await
    }

    /// Waits until a box is not live, or is live as a process other than `pid` (if that is not 0): another process may
    /// start the box as soon as it has stopped. Does not need the box's process to answer.
    pub(super) async fn process_ended(
        self: &Arc<Self>,
        folder: &BoxFolder,
        pid: u32,
    ) -> Result<()> {
        while let Some(now) = self.process_of(folder).await?
            && (pid == 0 || pid == now)
        {
            let end = ProcessEnd::watch(now);
            // The watched process had this ID already when the watch started.
            if self.process_of(folder).await? != Some(now) {
                continue;
            }
            match end {
                Ok(end) => drop(tokio::time::timeout(RECHECK, end.ended()).await),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        Ok(())
    }
}
