//! Commands in running boxes: `exec`, `attach`, and the log of the main command.

use std::time::{Duration, Instant};

use boxlite_tests::{BUSYBOX, Launcher, Sandbox, Terminal};
use rustix::process::Signal;

const NO_OPTIONS: [&str; 0] = [];

#[test]
fn exec_honours_its_options() {
    let Some(launcher) = Launcher::find() else { return };
    let options = ["-e", "A=box", "-e", "B=box", "-w", "/srv", "-u", "1234"];
    let sandbox = Sandbox::idle(&launcher, "asked", &options);
    let exec = |options: &[&str], script: &str| sandbox.exec(options, script).output();
    // The box's options, unless exec overrides them.
    let show = "echo $A $B $(pwd) $(id -u)";
    assert_eq!(exec(&[], show).success(), "box box /srv 1234");
    let other = ["-e", "B=own", "-w", "/new/dir", "-u", "root"];
    assert_eq!(exec(&other, show).success(), "box own /new/dir 0");
    let output = exec(&[], "echo out; echo err >&2; exit 3").expect(3);
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], "err\n"));
    exec(&[], "kill -TERM $$").expect(143);
    let run = |command: &str| launcher.command(["exec", sandbox.name(), command]).output();
    run("no-such-program").expect(127);
    run("/etc").expect(126);
    launcher.command(["exec", "no-such-box", "true"]).output().fails_with(&["no-such-box"]);
    // With `-i`, input and its end are passed on; without, there is none.
    let wc = sandbox.exec(["-i"], "wc -c").stdin(vec![0xff; 100_000]).output();
    assert_eq!(wc.success(), "100000");
    assert_eq!(sandbox.exec(NO_OPTIONS, "wc -c").stdin("x").output().success(), "0");
    // A timeout kills the command and its children; a signal is forwarded to the command.
    let late = exec(&["--timeout", "1s"], "sleep 5555 & sleep 5555").expect(124);
    assert!(late.stderr.contains("timeout"), "{}", late.stderr);
    let mut trap =
        sandbox.exec(NO_OPTIONS, "trap 'exit 44' TERM; echo up; sleep 999 & wait").spawn();
    trap.wait_for("up");
    trap.signal(Signal::TERM);
    trap.wait().expect(44);
    // The command of a killed launcher is killed; a detached one goes on.
    let mut orphan = sandbox.exec(NO_OPTIONS, "echo up; sleep 6666").spawn();
    orphan.wait_for("up");
    orphan.signal(Signal::KILL);
    orphan.wait();
    let pid: u32 = exec(&["-d"], "sleep 7777; exit 0").success().parse().expect("a process ID");
    assert!(pid > 1);
    let deadline = Instant::now() + Duration::from_secs(30);
    while sandbox.shell("ps | grep -cE '[s]leep (5555|6666)' || true") != "0" {
        assert!(Instant::now() < deadline, "{}", sandbox.shell("ps"));
    }
    assert_eq!(sandbox.shell("ps | grep -c '[s]leep 7777' || true"), "2");
}

#[test]
fn a_command_without_a_control_group_is_not_run() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::idle(&launcher, "groups", &NO_OPTIONS);
    // A mount over the control groups in the box does not hide them from the agent.
    sandbox.shell("mount -t tmpfs none /sys/fs/cgroup");
    let script = "setsid sleep 5555 & setsid sleep 5555 & sleep 5555";
    sandbox.exec(["--timeout", "1s"], script).output().expect(124);
    let deadline = Instant::now() + Duration::from_secs(120);
    while sandbox.shell("ps | grep -c '[s]leep 5555' || true") != "0" {
        assert!(Instant::now() < deadline, "{}", sandbox.shell("ps"));
    }
    sandbox.shell("umount /sys/fs/cgroup");
    // Makes the groups of the next commands, with controllers, so that no process can enter them.
    sandbox.shell(
        "cd /sys/fs/cgroup/boxlite; for slot in slot-*; do echo +memory > $slot/cgroup.subtree_control
        for n in $(seq 1 400); do mkdir $slot/exec-$n 2>/dev/null && \
            echo +memory > $slot/exec-$n/cgroup.subtree_control; done; done; true",
    );
    let refused = sandbox.exec(NO_OPTIONS, "sleep 6666").output();
    refused.fails_with(&["enter the command's control group"]);
}

/// A script that waits until a command of this name is the foreground job of its terminal.
fn foreground_job(name: &str) -> String {
    // The fields of `stat`: process ID, name, state, parent, group, session, terminal, group in its foreground.
    let is_in_front =
        format!("$2 == \"({name})\" && $5 == $8 {{ found = 1 }} END {{ exit !found }}");
    format!("until cat /proc/[0-9]*/stat 2>/dev/null | awk '{is_in_front}'; do usleep 50000; done")
}

#[test]
fn interactive_programs_work() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::idle(&launcher, "terminal", &["-e", "PS1=prompt> "]);
    let shell = ["exec", "-it", sandbox.name(), "sh", "-i"];
    let mut terminal = Terminal::run(&launcher, 24, 80, &shell);
    let before = terminal.modes();
    terminal.wait_for("prompt> ");
    let mut say = |keys: &str, answer: &str| {
        terminal.type_keys(keys);
        terminal.wait_for(answer);
    };
    // Job control: stop, list, continue in the background, bring to the foreground, interrupt.
    say("sleep 4444\r", "sleep 4444\r\n");
    sandbox.shell(&foreground_job("sleep"));
    say("\x1a", "Stopped");
    say("jobs\r", "Stopped");
    say("bg %1\r", "sleep 4444");
    say("jobs; echo ju''st\r", "just");
    say("fg %1\r", "sleep 4444");
    sandbox.shell(&foreground_job("sleep"));
    say("\x03", "prompt> ");
    say("echo code $?\r", "code 130");
    // A full-screen program.
    say("top -d 1\r", "Mem:");
    say("", "CPU:");
    terminal.type_keys("q");
    terminal.wait_for("prompt> ");
    // An editor.
    terminal.type_keys("vi /tmp/file\r");
    terminal.wait_for("/tmp/file");
    terminal.type_keys("ihello from vi\x1b");
    // The escape key has ended the insertion, and is not the beginning of another key's code.
    terminal.wait_for("- /tmp/file [Modified]");
    terminal.type_keys(":wq\r");
    terminal.wait_for("prompt> ");
    terminal.type_keys("exit 6\r");
    assert_eq!(terminal.wait(), Some(6), "{}", terminal.screen());
    assert_eq!(terminal.modes(), before);
    assert_eq!(sandbox.shell("cat /tmp/file"), "hello from vi");
}

#[test]
fn the_output_of_a_main_command_is_logged() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "echo one; echo two >&2; printf 'not text: \\377\\n'; sleep 3; echo late; \
                  while test ! -e /end; do sleep 0.2; done; printf 'no newline'";
    let sandbox = Sandbox::run(&launcher, "logs", &[], script);
    let mut follow = sandbox.on(["logs", "-f"]).spawn();
    follow.wait_for("late\n");
    let logs = |options: &[&str]| {
        let output = launcher.command(["logs"]).args(options).args([sandbox.name()]).output();
        output.expect(0)
    };
    let all = logs(&[]);
    assert_eq!(all.stdout, b"one\nnot text: \xff\nlate\n");
    assert_eq!(all.stderr, "two\n");
    assert_eq!(logs(&["--tail", "1"]).stdout, b"late\n");
    let stamped = logs(&["-t", "--tail", "1"]).success();
    let (stamp, line) = stamped.split_once(' ').expect(&stamped);
    assert!(line == "late" && stamp.ends_with('Z') && stamp.starts_with("20"), "{stamped}");
    // From that record on, and from now on.
    assert_eq!(logs(&["--since", stamp]).stdout, b"late\n");
    assert_eq!(logs(&["--since", "0s"]).stdout, b"");
    sandbox.shell("touch /end");
    let followed = follow.wait().expect(0);
    assert_eq!(followed.stdout, b"one\nnot text: \xff\nlate\nno newline");
    // The log stays when the box has stopped, and the next run is appended.
    assert_eq!(logs(&["--tail", "1"]).stdout, b"no newline");
    sandbox.on(["start"]).output().success();
    sandbox.on(["wait"]).output().success();
    let twice = logs(&[]).stdout;
    assert!(twice.starts_with(b"one\n") && twice.ends_with(b"no newline"), "{twice:?}");
    assert_eq!(twice.iter().filter(|byte| **byte == b'\n').count(), 6, "{twice:?}");
}

#[test]
fn the_log_of_a_chatty_command_is_bounded() {
    let Some(launcher) = Launcher::find() else { return };
    // 10 MiB twice, and a bit of a third.
    let script = "seq -w 1 3200000; sleep 1000";
    let sandbox = Sandbox::run(&launcher, "chatty", &[], script);
    let deadline = Instant::now() + Duration::from_secs(200);
    while sandbox.on(["logs", "--tail", "1"]).output().success() != "3200000" {
        assert!(Instant::now() < deadline, "its output is not complete");
        std::thread::sleep(Duration::from_secs(1));
    }
    let kept = sandbox.on(["logs"]).output().success();
    let mib = kept.len() as f64 / f64::from(1 << 20);
    assert!((9.0..=21.0).contains(&mib), "{mib} MiB are kept");
    // The newest output is kept, without gaps; its first line may be cut.
    let mut numbers = kept.lines().skip(1).map(|line| line.parse::<u32>().expect(line));
    let first = numbers.next().unwrap();
    assert!((2..1_700_000).contains(&first), "{first}");
    assert!(numbers.eq(first + 1..=3_200_000), "the log has a gap");
}

#[test]
fn several_clients_attach_at_once_and_leave_by_the_detach_keys() {
    let Some(launcher) = Launcher::find() else { return };
    let script =
        "echo up; while read line; do echo \"<$line>\"; test \"$line\" = end && exit 8; done";
    let sandbox = Sandbox::run(&launcher, "attach", &["-it"], script);
    let attach = ["attach", sandbox.name()];
    let mut one = Terminal::run(&launcher, 24, 80, &attach);
    let own_keys = ["attach", "--detach-keys", "ctrl-a,x", sandbox.name()];
    let mut two = Terminal::run(&launcher, 24, 80, &own_keys);
    // Waits until both are attached.
    let deadline = Instant::now() + Duration::from_secs(60);
    for (terminal, word) in [(&mut one, "first"), (&mut two, "second")] {
        loop {
            terminal.type_keys(&format!("{word}\r"));
            std::thread::sleep(Duration::from_millis(500));
            if terminal.screen().contains(&format!("<{word}>")) {
                break;
            }
            assert!(Instant::now() < deadline, "{}", terminal.screen());
        }
    }
    one.type_keys("both\r");
    one.wait_for("<both>");
    two.wait_for("<both>");
    // Each leaves by its own detach keys.
    let before = one.modes();
    one.type_keys("\x10\x11");
    assert_eq!(one.wait(), Some(0), "{}", one.screen());
    assert_ne!(one.modes(), before);
    two.type_keys("still\r");
    two.wait_for("<still>");
    two.type_keys("\x01x");
    assert_eq!(two.wait(), Some(0), "{}", two.screen());
    assert_eq!(sandbox.state(), "running");
    // The exit code is the command's.
    let mut last = Terminal::run(&launcher, 24, 80, &attach);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !last.screen().contains("<more>") {
        assert!(Instant::now() < deadline, "{}", last.screen());
        last.type_keys("more\r");
        std::thread::sleep(Duration::from_millis(500));
    }
    last.type_keys("end\r");
    assert_eq!(last.wait(), Some(8), "{}", last.screen());
    let left = launcher.command(["attach", sandbox.name()]).output();
    left.fails_with(&[sandbox.name(), "start"]);
    // `run` can be left, too: its command goes on.
    let image = launcher.image(BUSYBOX);
    for rm in [None, Some("--rm")] {
        let other = Sandbox::named(&launcher, boxlite_tests::unique("left"));
        let script =
            "echo up; while ! test -e /go; do sleep 0.1; done; echo it goes on; sleep 1000";
        let run = ["run", "-it", "--name", other.name()].into_iter().chain(rm);
        let run: Vec<&str> = run.chain([&*image, "sh", "-c", script]).collect();
        let mut terminal = Terminal::run(&launcher, 24, 80, &run);
        terminal.wait_for("up\r\n");
        terminal.type_keys("\x10\x11");
        assert_eq!(terminal.wait(), Some(0), "{}", terminal.screen());
        // The box can be used, and its command still has a terminal.
        other.shell("touch /go");
        let mut log = other.on(["logs", "-f"]).spawn();
        log.wait_for("it goes on");
        // A box with `--rm` is removed at its end.
        other.on(["stop", "-t", "0"]).output().success();
        let listed = launcher.command(["ls", "-a"]).output().success();
        assert_eq!(listed.contains(other.name()), rm.is_none(), "{listed}");
    }
}

#[test]
fn a_megabyte_of_environment_reaches_commands_and_more_than_linux_allows_is_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let file = |name: &str, variables: usize| {
        let path = folder.path().join(name);
        let lines = (0..variables).map(|n| format!("V{n}={}\n", "x".repeat(100_000)));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let (large, too_large) = (file("large", 11), file("too-large", 22));
    let main = "env | wc -c; exec sleep 1000";
    let sandbox = Sandbox::run(&launcher, "environment", &["--env-file", &large], main);
    let is_whole = |size: &str| size.trim().parse::<usize>().unwrap() > 1 << 20;
    assert!(is_whole(&sandbox.shell("env | wc -c")), "an exec has the box's environment");
    let logged = sandbox.on(["logs", "--tail", "1"]);
    assert!(is_whole(&logged.output().success()), "the main command");
    let own = sandbox.exec(["--env-file", &*large], "echo ${#V10}").output().success();
    assert_eq!(own, "100000");
    // A refusal does not affect the box and other execs.
    let refused = sandbox.exec(["--env-file", &*too_large], "true").output();
    refused.fails_with(&["Linux allows", "environment"]);
    assert_eq!(sandbox.shell("echo fine"), "fine");
    let name = boxlite_tests::unique("too-large");
    let image = launcher.image(boxlite_tests::BUSYBOX);
    let create = ["create", "--name", &name, "--env-file", &too_large, &image];
    launcher.command(create).output().refuses_with(&["--env", "Linux allows"]);
    launcher.command(["inspect", &name]).output().refuses_with(&[&name]);
}
