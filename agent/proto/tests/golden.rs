//! Pins the bytes on the wire. A running box keeps its agent when the host is updated, so the bytes of an old agent
//! or host must keep their meaning. Each fixture is a frame in hex and never changes. A message without a fixture
//! fails the test, which prints the line to add.

use std::collections::BTreeMap;

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::frame::{Channel, Frame, Kind};
use boxlite_proto::guest::{
    CopyIn, CopyOut, ExecCounts, FileKind, FileStat, GuestMetrics, Owner, Process, Stat,
};
use boxlite_proto::message::{
    ClockReading, Connect, Control, Event, Exec, ExitStatus, Failure, FailureKind, Hello, MainExec,
    Request, Response, ServerExec, Stage, TerminalSize,
};

const FIXTURES: &str = include_str!("golden/frames.txt");

fn exec() -> Exec {
    Exec {
        argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"\xff\0\n".to_vec()],
        env: vec![b"A=1".to_vec(), b"EMPTY=".to_vec()],
        working_dir: b"/srv".to_vec(),
        user: "web:audio".into(),
        terminal: Some(TerminalSize { rows: 24, columns: 300 }),
        stdin: true,
    }
}

fn metrics() -> GuestMetrics {
    GuestMetrics {
        memory_total: 2 << 30,
        memory_used: 300 << 20,
        memory_available: 1748 << 20,
        swap_total: 5,
        swap_used: 4,
        disk_size: 10 << 30,
        disk_used: 6,
        disk_free: 7,
        files_total: 8,
        files_free: 9,
        uptime_us: 60_000_000,
        load_x100: [101, 50, 0],
        processes: 42,
        cpus: 2,
        cpu_user_us: 10,
        cpu_system_us: 11,
        cpu_idle_us: 12,
        oom_kills: 1,
    }
}

fn process() -> Process {
    Process {
        pid: 300,
        ppid: 1,
        uid: 1000,
        state: b'S',
        threads: 3,
        started_us: 1_230_000,
        cpu_us: 20_000,
        rss: 1 << 20,
        name: b"sleep".to_vec(),
        command: b"sleep\x0060\0\xff".to_vec(),
    }
}

fn file_stat(kind: FileKind, link_target: &[u8]) -> Frame {
    let stat = FileStat {
        kind,
        size: 1 << 33,
        mode: 0o4755,
        uid: 1000,
        gid: 33,
        mtime: -2,
        mtime_ns: 999_999_999,
        link_target: link_target.to_vec(),
    };
    Response::Stat(stat).frame(10)
}

fn copy_in(owner: Option<Owner>) -> CopyIn {
    CopyIn { path: b"/srv/www".to_vec(), create: true, owner }
}

fn clock_reading() -> ClockReading {
    ClockReading {
        monotonic_ns: 60_000_000_123,
        unix_time_ns: 1_700_000_000_123_456_789,
        error_ns: 2_000_000,
    }
}

/// A frame for each message.
fn frames() -> Vec<(&'static str, Frame)> {
    let hello =
        Hello { version: PROTOCOL_VERSION, generation: 3, unix_time_ns: 1_700_000_000_123_456_789 };
    let failed = |kind| Response::Failed(Failure { kind, message: "Fäil".into() }).frame(9);
    vec![
        ("hello", hello.frame(0)),
        ("ping", Request::Ping.frame(1)),
        ("exec", Request::Exec(exec()).frame(7)),
        ("exec-default", Request::Exec(Exec::default()).frame(7)),
        ("unpack-layer", Request::UnpackLayer.frame(2)),
        ("sync", Request::Sync.frame(3)),
        ("shutdown", Request::Shutdown { grace_ms: 10_000 }.frame(4)),
        ("signal", Control::Signal(15).frame(7)),
        ("resize", Control::Resize(TerminalSize { rows: 50, columns: 132 }).frame(7)),
        ("kill", Control::Kill.frame(7)),
        ("started", Response::Started { pid: 4_000_000 }.frame(7)),
        ("exited-code", Response::Exited(ExitStatus::Code(255)).frame(7)),
        ("exited-signal", Response::Exited(ExitStatus::Signal(9)).frame(7)),
        ("failed-not-found", failed(FailureKind::NotFound)),
        ("failed-not-executable", failed(FailureKind::NotExecutable)),
        ("failed-unknown-user", failed(FailureKind::UnknownUser)),
        ("failed-working-dir", failed(FailureKind::WorkingDir)),
        ("failed-bad-layer", failed(FailureKind::BadLayer)),
        ("failed-disk-full", failed(FailureKind::DiskFull)),
        ("failed-unsupported", failed(FailureKind::Unsupported)),
        ("failed-other", failed(FailureKind::Other)),
        ("unpacked", Response::Unpacked { entries: 10_000, bytes: 1 << 40 }.frame(2)),
        ("done", Response::Done.frame(1)),
        ("exec-detached", Request::ExecDetached(exec()).frame(8)),
        ("metrics", Request::Metrics.frame(10)),
        ("processes", Request::Processes.frame(10)),
        ("stat", Request::Stat(Stat { path: b"/etc/\xff".to_vec(), follow: true }).frame(10)),
        ("copy-in", Request::CopyIn(copy_in(None)).frame(11)),
        ("copy-in-owner", Request::CopyIn(copy_in(Some(Owner { uid: 1000, gid: 33 }))).frame(11)),
        (
            "copy-out",
            Request::CopyOut(CopyOut { path: b"/var/log".to_vec(), follow: false }).frame(12),
        ),
        ("exec-counts", Request::ExecCounts.frame(10)),
        ("exec-main", Request::ExecMain(MainExec { exec: exec(), init: true }).frame(8)),
        ("exec-main-default", Request::ExecMain(MainExec::default()).frame(8)),
        ("clock", Request::Clock.frame(10)),
        ("set-clock", Request::SetClock(clock_reading()).frame(10)),
        ("connect", Request::Connect(Connect { name: b"boxlite\xff".to_vec() }).frame(13)),
        (
            "exec-server",
            Request::ExecServer(ServerExec { exec: exec(), socket: b"boxlite\xff".to_vec() })
                .frame(8),
        ),
        ("signal-process", Control::SignalProcess(15).frame(7)),
        ("clock-reading", Response::Clock { monotonic_ns: 60_000_000_123 }.frame(10)),
        ("detached", Response::Detached { pid: 300 }.frame(8)),
        ("out-of-memory", Response::ExitedOutOfMemory(ExitStatus::Signal(9)).frame(7)),
        ("guest-metrics", Response::Metrics(metrics()).frame(10)),
        ("process-list", Response::Processes(vec![process(), Process::default()]).frame(10)),
        (
            "counted-execs",
            Response::ExecCounts(ExecCounts {
                started: 300,
                refused: 2,
                running: 1,
                failed: 4,
                out_of_memory: 3,
            })
            .frame(10),
        ),
        ("stat-file", file_stat(FileKind::File, b"")),
        ("stat-directory", file_stat(FileKind::Directory, b"")),
        ("stat-symlink", file_stat(FileKind::Symlink, b"../\xfe")),
        ("stat-character", file_stat(FileKind::Character, b"")),
        ("stat-block", file_stat(FileKind::Block, b"")),
        ("stat-fifo", file_stat(FileKind::Fifo, b"")),
        ("stat-socket", file_stat(FileKind::Socket, b"")),
        ("stat-other", file_stat(FileKind::Other, b"")),
        ("failed-bad-archive", failed(FailureKind::BadArchive)),
        ("failed-no-such-path", failed(FailureKind::NoSuchPath)),
        ("failed-not-a-directory", failed(FailureKind::NotADirectory)),
        ("stage-agent", Event::Stage(Stage::Agent).frame(0)),
        ("stage-root", Event::Stage(Stage::Root).frame(0)),
        ("stage-ready", Event::Stage(Stage::Ready).frame(0)),
        ("fatal", Event::Fatal { message: "no disk".into() }.frame(0)),
        ("stdin", Frame::data(7, Channel::Stdin, *b"\0in\xff")),
        ("stdout", Frame::data(7, Channel::Stdout, *b"out")),
        ("stderr", Frame::data(u32::MAX, Channel::Stderr, *b"")),
        ("end-stdin", Frame::end(7, Channel::Stdin)),
        ("end-stdout", Frame::end(7, Channel::Stdout)),
        ("end-stderr", Frame::end(7, Channel::Stderr)),
        ("credit", Frame::credit(7, Channel::Stdout, 65_536)),
    ]
}

fn fixtures() -> BTreeMap<&'static str, Vec<u8>> {
    FIXTURES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, hex) = line.split_once(' ').expect("NAME HEX");
            let digits: Vec<_> = hex.split_ascii_whitespace().collect();
            let bytes = digits.iter().map(|byte| u8::from_str_radix(byte, 16).expect("hex"));
            (name, bytes.collect())
        })
        .collect()
}

#[test]
fn messages_are_written_as_the_fixtures() {
    let mut fixtures = fixtures();
    let mut missing = String::new();
    for (name, frame) in frames() {
        let bytes = frame.to_bytes();
        match fixtures.remove(name) {
            Some(golden) => assert_eq!(bytes, golden, "{name}"),
            None => {
                let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                missing += &format!("{name} {}\n", hex.join(" "));
            }
        }
    }
    assert!(missing.is_empty(), "without a fixture:\n{missing}");
    assert!(fixtures.is_empty(), "without a message: {:?}", fixtures.keys());
}

#[test]
fn the_fixtures_are_read_as_the_messages() {
    let fixtures = fixtures();
    for (name, frame) in frames() {
        let golden = &fixtures[name];
        let read = Frame::read(&mut &golden[..]).unwrap().unwrap();
        assert_eq!(read, frame, "{name}");
        // The body decodes to the same message: encoded again, it gives the same frame.
        let again = match read.kind {
            Kind::Hello => read.decode::<Hello>().unwrap().frame(read.stream),
            Kind::Request => read.decode::<Request>().unwrap().frame(read.stream),
            Kind::Response => read.decode::<Response>().unwrap().frame(read.stream),
            Kind::Control => read.decode::<Control>().unwrap().frame(read.stream),
            Kind::Event => read.decode::<Event>().unwrap().frame(read.stream),
            Kind::End => Frame::end(read.stream, read.ended_channel().unwrap()),
            Kind::Credit => {
                let (channel, bytes) = read.granted_credit().unwrap();
                Frame::credit(read.stream, channel, bytes)
            }
            Kind::Stdin | Kind::Stdout | Kind::Stderr => {
                Frame::data(read.stream, read.data_channel().unwrap(), read.body)
            }
        };
        assert_eq!(again, frame, "{name}");
    }
}

#[test]
fn fields_of_a_newer_peer_are_ignored() {
    let mut frame = Request::Shutdown { grace_ms: 5 }.frame(1);
    frame.body = [&frame.body[..], b"more"].concat().into();
    assert_eq!(frame.decode::<Request>().unwrap(), Request::Shutdown { grace_ms: 5 });
}
