//! One server for all tests of a binary, because it reaps every child of its process.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::LazyLock;

use boxlite_agent::server::Server;
use boxlite_proto::boot::Role;
use boxlite_proto::message::{Exec, ExitStatus, Response};

use super::client::Client;

/// The socket that the server of a box listens on.
pub(crate) static SERVER: LazyLock<PathBuf> = LazyLock::new(|| serve(Role::Box));

/// Starts a server in this role, and returns the socket that it listens on.
pub(crate) fn serve(role: Role) -> PathBuf {
    // Orphans become children of this process, as they do of PID 1.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let path = tempfile::tempdir().unwrap().keep().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let mut server = Server::new(role).unwrap();
        server.listen(listener.into()).unwrap();
        server.run().unwrap();
    });
    path
}

pub(crate) fn connect() -> Client {
    Client::new(UnixStream::connect(&*SERVER).unwrap())
}

pub(crate) fn command(argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|argument| argument.as_bytes().to_vec()).collect();
    Exec { argv, ..Exec::default() }
}

pub(crate) fn sh(script: &str) -> Exec {
    command(&["sh", "-c", script])
}

pub(crate) fn code(code: u8) -> Response {
    Response::Exited(ExitStatus::Code(code))
}

pub(crate) fn signal(signal: i32) -> Response {
    Response::Exited(ExitStatus::Signal(signal))
}
