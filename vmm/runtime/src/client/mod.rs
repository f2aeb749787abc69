//! The host's side of the agent protocol.
//!
//! An [`AgentClient`] is one connection to the agent of a guest, over any byte stream: a box's vsock
//! socket, the software host's. It carries any number of requests at a time. The guest is not
//! trusted: whatever it sends is checked against the protocol and bounded, and what breaks the
//! protocol ends the connection.
//!
//! Nothing here has a timeout; wrap what must not take forever in [`tokio::time::timeout`].

mod attach;
mod connection;
mod copy;
mod detach_keys;
mod error;
mod exec;
mod stdio;
mod stream;
mod terminal;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::sync::Arc;
use std::time::Duration;

use boxlite_proto::guest::{ExecCounts, FileStat, GuestMetrics, Process, Stat};
use boxlite_proto::message::{Event, Exec, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use connection::Connection;
pub(crate) use connection::greet;
use exec::Running;

pub use boxlite_proto::message::{Control, FailureKind};

pub use attach::{Attachment, Ended, Streams, Unwritten};
pub use copy::{Archive, Unpacked};
pub use detach_keys::{DetachKeys, InvalidKey};
pub use error::{Error, Loss, Violation};
pub use exec::{ExecHandle, ExecOutput, ExecStdin, Exit, Output};

/// The result of a request to an agent.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A connection to the agent of a guest. Clones share it; it closes when the last one and the last
/// handle of a command are dropped.
#[derive(Clone, Debug)]
pub struct AgentClient(Arc<Client>);

#[derive(Debug)]
struct Client(Arc<Connection>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl AgentClient {
    /// Opens the protocol on `io` and sets the guest's clock. `generation` is the life of the guest
    /// that is meant: 0 for a fresh boot, one more for each restore.
    ///
    /// Must be called inside a tokio runtime: a task of its own carries the connection.
    pub async fn connect<T>(io: T, generation: u64) -> Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (reader, session) = connection::open(io, generation).await?;
        let connection = Arc::new(Connection::new(session));
        let client = Self(Arc::new(Client(Arc::clone(&connection))));
        tokio::spawn(async move { connection.run(reader).await });
        Ok(client)
    }

    /// Runs a command; returns once it runs.
    pub async fn exec(&self, exec: Exec) -> Result<ExecHandle> {
        let (stdin, terminal) = (exec.stdin, exec.terminal.is_some());
        self.open(&Request::Exec(exec))?.started(stdin, terminal).await
    }

    /// Runs a command that nobody waits for: it outlives this connection, and its standard streams are
    /// `/dev/null`, or with [`Exec::terminal`] a terminal that nobody reads. Returns its process ID in
    /// the guest once it runs. Dropping the future leaves open whether it does.
    pub async fn exec_detached(&self, exec: Exec) -> Result<u32> {
        match self.answer(&Request::ExecDetached(exec)).await? {
            Response::Detached { pid } => Ok(pid),
            other => unreachable!("a detached command is not answered by {other:?}"),
        }
    }

    /// Asks how the machine is doing. Cancel safe.
    pub async fn metrics(&self) -> Result<GuestMetrics> {
        match self.answer(&Request::Metrics).await? {
            Response::Metrics(metrics) => Ok(metrics),
            other => unreachable!("metrics are not {other:?}"),
        }
    }

    /// Asks what became of the commands that were asked for since the boot. Cancel safe.
    pub async fn exec_counts(&self) -> Result<ExecCounts> {
        match self.answer(&Request::ExecCounts).await? {
            Response::ExecCounts(counts) => Ok(counts),
            other => unreachable!("counts are not {other:?}"),
        }
    }

    /// Asks what runs: at most [`MAX_PROCESSES`](boxlite_proto::guest::MAX_PROCESSES), those with the
    /// smallest IDs. Cancel safe.
    pub async fn processes(&self) -> Result<Vec<Process>> {
        match self.answer(&Request::Processes).await? {
            Response::Processes(processes) => Ok(processes),
            other => unreachable!("processes are not {other:?}"),
        }
    }

    /// Asks what is at a path of the guest. Cancel safe.
    ///
    /// # Errors
    /// A [`Failure`](boxlite_proto::message::Failure) of the kind
    /// [`NoSuchPath`](boxlite_proto::message::FailureKind::NoSuchPath) where there is nothing.
    pub async fn stat(&self, stat: Stat) -> Result<FileStat> {
        match self.answer(&Request::Stat(stat)).await? {
            Response::Stat(stat) => Ok(stat),
            other => unreachable!("a file is not {other:?}"),
        }
    }

    /// Asks whether the agent is there.
    pub async fn ping(&self) -> Result<()> {
        self.call(&Request::Ping).await
    }

    /// Makes the guest write everything to its disk.
    pub async fn sync(&self) -> Result<()> {
        self.call(&Request::Sync).await
    }

    /// Ends all processes of the guest (SIGTERM, and after `grace` SIGKILL), unmounts, and resets
    /// the machine after the answer.
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.call(&Request::Shutdown { grace_ms }).await
    }

    /// Whether the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.connection().is_lost()
    }

    /// What the agent tells unasked, from the first event on (of many, the last 64).
    pub fn events(&self) -> Events {
        Events { client: self.clone(), next: 0 }
    }

    fn connection(&self) -> &Connection {
        &self.0.0
    }

    fn open(&self, request: &Request) -> Result<Running> {
        Ok(Running::new(self.clone(), self.connection().ask(request)?))
    }

    async fn call(&self, request: &Request) -> Result<()> {
        self.answer(request).await.map(drop)
    }

    async fn answer(&self, request: &Request) -> Result<Response> {
        self.connection().ask(request)?.over().await
    }
}

/// The events of a connection.
#[derive(Debug)]
pub struct Events {
    client: AgentClient,
    next: u64,
}

impl Events {
    /// The next event; none when the connection has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.client.connection().event(&mut self.next).await
    }
}
