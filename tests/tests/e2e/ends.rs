//! How boxes end: the reasons, and what they keep when they start again.

use std::path::Path;
use std::time::{Duration, Instant};

use boxlite_tests::{BUSYBOX, Launcher, SOFTHOST_NOTE, Sandbox, unique};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::traces::{inheritance, wait_until};

const NO_OPTIONS: [&str; 0] = [];

/// Root overwrites the code of the VM's process 1, by the `/proc` below the box's own. Nothing can prevent root from
/// that, and the kernel panics when process 1 exits.
pub(crate) const KERNEL_PANIC: &str = "umount /proc; set -- $(grep -m 1 r-xp /proc/1/maps | tr - ' '); \
    page=$((0x$1 / 4096)); \
    dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$page count=$((0x$2 / 4096 - page)) conv=notrunc; \
    sleep 1000";

/// The reason for which a box failed.
#[track_caller]
fn failure(info: &Value) -> &str {
    assert_eq!(info["state"], "failed", "{info:#}");
    info["reason"]["kind"].as_str().unwrap_or_else(|| panic!("{info:#}"))
}

fn is_over(info: &Value) -> bool {
    info["pid"].is_null() && !matches!(info["state"].as_str(), Some("starting" | "stopping"))
}

#[test]
fn a_box_whose_process_is_killed_starts_again_with_what_was_synced() {
    let name = "ends::a_box_whose_process_is_killed_starts_again_with_what_was_synced";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    let sandbox = Sandbox::idle(&launcher, "killed", &[]);
    sandbox.shell("seq 1 50000 > /data && sync");
    // While a command runs in it.
    let mut exec = sandbox.exec(NO_OPTIONS, "echo in; sleep 1000").spawn();
    exec.wait_for("in");
    let pid = sandbox.inspect()["pid"].as_i64().and_then(|pid| pid.try_into().ok());
    kill_process(pid.and_then(Pid::from_raw).unwrap(), Signal::KILL).unwrap();
    exec.wait().fails_with(&[sandbox.name(), "ended unexpectedly"]);
    let info = sandbox.inspect();
    assert_eq!(failure(&info), "process-died");
    sandbox.exec(NO_OPTIONS, "true").output().fails_with(&[sandbox.name(), "failed", "start"]);
    sandbox.on(["start"]).output().success();
    assert_eq!(sandbox.inspect()["state"], "running");
    let sum = "sha256sum < /data; seq 1 50000 | sha256sum; dmesg | grep -i 'ext4.*error'";
    let output = sandbox.shell(&format!("{sum}; true"));
    let lines: Vec<_> = output.lines().collect();
    assert!(lines.len() == 2 && lines[0] == lines[1], "{output}");
    // A kill by the user is no failure.
    sandbox.on(["kill"]).output().success();
    assert_eq!(sandbox.state(), "stopped");
}

#[test]
fn main_commands_are_restarted_as_their_policy_says() {
    let Some(launcher) = Launcher::find() else { return };
    // Two restarts and no more.
    let script = "echo x >> /count; exit 4";
    let failing = Sandbox::run(&launcher, "failing", &["--restart", "on-failure:2"], script);
    // Success is no failure.
    let script = "echo x >> /count; sleep 3";
    let fine = Sandbox::run(&launcher, "fine", &["--restart", "on-failure"], script);
    let info = failing.wait_until("at its end", is_over);
    assert_eq!((&info["restarts"], &info["exit_code"]), (&2.into(), &4.into()), "{info:#}");
    let info = fine.wait_until("at its end", is_over);
    assert_eq!((&info["restarts"], &info["exit_code"]), (&0.into(), &0.into()), "{info:#}");
    drop(fine);
    // `always` restarts until the box is stopped.
    let always = Sandbox::run(&launcher, "always", &["--restart", "always"], "echo run; sleep 1");
    always.wait_until("restarted", |info| info["restarts"].as_u64() >= Some(2));
    always.on(["stop", "-t", "1"]).output().success();
    let info = always.inspect();
    // Its process, which would restart the command, has exited.
    assert_eq!((&info["state"], &info["pid"]), (&"stopped".into(), &Value::Null), "{info:#}");
    let runs = always.on(["logs"]).output().success();
    assert!(runs.lines().count() >= 3, "{runs}");
    assert_eq!(always.state(), "stopped", "it was restarted although it was stopped");
    assert_eq!(always.on(["logs"]).output().success(), runs, "it was restarted, too");
}

#[test]
fn health_checks_report_and_end_unhealthy_boxes() {
    let Some(launcher) = Launcher::find() else { return };
    let check =
        ["--health-cmd", "test -e /well", "--health-interval", "1s", "--health-retries", "2"];
    let sandbox = Sandbox::run(&launcher, "health", &check, "touch /well; sleep 1000");
    let status = |info: &Value| info["health"]["status"].as_str().map(str::to_owned);
    sandbox.wait_until("healthy", |info| status(info).as_deref() == Some("healthy"));
    sandbox.shell("rm /well");
    let ill = sandbox.wait_until("unhealthy", |info| status(info).as_deref() == Some("unhealthy"));
    assert_eq!(ill["state"], "running", "{ill:#}");
    let listed = launcher.command(["ls", "--filter", "health=unhealthy"]).output().success();
    assert!(listed.contains(sandbox.name()) && listed.contains("(unhealthy)"), "{listed}");
    sandbox.shell("touch /well");
    sandbox.wait_until("well again", |info| status(info).as_deref() == Some("healthy"));
    // With `--health-stop`, an unhealthy box ends as failed.
    let options = [&check[..], &["--health-stop"]].concat();
    let ending = Sandbox::run(&launcher, "ending", &options, "echo not well; sleep 1000");
    let info = ending.wait_until("at its end", is_over);
    assert_eq!(failure(&info), "unhealthy");
}

#[test]
fn failures_have_their_own_reasons() {
    let Some(launcher) = Launcher::find() else { return };
    let memory = ["--memory", "128M"];
    let greedy = Sandbox::run(&launcher, "greedy", &memory, "exec tail /dev/zero");
    let panicking = "sleep 1; echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero";
    let panicking = Sandbox::run(&launcher, "panicking", &memory, panicking);
    let crashing = Sandbox::run(&launcher, "crashing", &[], &format!("sleep 1; {KERNEL_PANIC}"));
    let info = greedy.wait_until("at its end", is_over);
    assert_eq!((failure(&info), &info["exit_code"]), ("out-of-memory", &137.into()));
    let info = panicking.wait_until("at its end", is_over);
    assert_eq!(failure(&info), "out-of-memory");
    let info = crashing.wait_until("at its end", is_over);
    assert_eq!(failure(&info), "panic");
    let lines = info["reason"]["detail"].to_string();
    assert!(lines.contains("Kernel panic - not syncing") && lines.contains("kill init"), "{lines}");
    // A failed box can be started again.
    crashing.on(["start"]).output().success();
    assert_eq!(crashing.state(), "running");

    // A box that takes too long to boot fails with the stage that it reached, and stays.
    let slow = Sandbox::create(&launcher, "slow", &["--ready-timeout", "1ms"], "true");
    let start = slow.on(["start"]).output();
    start.refuses_with(&[slow.name(), "was not ready after 1ms", "--ready-timeout"]);
    assert_eq!(failure(&slow.inspect()), "not-ready");
}

#[test]
fn synced_data_survives_a_killed_software_host() {
    let Some(launcher) = Launcher::find() else { return };
    if launcher.has_hardware() {
        println!("SKIPPED: boxes run without the software host here");
        return;
    }
    // In a home of its own, whose software host no other test uses.
    let folder = launcher.folder();
    let home = folder.path().join("home");
    let command = |args: &[&str]| {
        launcher.command(["--home"]).args([&home]).args(args).env("BOXLITE_SOFTHOST_IDLE", "60")
    };
    let image = launcher.image(BUSYBOX);
    let name = unique("survivor");
    let script = "echo begun; sleep 1000";
    let run = ["run", "-d", "--memory", "192M", "--name", &name, &image, "sh", "-c", script];
    start_holding_a_lock(&launcher, folder.path(), &home, &run);
    let write = "echo mark >> /data/marks; sync";
    let exec = |script: &str| command(&["exec", &name, "sh", "-c", script]).output();
    let second = exec("mkdir /data");
    assert!(!second.started_softhost, "it is announced once, not by each command: {second:?}");
    second.success();
    for victim in ["qemu-system", "softhost-keeper"] {
        exec(write).success();
        let processes = processes_of(&home.display().to_string(), victim);
        assert_eq!(processes.len(), 1, "{victim}");
        for process in &processes {
            kill_process(*process, Signal::KILL).unwrap();
        }
        // QEMU and the keeper end together.
        wait_until("the software host ends", || {
            let home = home.display().to_string();
            ["qemu-system", "softhost-keeper"].iter().all(|it| processes_of(&home, it).is_empty())
        });
        // The next command starts another one, which knows how the box ended.
        let begun = Instant::now();
        let text = command(&["inspect", &name]).output().success();
        let info: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(failure(&info[0]), "process-died");
        assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
        command(&["start", &name]).output().success();
    }
    assert_eq!(exec("cat /data/marks").success(), "mark\nmark");
    assert_eq!(command(&["logs", "--tail", "1", &name]).output().success(), "begun");
    command(&["rm", "-f", &name]).output().success();
    for process in processes_of(&home.display().to_string(), "softhost-keeper") {
        kill_process(process, Signal::TERM).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !processes_of(&home.display().to_string(), "qemu-system").is_empty() {
        assert!(Instant::now() < deadline, "the software host does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Starts the software host of `home` by the command line `run`, from a process that holds a lock and has a
/// working directory of its own, and checks that the software host keeps neither.
fn start_holding_a_lock(launcher: &Launcher, folder: &Path, home: &Path, run: &[&str]) {
    let lock = folder.canonicalize().unwrap().join("lock");
    let started = std::process::Command::new("sh")
        .args(["-c", "exec 9>lock; exec \"$@\"", "sh"])
        .args([launcher.program(), "--home".as_ref(), home])
        .args(run)
        .current_dir(folder)
        .env("BOXLITE_SOFTHOST_IDLE", "60")
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    assert!(String::from_utf8_lossy(&started.stderr).contains(SOFTHOST_NOTE), "{started:?}");
    for process in ["qemu-system", "softhost-keeper"] {
        let pids = processes_of(&home.display().to_string(), process);
        let has = inheritance(pids[0]);
        assert!(has.cwd == Path::new("/") && !has.holds(&lock), "{process}: {has:?}");
        let keeper = processes_of(&home.display().to_string(), "softhost-keeper")[0];
        assert_eq!(has.session, keeper.as_raw_nonzero().get(), "{process}: {has:?}");
    }
}

/// The processes whose command lines contain both words.
fn processes_of(home: &str, word: &str) -> Vec<Pid> {
    let has = |path: &std::path::Path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains(home) && line.contains(word)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let pids = entries.filter(|path| has(path));
    pids.filter_map(|path| Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?)).collect()
}
