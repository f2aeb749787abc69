//! Signals to the launcher are forwarded to the command.

use std::time::{Duration, Instant};

use boxlite_tests::Launcher;
use rustix::process::Signal;

#[test]
fn signals_reach_the_command() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "for s in HUP INT QUIT TERM USR1 USR2; do trap \"echo got $s\" $s; done
        trap 'exit 42' ALRM; echo ready; while :; do sleep 0.1; done";
    let mut run = launcher.shell([] as [&str; 0], script).spawn();
    run.wait_for("ready");
    let signals = [
        (Signal::HUP, "got HUP"),
        (Signal::INT, "got INT"),
        (Signal::QUIT, "got QUIT"),
        (Signal::TERM, "got TERM"),
        (Signal::USR1, "got USR1"),
        (Signal::USR2, "got USR2"),
    ];
    for (signal, answer) in signals {
        run.signal(signal);
        run.wait_for(answer);
    }
    run.signal(Signal::ALARM);
    run.wait().expect(42);
}

#[test]
fn a_signal_without_a_handler_ends_the_command() {
    let Some(launcher) = Launcher::find() else { return };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut run = launcher.shell([] as [&str; 0], "echo ready; sleep 1000").spawn();
        run.wait_for("ready");
        let sent = Instant::now();
        run.signal(signal);
        run.wait().expect(128 + signal.as_raw());
        assert!(sent.elapsed() < Duration::from_secs(100), "it took {:?}", sent.elapsed());
    }
}

/// Whether a process has a handler for a signal.
fn catches(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect(&status);
    let caught = u64::from_str_radix(line.trim(), 16).expect(line);
    caught & 1 << (signal.as_raw() - 1) != 0
}

#[test]
fn a_signal_while_the_box_boots_ends_it() {
    let Some(launcher) = Launcher::find() else { return };
    for delay in [0, 100, 1000] {
        let run = launcher.shell([] as [&str; 0], "sleep 1000").spawn();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !catches(run.pid(), Signal::TERM) {
            assert!(Instant::now() < deadline, "it does not catch signals");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(delay));
        run.signal(Signal::TERM);
        run.wait().expect(128 + 15);
    }
}
