//! Standard streams: large amounts, back-pressure, and the end of input.

use std::io::Write;
use std::time::Duration;

use boxlite_tests::image::digest;
use boxlite_tests::{BUSYBOX, Launcher, is_long};

use crate::noise;

#[test]
fn bytes_go_through_unchanged() {
    let Some(launcher) = Launcher::find() else { return };
    let bytes = noise(if is_long() { 100 << 20 } else { 8 << 20 });
    let busybox = launcher.image(BUSYBOX);
    let output = launcher
        .command(["run", "-i", &busybox, "cat"])
        .stdin(bytes.clone())
        .deadline(Duration::from_secs(900))
        .output()
        .expect(0);
    assert_eq!(output.stdout.len(), bytes.len());
    assert_eq!(digest(&output.stdout), digest(&bytes));
}

#[test]
fn a_slow_reader_stops_the_writer_and_loses_nothing() {
    let Some(launcher) = Launcher::find() else { return };
    // More than all windows and pipes on the way can hold, on both streams at the same time.
    let script = "seq 1 600000 & seq 1 600000 >&2; wait";
    let output = launcher
        .shell([] as [&str; 0], script)
        .read_after(Duration::from_secs(20))
        .output()
        .expect(0);
    let expected: String = (1..=600_000).map(|n| format!("{n}\n")).collect();
    assert!(output.stdout == expected.as_bytes(), "{} bytes arrived", output.stdout.len());
    assert!(output.stderr == expected, "{} bytes of stderr arrived", output.stderr.len());
}

#[test]
fn a_closed_pipe_ends_the_writer() {
    let Some(launcher) = Launcher::find() else { return };
    let program = launcher.program().display().to_string();
    // head(1) reads a line and exits.
    let mut shell = std::process::Command::new("sh")
        .args(["-c", r#""$0" run "$1" yes | head -n 1"#, &program, &launcher.image(BUSYBOX)])
        .env("BOXLITE_HOME", launcher.home())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(240);
    while shell.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            let _ = shell.kill();
            panic!("yes(1) in the box does not end although its output has no reader");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn all_input_reaches_the_command_and_then_its_end() {
    let Some(launcher) = Launcher::find() else { return };
    let mut run = launcher.shell(["-i"], "echo ready; cat; echo end").stdin_pipe().spawn();
    run.wait_for("ready");
    run.stdin.as_mut().unwrap().write_all(b"first\n").unwrap();
    run.wait_for("first");
    run.stdin.as_mut().unwrap().write_all(b"no newline").unwrap();
    run.stdin = None;
    assert_eq!(run.wait().success(), "ready\nfirst\nno newlineend");
}

#[test]
fn without_i_the_command_has_no_input() {
    let Some(launcher) = Launcher::find() else { return };
    let run = launcher.shell([] as [&str; 0], "cat; echo end").stdin("not for the box");
    assert_eq!(run.output().success(), "end");
}

#[test]
fn unread_input_does_not_delay_the_end() {
    let Some(launcher) = Launcher::find() else { return };
    let run = launcher.shell(["-i"], "head -c 4; exit 3").stdin(noise(4 << 20)).output().expect(3);
    assert_eq!(run.stdout, noise(4));
    // The input is still open when the command ends.
    let open = launcher.shell(["-i"], "exit 4").stdin_pipe().spawn();
    open.wait_with_open_input().expect(4);
}
