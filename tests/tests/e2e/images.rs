//! Images: configuration, layers, sources, and the image store.

use std::process::Command;
use std::time::Duration;

use boxlite_tests::image::{ImageBuilder, Layer};
use boxlite_tests::{BUSYBOX, Compression, Launcher, Sandbox, unique};
use serde_json::json;

use crate::noise;

#[test]
fn the_images_configuration_is_honoured() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:321:654:app:/home/app:/bin/sh\n";
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(Layer::new().file("etc/passwd", 0o644, passwd), Compression::Gzip)
        .config("Env", json!(["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"]))
        .config("WorkingDir", json!("/srv/made"))
        .config("User", json!("app"))
        .config(
            "Entrypoint",
            json!(["sh", "-c", "echo $(id -u):$(id -g) $(pwd) $HOME $FROM_IMAGE $BOTH $*", "--"]),
        )
        .config("Cmd", json!(["default", "words"]))
        .write(folder.path())
        .reference();
    let run = |options: &[&str], args: &[&str]| {
        launcher.command(["run"]).args(options).args([&image]).args(args).output().success()
    };
    assert_eq!(run(&[], &[]), "321:654 /srv/made /home/app yes image default words");
    assert_eq!(
        run(&["-u", "0", "-w", "/tmp", "-e", "BOTH=ours"], &["x"]),
        "0:0 /tmp /root yes ours x"
    );
    assert_eq!(run(&["--entrypoint", "id"], &["-u"]), "321");
}

#[test]
fn volumes_health_checks_signals_and_files_of_an_image_are_honoured() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:321:654::/:/bin/sh\n";
    let lower = Layer::new()
        .file("etc/passwd", 0o644, passwd)
        .file("etc/hosts", 0o644, "10.9.8.7 db\n")
        .file("etc/hostname", 0o644, "where-it-was-built\n")
        .attributes(&[("com.apple.quarantine", b"0081;5f5e100")])
        .file("plain", 0o644, "lower");
    let script =
        "test $(hostname) = $HOSTNAME && test $(cat /etc/hostname) = $HOSTNAME && echo named
        grep -c -w localhost /etc/hosts; readlink /etc/mtab; cat /plain/inside
        stat -c %u:%g:%a /var/lib/made; timeout 1 nc -l -p 80; test $? -gt 1 && echo listened
        trap 'exit 9' 61; echo ready; while :; do sleep 0.1; done";
    let health = json!({ "Test": ["CMD-SHELL", "echo fine"], "Interval": 1_000_000_000 });
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(lower, Compression::Gzip)
        .layer(Layer::new().file("plain/inside", 0o644, "upper\n"), Compression::None)
        .config("User", json!("app"))
        .config("Entrypoint", json!([""]))
        .config("Cmd", json!(["sh", "-c", script]))
        .config("Volumes", json!({ "/var/lib/made": {}, "/plain": {} }))
        .config("StopSignal", json!("SIGRTMAX-3"))
        .config("Healthcheck", health)
        .write(folder.path())
        .reference();
    let sandbox = Sandbox::named(&launcher, unique("surroundings"));
    let options = ["run", "--memory", "192M", "--name", sandbox.name(), &image];
    let mut run = launcher.command(options).spawn();
    run.wait_for("ready");
    let expected = "named\n2\n/proc/mounts\nupper\n0:0:755\nlistened\nready\n";
    assert_eq!(run.stdout_so_far(), expected);
    let status = |info: &serde_json::Value| info["health"]["status"].as_str() == Some("healthy");
    sandbox.wait_until("healthy", status);

    // A tar may be compressed.
    let tar =
        Layer::new().attributes(&[("com.apple.macl", b"x")]).file("unpacked", 0o644, "from a tar");
    let tar = tar.compressed(Compression::Gzip);
    let place = format!("{}:/", sandbox.name());
    launcher.command(["cp", "-", &place]).stdin(tar).output().success();
    assert_eq!(sandbox.shell("cat /unpacked"), "from a tar");

    sandbox.on(["stop"]).output().success();
    run.wait().expect(9);
}

#[test]
fn layers_are_applied_by_the_rules_of_oci() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let lower = Layer::new()
        .dir("a/", 0o755)
        .file("a/deleted", 0o644, "x")
        .file("a/replaced", 0o644, "old")
        .file("a/kept", 0o640, "kept")
        .dir("opaque/", 0o755)
        .dir("opaque/sub/", 0o755)
        .file("opaque/hidden", 0o644, "x")
        .file("opaque/sub/hidden", 0o644, "x")
        .dir("tree/", 0o755)
        .file("tree/leaf", 0o644, "x")
        .file("was-file", 0o644, "x")
        .dir("was-dir/", 0o755)
        .file("was-dir/leaf", 0o644, "x")
        .file("linked", 0o644, "shared")
        .hard_link("linked-too", "linked");
    let upper = Layer::new()
        .file("a/.wh.deleted", 0o644, "")
        .file("a/replaced", 0o600, "new")
        // An opaque marker does not hide entries of its own layer, before or after it.
        .file("opaque/before", 0o644, "before")
        .file("opaque/.wh..wh..opq", 0o644, "")
        .file("opaque/after", 0o644, "after")
        .file(".wh.tree", 0o644, "")
        .dir("was-file/", 0o755)
        .file("was-file/leaf", 0o644, "leaf")
        .file("was-dir", 0o644, "now a file")
        .file("linked", 0o644, "changed");
    let top = Layer::new().file("a/deleted", 0o644, "back again");
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(lower, Compression::None)
        .layer(upper, Compression::Zstd)
        .layer(top, Compression::Gzip)
        .write(folder.path())
        .reference();
    let script = "cd /; ls -A a opaque was-file; cat a/*; echo; cat was-dir linked linked-too; echo
        ls -d tree .wh* a/.wh* opaque/.wh* 2>/dev/null; stat -c %a a/replaced a/kept";
    let output = launcher.command(["run", &image, "sh", "-c", script]).output().success();
    let expected = "a:\ndeleted\nkept\nreplaced\n\nopaque:\nafter\nbefore\n\nwas-file:\nleaf\n\
                    back againkeptnew\nnow a filechangedshared\n600\n640";
    assert_eq!(output, expected);
}

#[test]
fn every_kind_of_entry_is_unpacked_unchanged() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let data = noise(1024);
    let layer = Layer::new()
        .file_of("owned", (1234, 5678), "x")
        .file("bin/setuid", 0o4755, "x")
        .symlink("absolute", "/etc/passwd")
        .symlink("dangling", "/nowhere/at/all")
        .symlink("relative", "../../../../etc/group")
        .dir("dir/", 0o1777)
        .file("dir/original", 0o644, "shared")
        .hard_link("dir/again", "dir/original")
        .device("dir/null", 1, 3)
        .attributes(&[("user.note", b"a\0b")])
        .file("dir/noted", 0o644, "")
        .sparse("dir/sparse", 1 << 30, 1 << 20, &data)
        .file("dir/twice", 0o644, "first")
        .file("dir/twice", 0o600, "second")
        .file("made/on/the/way", 0o644, "x")
        .file("./dotted", 0o644, "x")
        .file("/rooted", 0o644, "x");
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(layer, Compression::Gzip)
        .write(folder.path())
        .reference();
    let script = r#"cd /
        stat -c %u:%g owned; stat -c %a bin/setuid dir
        for link in absolute dangling relative; do readlink $link; done; head -c 5 absolute; echo
        stat -c %h dir/again; echo more >> dir/again; cat dir/original
        stat -c '%F %t:%T' dir/null
        stat -c '%s' dir/sparse; test $(stat -c %b dir/sparse) -lt 100 && echo holes
        dd if=dir/sparse bs=1024 skip=1024 count=1 2>/dev/null | sha256sum
        stat -c %a dir/twice; cat dir/twice; echo; cat made/on/the/way dotted rooted; echo
        stat -c %Y owned"#;
    let output = launcher.command(["run", &image, "sh", "-c", script]).output().success();
    let sum = boxlite_tests::image::digest(&data);
    let expected = format!(
        "1234:5678\n4755\n1777\n/etc/passwd\n/nowhere/at/all\n../../../../etc/group\nroot:\n2\n\
         sharedmore\ncharacter special file 1:3\n1073741824\nholes\n{}  -\n600\nsecond\nxxx\n1000000000",
        &sum["sha256:".len()..]
    );
    assert_eq!(output, expected);
}

#[test]
fn a_folder_and_an_archive_are_images() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::create_dir(root.join("bin")).unwrap();
    std::fs::write(root.join("etc/motto"), "made by hand\n").unwrap();
    std::os::unix::fs::symlink("motto", root.join("etc/link")).unwrap();
    let busybox = launcher.command(["run", &launcher.image(BUSYBOX), "cat", "/bin/busybox"]);
    let program = busybox.output().expect(0).stdout;
    for name in ["sh", "cat"] {
        use std::os::unix::fs::PermissionsExt;
        let path = root.join("bin").join(name);
        std::fs::write(&path, &program).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let rootfs = format!("rootfs:{}", root.display());
    let output = launcher.command(["run", &rootfs, "/bin/cat", "/etc/link"]).output().success();
    assert_eq!(output, "made by hand");
    // The next run sees what has changed since.
    std::fs::write(root.join("etc/motto"), "changed\n").unwrap();
    let output = launcher.command(["run", &rootfs, "/bin/cat", "/etc/link"]).output().success();
    assert_eq!(output, "changed");

    let file = folder.path().join("image.tar");
    let archive = format!("docker-archive:{}", file.display());
    let copied = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", &launcher.image(BUSYBOX)])
        .arg(format!("{archive}:made/for:test"))
        .output();
    match copied {
        Ok(copied) => {
            assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
            let output = launcher.command(["run", &archive, "echo", "hi"]).output().success();
            assert_eq!(output, "hi");
        }
        Err(_) => println!("SKIPPED: docker-archive: skopeo is not installed"),
    }
}

#[test]
fn images_are_imported_listed_and_removed() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(Layer::new().file("mark", 0o644, "imported"), Compression::Gzip)
        .write(&folder.path().join("layout"));
    launcher.command(["image", "import", &image.reference(), "kept"]).output().success();
    // An import is a copy: its source may be removed.
    drop(folder);
    let list = || launcher.command(["image", "ls"]).output().success();
    let lists =
        |name: &str| list().lines().any(|line| line.split_whitespace().next() == Some(name));
    let name = list()
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .find(|name| name.contains("kept"))
        .expect("image ls does not list it");
    let run = || launcher.command(["run", "kept", "cat", "/mark"]).output();
    assert_eq!(run().success(), "imported");
    launcher.command(["image", "rm", "kept"]).output().success();
    assert!(!lists(&name), "{}", list());
    // No registry has the image either.
    run().fails_with(&["kept"]);
    launcher.command(["image", "rm", "kept"]).output().refuses_with(&["kept"]);
}

#[test]
fn saved_images_can_be_loaded_and_run() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(Layer::new().file("mark", 0o644, "saved"), Compression::Gzip)
        .write(&folder.path().join("a:b"));
    let image_command = |args: &[&str]| launcher.command([&["image"], args].concat());
    let reference = image.reference();
    image_command(&["import", &reference, "to-save:1"]).output().success();
    // From a path with a colon, and from a stream.
    let file = folder.path().join("saved:1.tar");
    let file = file.to_str().unwrap();
    image_command(&["save", "-o", file, "to-save:1"]).output().success();
    let stream = image_command(&["save", "to-save:1"]).output().expect(0).stdout;
    image_command(&["import", &format!("docker-archive:{file}"), "again"]).output().success();
    image_command(&["rm", "again"]).output().success();
    for load in [image_command(&["load", "-i", file]), image_command(&["load"]).stdin(stream)] {
        image_command(&["rm", "to-save:1"]).output().success();
        assert!(load.output().success().starts_with("to-save:1 sha256:"));
        let run = ["run", "--pull", "never", "to-save:1", "cat", "/mark"];
        assert_eq!(launcher.command(run).output().success(), "saved");
    }
    image_command(&["load"]).stdin("no archive").output().refuses_with(&["damaged"]);
    image_command(&["rm", "to-save:1"]).output().success();
}

#[test]
fn processes_that_need_the_same_disk_make_it_once() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(Layer::new().file("big", 0o644, noise(4 << 20)), Compression::Gzip)
        .write(folder.path())
        .reference();
    let runs: Vec<_> = (0..3)
        .map(|n| {
            let script = format!("stat -c %s /big; echo {n}");
            let run = launcher.command(["run", &image, "sh", "-c", &script]);
            run.deadline(Duration::from_secs(400)).spawn()
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        assert_eq!(run.wait().success(), format!("{}\n{n}", 4 << 20));
    }
}

#[test]
fn a_new_or_changed_layout_is_used() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let reference = format!("oci:{}", folder.path().join("layout").display());
    let run = || launcher.command(["run", &reference, "cat", "/version"]).output();
    run().fails_with(&["layout"]);
    for version in ["one", "two"] {
        ImageBuilder::on(&launcher.layout(BUSYBOX))
            .layer(Layer::new().file("version", 0o644, version), Compression::Gzip)
            .write(&folder.path().join("layout"));
        assert_eq!(run().success(), version);
    }
}
