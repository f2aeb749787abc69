//! Images from a registry: a real docker-registry on this machine, filled by skopeo.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use boxlite_tests::image::{Compression, ImageBuilder, Layer, oci_architecture, write_index};
use boxlite_tests::{BUSYBOX, Launcher};

/// A docker-registry, killed when dropped.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts one. None, after printing `SKIPPED`, if docker-registry or skopeo is not installed.
    fn start(folder: &Path) -> Option<Self> {
        for tool in ["docker-registry", "skopeo"] {
            if Command::new(tool).arg("--version").output().is_err() {
                println!("SKIPPED: {tool} is not installed");
                return None;
            }
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (config, log) = (folder.join("config.yml"), folder.join("registry.log"));
        let data = folder.join("data");
        let text = format!(
            "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ addr: '127.0.0.1:{port}', secret: none }}\n",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let registry = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Its address, seen from where images are pulled, and a file with the settings for it.
    fn reach(&self, launcher: &Launcher, folder: &Path) -> (String, PathBuf) {
        let host = if launcher.has_hardware() { "127.0.0.1" } else { "10.0.2.2" };
        let address = format!("{host}:{}", self.port);
        let settings = folder.join("registries.json");
        fs::write(&settings, format!("{{ {address:?}: {{ \"insecure\": true }} }}")).unwrap();
        (address, settings)
    }

    /// Copies an image, or all images of an index, into it.
    fn push(&self, from: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--all", "--dest-tls-verify=false", from]);
        let status = command.arg(format!("docker://127.0.0.1:{}/{name}", self.port)).status();
        assert!(status.unwrap().success(), "{name} cannot be pushed");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn boxes_run_images_of_a_registry() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let Some(registry) = Registry::start(folder.path()) else { return };
    let image = |mark: &str| {
        ImageBuilder::on(&launcher.layout(BUSYBOX))
            .layer(Layer::new().file("mark", 0o644, mark), Compression::Gzip)
            .write(&folder.path().join(mark))
            .reference()
    };
    registry.push(&image("first"), "team/tool:v1");
    let (address, settings) = registry.reach(&launcher, folder.path());
    let command = |args: &[&str]| launcher.command(args).env("BOXLITE_REGISTRIES", &settings);

    let name = format!("{address}/team/tool:v1");
    command(&["run", "--pull", "never", &name, "true"]).output().fails_with(&[&name]);
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "first");
    assert!(command(&["image", "ls"]).output().success().contains("team/tool"));
    // A moved tag is used only with `--pull always`.
    registry.push(&image("second"), "team/tool:v1");
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "first");
    let always = ["run", "--pull", "always", &name, "cat", "/mark"];
    assert_eq!(command(&always).output().success(), "second");

    let missing = format!("{address}/team/tool:v2");
    command(&["image", "pull", &missing]).output().refuses_with(&[&address, "v2"]);
    drop(registry);
    assert_eq!(command(&["run", &name, "cat", "/mark"]).output().success(), "second");
    command(&always).output().fails_with(&[&address]);
    command(&["image", "rm", &name]).output().success();
}

/// An image for the architecture of boxes, for the other one, and for 32-bit ARM; on arm64, with the variant that other
/// tools write or leave out.
fn for_many_platforms(launcher: &Launcher, folder: &Path, own: Option<&str>) -> String {
    // Tests share a home, and an image that a box of another test uses is not removed.
    let unique = folder.display().to_string();
    let image = |mark: &str| {
        let layer = Layer::new().file("mark", 0o644, mark).file("folder", 0o644, &unique);
        ImageBuilder::on(&launcher.layout(BUSYBOX)).layer(layer, Compression::Gzip)
    };
    let foreign = image("foreign").architecture(other_architecture());
    let arm = image("32 bits").architecture("arm").variant("v7");
    let own = own.map(|variant| match variant {
        "" => image("own"),
        variant => image("own").variant(variant),
    });
    write_index(folder, [foreign, arm].into_iter().chain(own))
}

fn other_architecture() -> &'static str {
    if oci_architecture() == "amd64" { "arm64" } else { "amd64" }
}

#[test]
fn a_box_has_the_platform_that_was_asked_for() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let (own, other) = (oci_architecture(), other_architecture());
    let mark = |platform: &str, image: &str| {
        let words = ["run", "--platform", platform, image, "cat", "/mark"];
        launcher.command(words).output()
    };
    let least = if own == "arm64" { "v8" } else { "v1" };
    for variant in ["", least] {
        let name = format!("index-{variant}");
        let image = for_many_platforms(&launcher, &folder.path().join(name), Some(variant));
        let plain = launcher.command(["run", &image, "cat", "/mark"]).output();
        assert_eq!(plain.success(), "own");
        for platform in [format!("linux/{own}"), format!("linux/{own}/{least}")] {
            assert_eq!(mark(&platform, &image).success(), "own", "{platform} of {variant:?}");
        }
    }
    let image = for_many_platforms(&launcher, &folder.path().join("refused"), Some(""));
    let foreign = format!("linux/{other}");
    let advice = ["BOXLITE_SOFTHOST_LAUNCHER", "docs/aarch64.md", &foreign];
    mark(&foreign, &image).fails_with(&advice);
    launcher.command(["create", "--platform", &foreign, &image]).output().refuses_with(&advice);
    for unknown in [format!("windows/{own}"), "linux/arm/v7".into(), "linux/riscv64".into()] {
        mark(&unknown, &image).fails_with(&[&unknown, "linux/amd64 and linux/arm64"]);
    }
    mark("arm64", &image).fails_with(&["--platform", "OS/ARCHITECTURE"]);

    let without = for_many_platforms(&launcher, &folder.path().join("without"), None);
    mark(&format!("linux/{own}"), &without).fails_with(&[&foreign, "linux/arm/v7", own]);
}

#[test]
fn a_platform_is_pulled() {
    let Some(launcher) = Launcher::find() else { return };
    let folder = launcher.folder();
    let Some(registry) = Registry::start(folder.path()) else { return };
    let least = if oci_architecture() == "arm64" { "v8" } else { "v1" };
    let with = for_many_platforms(&launcher, &folder.path().join("with"), Some(least));
    registry.push(&with, "many:with");
    let without = for_many_platforms(&launcher, &folder.path().join("without"), None);
    registry.push(&without, "many:without");
    let (address, settings) = registry.reach(&launcher, folder.path());
    let own = format!("linux/{}", oci_architecture());
    let pull = |platform: &str, tag: &str| {
        let name = format!("{address}/many:{tag}");
        let words = ["image", "pull", "-q", "--platform", platform, &name];
        launcher.command(words).env("BOXLITE_REGISTRIES", &settings).output()
    };
    let name = pull(&own, "with").success();
    let run = ["run", "--pull", "never", "--platform", &own, &name, "cat", "/mark"];
    assert_eq!(launcher.command(run).output().success(), "own");
    let other = format!("linux/{}", other_architecture());
    pull(&other, "with").refuses_with(&[&other, "BOXLITE_SOFTHOST_LAUNCHER"]);
    pull(&own, "without").refuses_with(&[&other, "linux/arm/v7"]);
    launcher.command(["image", "rm", &name]).output().success();
}
