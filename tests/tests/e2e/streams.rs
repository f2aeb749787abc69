//! The launcher's own streams: failed writes, the end of input, and a terminal without input.

use std::fs::File;
use std::io::Write;

use boxlite_tests::{BUSYBOX, Launcher, Sandbox, Terminal};
use rustix::pipe::pipe;

const NO_OPTIONS: [&str; 0] = [];

#[test]
fn a_failed_write_to_standard_output_is_an_error() {
    let Some(launcher) = Launcher::find() else { return };
    let image = launcher.image(BUSYBOX);
    let sandbox = Sandbox::run(&launcher, "unwritten", &[], "echo up; sleep 1000");
    sandbox.wait_until("at work", |info| !info["main_pid"].is_null());
    let name = boxlite_tests::unique("unwritten");
    launcher.command(["image", "import", "-q", &image, &name]).output().success();
    let etc = format!("{}:/etc", sandbox.name());
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let fails = |args: &[&str], code: i32| {
        let output = launcher.command(args).stdout(full()).output();
        output.expect(code).says(&["standard output", "No space left"]);
    };
    fails(&["run", &image, "echo", "hi"], 125);
    fails(&["exec", sandbox.name(), "echo", "hi"], 125);
    for args in [
        &["logs", sandbox.name()][..],
        &["ls"],
        &["inspect", sandbox.name()],
        &["cp", &etc, "-"],
        &["image", "ls"],
        &["image", "save", &name],
        &["--version"],
    ] {
        fails(args, 1);
    }
    // A reader may close a list early; a part of an archive is useless.
    let closed = || pipe().unwrap().1;
    let list = launcher.command(["ls"]).stdout(closed()).output().expect(0);
    assert_eq!(list.stderr, "");
    launcher.command(["image", "save", &name]).stdout(closed()).output().refuses_with(&["pipe"]);
    launcher.command(["cp", &etc, "-"]).stdout(closed()).output().refuses_with(&["pipe"]);
    launcher.command(["image", "rm", "-f", &name]).output().success();
}

#[test]
fn attaching_without_input_leaves_the_input_to_others() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "while read line; do echo \"<$line>\"; done; exit 3";
    let sandbox = Sandbox::run(&launcher, "open-input", &["-i"], script);
    let attach = || launcher.command(["attach", sandbox.name()]);
    // The input of this client has ended before it attaches, that of the others ends later.
    let _without = attach().spawn();
    for word in ["one", "two"] {
        let mut with = attach().stdin_pipe().spawn();
        writeln!(with.stdin.as_mut().unwrap(), "{word}").unwrap();
        with.wait_for(&format!("<{word}>"));
        with.stdin = None;
    }
    assert_eq!(sandbox.state(), "running");
    // The client that starts the box ends its input.
    sandbox.on(["stop", "-t", "0"]).output().success();
    let start = launcher.command(["start", "-ai", sandbox.name()]).stdin("three\n").output();
    assert_eq!(start.expect(3).stdout_lossy(), "<three>\n");
}

#[test]
fn a_terminal_without_input_keeps_its_modes_and_makes_signals() {
    let Some(launcher) = Launcher::find() else { return };
    let image = launcher.image(BUSYBOX);
    let script = "trap 'echo got; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let sandbox = Sandbox::idle(&launcher, "keyless", NO_OPTIONS.as_slice());
    for args in [
        ["run", "-t", &image, "sh", "-c", script],
        ["exec", "-t", sandbox.name(), "sh", "-c", script],
    ] {
        let mut terminal = Terminal::run(&launcher, 24, 80, &args);
        let before = terminal.modes();
        terminal.wait_for("ready\r");
        assert_eq!(terminal.modes(), before);
        terminal.type_keys("\x03");
        assert_eq!(terminal.wait(), Some(7), "{}", terminal.screen());
    }
}
