//! Boxes leave nothing behind, however they end. These tests run where boxes run, and look at processes and files.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use boxlite_tests::{BUSYBOX, Launcher, Running, Sandbox, is_long, unique};
use rustix::process::{Signal, kill_process};

use crate::traces::{box_processes, files, inheritance, wait_until, wait_until_none_runs};

const NO_OPTIONS: [&str; 0] = [];

/// Timeout for the kernel to free memory that is not used any more.
const FREED_LIMIT: Duration = Duration::from_secs(60);

/// Available memory in bytes, with empty caches. None on a machine that other programs use.
fn available_memory(launcher: &Launcher) -> Option<i64> {
    if launcher.has_hardware() && !in_softhost() {
        return None;
    }
    // Dirty pages cannot be dropped.
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").ok()?;
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// As [`available_memory`], once nothing more is freed: dropped pages are freed a little later.
fn settled_memory(launcher: &Launcher) -> Option<i64> {
    let mut memory = available_memory(launcher)?;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        memory = memory.max(available_memory(launcher)?);
    }
    Some(memory)
}

fn in_softhost() -> bool {
    std::env::var_os("BOXLITE_IN_SOFTHOST").is_some()
}

fn descriptors_of_init() -> usize {
    fs::read_dir("/proc/1/fd").map(Iterator::count).unwrap_or(0)
}

#[test]
fn many_runs_leave_nothing_behind() {
    let Some(launcher) = Launcher::where_boxes_run("lifecycle::many_runs_leave_nothing_behind")
    else {
        return;
    };
    let run = || launcher.shell(NO_OPTIONS, "echo hi").output().success();
    for _ in 0..3 {
        run();
    }
    wait_until_none_runs(&launcher);
    let before = (files(&launcher), descriptors_of_init());
    let memory = settled_memory(&launcher);
    let runs = if is_long() { 200 } else { 20 };
    for _ in 0..runs {
        assert_eq!(run(), "hi");
    }
    wait_until_none_runs(&launcher);
    assert_eq!((files(&launcher), descriptors_of_init()), before);
    let deadline = Instant::now() + FREED_LIMIT;
    while let (Some(before), Some(after)) = (memory, available_memory(&launcher)) {
        let lost = (before - after) >> 20;
        println!("{runs} runs took {lost} MiB of the machine's memory");
        // A box takes at least 60 MiB; the kernel's own caches take less than 40.
        if lost < 40 {
            break;
        }
        assert!(Instant::now() < deadline, "{lost} MiB are lost after {runs} runs");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn several_boxes_run_at_once() {
    let Some(launcher) = Launcher::where_boxes_run("lifecycle::several_boxes_run_at_once") else {
        return;
    };
    launcher.shell(NO_OPTIONS, "true").output().success();
    let boxes = if is_long() { 8 } else { 4 };
    let mut runs: Vec<Running> = (0..boxes)
        .map(|n| {
            let script = format!("echo up; read go; echo box {n} > /tmp/x; cat /tmp/x");
            let options = ["-i", "--memory", "256M"];
            launcher.shell(options, &script).deadline(Duration::from_secs(400)).stdin_pipe().spawn()
        })
        .collect();
    for run in &mut runs {
        run.wait_for("up");
    }
    assert_eq!(box_processes(&launcher).len(), boxes);
    for (n, run) in runs.into_iter().enumerate() {
        assert_eq!(run.wait().success(), format!("up\nbox {n}"));
    }
    wait_until_none_runs(&launcher);
}

#[test]
fn a_killed_launcher_leaves_nothing_behind() {
    let Some(launcher) =
        Launcher::where_boxes_run("lifecycle::a_killed_launcher_leaves_nothing_behind")
    else {
        return;
    };
    launcher.shell(NO_OPTIONS, "true").output().success();
    let before = files(&launcher);
    let mut run = launcher.shell(NO_OPTIONS, "echo up; sleep 1000").spawn();
    run.wait_for("up");
    assert_eq!(box_processes(&launcher).len(), 1);
    run.signal(Signal::KILL);
    assert_eq!(run.wait().signal, Some(9));
    wait_until_none_runs(&launcher);
    wait_until("files of the box are left over", || files(&launcher) == before);
}

#[test]
fn a_killed_box_process_is_reported() {
    let Some(launcher) = Launcher::where_boxes_run("lifecycle::a_killed_box_process_is_reported")
    else {
        return;
    };
    launcher.shell(NO_OPTIONS, "true").output().success();
    let before = files(&launcher);
    let mut run = launcher.shell(NO_OPTIONS, "echo up; sleep 1000").spawn();
    run.wait_for("up");
    let process = box_processes(&launcher)[0];
    kill_process(process, Signal::KILL).unwrap();
    run.wait().fails_with(&["ended unexpectedly", "killed"]);
    assert_eq!(files(&launcher), before);
}

#[test]
fn the_home_opens_after_any_process_was_killed() {
    let name = "lifecycle::the_home_opens_after_any_process_was_killed";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    launcher.shell(NO_OPTIONS, "true").output().success();
    let before = files(&launcher);
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    println!("moments by {seed}");
    let rounds = if is_long() { 60 } else { 8 };
    for round in 0..rounds {
        let moment = u64::from(seed).wrapping_mul(6_364_136_223_846_793_005 + 2 * round) >> 33;
        let run = launcher.shell(NO_OPTIONS, "seq 1 100000; sync").spawn();
        std::thread::sleep(Duration::from_millis(moment % 3000));
        if round % 2 == 0 {
            run.signal(Signal::KILL);
        } else {
            for process in box_processes(&launcher) {
                // It may have exited already.
                let _ = kill_process(process, Signal::KILL);
            }
        }
        let output = run.wait();
        let expected = matches!((output.code, output.signal), (Some(0 | 125), _) | (_, Some(9)));
        assert!(expected, "round {round}: {output:?}");
        launcher.command(["image", "ls"]).output().success();
    }
    wait_until_none_runs(&launcher);
    assert_eq!(launcher.shell(NO_OPTIONS, "echo fine").output().success(), "fine");
    assert_eq!(files(&launcher), before);
}

#[test]
fn an_interrupted_disk_is_made_again() {
    let name = "lifecycle::an_interrupted_disk_is_made_again";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    use boxlite_tests::Compression;
    use boxlite_tests::image::{ImageBuilder, Layer};
    launcher.shell(NO_OPTIONS, "true").output().success();
    for moment in [200, 700, 1500, 2500] {
        let folder = launcher.folder();
        // A new image each time, whose disk does not exist yet.
        let layer =
            Layer::new().file("moment", 0o644, format!("{moment} {}", folder.path().display()));
        let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
            .layer(layer, Compression::Gzip)
            .write(folder.path())
            .reference();
        let run = launcher.command(["run", &image, "cat", "/moment"]).spawn();
        std::thread::sleep(Duration::from_millis(moment));
        run.signal(Signal::KILL);
        run.wait();
        let output = launcher.command(["run", &image, "cat", "/moment"]).output().success();
        assert!(output.starts_with(&moment.to_string()), "{output}");
    }
    wait_until_none_runs(&launcher);
    let unfinished: Vec<PathBuf> = files(&launcher)
        .into_iter()
        .filter(|path| path.starts_with(launcher.home().join("images")))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".part"))
        })
        .collect();
    assert!(unfinished.is_empty(), "{unfinished:?}");
}

#[test]
fn a_detached_box_inherits_nothing_from_its_launcher() {
    let name = "lifecycle::a_detached_box_inherits_nothing_from_its_launcher";
    let Some(launcher) = Launcher::where_boxes_run(name) else { return };
    let folder = launcher.folder();
    let folder = folder.path().canonicalize().unwrap();
    // The launcher gets paths relative to its working directory.
    std::os::unix::fs::symlink(launcher.program(), folder.join("launcher")).unwrap();
    let guest = std::env::var_os("BOXLITE_GUEST_DIR").unwrap();
    std::os::unix::fs::symlink(fs::canonicalize(guest).unwrap(), folder.join("guest")).unwrap();
    let sandbox = Sandbox::named(&launcher, unique("alone"));
    let image = launcher.image(BUSYBOX);
    let options = ["run", "-d", "--memory", "192M", "--name", sandbox.name(), &image];
    let made = std::process::Command::new("sh")
        .args(["-c", "exec 9>lock 8<.; exec \"$@\"", "sh", "./launcher"])
        .args(options)
        .args(["sleep", "1000"])
        .current_dir(&folder)
        .env("BOXLITE_HOME", launcher.home())
        .env("BOXLITE_GUEST_DIR", "guest")
        .env("BOXLITE_VMM", "./launcher")
        // A box that inherited these pipes would make this wait for its end.
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let process = box_processes(&launcher)[0];
    let has = inheritance(process);
    assert_eq!((&*has.cwd, has.session), ("/".as_ref(), process.as_raw_nonzero().get()), "{has:?}");
    assert!(!has.holds(&folder.join("lock")) && !has.holds(&folder), "{has:?}");
    let log = |path: &PathBuf| path.ends_with("machine.log") || path.ends_with("null");
    let stdio = has.files.iter().filter(|(number, _)| (1..=2).contains(number));
    assert!(stdio.clone().count() == 2 && stdio.clone().all(|(_, path)| log(path)), "{has:?}");
    assert_eq!(sandbox.shell("echo it serves"), "it serves");
}
