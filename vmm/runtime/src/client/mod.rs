//! The host's side of the agent protocol.
//!
//! An [`AgentClient`] is one connection to the agent of a guest, over any byte stream: the vsock socket of a box or of
//! the nested host. It carries any number of concurrent requests. The guest is not trusted: everything that it sends
//! is checked against the protocol and bounded, and a violation ends the connection.
//!
//! No operation has a timeout; callers that need one use [`tokio::time::timeout`].
//!
//! ```text
//!   attach ──▶ exec, copy ──▶ AgentClient ──▶ connection ──▶ stream     arrows: uses
//!                  └── a handle: a stream with its connection ──▶──┘
//! ```

mod attach;
mod connection;
mod copy;
mod detach_keys;
mod error;
mod exec;
mod socket;
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

pub use attach::{Attachment, AttachmentEnd, Streams, WriteError};
pub use copy::{Archive, Unpacked};
pub use detach_keys::{DetachKeys, InvalidKey};
pub use error::{Error, Loss, Violation};
pub use exec::{ExecHandle, ExecOutput, ExecStdin, Exit, Output};
pub(crate) use socket::{SocketServer, SocketStream};

/// The result of a request to an agent.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A connection to the agent of a guest. Clones share the connection. It closes when the last clone and the last handle
/// of a command are dropped.
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
    /// Opens the protocol on `io` and sets the guest's clock. `generation` is the expected generation of the guest,
    /// which is always 0 in this version.
    ///
    /// Must be called within a tokio runtime, in which a task carries the connection.
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

    /// Starts a command. Returns once it runs.
    pub async fn exec(&self, exec: Exec) -> Result<ExecHandle> {
        let (stdin, terminal) = (exec.stdin, exec.terminal.is_some());
        self.open(&Request::Exec(exec))?.started(stdin, terminal).await
    }

    /// Starts a detached command: it outlives this connection, and its standard streams are `/dev/null`, or with
    /// [`Exec::terminal`] a terminal whose output is discarded. Returns its process ID in the guest once it runs. If
    /// the future is dropped, the command may have been started or not.
    pub async fn exec_detached(&self, exec: Exec) -> Result<u32> {
        match self.answer(&Request::ExecDetached(exec)).await? {
            Response::Detached { pid } => Ok(pid),
            other => unreachable!("a detached command is not answered by {other:?}"),
        }
    }

    /// Reads the guest's memory, disk and load. Cancel safe.
    pub async fn metrics(&self) -> Result<GuestMetrics> {
        match self.answer(&Request::Metrics).await? {
            Response::Metrics(metrics) => Ok(metrics),
            other => unreachable!("metrics are not {other:?}"),
        }
    }

    /// Reads the counts of commands since the boot, by outcome. Cancel safe.
    pub async fn exec_counts(&self) -> Result<ExecCounts> {
        match self.answer(&Request::ExecCounts).await? {
            Response::ExecCounts(counts) => Ok(counts),
            other => unreachable!("counts are not {other:?}"),
        }
    }

    /// Lists processes: at most [`MAX_PROCESSES`](boxlite_proto::guest::MAX_PROCESSES), those with the smallest IDs.
    /// Cancel safe.
    pub async fn processes(&self) -> Result<Vec<Process>> {
        match self.answer(&Request::Processes).await? {
            Response::Processes(processes) => Ok(processes),
            other => unreachable!("processes are not {other:?}"),
        }
    }

    /// Describes the file at a path of the guest. Cancel safe.
    ///
    /// # Errors
    /// A [`Failure`](boxlite_proto::message::Failure) of the kind
    /// [`NoSuchPath`](boxlite_proto::message::FailureKind::NoSuchPath) if there is no such file.
    pub async fn stat(&self, stat: Stat) -> Result<FileStat> {
        match self.answer(&Request::Stat(stat)).await? {
            Response::Stat(stat) => Ok(stat),
            other => unreachable!("a file is not {other:?}"),
        }
    }

    /// Checks that the agent answers.
    pub async fn ping(&self) -> Result<()> {
        self.call(&Request::Ping).await
    }

    /// Syncs the guest's file systems.
    pub async fn sync(&self) -> Result<()> {
        self.call(&Request::Sync).await
    }

    /// Shuts the guest down: terminates all processes (SIGTERM, and after `grace` SIGKILL), unmounts, and resets the VM
    /// after the answer.
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        let grace_ms = grace.as_millis().try_into().unwrap_or(u32::MAX);
        self.call(&Request::Shutdown { grace_ms }).await
    }

    /// Whether the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.connection().is_lost()
    }

    /// The events that the agent sends, from the first one that is still kept (the last 64 are).
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
    /// Returns the next event, or `None` once the connection has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.client.connection().event(&mut self.next).await
    }
}
