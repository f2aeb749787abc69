//! Images made by common tools: umoci, skopeo.

use std::fs;
use std::process::Command;

use crate::support::*;

/// A busybox image in a layout of its own, made by umoci; none without the tools.
fn busybox_layout(fixture: &Fixture) -> Option<String> {
    if !["skopeo", "umoci", "busybox"].into_iter().all(has_tool) {
        return None;
    }
    let rootfs = fixture.path("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
    let layout = fixture.path("oci");
    let image = format!("{}:tagged", layout.display());
    let umoci = |args: &[&str]| run(Command::new("umoci").args(args));
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    umoci(&[
        "insert",
        "--rootless",
        "--image",
        &image,
        rootfs.join("bin").to_str().unwrap(),
        "/bin",
    ]);
    let hello = fixture.path("hello");
    fs::write(&hello, "hello\n").unwrap();
    umoci(&["insert", "--rootless", "--image", &image, hello.to_str().unwrap(), "/etc/hello"]);
    umoci(&[
        "config",
        "--image",
        &image,
        "--config.cmd",
        "/bin/sh",
        "--config.env",
        "A=b",
        "--config.workingdir",
        "/etc",
        "--config.user",
        "1000:1000",
        "--config.stopsignal",
        "SIGINT",
    ]);
    Some(format!("oci:{image}"))
}

fn copy(from: &str, to: &str, options: &[&str]) {
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q"])
        .args(options)
        .args([from, to]));
}

fn check_members(disk: &[u8]) {
    let busybox = fs::read("/bin/busybox").unwrap();
    // The layers are concatenated: the tar of each ends with zeros.
    let mut archive = tar::Archive::new(disk);
    archive.set_ignore_zeros(true);
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        found.push((entry.path().unwrap().display().to_string(), content));
    }
    let content = |wanted: &str| found.iter().find(|(path, _)| path == wanted).map(|(_, c)| c);
    assert!(content("bin/busybox") == Some(&busybox));
    assert_eq!(content("etc/hello").map(Vec::as_slice), Some(&b"hello\n"[..]));
}

#[test]
fn the_same_image_in_every_form() {
    let fixture = Fixture::new();
    let Some(layout) = busybox_layout(&fixture) else { return };
    let image = fixture.resolve(&layout).unwrap();
    let config = image.config();
    assert_eq!(config.cmd, ["/bin/sh"]);
    assert!(config.env.contains(&"A=b".to_owned()));
    assert_eq!((&*config.working_dir, &*config.user), ("/etc", "1000:1000"));
    assert_eq!((&*config.stop_signal, &*config.architecture), ("SIGINT", HOST));
    check_members(&fixture.build(&layout).unwrap());

    let target = |name: &str| fixture.path(name).display().to_string();
    let forms = [
        (
            format!("oci:{}:v1", target("zstd")),
            &["--dest-compress-format", "zstd", "--dest-compress"][..],
        ),
        (format!("oci:{}:v1", target("docker2oci")), &[]),
        (format!("docker-archive:{}:busybox:v1", target("saved.tar")), &[]),
    ];
    for (form, options) in forms {
        copy(&layout, &form, options);
        let other = fixture.resolve(&form).unwrap();
        assert_eq!(other.chain_id(), image.chain_id(), "{form}");
        assert_eq!(other.config().cmd, ["/bin/sh"]);
        let builder = Concatenate { key: form.clone(), ..Default::default() };
        let disk = fixture.store().disk(&other, &builder, &boxlite_rootfs_builder::Silent).unwrap();
        check_members(&fs::read(disk.path()).unwrap());
    }
    // A layout in a tar, and compressed archives.
    let archive = target("archive.tar");
    copy(&layout, &format!("oci-archive:{archive}:v1"), &[]);
    let form = format!("docker-archive:{archive}:v1");
    assert_eq!(fixture.resolve(&form).unwrap().chain_id(), image.chain_id());
    run(Command::new("gzip").arg(target("saved.tar")));
    let form = format!("docker-archive:{}", target("saved.tar.gz"));
    assert_eq!(fixture.resolve(&form).unwrap().chain_id(), image.chain_id());
}

#[test]
fn an_image_for_another_architecture_names_both() {
    let fixture = Fixture::new();
    let Some(layout) = busybox_layout(&fixture) else { return };
    let image = layout.strip_prefix("oci:").unwrap();
    run(Command::new("umoci").args(["config", "--image", image, "--architecture", FOREIGN]));
    let error = fixture.resolve(&layout).unwrap_err().to_string();
    assert!(error.contains(FOREIGN) && error.contains(HOST), "{error}");
}
