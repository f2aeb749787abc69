//! The main command of a box, with real processes and namespaces. All commands join the namespace of a running main
//! command, so this is a test binary of its own that runs one test at a time. Needs root, as the agent does.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use boxlite_proto::message::{Control, Exec, MainExec, Request, Response, TerminalSize};

use self::common::client::Client;
use self::common::needs_root;
use self::common::server::{self, code, sh, signal};

static TURN: Mutex<()> = Mutex::new(());

fn connect() -> (Client, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (server::connect(), turn)
}

/// A program without signal handlers. A shell would have its own handlers until it executes the program.
fn sleep() -> Exec {
    Exec { argv: [b"sleep".to_vec(), b"60".to_vec()].to_vec(), ..Exec::default() }
}

fn main(host: &Client, exec: Exec) -> u32 {
    host.request(&Request::ExecMain(MainExec { exec, init: false }))
}

#[test]
fn the_main_command_is_process_1_and_execs_share_its_namespace() {
    needs_root!();
    let (host, _turn) = connect();
    let script =
        "echo $$ $(cut -d' ' -f1 /proc/self/stat) ready; read line; echo \"<$line>\"; exit 7";
    let stream = main(&host, Exec { stdin: true, ..sh(script) });
    let seen = host.wait_for(stream, |seen| seen.stdout.ends_with(b"ready\n"));
    assert_eq!(seen.responses, [Response::Started { pid: 1 }]);
    assert!(seen.stdout.starts_with(b"1 "), "{}", seen.stdout.escape_ascii());

    let beside =
        host.exec(sh("tr '\\0' ' ' </proc/1/cmdline; readlink /proc/self/ns/pid /proc/1/ns/pid"));
    let seen = host.finish(beside);
    let (status, out, _) = seen.result();
    let lines: Vec<_> = out.split_inclusive(' ').next_back().unwrap().lines().collect();
    assert_eq!((status, lines[0]), (code(0), lines[1]), "{out}");
    assert!(out.starts_with("sh -c echo $$"), "{out}");
    let Some(Response::Started { pid }) = seen.responses.first() else { panic!("{seen:?}") };
    assert!((2..100).contains(pid), "not as the namespace numbers it: {pid}");
    let Response::Processes(processes) = host.ask(&Request::Processes) else { panic!() };
    assert_eq!((processes[0].pid, processes[0].ppid, processes.len()), (1, 0, 1), "{processes:?}");

    let second = host.finish(main(&host, sh("true")));
    let Some(Response::Failed(failure)) = second.responses.last() else { panic!("{second:?}") };
    assert!(failure.message.contains("already"), "{failure}");
    host.write_stdin(stream, b"on\n");
    let (status, out, _) = host.finish(stream).result();
    assert!(status == code(7) && out.ends_with("<on>\n"), "{out}");
    // Nothing is left for the next main command.
    assert_eq!(host.run(sh("test $$ -gt 1")).0, code(0));
    assert_eq!(host.finish(main(&host, sh("echo $$"))).stdout, b"1\n");
}

#[test]
fn all_processes_end_with_the_main_command() {
    needs_root!();
    let (host, _turn) = connect();
    let stream = main(&host, Exec { stdin: true, ..sh("(setsid sleep 60 &); echo up; read line") });
    host.wait_for(stream, |seen| seen.stdout == b"up\n");
    let beside = host.exec(sh("echo up; sleep 60"));
    host.wait_for(beside, |seen| seen.stdout == b"up\n");
    host.end_stdin(stream);
    host.finish(stream);
    assert_eq!(host.finish(beside).responses.last(), Some(&signal(9)));
    // The same when it is killed.
    let stream = main(&host, sh("echo up; sleep 60"));
    host.wait_for(stream, |seen| seen.stdout == b"up\n");
    host.control(stream, Control::Kill);
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(9)));
}

#[test]
fn a_signal_reaches_only_the_process_and_only_once() {
    needs_root!();
    let (host, _turn) = connect();
    let script = "trap 'echo main' TERM
        sh -c 'trap \"echo child\" TERM; echo up; while :; do sleep 0.1; done' &
        while :; do wait; done";
    let stream = main(&host, sh(script));
    host.wait_for(stream, |seen| seen.stdout == b"up\n");
    host.control(stream, Control::SignalProcess(15));
    host.wait_for(stream, |seen| seen.stdout.ends_with(b"main\n"));
    host.control(stream, Control::SignalProcess(9));
    assert_eq!(host.finish(stream).result(), (signal(9), "up\nmain\n".into(), String::new()));
}

#[test]
fn signals_without_a_handler_end_the_main_command() {
    needs_root!();
    let (host, _turn) = connect();
    for number in [1, 2, 15, 10, 34] {
        let stream = main(&host, sleep());
        host.wait_for(stream, |seen| !seen.responses.is_empty());
        // These signals end no process by default.
        for harmless in [17, 18, 28] {
            host.control(stream, Control::SignalProcess(harmless));
        }
        host.control(stream, Control::SignalProcess(number));
        assert_eq!(host.finish(stream).responses.last(), Some(&signal(number)));
    }
    // A signal that it ignores has no effect.
    let stream =
        main(&host, Exec { stdin: true, ..sh("trap '' TERM; echo up; read line; exit 3") });
    host.wait_for(stream, |seen| seen.stdout == b"up\n");
    host.control(stream, Control::SignalProcess(15));
    host.end_stdin(stream);
    assert_eq!(host.finish(stream).responses.last(), Some(&code(3)));
}

#[test]
fn a_process_that_waits_for_signals_gets_them() {
    needs_root!();
    let (host, _turn) = connect();
    let program = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, range(1, 32)); print('up', flush=True)\n\
                   while True:\n  i = s.sigtimedwait({15}, 0.05)\n  if i: print('got', i.si_signo); break";
    if host.run(sh("python3 -c ''")).0 != code(0) {
        eprintln!("SKIPPED: no python3");
        return;
    }
    for _ in 0..20 {
        let argv = ["python3", "-c", program].map(|word| word.as_bytes().to_vec()).to_vec();
        let stream = main(&host, Exec { argv, ..Exec::default() });
        host.wait_for(stream, |seen| seen.stdout == b"up\n" || !seen.stderr.is_empty());
        host.control(stream, Control::SignalProcess(15));
        assert_eq!(host.finish(stream).result(), (code(0), "up\ngot 15\n".into(), String::new()));
    }
}

#[test]
fn keys_of_the_terminal_end_the_main_command() {
    needs_root!();
    let (host, _turn) = connect();
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let on_terminal = |script: &str| Exec { terminal, stdin: true, ..sh(script) };
    let stream = main(&host, Exec { terminal, stdin: true, ..sleep() });
    host.wait_for(stream, |seen| !seen.responses.is_empty());
    host.write_stdin(stream, b"\x03");
    assert_eq!(host.finish(stream).responses.last(), Some(&signal(2)));
    // With a handler, or with a terminal that generates no signals, it continues.
    for script in ["trap 'echo got; exit 4' INT", "stty -isig"] {
        let stream = main(&host, on_terminal(&format!("{script}; echo up; read line; exit 4")));
        host.wait_for(stream, |seen| seen.stdout == b"up\r\n");
        host.write_stdin(stream, b"\x03\n");
        assert_eq!(host.finish(stream).responses.last(), Some(&code(4)), "{script}");
    }
}
