//! The command in the box: its streams, its exit code, and what it is started with.

use std::time::{Duration, Instant};

use boxlite_tests::{BUSYBOX, Launcher};

const NO_OPTIONS: [&str; 0] = [];

#[test]
fn streams_are_separate_and_the_exit_code_is_the_commands() {
    let Some(launcher) = Launcher::find() else { return };
    let output = launcher.shell(NO_OPTIONS, "echo out; echo err >&2; exit 7").output().expect(7);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, "err\n");
}

#[test]
fn commands_that_cannot_run_have_the_exit_codes_of_a_shell() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let run = |command: &str| launcher.command(["run", &busybox, command]).output();
    let missing = run("no-such-program").expect(127);
    assert!(missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    run("/no/such/program").expect(127);
    let text = run("/etc/passwd").expect(126);
    assert!(text.stderr.contains("/etc/passwd"), "{}", text.stderr);
    run("/etc").expect(126);
}

#[test]
fn a_signal_that_ends_the_command_is_in_the_exit_code() {
    let Some(launcher) = Launcher::find() else { return };
    launcher.shell(["--init"], "kill -KILL $$").output().expect(128 + 9);
    // Process 1, which the command is without an init, cannot do that to itself.
    launcher.shell(["--init"], "kill -TERM $$").output().expect(128 + 15);
}

#[test]
fn a_timeout_ends_the_command_and_all_that_it_started() {
    let Some(launcher) = Launcher::find() else { return };
    let mut run = launcher.shell(["--timeout", "5s"], "echo go; sleep 1000 & sleep 1000").spawn();
    run.wait_for("go");
    let begun = Instant::now();
    let output = run.wait().expect(124);
    assert!(begun.elapsed() < Duration::from_secs(100), "it took {:?}", begun.elapsed());
    assert!(output.stderr.contains("timeout"), "{}", output.stderr);
}

#[test]
fn the_environment_is_the_images_plus_the_options() {
    let Some(launcher) = Launcher::find() else { return };
    let options =
        ["-e", "A=one two", "-e", "EMPTY=", "-e", "TAKEN", "-e", "UNSET", "-e", "A=last=1"];
    let env = launcher
        .shell(options, "env; echo HOSTS=${CARGO_MANIFEST_DIR-none} UNSET=${UNSET-none}")
        .env("TAKEN", "from outside")
        .output()
        .success();
    let lines: Vec<&str> = env.lines().collect();
    for line in ["A=last=1", "EMPTY=", "TAKEN=from outside", "HOSTS=none UNSET=none"] {
        assert!(lines.contains(&line), "no {line:?} in {env}");
    }
    assert_eq!(lines.iter().filter(|line| line.starts_with("A=")).count(), 1, "{env}");
    assert!(env.contains("HOME=/root") && env.contains("PATH=/"), "{env}");
}

#[test]
fn arguments_arrive_as_they_are() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let words = ["", " a  b ", "$HOME", "\"'\\", "--memory", "-", "ü\n"];
    let output = launcher
        .command(["run", &busybox, "sh", "-c", r#"for a; do printf '<%s>' "$a"; done"#, "sh"])
        .args(words)
        .output()
        .success();
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(output, expected);
}

#[test]
fn a_missing_working_directory_is_created() {
    let Some(launcher) = Launcher::find() else { return };
    let options = ["-w", "/new/and deep", "--rm", "--name", "web-1.example"];
    let output = launcher.shell(options, "pwd; hostname; cat /proc/sys/kernel/hostname").output();
    assert_eq!(output.success(), "/new/and deep\nweb-1.example\nweb-1.example");
}

#[test]
fn users_are_names_or_numbers() {
    let Some(launcher) = Launcher::find() else { return };
    let id = |user: &str| {
        launcher.shell(["-u", user], "echo $(id -u) $(id -g) $HOME").output().success()
    };
    assert_eq!(id("nobody"), "65534 65534 /");
    assert_eq!(id("1234"), "1234 0 /");
    assert_eq!(id("1234:tty"), "1234 5 /");
    assert_eq!(id("nobody:77"), "65534 77 /");
    let stranger = launcher.shell(["-u", "stranger"], "true").output();
    stranger.fails_with(&["stranger", "/etc/passwd"]);
}

#[test]
fn an_unprivileged_user_has_no_capabilities() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "grep CapEff /proc/self/status; touch /etc/x 2>&1; ls /root 2>&1; \
                  touch /tmp/y && stat -c %u:%g /tmp/y";
    let output = launcher.shell(["-u", "1234:99"], script).output().success();
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    assert_eq!(output.matches("ermission denied").count(), 2, "{output}");
    assert!(output.ends_with("1234:99"), "{output}");
}

#[test]
fn standard_streams_belong_to_the_user() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin";
    let run = launcher.shell(["-i", "-u", "65534"], script).stdin("in").output().expect(0);
    assert_eq!((&*run.stdout, &*run.stderr), (&b"out\nin"[..], "err\n"));
}

#[test]
fn an_entry_point_replaces_the_images() {
    let Some(launcher) = Launcher::find() else { return };
    let busybox = launcher.image(BUSYBOX);
    let run = |entrypoint: &str, args: &[&str]| {
        launcher.command(["run", "--entrypoint", entrypoint, &busybox]).args(args).output()
    };
    assert_eq!(run("echo", &["a", "b"]).success(), "a b");
    // The image's arguments belong to its own entry point.
    assert_eq!(run("echo", &[]).success(), "");
    assert_eq!(run("", &["echo", "x"]).success(), "x");
    run("", &[]).fails_with(&["no command"]);
}

#[test]
fn each_box_is_new_and_has_the_files_that_programs_expect() {
    let Some(launcher) = Launcher::find() else { return };
    launcher.shell(NO_OPTIONS, "echo x > /etc/left-over; sync").output().success();
    let script = "test ! -e /etc/left-over || exit 1
        for device in null zero full random urandom tty ptmx fd stdin stdout stderr; do
            test -e /dev/$device || echo no /dev/$device
        done
        echo x > /dev/null && echo x > /dev/shm/x && echo x > /tmp/x && echo x > /run/x || exit 1
        test -d /proc/self && test -d /sys/class && test -e /dev/pts/ptmx || exit 1
        test $(stat -c %a /tmp) = 1777 || exit 1
        now=$(date +%s); echo $now";
    let now: u64 = launcher.shell(NO_OPTIONS, script).output().success().parse().unwrap();
    let ours = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(ours.abs_diff(now) < 60, "the box has the time {now}, it is {ours}");
}

#[test]
fn orphans_of_the_command_are_reaped() {
    let Some(launcher) = Launcher::find() else { return };
    // The pipe of `$(…)` is closed when all have exited.
    let script = "orphans=$(for i in 1 2 3 4 5; do (sh -c 'sleep 0.1 & echo $!'); done); echo $orphans | wc -w
        for pid in $orphans; do while test -e /proc/$pid; do usleep 50000; done; done; echo reaped";
    assert_eq!(launcher.shell(NO_OPTIONS, script).output().success(), "5\nreaped");
}
