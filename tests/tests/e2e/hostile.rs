//! Invalid images: each is refused with an error that names the fault, and leaves nothing behind.

use std::fs;

use boxlite_tests::image::{ImageBuilder, Layer, Layout, digest};
use boxlite_tests::{BUSYBOX, Compression, Launcher, Output};
use tempfile::TempDir;

/// Busybox with this layer on top.
fn with_layer(launcher: &Launcher, layer: Layer) -> (TempDir, Layout) {
    let folder = launcher.folder();
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .layer(layer, Compression::Gzip)
        .write(folder.path());
    (folder, image)
}

fn run(launcher: &Launcher, image: &Layout) -> Output {
    launcher.command(["run", &image.reference(), "true"]).output()
}

#[test]
fn damaged_cut_and_missing_blobs_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let layer = || Layer::new().file("data", 0o644, crate::noise(100_000));

    let (_folder, image) = with_layer(&launcher, layer());
    let mut bytes = fs::read(&image.layers[1]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&image.layers[1], &bytes).unwrap();
    let name = image.layers[1].file_name().unwrap().to_str().unwrap().to_owned();
    run(&launcher, &image).fails_with(&[&name[..12]]);
    // The failed attempt leaves nothing that is used once the image is whole again.
    bytes[middle] ^= 1;
    fs::write(&image.layers[1], &bytes).unwrap();
    run(&launcher, &image).success();

    let (_folder, image) = with_layer(&launcher, layer());
    let bytes = fs::read(&image.layers[1]).unwrap();
    fs::write(&image.layers[1], &bytes[..bytes.len() / 2]).unwrap();
    let name = image.layers[1].file_name().unwrap().to_str().unwrap().to_owned();
    run(&launcher, &image).fails_with(&[&name[..12]]);

    fs::remove_file(&image.layers[1]).unwrap();
    run(&launcher, &image).fails_with(&[&name[..12], "missing"]);
}

#[test]
fn layers_with_another_diff_id_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let tar = noise_tar();
    let other = digest(b"something else");
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
        .raw_layer(&tar, &other, Compression::Zstd)
        .write(folder.path());
    run(&launcher, &image).fails_with(&[&other["sha256:".len()..][..12]]);
}

#[test]
fn layers_that_are_not_a_complete_tar_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let tar = noise_tar();
    let cut = &tar[..700];
    let rubbish = crate::noise(4096);
    for (bytes, words) in [(cut, "truncated"), (&rubbish[..], "not a tar archive")] {
        let folder = launcher.folder();
        let image = ImageBuilder::on(&launcher.layout(BUSYBOX))
            .raw_layer(bytes, &digest(bytes), Compression::Gzip)
            .write(folder.path());
        run(&launcher, &image).fails_with(&[words]);
    }
    // The header of a file without the file's bytes.
    let (_folder, image) = with_layer(&launcher, Layer::new().header_alone("giant", 7 << 30));
    run(&launcher, &image).fails_with(&["giant"]);
}

fn noise_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2000);
    header.set_mode(0o644);
    builder.append_data(&mut header, "data", &crate::noise(2000)[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn entries_outside_of_the_root_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let (_folder, image) = with_layer(&launcher, Layer::new().file("a/../../escape", 0o644, "x"));
    run(&launcher, &image).fails_with(&["a/../../escape"]);
    // A symlink is no way out either: a file written through it is in the image's own root, or refused.
    let layer = Layer::new()
        .symlink("out", "/../../../proc/sys/kernel")
        .file("out/hostname", 0o644, "taken")
        .symlink("etc/other", "/home")
        .file("etc/other/file", 0o644, "x");
    let (_folder, image) = with_layer(&launcher, layer);
    let script = "cat /proc/sys/kernel/hostname; ls -ld /out /etc/other; cat /etc/other/file";
    let output =
        launcher.command(["run", "--rm", "--name", "mine", &image.reference(), "sh", "-c", script]);
    let output = output.output();
    if output.code == Some(125) {
        assert!(output.stderr.contains("out/hostname"), "{}", output.stderr);
    } else {
        let text = output.success();
        assert!(text.starts_with("mine\n") && text.ends_with('x'), "{text}");
    }
}

#[test]
fn images_for_another_architecture_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let ours = boxlite_tests::image::oci_architecture();
    let other = if ours == "amd64" { "arm64" } else { "amd64" };
    let folder = launcher.folder();
    let image =
        ImageBuilder::on(&launcher.layout(BUSYBOX)).architecture(other).write(folder.path());
    run(&launcher, &image).fails_with(&[other, ours]);
}

#[test]
fn folders_that_are_not_an_oci_layout_are_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let reference = format!("oci:{}", folder.path().display());
    let run = || launcher.command(["run", &reference, "true"]).output();
    run().fails_with(&["oci-layout"]);
    let image = ImageBuilder::on(&launcher.layout(BUSYBOX)).write(folder.path());
    for rubbish in ["", "{", r#"{"schemaVersion":2,"manifests":[{}]}"#, "[[[["] {
        fs::write(folder.path().join("index.json"), rubbish).unwrap();
        run().fails_with(&["index.json"]);
    }
    let tagged = launcher.command(["run", &format!("{}:nope", image.reference()), "true"]);
    tagged.output().expect(125);
}

#[test]
fn an_image_without_layers_or_without_a_command_is_refused() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let empty = ImageBuilder::empty().write(folder.path());
    let output = launcher.command(["run", &empty.reference(), "sh"]).output();
    assert!(matches!(output.code, Some(125 | 127)), "{output:?}");
    assert!(!output.stderr.is_empty());
    let folder = launcher.folder();
    let silent = ImageBuilder::on(&launcher.layout(BUSYBOX)).write(folder.path());
    launcher.command(["run", &silent.reference()]).output().fails_with(&["no command"]);
}
