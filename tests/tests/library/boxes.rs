//! Boxes: creating and finding them, their lifetime, and the errors.

use std::collections::BTreeMap;
use std::time::Duration;

use boxlite_runtime::{
    BoxHandle, BoxOptions, BoxState, Error, ErrorKind, EventKind, EventQuery, Events, ExitStatus,
};
use boxlite_tests::{BUSYBOX, unique};

use crate::{Embedder, shell};

const GRACE: Duration = Duration::from_secs(10);

/// The next event of a box.
async fn next(events: &mut Events) -> EventKind {
    events.next().await.expect("events can be read").expect("events go on").kind
}

#[test]
fn a_box_goes_through_its_whole_life_cycle() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let options = embedder.options("life").auto_remove(false).label("a", "b");
        let sandbox = runtime.create(options.clone()).await.unwrap();
        let mut query = EventQuery::default().follow(true);
        query.id = Some(sandbox.id().to_owned());
        let mut events = runtime.events(query).await.unwrap();
        assert_eq!(sandbox.info().await.unwrap().state, BoxState::Configured);
        sandbox.start().await.unwrap();
        sandbox.start().await.unwrap();
        assert_eq!(next(&mut events).await, EventKind::Starting);
        assert_eq!(next(&mut events).await, EventKind::Running);
        assert_eq!(shell(&sandbox, "echo kept > /kept; hostname").await, sandbox.name());
        assert!(matches!(next(&mut events).await, EventKind::ExecStarted { program, .. } if program == "sh"));
        let ended = next(&mut events).await;
        assert!(matches!(ended, EventKind::ExecEnded { status: ExitStatus::Code(0), .. }), "{ended:?}");

        // An existing box is returned with its own options.
        let same = runtime.get_or_create(options.clone().memory_mib(256)).await.unwrap();
        assert_eq!((same.id(), same.config().options.memory_mib), (sandbox.id(), 192));
        // Another runtime, as in another process.
        let other = embedder.open().await;
        let found = other.get(sandbox.name()).await.unwrap();
        assert_eq!(found.id(), sandbox.id());
        assert_eq!(shell(&found, "cat /kept").await, "kept");
        let info = found.info().await.unwrap();
        assert_eq!(info.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert!(info.boot_time().is_some_and(|time| time > Duration::ZERO), "{info:?}");
        let metrics = found.machine_metrics().await.unwrap();
        assert!(metrics.cpu_micros > 0 && metrics.disks[0].bytes_read > 0, "{metrics:?}");
        let guest = found.guest_metrics().await.unwrap();
        assert!(guest.memory_used > 0 && guest.memory_used < guest.memory_total, "{guest:?}");
        assert!(found.processes().await.unwrap().iter().any(|process| process.pid == 1));
        drop(other);
        assert_eq!(sandbox.info().await.unwrap().state, BoxState::Running, "the box ended with another runtime");
        let during = runtime.metrics().await.unwrap();
        // Boxes of other tests come and go.
        assert!(during.total >= 1 && during.running >= 1, "{during:?}");

        // `wait` returns at the end, and the disk is kept.
        let waiting = tokio::spawn({
            let sandbox = sandbox.clone();
            async move { sandbox.wait().await }
        });
        sandbox.stop(GRACE).await.unwrap();
        assert_eq!(waiting.await.unwrap().unwrap().state, BoxState::Stopped);
        sandbox.start().await.unwrap();
        assert_eq!(shell(&sandbox, "cat /kept").await, "kept");
        sandbox.kill().await.unwrap();
        assert_eq!(sandbox.info().await.unwrap().state, BoxState::Stopped);
        let listed = runtime.list().await.unwrap();
        assert!(listed.iter().any(|info| info.id == sandbox.id()));
        runtime.remove(sandbox.id(), false).await.unwrap();
        let gone = runtime.get(sandbox.name()).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        let image = embedder.launcher.image(BUSYBOX);
        let images = runtime.images().list().await.unwrap();
        assert!(images.iter().any(|info| info.disk.is_some()), "{image} is not in {images:?}");
    });
}

#[test]
fn boxes_end_with_their_runtime_unless_they_are_detached() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let keep = |name: &str| embedder.options(name).auto_remove(false);
        let first = embedder.open().await;
        let bound = first.create(keep("bound")).await.unwrap();
        let free = first.create(keep("free")).await.unwrap();
        // One that removes itself, and is detached while it runs.
        let detached = first.create(embedder.options("detached")).await.unwrap();
        let (started, freed, begun) =
            tokio::join!(bound.start(), free.start_detached(), detached.start());
        started.and(freed).and(begun).unwrap();
        detached.detach().await.unwrap();
        shell(&bound, "echo synced > /synced; sync").await;
        let runtime = embedder.open().await;
        let (bound_name, free_name) = (bound.name().to_owned(), free.name().to_owned());
        let detached_name = detached.name().to_owned();
        drop((first, bound, free, detached));
        let bound = runtime.get(&bound_name).await.unwrap();
        let info = tokio::time::timeout(Duration::from_secs(60), bound.wait()).await;
        let info = info.expect("the box outlives its runtime").unwrap();
        assert_eq!(info.state, BoxState::Stopped, "{info:?}");
        let free = runtime.get(&free_name).await.unwrap();
        assert_eq!(shell(&free, "echo here").await, "here");
        let detached = runtime.get(&detached_name).await.unwrap();
        assert_eq!(shell(&detached, "echo here").await, "here");
        detached.stop(Duration::ZERO).await.unwrap();
        let gone = runtime.get(&detached_name).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
        // `shutdown` stops only the boxes that this runtime started.
        bound.start().await.unwrap();
        assert_eq!(shell(&bound, "cat /synced").await, "synced");
        runtime.shutdown(GRACE).await.unwrap();
        assert_eq!(bound.info().await.unwrap().state, BoxState::Stopped);
        assert_eq!(free.info().await.unwrap().state, BoxState::Running);
        free.remove(true).await.unwrap();
        bound.remove(false).await.unwrap();
    });
}

/// The kind of the error, whose message contains `part`.
#[track_caller]
fn kind<T: std::fmt::Debug>(result: Result<T, Error>, part: &str) -> ErrorKind {
    let error = result.expect_err("the request succeeded");
    assert!(error.to_string().contains(part), "{error}");
    error.kind()
}

#[test]
fn errors_have_kinds() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        // All problems at once.
        let wrong = BoxOptions::new("oci:/x").cpus(0).memory_mib(1).name("a b").working_dir("x");
        let error = runtime.create(wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert_eq!(error.problems().len(), 4, "{error}");
        // Worded for the library, also if the software host made it.
        let text = error.to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("memory_mib: ") && !text.contains("--"), "{text}");
        let missing = runtime.create(BoxOptions::new("oci:/no/such")).await;
        assert_eq!(kind(missing, "/no/such"), ErrorKind::Image);
        assert_eq!(kind(runtime.get("no-such-box").await, "no-such-box"), ErrorKind::NotFound);
        let options = embedder.options("kinds").auto_remove(false);
        let sandbox = runtime.create(options.clone()).await.unwrap();
        assert_eq!(kind(runtime.create(options).await, sandbox.name()), ErrorKind::AlreadyExists);
        let exec = |sandbox: &BoxHandle, program: &str| sandbox.exec([program]).output();
        let not_running = exec(&sandbox, "true").await;
        assert_eq!(kind(not_running, "BoxHandle::start"), ErrorKind::WrongState);

        // IDs are random: creates boxes until two IDs have the same first digit.
        let mut firsts = BTreeMap::from([(sandbox.id()[..1].to_owned(), sandbox.clone())]);
        let twin = loop {
            let name = format!("twin-{}", firsts.len());
            let made = runtime.create(embedder.options(&name).auto_remove(false)).await.unwrap();
            let first = made.id()[..1].to_owned();
            if firsts.contains_key(&first) {
                break made;
            }
            firsts.insert(first, made);
        };
        let ambiguous = runtime.get(&twin.id()[..1]).await;
        assert_eq!(kind(ambiguous, twin.name()), ErrorKind::Invalid);
        assert_eq!(runtime.get(&twin.id()[..20]).await.unwrap().id(), twin.id());
        twin.remove(false).await.unwrap();
        for other in firsts.values().filter(|other| other.id() != sandbox.id()) {
            other.remove(false).await.unwrap();
        }

        sandbox.start().await.unwrap();
        let nowhere = exec(&sandbox, "nowhere").await;
        assert_eq!(kind(nowhere, "nowhere"), ErrorKind::CommandNotFound);
        assert_eq!(kind(exec(&sandbox, "/etc").await, "/etc"), ErrorKind::NotExecutable);
        let stranger = sandbox.exec(["true"]).user("stranger").output().await;
        assert_eq!(kind(stranger, "stranger"), ErrorKind::Invalid);
        assert_eq!(kind(sandbox.remove(false).await, sandbox.name()), ErrorKind::WrongState);
        sandbox.pause().await.unwrap();
        assert_eq!(kind(sandbox.start().await, "resume"), ErrorKind::WrongState);
        let paused = exec(&sandbox, "true").await;
        assert_eq!(kind(paused, "resume"), ErrorKind::WrongState);
        sandbox.resume().await.unwrap();
        // A box is removed while a command runs.
        let command = sandbox.exec(["sleep", "1000"]).spawn().await.unwrap();
        let (removed, waited) = tokio::join!(sandbox.remove(true), command.wait());
        removed.unwrap();
        let ended = waited.unwrap_err();
        assert!(matches!(ended.kind(), ErrorKind::BoxEnded | ErrorKind::NotFound), "{ended:?}");
        assert!(ended.to_string().contains(&unique("kinds")), "{ended}");
    });
}

#[test]
fn dropped_futures_leave_nothing_half_done() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let options = embedder.options("impatient").auto_remove(false);
        let sandbox = runtime.create(options).await.unwrap();
        // The next start continues a dropped one, at any stage.
        for patience in [0, 20, 300, 900] {
            let limit = Duration::from_millis(patience);
            let _ = tokio::time::timeout(limit, sandbox.start()).await;
            sandbox.start().await.unwrap();
            assert_eq!(shell(&sandbox, "echo here").await, "here", "after {patience} ms");
            // `wait` is dropped, and called again.
            let waited = tokio::time::timeout(Duration::from_millis(50), sandbox.wait()).await;
            assert!(waited.is_err(), "{waited:?}");
            sandbox.stop(Duration::ZERO).await.unwrap();
            assert_eq!(sandbox.wait().await.unwrap().state, BoxState::Stopped);
        }
        sandbox.start().await.unwrap();
        // Commands dropped before they have started do not run on, and do not disturb others.
        for patience in 0..20 {
            let limit = Duration::from_millis(patience * 3);
            let spawn = sandbox.exec(["sleep", "77777"]).spawn();
            let _ = tokio::time::timeout(limit, spawn).await;
            assert_eq!(shell(&sandbox, "echo $((6 * 7))").await, "42");
        }
        // `wait` of a command is dropped, and called again.
        let command = sandbox.exec(["sh", "-c", "sleep 1; exit 5"]).spawn().await.unwrap();
        while let Err(_elapsed) =
            tokio::time::timeout(Duration::from_millis(30), command.wait()).await
        {}
        assert_eq!(command.wait().await.unwrap(), ExitStatus::Code(5));
        let left = "ps | grep -c '[s]leep 77777' || true";
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while shell(&sandbox, left).await != "0" {
            assert!(tokio::time::Instant::now() < deadline, "commands were left over");
        }
        sandbox.remove(true).await.unwrap();
    });
}
