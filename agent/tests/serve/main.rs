//! The server, with real processes, pipes and terminals. It reaps every child of its process, so this is a test
//! binary of its own, with one server for all tests. Needs root, as the agent does.

#[path = "../common/mod.rs"]
mod common;
mod guest;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use boxlite_proto::PROTOCOL_VERSION;
use boxlite_proto::credit::WINDOW;
use boxlite_proto::frame::{Channel, Frame, Kind};
use boxlite_proto::message::{Control, Exec, FailureKind, Hello, Request, Response, TerminalSize};

use self::common::client::Client;
use self::common::needs_root;
use self::common::server::{SERVER, code, command, connect, sh, signal};

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether a process sleeps in the kernel, as a writer does whose pipe is full.
fn sleeps(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "))
}

/// The process ID of a command.
fn pid_of(host: &Client, stream: u32) -> u32 {
    match host.wait_for(stream, |seen| !seen.responses.is_empty()).responses[0] {
        Response::Started { pid } => pid,
        ref other => panic!("{other:?}"),
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn outputs_are_separate_and_the_exit_status_is_reported() {
    needs_root!();
    let host = connect();
    let result = host.run(sh("echo out; echo err >&2; exit 7"));
    assert_eq!(result, (code(7), "out\n".into(), "err\n".into()));
    assert_eq!(host.run(sh("kill -9 $$")).0, signal(9));
    assert_eq!(host.run(sh("exit 255")).0, code(255));
    assert_eq!(host.ask(&Request::Ping), Response::Done);
}

#[test]
fn failures_to_start_say_why() {
    needs_root!();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "text", 0o644);
    let noexec = file("noexec", "\x01\x02garbage", 0o755);
    let orphaned = file("script", "#!/no/such/interpreter\n", 0o755);
    let directory = dir.path().to_str().unwrap();
    let below_file = format!("{plain}/x");
    let cases: &[(Exec, FailureKind, &[&str])] = &[
        (command(&[]), FailureKind::NotFound, &["empty"]),
        (command(&[""]), FailureKind::NotFound, &["empty"]),
        (command(&["no-such-program"]), FailureKind::NotFound, &["no-such-program", "PATH"]),
        (command(&["/no/such"]), FailureKind::NotFound, &["/no/such", "no such file"]),
        (command(&[&below_file]), FailureKind::NotFound, &[&below_file]),
        (command(&[&orphaned]), FailureKind::NotFound, &[&orphaned, "interpreter"]),
        (command(&[&plain]), FailureKind::NotExecutable, &[&plain, "permission"]),
        (command(&[&noexec]), FailureKind::NotExecutable, &[&noexec, "not a program"]),
        (command(&[directory]), FailureKind::NotExecutable, &[directory]),
        (command(&["a\0b"]), FailureKind::Other, &["NUL"]),
        (
            Exec { user: "no-such-user".into(), ..sh("true") },
            FailureKind::UnknownUser,
            &["no-such-user"],
        ),
        (
            Exec { user: "root:no-such-group".into(), ..sh("true") },
            FailureKind::UnknownUser,
            &["no-such-group"],
        ),
        (
            Exec { working_dir: below_file.clone().into(), ..sh("true") },
            FailureKind::WorkingDir,
            &[&below_file],
        ),
        (
            Exec { working_dir: plain.clone().into(), ..sh("true") },
            FailureKind::WorkingDir,
            &[&plain],
        ),
    ];
    for (exec, kind, says) in cases {
        match host.run(exec.clone()).0 {
            Response::Failed(failure) => {
                assert_eq!(failure.kind, *kind, "{failure}");
                for part in *says {
                    assert!(failure.message.contains(part), "{failure} says nothing of {part}");
                }
            }
            other => panic!("{exec:?}: {other:?}"),
        }
    }
    let huge = "x".repeat(3 << 20);
    let Response::Failed(failure) = host.run(command(&["true", &huge])).0 else { panic!() };
    assert!(failure.message.contains("too large"), "{failure}");
}

#[test]
fn a_command_gets_its_directory_user_and_environment() {
    needs_root!();
    let host = connect();
    let dir = tempfile::tempdir().unwrap();
    let working_dir = dir.path().join("made/on/demand");
    let exec = Exec {
        env: vec![b"A=1".to_vec(), b"B= spaced \xff".to_vec()],
        working_dir: working_dir.to_str().unwrap().into(),
        user: "12345:54321".into(),
        ..sh("pwd; id -u; id -g; id -G; echo $HOME; echo $PATH; echo \"$B\" | od -An -tx1; umask")
    };
    let (status, out, err) = host.run(exec);
    assert_eq!((status, &*err), (code(0), ""));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let want = format!(
        "{}\n12345\n54321\n54321\n/\n{path}\n 20 73 70 61 63 65 64 20 ff 0a\n0022\n",
        working_dir.display()
    );
    assert_eq!(out, want);
    let exec =
        Exec { env: vec![b"HOME=/mine".to_vec(), b"PATH=/bin".to_vec()], ..sh("echo $HOME $PATH") };
    assert_eq!(host.run(exec).1, "/mine /bin\n");
}

#[test]
fn standard_streams_belong_to_the_commands_user() {
    needs_root!();
    let host = connect();
    let script = "echo out >/proc/self/fd/1; echo err >/proc/self/fd/2; cat </proc/self/fd/0; \
                  stat -Lc %u /proc/self/fd/1";
    let user = "65534:65534".to_owned();
    let stream = host.exec(Exec { stdin: true, user: user.clone(), ..sh(script) });
    host.write_stdin(stream, b"in\n");
    host.end_stdin(stream);
    let (status, out, err) = host.finish(stream).result();
    assert_eq!((status, &*out, &*err), (code(0), "out\nin\n65534\n", "err\n"));
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let script = "echo out >/proc/self/fd/1; echo err >/proc/self/fd/2; stat -Lc %u /dev/tty; \
                  stat -Lc %u /proc/self/fd/0";
    let (status, out, _) = host.run(Exec { terminal, user, ..sh(script) });
    assert_eq!((status, &*out), (code(0), "out\r\nerr\r\n0\r\n65534\r\n"));
}

#[test]
fn a_command_inherits_nothing_from_the_agent() {
    needs_root!();
    let host = connect();
    let (_, out, _) = host.run(command(&[
        "sh",
        "-c",
        "ls /proc/self/fd | wc -l; grep -E 'SigBlk|SigIgn' /proc/self/status; \
         cat /proc/self/oom_score_adj; ps -o pid=,pgid=,sid= -p $$",
    ]));
    let lines: Vec<_> = out.lines().collect();
    // 0, 1, 2, and the directory that ls reads.
    assert_eq!(lines[0], "4");
    // This test's process may have inherited ignored signals, which PID 1 never does.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = |line: &str| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
    let ignored = mask(own.lines().find(|line| line.starts_with("SigIgn")).unwrap());
    let sigpipe = 1 << (13 - 1);
    assert!(ignored & sigpipe != 0, "the agent ignores SIGPIPE");
    let masks: Vec<_> = lines[1..3].iter().map(|line| mask(line)).collect();
    assert_eq!(masks, [0, ignored & !sigpipe]);
    assert_eq!(lines[3], "0");
    let ids: Vec<_> = lines[4].split_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "not a session of its own: {ids:?}");
}

#[test]
fn bytes_go_through_unchanged() {
    needs_root!();
    let host = connect();
    let mut state = 1_u64;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(8 << 20)
    .collect();
    let stream = host.exec(Exec { stdin: true, ..command(&["cat"]) });
    assert_eq!(host.write_stdin(stream, &data), data.len());
    host.end_stdin(stream);
    let seen = host.finish(stream);
    assert!(seen.stdout == data);
    assert_eq!(seen.responses.last(), Some(&code(0)));
    assert!(seen.ended.contains(&Channel::Stdout) && seen.ended.contains(&Channel::Stderr));
    // Without input, stdin is /dev/null.
    assert_eq!(host.run(command(&["cat"])), (code(0), String::new(), String::new()));
}

#[test]
fn many_commands_at_once_do_not_mix() {
    needs_root!();
    let host = connect();
    std::thread::scope(|scope| {
        for i in 0..32_u8 {
            let host = &host;
            scope.spawn(move || {
                let script = format!("for i in $(seq 300); do echo {i}; done; cat >&2; exit {i}");
                let stream = host.exec(Exec { stdin: true, ..sh(&script) });
                let data = vec![i; 300_000 + usize::from(i)];
                assert_eq!(host.write_stdin(stream, &data), data.len());
                host.end_stdin(stream);
                let seen = host.finish(stream);
                assert_eq!(seen.responses.last(), Some(&code(i)));
                assert!(seen.stdout == format!("{i}\n").repeat(300).as_bytes());
                assert!(seen.stderr == data);
            });
        }
    });
}

#[test]
fn hundreds_of_connections_have_a_command_each() {
    needs_root!();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: files.maximum, ..files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    // Each connection has two descriptors in the test and one in the server, plus the pipes of its command.
    if files.maximum.is_some_and(|most| most < 4000) {
        eprintln!("SKIPPED: no more than {:?} open files", files.maximum);
        return;
    }
    let hosts: Vec<_> = (0..300).map(|_| connect()).collect();
    let cat = || Exec { stdin: true, ..command(&["cat"]) };
    let streams: Vec<_> = hosts.iter().map(|host| host.exec(cat())).collect();
    // All commands run before the first exits.
    for (host, stream) in hosts.iter().zip(&streams) {
        let seen = host.wait_for(*stream, |seen| !seen.responses.is_empty());
        assert!(matches!(seen.responses[..], [Response::Started { .. }]), "{seen:?}");
    }
    for (n, (host, stream)) in hosts.iter().zip(streams).enumerate() {
        let line = format!("command {n}");
        host.write_stdin(stream, line.as_bytes());
        host.end_stdin(stream);
        assert_eq!(host.finish(stream).result(), (code(0), line, String::new()));
    }
}

#[test]
fn a_stopped_reader_stops_only_its_writer() {
    needs_root!();
    let (slow, other) = (connect(), connect());
    *slow.taking.lock().unwrap() = false;
    let stream = slow.exec(command(&["yes"]));
    slow.wait_for(stream, |seen| seen.stdout.len() == WINDOW as usize);
    assert_eq!(other.run(sh("echo fine")).1, "fine\n");
    // The pipe is full, and the server has had a turn since then.
    let pid = pid_of(&slow, stream);
    eventually("full", || sleeps(pid));
    assert_eq!(slow.ask(&Request::Ping), Response::Done);
    let seen = slow.wait_for(stream, |_| true);
    assert_eq!(seen.stdout.len(), WINDOW as usize, "more than the credit");
    // Once the reader continues, all data is there, in order.
    *slow.taking.lock().unwrap() = true;
    slow.send(&Frame::credit(stream, Channel::Stdout, WINDOW));
    let seen = slow.wait_for(stream, |seen| seen.stdout.len() > 4 * WINDOW as usize);
    assert!(seen.stdout.chunks(2).all(|line| line == b"y\n" || line == b"y"));
    slow.control(stream, Control::Kill);
    assert_eq!(slow.finish(stream).responses.last(), Some(&signal(9)));
}

#[test]
fn output_of_an_ended_command_waits_for_its_reader() {
    needs_root!();
    let host = connect();
    *host.taking.lock().unwrap() = false;
    let total = WINDOW as usize + 40_000;
    let stream = host.exec(sh(&format!("head -c {total} /dev/zero")));
    host.wait_for(stream, |seen| seen.stdout.len() == WINDOW as usize);
    // Longer than the grace period for the output of other processes, which begins when the command is reaped.
    let pid = pid_of(&host, stream);
    eventually("reaped", || !PathBuf::from(format!("/proc/{pid}")).exists());
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(host.ask(&Request::Ping), Response::Done);
    assert_eq!(host.wait_for(stream, |_| true).responses.len(), 1);
    host.send(&Frame::credit(stream, Channel::Stdout, WINDOW));
    let seen = host.finish(stream);
    assert_eq!((seen.stdout.len(), seen.responses.last()), (total, Some(&code(0))));
}

#[test]
fn background_processes_do_not_hold_an_exec_open() {
    needs_root!();
    let host = connect();
    let begin = Instant::now();
    let (status, out, _) = host.run(sh("sleep 1000 & echo $!"));
    assert_eq!(status, code(0));
    let pid: u32 = out.trim().parse().unwrap();
    assert!(alive(pid), "what runs in the background was killed");
    let (status, out, _) = host.run(sh("yes & echo first; exit 3"));
    assert_eq!(status, code(3));
    assert!(out.contains("first\n"));
    assert!(begin.elapsed() < Duration::from_secs(100));
    // Output right after the exit is still sent. A busy machine may write it after the grace period.
    let early = || host.run(sh("(sleep 0.02; echo late) & echo early")).1;
    assert!((0..100).any(|_| early() == "early\nlate\n"));
    host.run(sh(&format!("kill {pid}; pkill -x yes; true")));
}

#[test]
fn signals_reach_the_process_group() {
    needs_root!();
    let host = connect();
    let stream = host.exec(sh("trap 'echo got; exit 5' USR1; echo ready; sleep 60 & wait"));
    host.wait_for(stream, |seen| seen.stdout == b"ready\n");
    host.control(stream, Control::Signal(10));
    let seen = host.finish(stream);
    assert_eq!(seen.result(), (code(5), "ready\ngot\n".into(), String::new()));
    let stream = host.exec(command(&["sleep", "60"]));
    host.wait_for(stream, |seen| !seen.responses.is_empty());
    // Invalid signal numbers have no effect.
    for number in [0, -9, 65, i32::MIN, i32::MAX] {
        host.control(stream, Control::Signal(number));
    }
    host.control(stream, Control::Signal(15));
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(15)));
}

/// A process that leaves its session and its parent, so that only the control group finds it.
const DAEMON: &str = "setsid sh -c 'echo $$; exec sleep 60' & wait";

#[test]
fn kill_ends_every_descendant() {
    needs_root!();
    let host = connect();
    let stream = host.exec(sh(DAEMON));
    let seen = host.wait_for(stream, |seen| seen.stdout.ends_with(b"\n"));
    let daemon: u32 = String::from_utf8(seen.stdout).unwrap().trim().parse().unwrap();
    host.control(stream, Control::Kill);
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(9)));
    if PathBuf::from("/sys/fs/cgroup/boxlite/cgroup.kill").exists() {
        eventually("killed", || !alive(daemon));
    } else {
        eprintln!("skipped: no cgroup v2");
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(daemon.cast_signed()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
    }
}

#[test]
fn a_closed_connection_ends_its_commands() {
    needs_root!();
    let (leaving, staying) = (connect(), connect());
    let [(_, gone), (stream, stays)] = [&leaving, &staying].map(|host| {
        let stream = host.exec(command(&["sleep", "60"]));
        (stream, pid_of(host, stream))
    });
    leaving.close();
    eventually("killed", || !alive(gone));
    assert!(alive(stays));
    staying.control(stream, Control::Kill);
    staying.finish(stream);
}

#[test]
fn a_terminal_has_a_size_job_control_and_an_end_of_input() {
    needs_root!();
    let host = connect();
    let size = |rows, columns| TerminalSize { rows, columns };
    let on_terminal =
        |script: &str| Exec { terminal: Some(size(33, 121)), stdin: true, ..sh(script) };
    let stream = host.exec(on_terminal(
        "tty; stty size; exec 3</dev/tty && echo controlling; test -t 0 -a -t 1 -a -t 2",
    ));
    let (status, out, err) = host.finish(stream).result();
    assert_eq!((status, &*err), (code(0), ""));
    let lines: Vec<_> = out.split("\r\n").collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{lines:?}");
    assert_eq!(&lines[1..], ["33 121", "controlling", ""]);

    let stream = host.exec(on_terminal(
        "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.02; done",
    ));
    host.wait_for(stream, |seen| seen.stdout == b"ready\r\n");
    host.control(stream, Control::Resize(size(50, 132)));
    assert_eq!(
        host.finish(stream).result(),
        (code(4), "ready\r\n50 132\r\n".into(), String::new())
    );

    // The terminal turns Ctrl-C into a signal.
    let stream = host.exec(on_terminal("echo ready; exec sleep 60"));
    host.wait_for(stream, |seen| seen.stdout == b"ready\r\n");
    host.write_stdin(stream, b"\x03");
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(2)));

    // A signal goes to the foreground process group, not to the shell that waits for it.
    let script = "sh -c 'echo ready; exec sleep 60'; echo $?";
    let stream = host
        .exec(Exec { argv: ["bash", "-mc", script].map(Into::into).to_vec(), ..on_terminal("") });
    host.wait_for(stream, |seen| seen.stdout == b"ready\r\n");
    host.control(stream, Control::Signal(15));
    let seen = host.finish(stream);
    assert_eq!(seen.responses.last(), Some(&code(0)));
    assert!(seen.stdout.ends_with(b"143\r\n"), "{}", seen.stdout.escape_ascii());

    // The end of input is written as Ctrl-D.
    let stream = host.exec(on_terminal("cat; echo end"));
    host.write_stdin(stream, b"line\n");
    host.end_stdin(stream);
    assert_eq!(host.finish(stream).stdout, b"line\r\nline\r\nend\r\n");
}

#[test]
fn large_output_of_a_terminal_arrives_completely() {
    needs_root!();
    let host = connect();
    let exec = Exec { terminal: Some(TerminalSize { rows: 24, columns: 80 }), ..sh("seq 20000") };
    let (status, out, _) = host.run(exec);
    assert_eq!(status, code(0));
    let want: String = (1..=20_000).map(|i| format!("{i}\r\n")).collect();
    assert!(out == want, "{} of {} bytes", out.len(), want.len());
}

#[test]
fn channels_end_from_either_side() {
    needs_root!();
    let host = connect();
    // The host closes the output: the writer gets SIGPIPE.
    let stream = host.exec(command(&["yes"]));
    host.wait_for(stream, |seen| !seen.stdout.is_empty());
    host.send(&Frame::end(stream, Channel::Stdout));
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(13)));
    // The command closes its input: the host is informed and may stop sending.
    let stream = host.exec(Exec { stdin: true, ..sh("exec <&-; echo closed; sleep 0.2") });
    host.wait_for(stream, |seen| seen.stdout == b"closed\n");
    let sent = host.write_stdin(stream, &vec![0; 10 << 20]);
    assert!(sent < 10 << 20, "all of it was taken");
    assert_eq!(host.finish(stream).responses.last(), Some(&code(0)));
}

#[test]
fn a_malformed_frame_ends_its_connection_only() {
    needs_root!();
    let bystander = connect();
    let hello = |version| Hello { version, generation: 0, unix_time_ns: 0 }.frame(0).to_bytes();
    let greeted = |bytes: &[u8]| [&hello(PROTOCOL_VERSION)[..], bytes].concat();
    let ping = Request::Ping.frame(1).to_bytes();
    let mut too_long = ping.clone();
    too_long[..4].copy_from_slice(&[0xff; 4]);
    let mut unknown = ping.clone();
    unknown[8] = 99;
    let flood: Vec<u8> =
        [Request::Exec(Exec { stdin: true, ..command(&["sleep", "60"]) }).frame(1)]
            .into_iter()
            .chain((0..6).map(|_| Frame::data(1, Channel::Stdin, vec![0; 64 << 10])))
            .flat_map(|frame| frame.to_bytes())
            .collect();
    let cases = [
        ("no Hello", ping.clone()),
        ("too long", greeted(&too_long)),
        ("an unknown kind", greeted(&unknown)),
        ("garbage", vec![0xa5; 100]),
        ("stream 0", greeted(&Request::Ping.frame(0).to_bytes())),
        ("two Hellos", greeted(&hello(PROTOCOL_VERSION))),
        ("another version", hello(PROTOCOL_VERSION + 1)),
        ("an agent's frame", greeted(&Response::Done.frame(1).to_bytes())),
        ("more than the credit", greeted(&flood)),
    ];
    for (what, bytes) in cases {
        let host = Client::without_hello(UnixStream::connect(&*SERVER).unwrap());
        host.send_bytes(&bytes);
        eprintln!("{what}");
        host.wait_closed();
    }
    // A message that this agent does not know is answered.
    let strange = Frame { stream: 5, kind: Kind::Request, body: vec![200].into() };
    bystander.send(&strange);
    let Some(Response::Failed(failure)) = bystander.finish(5).responses.pop() else { panic!() };
    assert_eq!(failure.kind, FailureKind::Unsupported);
    assert_eq!(bystander.ask(&Request::Ping), Response::Done);
}

#[test]
fn frames_on_ended_streams_are_ignored() {
    needs_root!();
    let host = connect();
    let stream = host.exec(Exec { stdin: true, ..command(&["true"]) });
    host.finish(stream);
    host.send(&Frame::data(stream, Channel::Stdin, vec![0; 1000]));
    host.end_stdin(stream);
    host.control(stream, Control::Signal(9));
    host.send(&Frame::credit(stream, Channel::Stdout, 10));
    assert_eq!(host.ask(&Request::Ping), Response::Done);
}

#[test]
fn orphans_are_reaped() {
    needs_root!();
    let host = connect();
    let (_, out, _) = host.run(sh("for i in 1 2 3; do (sleep 0.05 & echo $!); done"));
    let pids: Vec<u32> = out.lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3);
    eventually("reaped", || pids.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
}

#[test]
fn only_builders_unpack_layers_and_only_the_nested_host_has_sockets() {
    needs_root!();
    for request in [
        Request::UnpackLayer,
        Request::Connect(Default::default()),
        Request::ExecServer(Default::default()),
    ] {
        let Response::Failed(failure) = connect().ask(&request) else { panic!() };
        assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
    }
}
