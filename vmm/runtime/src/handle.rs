//! A box, whether it runs or not.

use std::sync::Arc;
use std::time::Duration;

use boxlite_contract::events::EventKind;
use boxlite_contract::metrics::MachineMetrics;
use boxlite_rootfs_builder::Silent;

use super::call::{BoxCall, Call, Channel, Reply, Start};
use super::config::BoxConfig;
use super::host::{BoxAgent, Host, NoAgent};
use super::logs::{LogQuery, Logs};
use super::state::{BoxInfo, BoxState};
use super::{Error, ErrorKind, Result};
use crate::client::{self, AgentClient};

/// Timeout for writing down that something happened in a box.
const NOTE_LIMIT: Duration = Duration::from_secs(2);

/// A box. Cheap to clone. Dropping it changes nothing: a box ends when it is stopped, when its main
/// command ends, or, if it is not detached, with the [`Runtime`](super::Runtime) that started it.
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

    /// The box's name, as it was when this handle was made.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// What the box was made of, as it was when this handle was made.
    pub fn config(&self) -> &BoxConfig {
        &self.0.config
    }

    async fn call(&self, call: BoxCall) -> Result<Reply> {
        let call = Call::Box { id: self.id().to_owned(), call };
        self.0.host.call(call, Arc::new(Silent)).await
    }

    /// What is known of the box now.
    pub async fn info(&self) -> Result<BoxInfo> {
        self.call(BoxCall::Info).await?.info()
    }

    /// Boots the box; returns once it serves commands. One that runs is left as it is.
    ///
    /// # Errors
    /// When the box fails to boot: the error says how. When it is paused.
    pub async fn start(&self) -> Result<()> {
        self.start_as(Start::default()).await
    }

    pub(super) async fn start_as(&self, how: Start) -> Result<()> {
        self.call(BoxCall::Start(how)).await?.done()
    }

    /// As [`start`](Self::start); the box goes on when this process ends, whatever its options say.
    pub async fn start_detached(&self) -> Result<()> {
        self.start_as(Start { detach: true, ..Start::default() }).await
    }

    /// Asks the main command to end (by its stop signal), then everything else, and waits until the
    /// box has ended; after `grace` it is made to. What was written is on its disk then. One that
    /// does not live is left as it is.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
        self.call(BoxCall::Stop { grace_ms }).await?.done()
    }

    /// Ends the box at once, as a loss of power does. One that does not live is left as it is.
    pub async fn kill(&self) -> Result<()> {
        self.call(BoxCall::Kill).await?.done()
    }

    /// [`stop`](Self::stop), then [`start`](Self::start).
    pub async fn restart(&self, grace: Duration) -> Result<()> {
        self.stop(grace).await?;
        self.start().await
    }

    /// Lets the box stand still: its processors stop, its memory stays.
    pub async fn pause(&self) -> Result<()> {
        self.call(BoxCall::Pause).await?.done()
    }

    /// Lets a paused box go on.
    pub async fn resume(&self) -> Result<()> {
        self.call(BoxCall::Resume).await?.done()
    }

    /// Lets the box go on when this process ends.
    pub async fn detach(&self) -> Result<()> {
        self.call(BoxCall::Outlive).await?.done()
    }

    /// Waits until the box does not live; tells how it ended. Cancel safe.
    pub async fn wait(&self) -> Result<BoxInfo> {
        self.call(BoxCall::Wait).await?.info()
    }

    /// Removes the box with its disk; one that lives only by `force`.
    pub async fn remove(&self, force: bool) -> Result<()> {
        self.call(BoxCall::Remove { force }).await?.done()
    }

    /// Gives the box another name. Handles keep the old one.
    pub async fn rename(&self, name: impl Into<String>) -> Result<()> {
        self.call(BoxCall::Rename(name.into())).await?.done()
    }

    /// What the box's process counts on the host.
    pub async fn machine_metrics(&self) -> Result<MachineMetrics> {
        self.call(BoxCall::Metrics).await?.metrics()
    }

    /// Sends a signal (Linux number) to the main command: to its own process, and not to others that it started.
    ///
    /// # Errors
    /// When the main command does not run: the box does not live, waits for somebody to attach, or is about to begin
    /// the main command anew. A box that is paused has to be resumed first.
    pub async fn signal(&self, signal: i32) -> Result<()> {
        self.call(BoxCall::Signal(signal)).await?.done()
    }

    /// What the main command wrote.
    pub async fn logs(&self, query: LogQuery) -> Result<Logs> {
        let stream = self.open(Channel::Logs { id: self.id().to_owned(), query }).await?;
        Ok(Logs::new(stream))
    }

    pub(super) async fn open(&self, channel: Channel) -> Result<Box<dyn crate::stream::Duplex>> {
        self.0.host.open(channel).await
    }

    /// The connection to the guest's agent, made if there is none. Cancel safe.
    pub(super) async fn agent(&self) -> Result<AgentClient> {
        // A paused box would answer one day.
        self.call(BoxCall::Expect).await?;
        match self.0.host.connect(&self.0.agent).await {
            Ok(agent) => Ok(agent),
            Err(NoAgent::Lost(e)) => Err(self.explain(e).await),
            Err(NoAgent::NotMade(e)) => Err(e),
        }
    }

    /// Writes down that something happened in the box.
    pub(super) async fn note(&self, kind: EventKind) {
        // Said by who writes it, if it cannot be. A command's caller does not wait for a home that hangs.
        let _ = tokio::time::timeout(NOTE_LIMIT, self.call(BoxCall::Note(kind))).await;
    }

    /// An error of an agent connection, or what ended the box if that is why.
    pub(super) async fn explain(&self, error: client::Error) -> Error {
        if !matches!(error, client::Error::Lost(_)) {
            return Error::guest(error);
        }
        // Its process is about to say how it ended.
        let ended = tokio::time::timeout(Duration::from_secs(2), self.wait()).await;
        match ended {
            Ok(Ok(BoxInfo { state: BoxState::Failed(reason), name, .. })) => {
                Error::failed(Some(&name), &reason)
            }
            Ok(Ok(info)) => Error::ended(&info.name, info.state),
            Ok(Err(e)) if e.kind() == ErrorKind::NotFound => {
                Error::ended(self.name(), "and was removed")
            }
            _ => Error::guest(error),
        }
    }
}
