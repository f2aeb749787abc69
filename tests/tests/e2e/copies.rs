//! Files between boxes and this machine.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use boxlite_tests::{Launcher, Sandbox, is_long};

use crate::noise;

const DEADLINE: Duration = Duration::from_secs(900);

/// A tree with every kind of file.
fn make_tree(root: &Path, files: usize, sparse: u64) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("deep/binary"), noise(300_000)).unwrap();
    fs::write(root.join("deep/er/script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(root.join("deep/er/script"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join("with space and ü"), "named").unwrap();
    symlink("deep/binary", root.join("link")).unwrap();
    symlink("/no/where", root.join("dangling")).unwrap();
    fs::hard_link(root.join("deep/binary"), root.join("hard")).unwrap();
    let mut file = File::create(root.join("sparse")).unwrap();
    file.set_len(sparse).unwrap();
    file.seek(SeekFrom::Start(sparse / 2)).unwrap();
    file.write_all(b"in the middle").unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for n in 0..files {
        fs::write(root.join(format!("many/{n}")), format!("file {n}")).unwrap();
    }
}

#[test]
fn a_tree_is_copied_in_and_back_unchanged() {
    let Some(launcher) = Launcher::find() else { return };
    let (files, sparse) = if is_long() { (10_000, 2 << 30) } else { (500, 256 << 20) };
    let folder = launcher.folder();
    let tree = folder.path().join("tree");
    make_tree(&tree, files, sparse);
    let sandbox = Sandbox::idle(&launcher, "tree", &[]);
    let place = |path: &str| format!("{}:{path}", sandbox.name());
    let cp = |from: &str, to: &str| {
        launcher.command(["cp", from, to]).deadline(DEADLINE).output().success()
    };
    let there = tree.display().to_string();
    cp(&there, &place("/root/tree"));
    let script = "cd /root/tree && ls many | wc -l && deep/er/script && stat -c %a deep/er/script && \
                  readlink link && readlink dangling && cmp hard deep/binary && stat -c %h hard && \
                  cat 'with space and ü' && echo && ls empty | wc -l && stat -c %s sparse && \
                  test $(du -k sparse | cut -f 1) -lt 1000 && \
                  dd if=sparse bs=1 skip=$(($(stat -c %s sparse) / 2)) count=13 2> /dev/null";
    let expected =
        format!("{files}\nran\n751\ndeep/binary\n/no/where\n2\nnamed\n0\n{sparse}\nin the middle");
    assert_eq!(sandbox.shell(script), expected);
    // Into an existing folder, under its own name.
    let back = folder.path().join("back");
    fs::create_dir(&back).unwrap();
    cp(&place("/root/tree"), &back.display().to_string());
    let back = back.join("tree");
    assert_eq!(fs::read(back.join("deep/binary")).unwrap(), noise(300_000));
    let script = fs::metadata(back.join("deep/er/script")).unwrap();
    assert_eq!(script.permissions().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(back.join("dangling")).unwrap(), Path::new("/no/where"));
    let (hard, binary) = (back.join("hard"), back.join("deep/binary"));
    assert_eq!(fs::metadata(hard).unwrap().ino(), fs::metadata(binary).unwrap().ino());
    assert_eq!(fs::read_dir(back.join("many")).unwrap().count(), files);
    assert!(fs::read_dir(back.join("empty")).unwrap().next().is_none());
    let copy = fs::metadata(back.join("sparse")).unwrap();
    assert_eq!(copy.len(), sparse);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks: the holes were filled", copy.blocks());

    // One file, under another name, over an existing one.
    let one = folder.path().join("one");
    fs::write(&one, "first").unwrap();
    let one = one.display().to_string();
    cp(&one, &place("/tmp/other"));
    fs::write(&one, "second").unwrap();
    cp(&one, &place("/tmp/other"));
    cp(&one, &place("/tmp"));
    assert_eq!(sandbox.shell("cat /tmp/other; echo; cat /tmp/one"), "second\nsecond");

    // As a tar, through pipes.
    let tar = launcher.command(["cp", &place("/root/tree/deep"), "-"]).output().expect(0).stdout;
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
    let names: Vec<_> = entries.map(|entry| entry.path().unwrap().into_owned()).collect();
    assert!(names.iter().any(|name| name == Path::new("deep/er/script")), "{names:?}");
    sandbox.shell("mkdir /piped");
    launcher.command(["cp", "-", &place("/piped")]).stdin(tar).output().success();
    assert_eq!(sandbox.shell("/piped/deep/er/script"), "ran");

    // An error names the file or box.
    let fails = |from: &str, to: &str, parts: &[&str]| {
        launcher.command(["cp", from, to]).output().refuses_with(parts);
    };
    fails(&place("/no/such"), &one, &["/no/such"]);
    fails("/no/such", &place("/tmp"), &["/no/such"]);
    fails(&one, &place("/no/such/folder/x"), &["/no/such/folder"]);
    fails("no-such-box:/etc", &one, &["no-such-box"]);
    fails(&one, "./two", &["box"]);
    sandbox.on(["stop", "-t", "1"]).output().success();
    fails(&one, &place("/tmp/x"), &[sandbox.name(), "start"]);
}
