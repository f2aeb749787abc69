//! The handle of a box, whether the box runs or not.

use std::sync::Arc;
use std::time::Duration;

use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::MachineMetrics;
use boxlite_rootfs_builder::Silent;

use super::call::{BoxCall, Call, Channel, Reply};
use super::config::BoxConfig;
use super::host::{BoxAgent, Host, NoAgent};
use super::logs::{LogQuery, Logs};
use super::state::{BoxInfo, BoxState};
use super::{Error, ErrorKind, Result, StartOptions};
use crate::client::{self, AgentClient};

/// Timeout for recording an event in a box.
const NOTE_LIMIT: Duration = Duration::from_secs(2);

/// A box. Cheap to clone. Dropping the handle does not stop the box: a box stops on request, when its main
/// command exits, or, unless it is detached, when the [`Runtime`](super::Runtime) that started it is dropped.
#[derive(Clone, Debug)]
pub struct BoxHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: Host,
    config: BoxConfig,
    /// Shared by all handles of the box that come from one runtime.
    agent: Arc<BoxAgent>,
}

impl BoxHandle {
    pub(super) fn new(host: Host, config: BoxConfig) -> Self {
        let agent = host.agent(&config.id);
        Self(Arc::new(Shared { host, config, agent }))
    }

    /// The box's ID: 32 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.0.config.id
    }

    /// The box's name at the time when this handle was obtained.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// The box's configuration at the time when this handle was obtained.
    pub fn config(&self) -> &BoxConfig {
        &self.0.config
    }

    async fn call(&self, call: BoxCall) -> Result<Reply> {
        let call = Call::Box { id: self.id().to_owned(), call };
        self.0.host.call(call, Arc::new(Silent)).await
    }

    /// Reads the current state of the box.
    pub async fn info(&self) -> Result<BoxInfo> {
        self.call(BoxCall::Info).await?.info()
    }

    /// Boots the box. Returns once the box accepts commands; does nothing if it is running.
    ///
    /// # Errors
    /// The box failed to boot (the error says why), or it is paused.
    pub async fn start(&self) -> Result<()> {
        self.start_with(StartOptions::default()).await
    }

    /// Boots the box with options.
    ///
    /// # Errors
    /// Those of [`start`](Self::start). If packets are to be recorded, also: the box is already running, it has no
    /// network, or the file cannot be opened.
    pub async fn start_with(&self, options: StartOptions) -> Result<()> {
        self.0.host.start(&self.0.config, options).await
    }

    /// Like [`start`](Self::start), but detached: the box keeps running when this process exits, whatever its options
    /// say.
    pub async fn start_detached(&self) -> Result<()> {
        self.start_with(StartOptions::default().detach(true)).await
    }

    /// Shuts the box down and waits until it has stopped: sends the main command its stop signal, then terminates the
    /// other processes. After `grace`, processes that still run are killed. Written data is on the disk when this
    /// returns. Does nothing if the box is not live.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
        self.call(BoxCall::Stop { grace_ms }).await?.done()?;
        self.0.host.captured(self.id()).await;
        Ok(())
    }

    /// Kills the box at once, as a power failure would. Does nothing if the box is not live.
    pub async fn kill(&self) -> Result<()> {
        self.call(BoxCall::Kill).await?.done()?;
        self.0.host.captured(self.id()).await;
        Ok(())
    }

    /// [`stop`](Self::stop), then [`start`](Self::start).
    pub async fn restart(&self, grace: Duration) -> Result<()> {
        self.stop(grace).await?;
        self.start().await
    }

    /// Pauses the box: its vCPUs stop, its memory is kept.
    pub async fn pause(&self) -> Result<()> {
        self.call(BoxCall::Pause).await?.done()
    }

    /// Resumes a paused box.
    pub async fn resume(&self) -> Result<()> {
        self.call(BoxCall::Resume).await?.done()
    }

    /// Detaches the box: it keeps running when this process exits.
    pub async fn detach(&self) -> Result<()> {
        self.call(BoxCall::Outlive).await?.done()
    }

    /// Waits until the box is no longer live and, if this runtime writes the file that records its packets, until that
    /// file is complete; [`capture_error`](Self::capture_error) says whether it is. Returns the box's final state.
    /// Cancel safe.
    pub async fn wait(&self) -> Result<BoxInfo> {
        let ended = self.call(BoxCall::Wait).await.and_then(Reply::info);
        if self.0.host.has_ended(&ended) {
            self.0.host.captured(self.id()).await;
        }
        ended
    }

    /// Returns why the file that records the box's packets is incomplete: the box's process or the software host was
    /// killed, the file cannot be written or is too slow, or it has reached its limit. `None` if the file is complete,
    /// and while packets are being recorded. The answer is final after [`wait`](Self::wait), [`stop`](Self::stop) or
    /// [`kill`](Self::kill), and valid until the next start of the box.
    ///
    /// Covers the files that this runtime writes: those of boxes in the software host. On hardware, the box's process
    /// writes the file, and reports the same in `machine.log`.
    pub fn capture_error(&self) -> Option<Error> {
        self.0.host.capture_error(self.id())
    }

    /// Removes the box and its disk. A live box is removed only with `force`, which kills it.
    pub async fn remove(&self, force: bool) -> Result<()> {
        self.call(BoxCall::Remove { force }).await?.done()?;
        self.0.host.captured(self.id()).await;
        Ok(())
    }

    /// Renames the box. Existing handles keep the old name.
    pub async fn rename(&self, name: impl Into<String>) -> Result<()> {
        self.call(BoxCall::Rename(name.into())).await?.done()
    }

    /// Reads the counters of the box's process on the host.
    pub async fn machine_metrics(&self) -> Result<MachineMetrics> {
        self.call(BoxCall::Metrics).await?.metrics()
    }

    /// Sends a signal (Linux number) to the process of the main command, not to processes that it started.
    ///
    /// # Errors
    /// The main command is not running (the box is not live, waits for a caller to attach, or is about to restart the
    /// command), or the box is paused.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        self.call(BoxCall::Signal(signal)).await?.done()
    }

    /// Reads the output of the main command.
    pub async fn logs(&self, query: LogQuery) -> Result<Logs> {
        let stream = self.open(Channel::Logs { id: self.id().to_owned(), query }).await?;
        Ok(Logs::new(stream))
    }

    pub(super) async fn open(&self, channel: Channel) -> Result<Box<dyn crate::stream::Duplex>> {
        self.0.host.open(channel).await
    }

    /// The connection to the guest's agent, opened if there is none. Cancel safe.
    pub(super) async fn agent(&self) -> Result<AgentClient> {
        // A paused box would not answer until it is resumed. Both at once: in the nested host, each is a round trip.
        let expected = self.call(BoxCall::Expect);
        let connected = self.0.host.connect(&self.0.agent);
        tokio::pin!(expected, connected);
        let connected = tokio::select! {
            answer = &mut expected => {
                answer?;
                connected.await
            }
            connected = &mut connected => {
                expected.await?;
                connected
            }
        };
        match connected {
            Ok(agent) => Ok(agent),
            Err(NoAgent::Lost(e)) => Err(self.explain(e).await),
            Err(NoAgent::NotMade(e)) => Err(e),
        }
    }

    /// Records an event of the box.
    pub(super) async fn note(&self, kind: EventKind) {
        // The writer logs a failure. The caller of a command does not wait for a home that hangs.
        let _ = tokio::time::timeout(NOTE_LIMIT, self.call(BoxCall::Note(kind))).await;
    }

    /// Turns an error of an agent connection into one of the runtime: how the box ended, if that broke the connection.
    pub(super) async fn explain(&self, error: client::Error) -> Error {
        if !matches!(error, client::Error::Lost(_)) {
            return Error::guest(error);
        }
        // The box's process is about to record how the box ended.
        let ended = tokio::time::timeout(Duration::from_secs(2), self.wait()).await;
        match ended {
            Ok(Ok(BoxInfo { state: BoxState::Failed(reason), name, .. })) => {
                Error::failed(Some(&name), &reason)
            }
            Ok(Ok(info)) => Error::ended(&info.name, info.state),
            Ok(Err(e)) if e.kind() == ErrorKind::NotFound => {
                Error::ended(self.name(), "and was removed")
            }
            // The nested host ended, with the box's process.
            Ok(Err(e)) if e.kind() == ErrorKind::Host => e,
            _ => Error::guest(error),
        }
    }
}
