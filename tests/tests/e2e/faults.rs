//! Homes that several processes use at once, and processes killed at any moment. These tests run where boxes run, and
//! look at processes and files.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use boxlite_tests::{BUSYBOX, Launcher, Output, Running, is_long, unique};
use rustix::process::{Signal, kill_process};

use crate::traces::{box_processes, files, wait_until_none_runs};

/// The files of the home after `prune`, without SQLite's temporary files.
fn files_at_rest(launcher: &Launcher) -> BTreeSet<PathBuf> {
    launcher.command(["prune", "-f"]).output().success();
    let is_sqlites = |path: &PathBuf| {
        path.to_string_lossy().ends_with("-wal") || path.to_string_lossy().ends_with("-shm")
    };
    files(launcher).into_iter().filter(|path| !is_sqlites(path)).collect()
}

/// Runs `create` for a box of this name.
fn create(launcher: &Launcher, name: &str) -> Running {
    let create = launcher.command(["create", "--memory", "192M", "--name", name]);
    create.args([&*launcher.image(BUSYBOX), "sleep", "1000"]).spawn()
}

/// The state of the box, none if it does not exist.
#[track_caller]
fn state(launcher: &Launcher, name: &str) -> Option<String> {
    let output = launcher.command(["inspect", name]).output();
    if output.code == Some(1) {
        assert!(output.stderr.contains("no box is called"), "{}", output.stderr);
        return None;
    }
    let info: serde_json::Value = serde_json::from_str(&output.success()).unwrap();
    Some(info[0]["state"].as_str().unwrap().to_owned())
}

#[test]
fn the_home_is_consistent_after_a_kill_at_any_step() {
    let name = "faults::the_home_is_consistent_after_a_kill_at_any_step";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    launcher.shell([] as [&str; 0], "true").output().success();
    let before = files_at_rest(&launcher);
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("moments by {seed}");
    let mut random = u64::from(seed) | 1;
    // xorshift64
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    let rounds = if is_long() { 20 } else { 2 };
    let run = |args: &[&str]| launcher.command(args).output();
    for round in 0..rounds {
        for verb in ["create", "start", "stop", "rm"] {
            let name = unique(&format!("{verb}-{round}"));
            if verb != "create" {
                create(&launcher, &name).wait().success();
            }
            if matches!(verb, "stop" | "rm") {
                run(&["start", &name]).success();
            }
            let victim = match verb {
                "create" => create(&launcher, &name),
                "rm" => launcher.command(["rm", "-f", &name]).spawn(),
                _ => launcher.command([verb, &name]).spawn(),
            };
            let moment = below(if verb == "start" { 2500 } else { 900 });
            thread::sleep(Duration::from_millis(moment));
            victim.signal(Signal::KILL);
            let with_box_process = below(3) == 0;
            if with_box_process {
                for process in box_processes(&launcher) {
                    // It may have exited already.
                    let _ = kill_process(process, Signal::KILL);
                }
            }
            victim.wait();
            println!("{verb}, after {moment} ms, with the box's process: {with_box_process}");
            run(&["ls", "-a"]).success();
            // A box that exists is complete: it can be started, used and removed.
            if state(&launcher, &name).is_some() {
                run(&["start", &name]).success();
                assert_eq!(run(&["exec", &name, "echo", "whole"]).success(), "whole");
                if below(2) == 0 {
                    run(&["rm", "-f", &name]).success();
                } else {
                    run(&["kill", &name]).success();
                }
            } else {
                assert!(matches!(verb, "create" | "rm"), "{verb} lost the box");
            }
        }
    }
    wait_until_none_runs(&launcher);
    assert_eq!(files_at_rest(&launcher), before);
}

/// Fails the test unless the launcher succeeded or failed with a message.
#[track_caller]
fn sane(output: &Output) {
    assert!(matches!(output.code, Some(0 | 1)), "{output:?}");
    assert!(output.code == Some(0) || output.stderr.starts_with("boxlite-vmm: "), "{output:?}");
    assert!(!output.stderr.contains("internal error"), "{output:?}");
}

#[test]
fn several_processes_share_a_home() {
    let name = "faults::several_processes_share_a_home";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    launcher.shell([] as [&str; 0], "true").output().success();
    let before = files_at_rest(&launcher);
    let all = |runs: Vec<Running>| runs.into_iter().map(Running::wait).collect::<Vec<_>>();
    for round in 0..if is_long() { 10 } else { 1 } {
        let name = unique(&format!("race-{round}"));
        // Only one box gets the name.
        let made = all((0..4).map(|_| create(&launcher, &name)).collect());
        made.iter().for_each(sane);
        assert_eq!(made.iter().filter(|made| made.code == Some(0)).count(), 1, "{made:?}");
        // All of several starts succeed.
        let verb = |verbs: &[&str]| launcher.command(verbs).args([&name]).spawn();
        for start in all((0..3).map(|_| verb(&["start"])).collect()) {
            assert_eq!(start.success(), name);
        }
        assert_eq!(box_processes(&launcher).len(), 1);
        let running = launcher.command(["exec", &name, "cat", "/proc/uptime"]).output();
        running.success();
        // Of several competing commands, one decides the state.
        let raced = [&["stop", "-t", "1"][..], &["start"], &["kill"], &["restart", "-t", "1"]];
        all(raced.map(verb).into()).iter().for_each(sane);
        let state = state(&launcher, &name).expect("nobody removed it");
        let how = || launcher.command(["inspect", &name]).output().stdout_lossy();
        assert!(matches!(&*state, "running" | "stopped"), "{}", how());
        let removed = [&["rm", "-f"][..], &["start"], &["rm", "-f"], &["stop", "-t", "1"]];
        let removed = all(removed.map(verb).into());
        removed.iter().for_each(sane);
        assert_eq!(self::state(&launcher, &name), None, "{removed:?}");
    }
    wait_until_none_runs(&launcher);
    assert_eq!(files_at_rest(&launcher), before);
}

#[test]
fn leftovers_are_found_and_removed() {
    let name = "faults::leftovers_are_found_and_removed";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    launcher.shell([] as [&str; 0], "true").output().success();
    let before = files_at_rest(&launcher);
    let names = ["folderless", "stopped", "running"].map(unique);
    let [folderless, stopped, running] = &names;
    let ids = names.each_ref().map(|name| create(&launcher, name).wait().success());
    launcher.command(["start", running]).output().success();
    let boxes = launcher.home().join("boxes");
    // The leftovers of a process that was killed while it made or removed a box, or before its changes of the database
    // reached the disk.
    fs::remove_dir_all(boxes.join(&ids[0])).unwrap();
    for left in [".new-0123", ".gone-4567"] {
        fs::create_dir(boxes.join(left)).unwrap();
        fs::write(boxes.join(left).join("disk.qcow2"), "unfinished").unwrap();
    }
    let listed = launcher.command(["ls", "-a"]).output().success();
    assert!(!listed.contains(folderless) && listed.contains(stopped), "{listed}");
    // Its name is free again.
    create(&launcher, folderless).wait().success();
    let pruned = launcher.command(["prune", "-f"]).output().success();
    assert!(pruned.contains(folderless) && pruned.contains(stopped), "{pruned}");
    assert!(!pruned.contains(running), "{pruned}");
    assert_eq!(state(&launcher, running).as_deref(), Some("running"));
    launcher.command(["rm", "-f", running]).output().success();
    assert_eq!(files_at_rest(&launcher), before);

    // A lost database is rebuilt from the folders.
    create(&launcher, stopped).wait().success();
    for file in ["boxlite.db", "boxlite.db-wal", "boxlite.db-shm"] {
        let _ = fs::remove_file(launcher.home().join(file));
    }
    assert_eq!(state(&launcher, stopped).as_deref(), Some("configured"));
    launcher.command(["rm", stopped]).output().success();
    assert_eq!(files_at_rest(&launcher), before);
}
