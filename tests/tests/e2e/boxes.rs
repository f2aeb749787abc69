//! Persistent boxes: all of their commands, names and labels, and which processes they outlive.

use std::time::{Duration, Instant};

use boxlite_tests::{BUSYBOX, Launcher, Sandbox, unique};
use rustix::process::Signal;
use serde_json::Value;

const NO_OPTIONS: [&str; 0] = [];

/// The lines of JSON that a command prints.
fn json_lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    text.lines().map(parse).collect()
}

/// The names that `ls` lists with these options, of boxes of this run.
fn listed(launcher: &Launcher, options: &[&str]) -> Vec<String> {
    let text = launcher.command(["ls", "--format", "json"]).args(options).output().success();
    let names = json_lines(&text).into_iter().map(|line| line["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.ends_with(&unique(""))).collect()
}

/// The kinds of the events of the box with this ID.
fn event_kinds(launcher: &Launcher, id: &str) -> Vec<String> {
    let events = launcher.command(["events", "--since", "1h", "--format", "json"]).output();
    let events = json_lines(&events.success()).into_iter().filter(|event| event["id"] == id);
    events.map(|event| event["event"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_box_goes_through_its_whole_life_cycle() {
    let Some(launcher) = Launcher::find() else { return };
    let script = "echo begun; trap 'echo asked; exit 3' TERM; while :; do sleep 0.1; done";
    let sandbox = Sandbox::create(&launcher, "life", &[], script);
    let (name, id) = (sandbox.name().to_owned(), sandbox.id().to_owned());
    assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    let listed = |options: &[&str]| listed(&launcher, options).contains(&name);
    assert!(!listed(&[]) && listed(&["-a"]) && listed(&["--filter", "status=configured"]));
    // Commands that need a running box say what to do first.
    let exec = sandbox.exec(NO_OPTIONS, "true").output();
    exec.fails_with(&[&name, "configured", "start"]);
    sandbox.on(["pause"]).output().refuses_with(&[&name, "start"]);

    assert_eq!(sandbox.on(["start"]).output().success(), name);
    let info = sandbox.inspect();
    assert_eq!(info["state"], "running", "{info:#}");
    let boot = info["boot_time_us"].as_u64().unwrap();
    assert!(boot > 0 && info["pid"].is_u64() && info["main_pid"].is_u64(), "{info:#}");
    assert!(listed(&[]));
    // Starting a running box does nothing.
    sandbox.on(["start"]).output().success();
    let pid = sandbox.inspect()["pid"].clone();
    assert_eq!(pid, info["pid"]);

    // By its name, by its ID, and by a prefix of its ID.
    sandbox.shell("echo kept > /root/kept");
    for query in [&*name, &*id, &id[..12]] {
        let cat = ["exec", query, "cat", "/root/kept"];
        assert_eq!(launcher.command(cat).output().success(), "kept");
    }
    sandbox.on(["rm"]).output().refuses_with(&[&name, "running", "--force"]);

    // The stop signal ends its main command, and its disk is kept.
    sandbox.on(["stop"]).output().success();
    let info = sandbox.inspect();
    assert_eq!((&info["state"], &info["exit_code"]), (&"stopped".into(), &3.into()), "{info:#}");
    assert!(info["pid"].is_null() && info["finished"].is_string(), "{info:#}");
    sandbox.on(["stop"]).output().success();
    assert_eq!(sandbox.on(["wait"]).output().success(), "3");
    assert_eq!(sandbox.on(["logs"]).output().success(), "begun\nasked");
    sandbox.on(["start"]).output().success();
    assert_eq!(sandbox.shell("cat /root/kept"), "kept");

    // Restart in one command.
    sandbox.on(["restart", "-t", "5"]).output().success();
    assert_eq!(sandbox.shell("cat /root/kept"), "kept");
    // `wait` asks about both boxes at once, and the answer about the one that does not run comes first.
    let other = Sandbox::create(&launcher, "never-run", &[], "true");
    let mut wait = launcher.command(["wait", other.name(), &name]).spawn();
    wait.wait_for("0\n");
    sandbox.on(["kill"]).output().success();
    assert_eq!(wait.wait().success(), "0\n137");
    assert_eq!(sandbox.state(), "stopped");

    let again = sandbox.on(["inspect"]).output().success();
    assert!(again.contains(&id), "{again}");
    sandbox.on(["rm"]).output().success();
    sandbox.on(["inspect"]).output().refuses_with(&[&name]);
    let kinds = event_kinds(&launcher, &id);
    let kinds: Vec<_> = kinds.iter().map(String::as_str).collect();
    // Among them the execs, each with its start and its end.
    let execs = kinds.iter().filter(|kind| kind.starts_with("exec-")).count();
    assert_eq!(execs % 2, 0, "{kinds:?}");
    assert!(execs >= 12, "{kinds:?}");
    let life: Vec<_> = kinds.iter().filter(|kind| !kind.starts_with("exec-")).copied().collect();
    let run = ["starting", "running", "stopping", "stopped"];
    assert_eq!(life[..9], [&["created"][..], &run, &run].concat(), "{kinds:?}");
    assert_eq!(life[9..11], ["starting", "running"], "{kinds:?}");
    assert_eq!(life[life.len() - 2..], ["stopped", "removed"], "{kinds:?}");
}

#[test]
fn boxes_are_found_by_names_and_labels() {
    let Some(launcher) = Launcher::find() else { return };
    let (red, blue) = (unique("team=red"), unique("team=blue"));
    let one = Sandbox::create(&launcher, "one", &["-l", &red, "-l", "odd"], "true");
    let two = Sandbox::create(&launcher, "two", &["--label", &blue], "true");
    let listed = |options: &[&str]| listed(&launcher, options);
    let label = |label: &str| format!("label={label}");
    assert_eq!(listed(&["-a", "--filter", &label(&red)]), [one.name()]);
    assert_eq!(listed(&["-a", "--filter", &label(&blue), "--filter", "label=team"]), [two.name()]);
    assert!(listed(&["-a", "--filter", &label(&blue), "--filter", "label=odd"]).is_empty());
    assert_eq!(one.inspect()["labels"]["odd"], "");
    let ids = launcher.command(["ls", "-aq", "--no-trunc", "--filter", &label(&red)]).output();
    assert_eq!(ids.success(), one.id());

    // A name is taken until its box is renamed or removed.
    let image = launcher.image(BUSYBOX);
    let taken = launcher.command(["create", "--name", one.name(), &image]).output();
    taken.refuses_with(&[one.name(), "rm"]);
    two.on(["rename"]).args([one.name()]).output().refuses_with(&[one.name()]);
    two.on(["rename"]).args(["not a name"]).output().refuses_with(&["not a name", "letter"]);
    let other = unique("other");
    one.on(["rename"]).args([&other]).output().success();
    one.on(["inspect"]).output().refuses_with(&[one.name()]);
    let one = {
        let id = one.id().to_owned();
        let one = Sandbox::named(&launcher, other.clone());
        assert_eq!(one.inspect()["id"], id);
        one
    };
    two.on(["rename"]).args([&unique("one")]).output().success();
    let two = Sandbox::named(&launcher, unique("one"));
    // Several boxes: a failure for one is reported, and the others are removed.
    let rm = launcher.command(["rm", one.name(), "no-such-box", two.name()]).output();
    let removed = rm.refuses_with(&["no-such-box", "ls --all"]).stdout_lossy();
    assert_eq!(removed.lines().collect::<Vec<_>>(), [one.name(), two.name()]);
    assert!(listed(&["-a", "--filter", &label(&red)]).is_empty());
}

#[test]
fn a_named_box_stays_after_its_run_unless_rm_is_given() {
    let Some(launcher) = Launcher::find() else { return };
    let exists = |name: &str| launcher.command(["inspect", name]).output().code == Some(0);
    // A name keeps the box, with what was written in it and how it ended.
    let kept = Sandbox::named(&launcher, unique("kept"));
    let run = launcher.shell(["--name", kept.name()], "echo data > /data; echo $$; exit 9");
    run.output().expect(9);
    let info = kept.inspect();
    assert_eq!((&info["state"], &info["exit_code"]), (&"stopped".into(), &9.into()), "{info:#}");
    // Started again, with the command that it was made with.
    let again = kept.on(["start", "-a"]).output().expect(9);
    assert!(!again.stdout.is_empty(), "{again:?}");
    // Not with `--rm`.
    let gone = Sandbox::named(&launcher, unique("gone"));
    launcher.shell(["--rm", "--name", gone.name()], "true").output().success();
    assert!(!exists(gone.name()));
    // Nor in the background.
    let brief = Sandbox::run(&launcher, "brief", &["--rm"], "sleep 2");
    assert_eq!(brief.id().len(), 32);
    let wait = brief.on(["wait"]).output();
    assert!(matches!(wait.code, Some(0 | 1)), "{wait:?}");
    assert!(!exists(brief.name()));
}

#[test]
fn only_detached_boxes_outlive_the_command_that_started_them() {
    let Some(launcher) = Launcher::find() else { return };
    let detached = Sandbox::run(&launcher, "detached", &[], "sleep 1000");
    // A named one in the foreground ends with its launcher, killed or not, and keeps its disk.
    let named = Sandbox::named(&launcher, unique("foreground"));
    let script = "echo mark >> /mark; sync; echo up; sleep 1000";
    let mut run = launcher.shell(["--name", named.name()], script).spawn();
    run.wait_for("up");
    assert_eq!(named.state(), "running");
    run.signal(Signal::KILL);
    run.wait();
    let ended = named.wait_until("at its end", |info| info["pid"].is_null());
    assert_eq!(ended["state"], "stopped", "{ended:#}");
    // `start` exits: the box keeps running.
    named.on(["start"]).output().success();
    let deadline = Instant::now() + Duration::from_secs(30);
    while named.shell("cat /mark") != "mark\nmark" {
        assert!(Instant::now() < deadline, "the second run has not begun");
    }
    for sandbox in [&detached, &named] {
        assert_eq!(sandbox.state(), "running");
    }
}

#[test]
fn a_paused_box_does_not_run() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::run(&launcher, "paused", &[], "while :; do date; sleep 0.2; done");
    let lines = || sandbox.on(["logs"]).output().success().lines().count();
    sandbox.on(["pause"]).output().success();
    let paused = Instant::now();
    let info = sandbox.inspect();
    assert_eq!(info["state"], "paused", "{info:#}");
    let before = lines();
    let exec = sandbox.exec(NO_OPTIONS, "true").output();
    exec.fails_with(&[sandbox.name(), "paused", "resume"]);
    sandbox.on(["start"]).output().refuses_with(&[sandbox.name(), "paused", "resume"]);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(lines(), before, "it runs on");
    sandbox.on(["resume"]).output().success();
    let passed = paused.elapsed().as_secs();
    assert!(passed >= 4, "{passed}");
    // Its clock is right at once, however long it was paused.
    let ours = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let earliest = ours() - 3;
    let now: u64 = sandbox.shell("date +%s").parse().unwrap();
    let latest = ours() + 3;
    assert!((earliest..=latest).contains(&now), "{now} is not in {earliest}..={latest}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while lines() == before {
        assert!(Instant::now() < deadline, "it does not run on");
    }
    // A paused box can be killed.
    sandbox.on(["pause"]).output().success();
    sandbox.on(["kill"]).output().success();
    assert_eq!(sandbox.state(), "stopped");
}

#[test]
fn resource_use_is_listed_for_programs_and_people() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::run(&launcher, "numbers", &["--memory", "256M"], "exec sleep 54321");
    let stats = sandbox.on(["stats", "--no-stream", "--format", "json"]).output().success();
    let stats = &json_lines(&stats)[0];
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{stats:#}"));
    assert_eq!(stats["name"], sandbox.name());
    let total = number(&stats["guest"]["memory_total"]) / f64::from(1 << 20);
    assert!((200.0..=256.0).contains(&total), "{total} MiB of memory");
    assert!(number(&stats["guest"]["memory_used"]) < number(&stats["guest"]["memory_total"]));
    assert!(number(&stats["machine"]["rss"]) > 0.0 && number(&stats["cpu_percent"]) >= 0.0);
    assert!(number(&stats["machine"]["disks"][0]["bytes_read"]) > 0.0);
    let top = sandbox.on(["top", "--format", "json"]).output().success();
    let processes = json_lines(&top);
    let sleep = processes.iter().find(|process| process["command"] == "sleep 54321");
    // The main command is process 1.
    assert_eq!((&sleep.expect(&top)["pid"], &sleep.expect(&top)["ppid"]), (&1.into(), &0.into()));
    // For people.
    let table = sandbox.on(["stats", "--no-stream"]).output().success();
    assert!(table.contains(sandbox.name()) && table.contains('%'), "{table}");
    let table = sandbox.on(["top"]).output().success();
    assert!(table.contains("sleep 54321"), "{table}");
}

#[test]
fn a_created_box_that_removes_itself_runs_first() {
    let Some(launcher) = Launcher::find() else { return };
    let sandbox = Sandbox::create(&launcher, "first-run", &["--rm"], "exit 4");
    // Also while other commands open the home.
    assert_eq!(sandbox.state(), "configured");
    launcher.command(["ls"]).output().success();
    sandbox.on(["start", "-a"]).output().expect(4);
    sandbox.on(["start"]).output().refuses_with(&["no box is called", sandbox.name()]);
}
