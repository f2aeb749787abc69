//! The main command as process 1 of its box, and the signals that are for it.

use std::time::{Duration, Instant};

use boxlite_tests::{Launcher, Sandbox};

const NO_OPTIONS: [&str; 0] = [];

/// Longer than any stop that does not wait for the grace period to pass.
const GRACE: &str = "200";

/// Makes orphans for process 1 to reap, and waits until they are reaped: a zombie keeps its name.
const ORPHANS: &str = "for i in 1 2 3; do (sh -c 'sleep 0.1 &'); done
    while grep -qs '^sleep$' /proc/[0-9]*/comm; do usleep 50000; done; echo reaped";

#[test]
fn the_main_command_is_process_1_unless_an_init_is() {
    let Some(launcher) = Launcher::find() else { return };
    let plain = launcher.shell(NO_OPTIONS, "echo $$ $(cat /proc/1/comm)").output().success();
    assert_eq!(plain, "1 sh");
    let script = format!(
        "trap 'exit 6' TERM; echo $$ $(cat /proc/1/comm); {ORPHANS}; kill -TERM 1; sleep 100"
    );
    let output = launcher.shell(["--init", "-u", "1234"], &script).output().expect(6);
    assert_eq!(output.stdout_lossy(), "2 boxlite-init\nreaped\n");
    let missing = launcher.shell(["--init", "--entrypoint", "no-such-program"], "").output();
    missing.expect(127).says(&["no-such-program"]);
    // The last option wins.
    let last = launcher.shell(["--init", "--no-init"], "echo $$").output();
    assert_eq!(last.success(), "1");
}

#[test]
fn signals_reach_the_main_process_only_and_once() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "sh -c 'trap \"echo child\" TERM USR1; while :; do sleep 0.1; done' &
        trap 'echo asked' USR1; trap 'echo ended; exit 3' TERM; echo up; while :; do wait; done";
    let sandbox = Sandbox::run(&launcher, "alone", &[], script);
    let mut logs = sandbox.on(["logs", "-f"]).spawn();
    logs.wait_for("up\n");
    sandbox.on(["kill", "-s", "USR1"]).output().success();
    logs.wait_for("asked\n");
    // An exec sees the same processes, and ends with the main command.
    assert_eq!(sandbox.shell("cat /proc/1/comm"), "sh");
    let mut beside = sandbox.exec(NO_OPTIONS, "echo up; exec sleep 1000").spawn();
    beside.wait_for("up");
    let begun = Instant::now();
    sandbox.on(["stop", "-t", GRACE]).output().success();
    assert!(begun.elapsed() < Duration::from_secs(100), "it took {:?}", begun.elapsed());
    assert_eq!(logs.wait().success(), "up\nasked\nended");
    assert_eq!(sandbox.inspect()["exit_code"], 3);
    assert_ne!(beside.wait().code, Some(0));
    // A signal does not start a stopped box.
    sandbox.on(["kill", "-s", "USR1"]).output().refuses_with(&[sandbox.name(), "stopped"]);
}

#[test]
fn a_stop_signal_without_a_handler_ends_the_main_command() {
    let Some(launcher) = Launcher::find() else { return };
    for (options, code) in
        [(&[][..], 128 + 15), (&["--init"], 128 + 15), (&["--stop-signal", "USR2"], 128 + 12)]
    {
        let sandbox = Sandbox::run(&launcher, "no-handler", options, "exec sleep 1000");
        let begun = Instant::now();
        sandbox.on(["stop", "-t", GRACE]).output().success();
        assert!(begun.elapsed() < Duration::from_secs(100), "it took {:?}", begun.elapsed());
        let info = sandbox.inspect();
        assert_eq!(
            (&info["state"], &info["exit_code"]),
            (&"stopped".into(), &code.into()),
            "{info:#}"
        );
    }
}
