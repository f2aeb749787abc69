//! A command of the nested host that serves a socket: the runtime behind which a home's boxes are.

use std::io;

use boxlite_proto::message::FailureKind;

use super::folder::HostFolder;
use super::{Error, NestedCommand, Options, connect};
use crate::client::{self, ExecOutput, SocketServer, SocketStream};

/// A running server. Dropping it kills the command.
#[derive(Debug)]
pub(crate) struct NestedServer {
    server: SocketServer,
    folder: HostFolder,
}

impl NestedServer {
    /// Starts a command that serves the abstract socket `socket` in the nested host of `options`' home, which is started if
    /// necessary. The command inherits the listening socket. Does not wait for the command's start.
    ///
    /// # Errors
    /// The nested host does not start.
    pub(crate) async fn start(
        options: &Options,
        command: NestedCommand,
        socket: Vec<u8>,
    ) -> Result<Self, Error> {
        let folder = HostFolder::open(&options.home)?;
        let client = connect(options).await?;
        match client.exec_server(command.exec(), socket) {
            Ok(server) => Ok(Self { server, folder }),
            Err(error) => Err(Error::of_connection(error, &folder)),
        }
    }

    /// Connects to the server, without waiting. A failure is an error of the stream.
    pub(crate) fn connect(&self) -> io::Result<SocketStream> {
        Ok(self.server.connect()?)
    }

    /// The command's standard error.
    pub(crate) fn stderr(&self) -> ExecOutput {
        self.server.stderr()
    }

    /// Whether the command has ended, or the connection to its agent.
    pub(crate) fn is_over(&self) -> bool {
        self.server.is_over()
    }

    /// Says what an error of a stream to the server means.
    pub(crate) fn explain(&self, error: io::Error) -> Error {
        // A command that did not start says why; its socket only refuses.
        explain(self.server.failure().map_or(error, io::Error::from), &self.folder)
    }
}

pub(super) fn explain(error: io::Error, folder: &HostFolder) -> Error {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<client::Error>());
    match source {
        Some(lost @ client::Error::Lost(_)) => Error::of_connection(lost.clone(), folder),
        // Its agent does not know the requests for a socket.
        Some(error) if error.failure().is_some_and(|f| f.kind == FailureKind::Unsupported) => {
            Error::Ended(
                "an older release started the software host that runs: stop its boxes with that release, \
                 and the software host ends"
                    .to_owned(),
            )
        }
        // The runtime did not start, or has ended, or all connections are in use.
        Some(_) => {
            Error::Ended(format!("cannot reach the runtime in the software host: {error}"))
        }
        None => Error::Ended(format!("the runtime in the software host is gone: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use boxlite_proto::message::Failure;

    use super::*;
    use crate::client::Loss;

    #[test]
    fn errors_of_a_stream_say_who_failed() {
        let home = tempfile::tempdir().unwrap();
        let folder = HostFolder::open(home.path()).unwrap();
        let message = |error: io::Error| explain(error, &folder).to_string();
        let failed = |kind| client::Error::Failed(Failure { kind, message: "no".to_owned() });
        assert!(message(failed(FailureKind::Unsupported).into()).contains("an older release"));
        assert!(message(failed(FailureKind::Other).into()).contains("cannot reach"));
        // The server's end is the end of its stream, and the keeper's that of the connection.
        assert!(message(io::ErrorKind::UnexpectedEof.into()).contains("is gone"));
        let lost = |loss| message(client::Error::from(loss).into());
        assert!(lost(Loss::Closed).contains("its keeper was killed or crashed"));
        assert_eq!(lost(Loss::Fatal("QEMU crashed".to_owned())), "QEMU crashed");
    }
}
