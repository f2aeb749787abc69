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

    /// Says what the end of the connection means to a stream of other content than requests. Other errors are those of
    /// the content, or of what the server does with it.
    pub(crate) fn explain_end(&self, error: io::Error) -> io::Error {
        explain_end(error, &self.folder)
    }

    /// Says what an error of a request to the server means.
    pub(crate) fn explain(&self, error: io::Error) -> Error {
        // A command that did not start says why; its socket only refuses.
        explain(self.server.failure().map_or(error, io::Error::from), &self.folder)
    }
}

fn explain_end(error: io::Error, folder: &HostFolder) -> io::Error {
    match agent_error(&error) {
        Some(client::Error::Lost(_)) => io::Error::new(error.kind(), explain(error, folder)),
        _ => error,
    }
}

/// The error of the agent that carries the stream.
fn agent_error(error: &io::Error) -> Option<&client::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain(error: io::Error, folder: &HostFolder) -> Error {
    match agent_error(&error) {
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
        // A box that takes no more input is no fault of the nested host.
        let of_content = explain_end(io::ErrorKind::BrokenPipe.into(), &folder);
        assert_eq!(of_content.to_string(), io::Error::from(io::ErrorKind::BrokenPipe).to_string());
        let end = explain_end(client::Error::from(Loss::Closed).into(), &folder);
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        assert!(end.to_string().contains("its keeper was killed or crashed"), "{end}");
    }
}
