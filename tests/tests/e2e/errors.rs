//! Invalid and impossible requests: each error names the thing and the remedy, with exit code 125.

use std::time::Duration;

use boxlite_tests::{BUSYBOX, Launcher};

#[test]
fn options_out_of_range_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let fails = |options: &[&str], parts: &[&str]| {
        // Nothing is booted for them.
        let run = launcher.shell(options, "true").deadline(Duration::from_secs(120));
        run.output().fails_with(parts);
    };
    fails(&["--memory", "64M"], &["memory", "128 MiB", "64 GiB"]);
    fails(&["--memory", "65G"], &["memory", "64 GiB"]);
    fails(&["--memory", "lots"], &["--memory", "512M"]);
    fails(&["--cpus", "0"], &["cpus", "1 to 64"]);
    fails(&["--cpus", "65"], &["cpus", "1 to 64"]);
    fails(&["--disk-size", "2T"], &["disk", "1 TiB"]);
    fails(&["--name", "no spaces"], &["name", "no spaces"]);
    fails(&["-w", "relative"], &["workdir", "relative", "absolute"]);
    fails(&["-e", "=value"], &["env"]);
    fails(&["--timeout", "soon"], &["--timeout", "90s"]);
    // All problems are reported at once.
    fails(&["--memory", "64M", "--cpus", "0"], &["memory", "cpus"]);
    fails(&["--no-such-option"], &["--no-such-option"]);
}

#[test]
fn missing_images_are_named() {
    let Some(launcher) = Launcher::find() else { return };
    let run = |image: &str| launcher.command(["run", image, "true"]).output();
    run("oci:/no/such/layout").fails_with(&["/no/such/layout"]);
    run("docker-archive:/no/such.tar").fails_with(&["/no/such.tar"]);
    run("rootfs:/no/such/root").fails_with(&["/no/such/root"]);
    run("never-imported").fails_with(&["never-imported", "import"]);
    run("ftp://x").fails_with(&["ftp://x"]);
}

#[test]
fn missing_guest_files_are_named() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let run = launcher.shell([] as [&str; 0], "true").env("BOXLITE_GUEST_DIR", folder.path());
    run.output().fails_with(&["BOXLITE_GUEST_DIR"]);
    let doctor = launcher.command(["doctor"]).env("BOXLITE_GUEST_DIR", folder.path()).output();
    let doctor = doctor.expect(1).stdout_lossy();
    assert!(doctor.contains("FAIL  guest files"), "{doctor}");
}

#[test]
fn missing_kvm_is_named_with_the_remedy() {
    let Some(launcher) = Launcher::find() else { return };
    let output = launcher.shell(["--accel", "kvm"], "echo ran").output();
    if launcher.has_hardware() {
        assert_eq!(output.success(), "ran");
    } else {
        output.fails_with(&["--accel kvm", "virtualization"]);
    }
}

/// The variable for the launcher that runs in the software host.
const INNER: &str = "BOXLITE_SOFTHOST_LAUNCHER";

/// The beginning of an executable for the architecture that this machine does not have.
fn foreign_program() -> Vec<u8> {
    const X86_64: u8 = 62;
    const AARCH64: u8 = 183;
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[16] = 2;
    header[18] = if std::env::consts::ARCH == "x86_64" { AARCH64 } else { X86_64 };
    header
}

#[test]
fn a_launcher_that_the_software_host_cannot_run_is_named() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    let run = || launcher.shell([] as [&str; 0], "true");
    run().env(INNER, &script).output().fails_with(&[INNER, "script", "ELF"]);
    run().env(INNER, "/no/such/launcher").output().fails_with(&[INNER, "/no/such/launcher"]);
    let doctor = launcher.command(["doctor"]).env(INNER, &script).output().expect(1);
    assert!(doctor.stdout_lossy().contains(INNER), "{}", doctor.stdout_lossy());
}

#[test]
fn boxes_of_another_architecture_run_in_a_software_host_of_their_own() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let foreign = folder.path().join("foreign");
    std::fs::write(&foreign, foreign_program()).unwrap();
    let kvm = launcher.shell(["--accel", "kvm"], "true").env(INNER, &foreign).output();
    kvm.fails_with(&["--accel kvm", INNER, "software host"]);
    let doctor = launcher.command(["doctor"]).env(INNER, &foreign).output();
    assert!(doctor.stdout_lossy().contains(INNER), "{}", doctor.stdout_lossy());
    // A home with boxes of a third architecture is refused before anything is started.
    let state = folder.path().join("softhost");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("home.ext4"), "").unwrap();
    std::fs::write(state.join("arch"), "riscv64\n").unwrap();
    let ls = launcher.command(["--accel", "soft", "--home"]).args([folder.path()]).args(["ls"]);
    ls.output().refuses_with(&["riscv64", "arch"]);
    // So is one with boxes of the other architecture of the two.
    let (theirs, ours) = match boxlite_tests::arch() {
        ours if ours == "x86_64" => ("aarch64", ours),
        ours => ("x86_64", ours),
    };
    std::fs::write(state.join("arch"), format!("{theirs}\n")).unwrap();
    let ls = launcher.command(["--accel", "soft", "--home"]).args([folder.path()]).args(["ls"]);
    ls.output().refuses_with(&[&format!("is {theirs}, not {ours}"), "choose another home"]);
}

#[test]
fn a_missing_qemu_is_named_with_the_remedy() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    // A home without a running software host, and a PATH without QEMU.
    let run = launcher
        .command(["--accel", "soft", "--home"])
        .args([folder.path()])
        .args(["run", &launcher.image(BUSYBOX), "true"])
        .env("PATH", folder.path());
    run.output().fails_with(&["qemu-system", "install"]);
}

#[test]
fn an_unusable_home_is_named() {
    let Some(launcher) = Launcher::find() else { return };
    let run = launcher.command(["--home", "/dev/null/home", "run", &launcher.image(BUSYBOX)]);
    run.output().fails_with(&["/dev/null/home"]);
}

#[test]
fn the_error_about_a_slow_boot_names_the_stage_it_reached() {
    let Some(launcher) = Launcher::find() else { return };
    // The image's disk is made before the timeout starts.
    launcher.shell([] as [&str; 0], "true").output().success();
    let output = launcher.shell(["--ready-timeout", "1ms"], "true").output();
    let output = output.fails_with(&["was not ready after 1ms", "--ready-timeout"]);
    let stages = ["being built", "kernel", "agent", "root"];
    assert!(stages.iter().any(|stage| output.stderr.contains(stage)), "{}", output.stderr);
}

#[test]
fn a_second_box_of_the_same_name_is_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let run = |script: &str| launcher.shell(["--rm", "--name", "only-one"], script);
    let mut first = run("echo up; sleep 1000").spawn();
    first.wait_for("up");
    run("true").output().fails_with(&["only-one", "another name"]);
    first.signal(rustix::process::Signal::TERM);
    first.wait().expect(143);
    run("true").output().success();
}

#[test]
fn help_shows_commands_options_and_examples() {
    let Some(launcher) = Launcher::find() else { return };
    let help = launcher.command(["--help"]).output().success();
    for word in ["run", "image", "doctor", "softhost", "--home", "Examples", "oci:"] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
    let run = launcher.command(["run", "--help"]).output().success();
    for word in ["--memory", "--timeout", "exit code", "125", "126", "127"] {
        assert!(run.contains(word), "no {word} in\n{run}");
    }
    assert!(launcher.command(["--version"]).output().success().starts_with("boxlite-vmm "));
    launcher.command(["no-such-command"]).output().fails_with(&["no-such-command"]);
}

#[test]
fn debug_keeps_the_console_log() {
    let Some(launcher) = Launcher::where_boxes_run("errors::debug_keeps_the_console_log") else {
        return;
    };
    let output = launcher.shell(["--debug"], "true").output().expect(0);
    assert!(output.stderr.contains("ready"), "{}", output.stderr);
    let (mut logs, mut machine_logs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(launcher.home().join("boxes")).unwrap() {
        let path = entry.unwrap().path();
        logs.extend(std::fs::read_to_string(path.join("console.log")));
        machine_logs.extend(std::fs::read_to_string(path.join("machine.log")));
        let _ = std::fs::remove_dir_all(path);
    }
    assert!(logs.iter().any(|log| log.contains("Linux version")), "{logs:?}");
    // The box's process logs more, too.
    assert!(machine_logs.iter().any(|log| log.contains("DEBUG")), "{machine_logs:?}");
}
