//! Boxes that are live according to their folders, with a fake process and a scripted agent.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command};
use std::time::Duration;

use boxlite_contract::control::{self, FromMachine, ToMachine};
use boxlite_contract::status::Phase;
use boxlite_durable::Durability;
use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::frame::Frame;
use boxlite_proto::message::Hello;
use tokio::task::JoinSet;

use super::model::{config, open};
use crate::host::{Host, Serving};
use crate::local::home::{BoxFolder, CONTROL_SOCKET, VSOCK_SOCKET};
use crate::local::*;
use crate::{BoxHandle, BoxState, FailureReason};

/// A timeout that only a hang reaches.
const PATIENCE: Duration = Duration::from_secs(120);

/// A box whose process is a `sleep` that holds its lock.
struct LiveBox {
    local: Arc<Local>,
    config: BoxConfig,
    process: Child,
    control: UnixListener,
    vsock: UnixListener,
    dir: tempfile::TempDir,
}

impl LiveBox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::write(&base, [0; 1024]).unwrap();
        let local = Arc::new(open(dir.path()));
        let config = config(1, 1);
        local.settle(&config, &base, 1024).unwrap();
        let folder = local.folder(&config.id).unwrap();
        let process = begin(&folder);
        let (control, vsock) = (folder.listen(CONTROL_SOCKET), folder.listen(VSOCK_SOCKET));
        Self { local, config, process, control: control.unwrap(), vsock: vsock.unwrap(), dir }
    }

    fn handle(&self) -> BoxHandle {
        BoxHandle::new(Host::new(Serving::Local(self.local.clone())), self.config.clone())
    }

    /// Kills the process.
    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts a new process.
    fn begin(&mut self) {
        self.process = begin(&self.local.home.folder(&self.config.id));
    }
}

/// Starts the process of a box, with the status of a running one.
fn begin(folder: &BoxFolder) -> Child {
    let lock = loop {
        // A caller that tests the lock holds it for a moment.
        match folder.lock().unwrap() {
            Some(lock) => break lock,
            None => std::thread::yield_now(),
        }
    };
    let process = Command::new("sleep").arg("1000").stdin(lock).spawn().unwrap();
    let status = Status { phase: Phase::Running, pid: process.id(), ..Status::starting() };
    status.write(folder.path(), Durability::Process).unwrap();
    process
}

/// Answers one request to end the box, and reports that the request came.
fn promise_an_end(control: &UnixListener) -> std::sync::mpsc::Receiver<()> {
    let control = control.try_clone().unwrap();
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (client, _) = control.accept().unwrap();
        let Ok(Some((ToMachine::Kill | ToMachine::Stop { .. }, _))) = control::receive(&client)
        else {
            return;
        };
        control::send(&client, &FromMachine::Done, &[]).unwrap();
        let _ = sender.send(());
    });
    asked
}

impl Drop for LiveBox {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The point at which the guest hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hangs {
    AtOnce,
    Connected,
    Greeted,
}

/// Serves one connection up to that point, and reports when the guest hangs.
fn serve(vsock: &UnixListener, hangs: Hangs) -> std::sync::mpsc::Receiver<impl Sized + use<>> {
    let vsock = vsock.try_clone().unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut client, _) = vsock.accept().unwrap();
        let mut line = [0; "CONNECT 1024\n".len()];
        client.read_exact(&mut line).unwrap();
        if hangs > Hangs::AtOnce {
            client.write_all(b"OK 1\n").unwrap();
            Frame::read(&mut client).unwrap();
        }
        if hangs > Hangs::Connected {
            let hello = Hello { version: PROTOCOL_VERSION, generation: 0, unix_time_ns: 0 };
            hello.frame(0).write(&mut client).unwrap();
            Frame::read(&mut client).unwrap();
        }
        sender.send(client).unwrap();
    });
    told
}

#[tokio::test]
async fn a_hanging_guest_blocks_no_command_beyond_its_timeout() {
    for hangs in [Hangs::AtOnce, Hangs::Connected, Hangs::Greeted] {
        let live = LiveBox::new();
        let sandbox = live.handle();
        let told = serve(&live.vsock, hangs);
        // A caller without a timeout waits.
        let patient = sandbox.clone();
        let patient = tokio::spawn(async move { patient.exec(["true"]).output().await });
        let client = tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap();
        for sandbox in [sandbox.clone(), sandbox.clone(), sandbox] {
            let command = sandbox.exec(["true"]).timeout(Duration::from_millis(50));
            let result = tokio::time::timeout(PATIENCE, command.output()).await;
            let result = result.unwrap_or_else(|_| panic!("{hangs:?}: it waits for ever"));
            assert_eq!(result.unwrap_err().kind(), ErrorKind::CommandTimeout, "{hangs:?}");
        }
        assert!(!patient.is_finished(), "{hangs:?}");
        // All callers share one connection.
        live.vsock.set_nonblocking(true).unwrap();
        assert_eq!(live.vsock.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        drop(client);
        patient.abort();
    }
}

#[tokio::test]
async fn many_callers_can_wait_for_a_box_without_its_process() {
    let mut live = LiveBox::new();
    let mut waiters = JoinSet::new();
    for _ in 0..100 {
        let sandbox = live.handle();
        waiters.spawn(async move { sandbox.wait().await });
    }
    // A caller that polled would do so more often than this.
    let early = tokio::time::timeout(Duration::from_millis(300), waiters.join_next()).await;
    assert!(early.is_err(), "{early:?}");
    live.end();
    let all = tokio::time::timeout(PATIENCE, waiters.join_all()).await.expect("they wait");
    assert_eq!(all.len(), 100);
    for info in all {
        assert_eq!(info.unwrap().state, BoxState::Failed(FailureReason::ProcessDied));
    }
    live.control.set_nonblocking(true).unwrap();
    let asked = live.control.accept();
    assert_eq!(asked.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the box was asked");
}

#[tokio::test]
async fn waiting_for_a_box_that_removes_itself_returns_how_it_ended() {
    for (kind, state, code) in [
        (EventKind::Stopped { code: Some(7) }, BoxState::Stopped, Some(7)),
        // There is no main command that could have been killed.
        (EventKind::Stopped { code: None }, BoxState::Stopped, None),
        (
            EventKind::Failed { reason: "broken".into() },
            BoxState::Failed(FailureReason::Machine("broken".into())),
            None,
        ),
    ] {
        let mut live = LiveBox::new();
        let (local, id) = (live.local.clone(), live.config.id.clone());
        // The end of an earlier run does not count.
        local.note(&id, EventKind::Stopped { code: Some(1) });
        let before = local.before_end(&id).await.unwrap();
        local.note(&id, kind);
        local.note(&id, EventKind::Removed);
        std::fs::remove_dir_all(local.home.folder(&id).path()).unwrap();
        local.store.remove(&id).unwrap();
        live.end();
        let info = local.end_of(&id, before).await.unwrap();
        assert_eq!((info.state, info.exit_code), (state, code));
        assert_eq!(local.wait(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn waiting_for_a_box_does_not_block_other_callers() {
    let mut live = LiveBox::new();
    let (local, id) = (live.local.clone(), live.config.id.clone());
    let asked = promise_an_end(&live.control);
    let remover = tokio::spawn(async move { local.remove(&id, true).await });
    tokio::task::spawn_blocking(move || asked.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    let other = config(2, 2);
    live.local.settle(&other, &live.dir.path().join("base"), 1024).unwrap();
    open(live.dir.path());
    let pruned = live.local.prune().unwrap();
    assert_eq!(pruned.into_iter().map(|info| info.id).collect::<Vec<_>>(), [other.id]);
    assert!(!remover.is_finished(), "others waited for as long as it did");
    live.end();
    remover.await.unwrap().unwrap();
    assert!(!live.local.home.folder(&live.config.id).path().exists());
}

#[tokio::test]
async fn a_box_that_is_started_while_it_is_removed_is_removed_all_the_same() {
    let mut live = LiveBox::new();
    live.end();
    let (local, id) = (live.local.clone(), live.config.id.clone());
    // At this request, the remover has already found that the box is not live.
    let guard = live.local.home.lock_boxes().unwrap();
    let remover = tokio::spawn(async move { local.remove(&id, true).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    live.begin();
    let asked = promise_an_end(&live.control);
    drop(guard);
    tokio::task::spawn_blocking(move || asked.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    live.end();
    remover.await.unwrap().unwrap();
    assert!(!live.local.home.folder(&live.config.id).path().exists());
    let again = live.local.remove(&live.config.id, true).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn stopping_a_box_that_starts_does_not_touch_a_later_process() {
    let mut live = LiveBox::new();
    let (local, id) = (live.local.clone(), live.config.id.clone());
    let folder = local.home.folder(&id);
    let recorded = Status::read(folder.path()).unwrap().unwrap();
    Status::starting().write(folder.path(), Durability::Process).unwrap();
    let asked = promise_an_end(&live.control);
    let stop = tokio::spawn(async move { local.stop(&id, 0).await });
    // Meanwhile the stop finds a process without an ID, if the machine is not too slow.
    tokio::time::sleep(Duration::from_millis(100)).await;
    recorded.write(folder.path(), Durability::Process).unwrap();
    tokio::task::spawn_blocking(move || asked.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    live.end();
    live.begin();
    tokio::time::timeout(PATIENCE, stop).await.expect("it ends").unwrap().unwrap();
    assert_eq!(live.process.try_wait().unwrap(), None, "a process was killed that nobody stopped");
}
