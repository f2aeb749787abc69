//! Requests other than attached commands.

use std::io::Read;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use boxlite_proto::guest::{CopyIn, CopyOut, FileKind, MAX_PROCESSES, Stat};
use tar::{Builder, Header};

use super::*;

/// All tests share a server, and one test uses its whole limit on jobs.
static ROOM: RwLock<()> = RwLock::new(());

fn share_room() -> RwLockReadGuard<'static, ()> {
    ROOM.read().unwrap_or_else(PoisonError::into_inner)
}

fn copy_in(path: &Path) -> Request {
    let path = path.to_str().unwrap().into();
    Request::CopyIn(CopyIn { path, ..CopyIn::default() })
}

fn copy_out(path: &Path) -> Request {
    Request::CopyOut(CopyOut { path: path.to_str().unwrap().into(), follow: false })
}

fn failure(response: Option<&Response>) -> &boxlite_proto::message::Failure {
    match response {
        Some(Response::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

fn tar_of(files: usize, size: usize) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for i in 0..files {
        let mut header = Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o640);
        tar.append_data(&mut header, format!("file-{i}"), &vec![i as u8; size][..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn a_detached_command_outlives_its_connection_and_is_reaped() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let (mark, go) = (dir.path().join("mark"), dir.path().join("go"));
    let script = format!(
        "fds=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo \"$fds\" > {0}.fds; \
         while test ! -e {1}; do sleep 0.02; done; head -c 1000000 /dev/zero; echo done > {0}",
        mark.display(),
        go.display()
    );
    let Response::Detached { pid } = host.ask(&Request::ExecDetached(sh(&script))) else {
        panic!()
    };
    // An attached command ends with the connection.
    let attached = pid_of(&host, host.exec(command(&["sleep", "1000"])));
    host.close();
    eventually("killed", || !alive(attached));
    assert!(alive(pid), "it ended with its connection");
    std::fs::write(go, "").unwrap();
    eventually("done", || mark.exists());
    eventually("reaped", || !PathBuf::from(format!("/proc/{pid}")).exists());
    let fds = std::fs::read_to_string(mark.with_extension("fds")).unwrap();
    assert_eq!(fds, "/dev/null\n".repeat(3));
    let Response::Failed(failure) =
        connect().ask(&Request::ExecDetached(command(&["no-such-program"])))
    else {
        panic!()
    };
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[test]
fn a_detached_command_may_have_a_terminal_that_nobody_reads() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let script =
        format!("test -t 0 -a -t 1 -a -t 2 && seq 200000 && echo done > {}", mark.display());
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let exec = Exec { terminal, stdin: true, ..sh(&script) };
    let Response::Detached { pid } = host.ask(&Request::ExecDetached(exec)) else { panic!() };
    host.close();
    eventually("done", || mark.exists());
    eventually("reaped", || !PathBuf::from(format!("/proc/{pid}")).exists());
}

#[test]
fn the_groups_of_detached_commands_are_released() {
    needs_root!();
    let group = |pid: u32| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        path.contains("/boxlite/slot-").then(|| format!("/sys/fs/cgroup{path}"))
    };
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let end = dir.path().join("end");
    let script = format!("while test ! -e {}; do sleep 0.02; done", end.display());
    let Response::Detached { pid } = host.ask(&Request::ExecDetached(sh(&script))) else {
        panic!()
    };
    let group = group(pid);
    let is_there = group.as_ref().is_some_and(|group| Path::new(group).exists());
    std::fs::write(end, "").unwrap();
    eventually("ended", || !alive(pid));
    let Some(group) = group else {
        eprintln!("SKIPPED: no cgroup v2");
        return;
    };
    assert!(is_there, "{group}");
    eventually("released", || !Path::new(&group).exists());
}

#[test]
fn metrics_and_processes_are_reported() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let Response::Metrics(metrics) = host.ask(&Request::Metrics) else { panic!() };
    assert!(metrics.memory_total > 0 && metrics.disk_size > 0 && metrics.processes > 1);
    let stream = host.exec(command(&["sleep", "60"]));
    let seen = host.wait_for(stream, |seen| !seen.responses.is_empty());
    let Some(Response::Started { pid }) = seen.responses.first() else { panic!("{seen:?}") };
    let Response::Processes(processes) = host.ask(&Request::Processes) else { panic!() };
    assert!(processes.len() <= MAX_PROCESSES);
    let sleep = processes.iter().find(|process| process.pid == *pid).unwrap();
    assert_eq!((&sleep.name[..], &sleep.command[..]), (&b"sleep"[..], &b"sleep\x0060\0"[..]));
    assert_eq!((sleep.ppid, sleep.uid), (std::process::id(), 0));
    assert!(
        sleep.rss > 0 && sleep.started_us > 0 && sleep.started_us <= metrics.uptime_us + 60_000_000
    );
    host.control(stream, Control::Kill);
    host.finish(stream);
}

#[test]
fn commands_are_counted() {
    needs_root!();
    let host = connect();
    let counts = || match host.ask(&Request::ExecCounts) {
        Response::ExecCounts(counts) => counts,
        other => panic!("{other:?}"),
    };
    // Other tests run commands on the same server meanwhile.
    let before = counts();
    for argv in [&["true"][..], &["false"], &["/no/such/program"]] {
        host.finish(host.exec(command(argv)));
    }
    let sleep = host.exec(command(&["sleep", "60"]));
    host.wait_for(sleep, |seen| !seen.responses.is_empty());
    let running = counts();
    assert!(running.started >= before.started + 3 && running.refused > before.refused);
    assert!(running.failed > before.failed && running.running >= 1);
    assert!(running.started >= running.running + running.failed);
    host.control(sleep, Control::Kill);
    host.finish(sleep);
    assert!(counts().failed > running.failed);
}

#[test]
fn metadata_of_paths_is_reported() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let stat = |path: &str| Request::Stat(Stat { path: path.into(), follow: false });
    let Response::Stat(proc) = host.ask(&stat("/proc/self")) else { panic!() };
    assert_eq!(proc.kind, FileKind::Symlink);
    assert!(!proc.link_target.is_empty());
    let missing = host.ask(&stat("/no/such"));
    assert_eq!(failure(Some(&missing)).kind, FailureKind::NoSuchPath);
}

#[test]
fn files_go_in_and_out_while_commands_run() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let tar = tar_of(500, 10_000);
    std::thread::scope(|scope| {
        for i in 0..6 {
            let (host, tar, to) = (&host, &tar, dir.path().join(format!("to-{i}")));
            std::fs::create_dir(&to).unwrap();
            scope.spawn(move || {
                let stream = host.request(&copy_in(&to));
                assert_eq!(host.write_stdin(stream, tar), tar.len());
                host.end_stdin(stream);
                let unpacked = host.finish(stream).responses;
                assert_eq!(unpacked, [Response::Unpacked { entries: 500, bytes: 5_000_000 }]);
                let seen = host.finish(host.request(&copy_out(&to)));
                assert_eq!(seen.responses, [Response::Done]);
                let mut archive = tar::Archive::new(&seen.stdout[..]);
                let mut files = 0;
                for entry in archive.entries().unwrap() {
                    let mut entry = entry.unwrap();
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    files += usize::from(content.len() == 10_000);
                }
                assert_eq!(files, 500);
            });
        }
        for _ in 0..20 {
            assert_eq!(host.run(sh("echo fine")).1, "fine\n");
        }
    });
}

#[test]
fn a_copy_that_nobody_reads_waits_and_a_killed_one_ends() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large"), vec![7; 8 << 20]).unwrap();
    *host.taking.lock().unwrap() = false;
    let stream = host.request(&copy_out(dir.path()));
    host.wait_for(stream, |seen| seen.stdout.len() == WINDOW as usize);
    // The server has had a turn since then.
    assert_eq!(host.ask(&Request::Ping), Response::Done);
    let seen = host.wait_for(stream, |_| true);
    assert_eq!((seen.stdout.len(), seen.responses.len()), (WINDOW as usize, 0));
    // The copy continues where it stopped.
    host.send(&Frame::credit(stream, Channel::Stdout, 1000));
    host.wait_for(stream, |seen| seen.stdout.len() == WINDOW as usize + 1000);
    host.control(stream, Control::Kill);
    let seen = host.finish(stream);
    assert!(failure(seen.responses.last()).message.contains("gone"));
    assert_eq!(seen.stdout.len(), WINDOW as usize + 1000, "more than the credit");
    // A closed channel ends the copy, too.
    let stream = host.request(&copy_out(dir.path()));
    host.wait_for(stream, |seen| seen.stdout.len() == WINDOW as usize);
    host.send(&Frame::end(stream, Channel::Stdout));
    failure(host.finish(stream).responses.last());
    assert_eq!(host.ask(&Request::Ping), Response::Done);
}

#[test]
fn a_slow_reader_gets_everything() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large"), vec![7; 3 << 20]).unwrap();
    *host.taking.lock().unwrap() = false;
    let stream = host.request(&copy_out(&dir.path().join("large")));
    let mut got = WINDOW as usize;
    loop {
        let seen =
            host.wait_for(stream, |seen| seen.stdout.len() >= got || !seen.responses.is_empty());
        if seen.responses == [Response::Done] {
            assert_eq!(seen.stdout.len(), 512 + (3 << 20) + 1024 + pax_of(&seen.stdout));
            break;
        }
        assert_eq!(seen.stdout.len(), got, "more than the credit");
        host.send(&Frame::credit(stream, Channel::Stdout, 100_000));
        got += 100_000;
    }
}

/// Length of the extension header before the first entry.
fn pax_of(tar: &[u8]) -> usize {
    if tar[156] == b'x' { 1024 } else { 0 }
}

#[test]
fn a_truncated_copy_fails() {
    needs_root!();
    let _room = share_room();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let tar = tar_of(2, 512);
    let stream = host.request(&copy_in(dir.path()));
    host.write_stdin(stream, &tar[..1024]);
    host.control(stream, Control::Kill);
    host.end_stdin(stream);
    assert!(failure(host.finish(stream).responses.last()).message.contains("cut off"));
    let stream = host.request(&copy_in(dir.path()));
    host.write_stdin(stream, &tar[..1000]);
    host.end_stdin(stream);
    let seen = host.finish(stream);
    assert_eq!(failure(seen.responses.last()).kind, FailureKind::BadArchive);
    // The same when the connection is closed.
    let stream = host.request(&copy_in(dir.path()));
    host.write_stdin(stream, &tar[..1024]);
    host.close();
    assert_eq!(connect().ask(&Request::Ping), Response::Done);
}

#[test]
fn copies_above_the_limit_are_refused() {
    needs_root!();
    let _room = ROOM.write().unwrap_or_else(PoisonError::into_inner);
    // Each copy has its own connection, whose close ends it.
    let hosts: Vec<_> = (0..40).map(|_| connect()).collect();
    let dir = tempfile::tempdir().unwrap();
    let streams: Vec<_> = hosts.iter().map(|host| host.request(&copy_in(dir.path()))).collect();
    let refused = hosts.iter().zip(streams).filter(|(host, stream)| {
        assert_eq!(host.ask(&Request::Ping), Response::Done);
        let seen = host.wait_for(*stream, |_| true);
        let over = seen.responses.last();
        over.is_some_and(|_| failure(over).message.contains("copies or queries are running"))
    });
    assert!(refused.count() == 8);
    hosts.into_iter().for_each(Client::close);
    eventually("accepted again", || {
        matches!(connect().ask(&Request::Metrics), Response::Metrics(_))
    });
}
